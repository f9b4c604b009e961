"""Attempts to back up."""

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Index, SmallInteger, Table, Text, text

from staddle_server.catalog.schema.columns import ID, ROW, metadata

runs = Table(
    "runs",
    metadata,
    # That of its upload; a run that failed before it began one has an id of its own.
    Column("id", ID, primary_key=True),
    Column("tenant", ROW, ForeignKey("tenants.row"), nullable=False),
    Column("dataset", ROW, ForeignKey("datasets.row"), nullable=False),
    # RUNNING may be out of date: its upload's lease decides, see catalog.runs.
    Column("outcome", SmallInteger, nullable=False),
    # A client reported it, and it has no upload.
    Column("reported", Boolean, nullable=False),
    Column("principal", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("begin_ns", BigInteger, nullable=False),
    Column("end_ns", BigInteger),
    # Of the backup. What an upload without one had received is in its own row.
    Column("entry_count", BigInteger, nullable=False),
    Column("data_bytes", BigInteger, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),
    Column("problem_count", BigInteger, nullable=False),
    Column("backup", ID, nullable=False),  # b"" for none
    Column("reason", Text, nullable=False),
)
Index("runs_dataset", runs.c.dataset, runs.c.begin_ns, runs.c.id)
# As newest_bad of catalog.runs has it. Most runs end as DONE (2), and need nobody.
Index("runs_undone", runs.c.dataset, runs.c.begin_ns, runs.c.id, sqlite_where=text("outcome != 2"))
Index("runs_tenant", runs.c.tenant, runs.c.begin_ns, runs.c.id)
# As text: the planner uses a partial index only if the query has the same condition.
IS_REPORTED = text("reported")
Index("runs_reported", runs.c.tenant, runs.c.dataset, runs.c.begin_ns, sqlite_where=IS_REPORTED)
