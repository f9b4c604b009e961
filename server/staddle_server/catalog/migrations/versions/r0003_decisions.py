"""The time of the newest decision, so that each is later than the one before it; and replication."""

import sqlalchemy as sa
from alembic import op

revision = "r0003"
down_revision = "r0002"

ROW = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
NAME = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade() -> None:
    """Add a column and tables."""
    op.add_column(
        "tenants", sa.Column("decided_ns", sa.BigInteger(), nullable=False, server_default=sa.text("0"))
    )
    op.create_table(
        "replicas",
        sa.Column("row", ROW, autoincrement=True, nullable=False),
        sa.Column("place", NAME, nullable=False),
        *(sa.Column(name, sa.BigInteger()) for name in ("begun_ns", "whole_ns", "compared_ns")),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("row"),
        sa.UniqueConstraint("place"),
    )
    _of_a_replica(
        "replica_tenants",
        "tenant",
        sa.Column("tenant", ROW, nullable=False),
        sa.Column("keys_version", sa.Integer(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.row"]),
    )
    _of_a_replica(
        "replica_packs",
        "pack",
        sa.Column("pack", ROW, nullable=False),
        sa.Column("parity_bytes", sa.BigInteger(), nullable=False),
    )
    _of_a_replica(
        "replica_gone",
        "name",
        sa.Column("name", NAME, nullable=False),
        sa.Column("seen_ns", sa.BigInteger(), nullable=False),
        sa.Column("listed", sa.Boolean(), nullable=False),
    )


def _of_a_replica(table: str, key: str, *rest: sa.Column[object] | sa.Constraint) -> None:
    op.create_table(
        table,
        sa.Column("replica", ROW, nullable=False),
        *rest,
        sa.ForeignKeyConstraint(["replica"], ["replicas.row"]),
        sa.PrimaryKeyConstraint("replica", key),
        sqlite_with_rowid=False,
    )
