"""The other places that the store is copied to (upkeep/replication)."""

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Integer, PrimaryKeyConstraint, Table, Text

from staddle_server.catalog.schema.columns import NAME, ROW, metadata

# One row for each other place that the store is copied to. Each has a lease of its own.
replicas = Table(
    "replicas",
    metadata,
    Column("row", ROW, primary_key=True, autoincrement=True),
    Column("place", NAME, nullable=False, unique=True),
    Column("begun_ns", BigInteger),
    # Everything decided before this time is there.
    Column("whole_ns", BigInteger),
    # When its objects were last listed and compared.
    Column("compared_ns", BigInteger),
    Column("outcome", Text, nullable=False),
)

# How far the records and keys of each tenant were copied.
replica_tenants = Table(
    "replica_tenants",
    metadata,
    Column("replica", ROW, ForeignKey("replicas.row"), nullable=False),
    Column("tenant", ROW, ForeignKey("tenants.row"), nullable=False),
    Column("keys_version", Integer, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    PrimaryKeyConstraint("replica", "tenant"),
    sqlite_with_rowid=False,
)

# The packs that are there. No foreign key to packs: a row may outlive its pack until the next comparison.
replica_packs = Table(
    "replica_packs",
    metadata,
    Column("replica", ROW, ForeignKey("replicas.row"), nullable=False),
    Column("pack", ROW, nullable=False),
    Column("parity_bytes", BigInteger, nullable=False),
    PrimaryKeyConstraint("replica", "pack"),
    sqlite_with_rowid=False,
)

# Objects there that this store does not have any more, and since when that is known.
replica_gone = Table(
    "replica_gone",
    metadata,
    Column("replica", ROW, ForeignKey("replicas.row"), nullable=False),
    Column("name", NAME, nullable=False),
    Column("seen_ns", BigInteger, nullable=False),
    # The record of a backup that a rebuild there may still list: its packs must stay.
    Column("listed", Boolean, nullable=False),
    PrimaryKeyConstraint("replica", "name"),
    sqlite_with_rowid=False,
)
