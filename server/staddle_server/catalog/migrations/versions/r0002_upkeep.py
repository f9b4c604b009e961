"""Purging, retention, holds, collection, scrubbing, several servers."""

import sqlalchemy as sa
from alembic import op

revision = "r0002"
down_revision = "r0001"

ROW = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
NAME = sa.String().with_variant(sa.String(collation="C"), "postgresql")
ID = sa.LargeBinary(16)
DIGEST = sa.LargeBinary(32)


def upgrade() -> None:
    """Add columns and tables."""
    for table, columns in _columns().items():
        for column in columns:
            op.add_column(table, column)
    for name, table, key, where in (
        ("backups_deleted", "backups", "deleted_ns", "deleted_ns IS NOT NULL"),
        ("packs_condemned", "packs", "condemned_ns", "state = 3"),
        ("packs_without_parity", "packs", "row", "state = 2 AND parity_bytes = 0"),
        ("packs_locked", "packs", "locked_until_ns", "state = 2"),
    ):
        op.create_index(
            name, table, [key], unique=False, sqlite_where=sa.text(where), postgresql_where=sa.text(where)
        )
    op.create_table(
        "marks",
        sa.Column("number", ROW, autoincrement=True, nullable=False),
        sa.Column("tenant", ROW, nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("begun_ns", sa.BigInteger(), nullable=False),
        sa.Column("ended_ns", sa.BigInteger()),
        sa.Column("report", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.row"]),
        sa.PrimaryKeyConstraint("number"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "mark_roots",
        sa.Column("mark", ROW, nullable=False),
        sa.Column("backup", ID, nullable=False),
        sa.Column("upload", ID, nullable=False),
        sa.Column("root_level", sa.SmallInteger(), nullable=False),
        sa.Column("root_digest", DIGEST, nullable=False),
        sa.Column("entry_count", sa.BigInteger(), nullable=False),
        sa.Column("data_bytes", sa.BigInteger(), nullable=False),
        sa.Column("walked", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["mark"], ["marks.number"]),
        sa.PrimaryKeyConstraint("mark", "backup"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "mark_packs",
        sa.Column("mark", ROW, nullable=False),
        sa.Column("pack", ROW, nullable=False),
        sa.Column("reached", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["mark"], ["marks.number"]),
        sa.PrimaryKeyConstraint("mark", "pack"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "collections",
        sa.Column("tenant", ROW, nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("number", "begun_ns", "ended_ns")),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("figures", "failure")),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.row"]),
        sa.PrimaryKeyConstraint("tenant", "number"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "orphans",
        sa.Column("name", NAME, nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("seen_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "removed_records",
        sa.Column("tenant", ROW, nullable=False),
        sa.Column("id", ID, nullable=False),
        sa.Column("removed_ns", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.row"]),
        sa.PrimaryKeyConstraint("tenant", "id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "tasks",
        sa.Column("name", NAME, nullable=False),
        sa.Column("begun_ns", sa.BigInteger()),
        sa.Column("ended_ns", sa.BigInteger()),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False, server_default=sa.text("''")),
        sa.Column("fence", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("expires_ns", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "settings",
        sa.Column("name", NAME, nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.Column("since_ns", sa.BigInteger(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "clock",
        sa.Column("boot", NAME, nullable=False),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ("number", "offset_ns", "uptime_ns", "seen_ns", "jump_ns", "waited_ns")
        ),
        sa.PrimaryKeyConstraint("boot"),
    )
    op.create_table(
        "generation",
        sa.Column("row", ROW, nullable=False),
        sa.Column("current", sa.Text(), nullable=False),
        sa.Column("birth_ns", sa.BigInteger()),
        sa.Column("intended", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("row"),
    )
    op.create_table(
        "servers",
        sa.Column("id", ID, nullable=False),
        *(
            sa.Column(name, sa.Text(), nullable=False)
            for name in ("place", "name", "endpoint", "version", "process")
        ),
        sa.Column("started_ns", sa.BigInteger(), nullable=False),
        sa.Column("beat_ns", sa.BigInteger(), nullable=False),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )


def _columns() -> dict[str, list[sa.Column[object]]]:
    def number(name: str, default: int) -> sa.Column[object]:
        return sa.Column(name, sa.BigInteger(), nullable=False, server_default=sa.text(str(default)))

    def words(name: str) -> sa.Column[object]:
        return sa.Column(name, sa.Text(), nullable=False, server_default=sa.text("''"))

    def time(name: str) -> sa.Column[object]:
        return sa.Column(name, sa.BigInteger())

    return {
        "tenants": [
            number("grace_s", 604800),
            sa.Column("gc_waits", sa.Boolean(), nullable=False, server_default=sa.text("FALSE")),
            words("gc_failure"),
        ],
        "datasets": [
            number("min_retention_s", 0),
            time("hold_ns"),
            words("hold_reason"),
            words("policy"),
            number("policy_ns", 0),
            words("applied_plan"),
            number("applied_ns", 0),
        ],
        "backups": [time("purged_ns"), number("retain_until_ns", 0), time("hold_ns"), words("hold_reason")],
        "pending_records": [sa.Column("purges", ID)],
        "packs": [
            time("condemned_ns"),
            time("verified_ns"),
            time("tried_ns"),
            number("parity_bytes", 0),
            number("locked_until_ns", 0),
        ],
    }
