"""What the servers of one catalog share: tasks, settings, clocks, and who is there."""

from sqlalchemy import BigInteger, Boolean, Column, Table, Text, text

from staddle_server.catalog.schema.columns import ID, NAME, ROW, metadata

# Work that one process does at a time (leases.py): the upkeep tasks, and when each last ran; and `collector`,
# which collectors and repairs share. A later holder raises the fence: the earlier one's writes are refused.
tasks = Table(
    "tasks",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("begun_ns", BigInteger),
    Column("ended_ns", BigInteger),
    Column("outcome", Text, nullable=False),
    Column("holder", Text, nullable=False, server_default=text("''")),
    Column("fence", BigInteger, nullable=False, server_default=text("0")),
    Column("expires_ns", BigInteger, nullable=False, server_default=text("0")),
)

# What the last started server set for all of them.
settings = Table(
    "settings",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("value", BigInteger, nullable=False),
    Column("since_ns", BigInteger, nullable=False),
    Column("holder", Text, nullable=False),
)

# The last observation of the wall clock in each boot of each machine, numbered in their order (clocks.py).
clock = Table(
    "clock",
    metadata,
    Column("boot", NAME, primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("offset_ns", BigInteger, nullable=False),
    Column("uptime_ns", BigInteger, nullable=False),
    Column("seen_ns", BigInteger, nullable=False),
    Column("jump_ns", BigInteger, nullable=False),
    Column("waited_ns", BigInteger, nullable=False),
)

# One row: the mark of the last start, and when its file in the store was created.
generation = Table(
    "generation",
    metadata,
    Column("row", ROW, primary_key=True),
    Column("current", Text, nullable=False),
    Column("birth_ns", BigInteger),
    Column("intended", Text, nullable=False),
)

# The servers that share this catalog. All times are the database's.
servers = Table(
    "servers",
    metadata,
    Column("id", ID, primary_key=True),
    Column("place", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("process", Text, nullable=False),  # as in tasks.holder
    Column("started_ns", BigInteger, nullable=False),
    Column("beat_ns", BigInteger, nullable=False),
    Column("draining", Boolean, nullable=False),
)
