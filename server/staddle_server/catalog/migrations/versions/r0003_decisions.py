"""The time of the newest decision, so that each is later than the one before it."""

import sqlalchemy as sa
from alembic import op

revision = "r0003"
down_revision = "r0002"


def upgrade() -> None:
    """Add a column."""
    op.add_column(
        "tenants", sa.Column("decided_ns", sa.BigInteger(), nullable=False, server_default=sa.text("0"))
    )
