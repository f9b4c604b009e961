"""The time of the newest decision, so that each is later than the one before it; replication, runs, events."""

import sqlalchemy as sa
from alembic import op

revision = "r0003"
down_revision = "r0002"

ROW = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ID = sa.LargeBinary(16)
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
    _add_runs()
    _add_events()


def _add_runs() -> None:
    op.add_column(
        "datasets", sa.Column("reported", sa.Boolean(), nullable=False, server_default=sa.text("FALSE"))
    )
    for name in ("success_ns", "expect_every_s", "expect_grace_s", "expect_ns", "expect_mute_ns"):
        op.add_column(
            "datasets", sa.Column(name, sa.BigInteger(), nullable=False, server_default=sa.text("0"))
        )
    for name in ("drill_begun_ns", "drill_ns", "drill_number", "proven_ns", "proven_number"):
        op.add_column(
            "datasets", sa.Column(name, sa.BigInteger(), nullable=False, server_default=sa.text("0"))
        )
    op.add_column(
        "datasets", sa.Column("drill_fault", sa.Text(), nullable=False, server_default=sa.text("''"))
    )
    op.create_table(
        "runs",
        sa.Column("id", ID, nullable=False),
        sa.Column("tenant", ROW, nullable=False),
        sa.Column("dataset", ROW, nullable=False),
        sa.Column("outcome", sa.SmallInteger(), nullable=False),
        sa.Column("reported", sa.Boolean(), nullable=False),
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("begin_ns", sa.BigInteger(), nullable=False),
        sa.Column("end_ns", sa.BigInteger()),
        *(
            sa.Column(name, sa.BigInteger(), nullable=False)
            for name in ("entry_count", "data_bytes", "stored_bytes", "problem_count")
        ),
        sa.Column("backup", ID, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.row"]),
        sa.ForeignKeyConstraint(["dataset"], ["datasets.row"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("runs_dataset", "runs", ["dataset", "begin_ns", "id"])
    op.create_index("runs_tenant", "runs", ["tenant", "begin_ns", "id"])
    undone = sa.text("outcome != 2")
    op.create_index(
        "runs_undone",
        "runs",
        ["dataset", "begin_ns", "id"],
        sqlite_where=undone,
        postgresql_where=undone,
    )
    reported = sa.text("reported")
    op.create_index(
        "runs_reported",
        "runs",
        ["tenant", "dataset", "begin_ns"],
        sqlite_where=reported,
        postgresql_where=reported,
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


def _add_events() -> None:
    op.create_table(
        "events",
        sa.Column("row", ROW, autoincrement=True, nullable=False),
        sa.Column("id", sa.LargeBinary(16), nullable=False),
        *(
            sa.Column(name, NAME, nullable=False)
            for name in ("kind", "tenant", "server", "subject", "severity")
        ),
        *(sa.Column(name, sa.Text(), nullable=False) for name in ("text", "advice")),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("since_ns", "began_ns")),
        *(sa.Column(name, sa.BigInteger()) for name in ("absent_ns", "over_ns")),
        sa.PrimaryKeyConstraint("row"),
        sa.UniqueConstraint("id"),
    )
    happening = sa.text("over_ns IS NULL")
    op.create_index(
        "events_open",
        "events",
        ["kind", "tenant", "server", "subject"],
        unique=True,
        sqlite_where=happening,
        postgresql_where=happening,
    )
    op.create_table(
        "deliveries",
        sa.Column("event", ROW, nullable=False),
        sa.Column("over", sa.Boolean(), nullable=False),
        sa.Column("target", NAME, nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("next_ns", sa.BigInteger(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["event"], ["events.row"]),
        sa.PrimaryKeyConstraint("event", "over", "target"),
    )
    pending = sa.text("state = 0")
    op.create_index(
        "deliveries_pending",
        "deliveries",
        ["target", "next_ns"],
        sqlite_where=pending,
        postgresql_where=pending,
    )
    op.create_table(
        "targets",
        sa.Column("name", NAME, nullable=False),
        sa.Column("kind", NAME, nullable=False),
        sa.Column("tried_ns", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.BigInteger()) for name in ("reached_ns", "failing_ns")),
        sa.Column("error", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "space_samples",
        *(sa.Column(name, NAME, nullable=False) for name in ("server", "path")),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("taken_ns", "free_bytes")),
        sa.PrimaryKeyConstraint("server", "path", "taken_ns"),
    )
