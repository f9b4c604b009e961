"""The catalog's tables as the code uses them; `migrations/` creates the same ones (a test compares them).

All times are nanoseconds since 1970, all sizes bytes, all ids 16 random bytes. `row` columns are small
internal numbers that keep the big tables small; they never leave this package. Types are those that SQLite
and PostgreSQL share; the few differences are variants here and in the database modules.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    and_,
    literal,
    text,
)

from staddle_server.base.limits import GRACE_S
from staddle_server.base.types import UploadState

REVISION: Final = "r0003"
"""The newest migration, which every catalog must have."""

metadata = MetaData()
# catalog.postgres copies `sqlite_where` of partial indexes: `postgresql_where` here would load SQLAlchemy's
# PostgreSQL dialects for every catalog.

ROW = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite fills a primary key automatically only if its type is INTEGER."""
NAME = String().with_variant(String(collation="C"), "postgresql")
"""Names are compared and sorted as bytes, whatever the database's locale."""
ID = LargeBinary(16)
DIGEST = LargeBinary(32)

tenants = Table(
    "tenants",
    metadata,
    Column("row", ROW, primary_key=True, autoincrement=True),
    Column("id", ID, nullable=False, unique=True),
    Column("name", NAME, nullable=False, unique=True),
    Column("created_ns", BigInteger, nullable=False),
    Column("keys_version", Integer, nullable=False),
    Column("wrapped_keys", LargeBinary, nullable=False),
    # The chain of the tenant's records: number and link of the newest decided one.
    Column("records_sequence", BigInteger, nullable=False),
    Column("records_link", DIGEST, nullable=False),
    # Records up to this number come from an earlier catalog: their content is known only as far as it was
    # readable.
    Column("records_rebuilt", BigInteger, nullable=False),
    # Rises with every mark of damage, from 0 for none ever: an upload checks whether damage was found since it
    # began.
    Column("damage_epoch", BigInteger, nullable=False, server_default=text("0")),
    # How long a deleted backup can be undeleted.
    Column("grace_s", BigInteger, nullable=False, server_default=text(str(GRACE_S))),
    # After a rebuild, no collection runs until an operator allows it.
    Column("gc_waits", Boolean, nullable=False, server_default=text("FALSE")),
    # Why the tenant's last collection stopped; "" if it did not.
    Column("gc_failure", Text, nullable=False, server_default=text("''")),
    # The time of the newest decision, as in its record: the next one is later, whatever the clock says.
    Column("decided_ns", BigInteger, nullable=False, server_default=text("0")),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", ID, primary_key=True),
    Column("tenant", ROW, ForeignKey("tenants.row"), nullable=False),
    Column("name", NAME, nullable=False),
    Column("role", SmallInteger, nullable=False),
    Column("hash", DIGEST, nullable=False, unique=True),
    Column("created_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger),
    Column("revoked_ns", BigInteger),
)
_not_revoked = tokens.c.revoked_ns.is_(None)
Index(
    "tokens_name",
    tokens.c.tenant,
    tokens.c.name,
    unique=True,
    sqlite_where=_not_revoked,
)

datasets = Table(
    "datasets",
    metadata,
    Column("row", ROW, primary_key=True, autoincrement=True),
    Column("tenant", ROW, ForeignKey("tenants.row"), nullable=False),
    Column("name", NAME, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("host", Text, nullable=False),
    Column("root", Text, nullable=False),
    # Not max(number) of the backups: a purged one's number is not reused.
    Column("last_number", BigInteger, nullable=False),
    # How long a backup cannot be deleted after its commit; the time set on a backup (retain_until_ns) stays.
    Column("min_retention_s", BigInteger, nullable=False, server_default=text("0")),
    Column("hold_ns", BigInteger),
    Column("hold_reason", Text, nullable=False, server_default=text("''")),
    Column("policy", Text, nullable=False, server_default=text("''")),  # JSON; "" for none
    Column("policy_ns", BigInteger, nullable=False, server_default=text("0")),  # when it last changed
    # The last plan applied, and when it deleted backups: a replay gets the original answer.
    Column("applied_plan", Text, nullable=False, server_default=text("''")),
    Column("applied_ns", BigInteger, nullable=False, server_default=text("0")),
    UniqueConstraint("tenant", "name"),
)

backups = Table(
    "backups",
    metadata,
    Column("id", ID, primary_key=True),
    Column("tenant", ROW, ForeignKey("tenants.row"), nullable=False),
    Column("dataset", ROW, ForeignKey("datasets.row"), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("kind", SmallInteger, nullable=False),
    Column("scope", SmallInteger, nullable=False),
    Column("base", ID, nullable=False),  # b"" for FULL; no foreign key: the base may be purged later
    Column("upload", ID, nullable=False, unique=True),
    Column("request_id", Text, nullable=False),
    Column("principal", Text, nullable=False),  # the principal that committed it
    Column("authors", Text, nullable=False),  # JSON, see validation.pack_authors
    Column("begin_ns", BigInteger, nullable=False),
    Column("commit_ns", BigInteger, nullable=False),
    Column("deleted_ns", BigInteger),
    Column("root_level", SmallInteger, nullable=False),
    Column("root_digest", DIGEST, nullable=False),
    Column("entry_count", BigInteger, nullable=False),
    Column("data_bytes", BigInteger, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),
    Column("added", BigInteger, nullable=False),
    Column("content_changed", BigInteger, nullable=False),
    Column("metadata_changed", BigInteger, nullable=False),
    Column("removed", BigInteger, nullable=False),
    Column("metadata_kept", BigInteger, nullable=False),
    Column("tags", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("source_root", Text, nullable=False),
    # From then on it is gone for good; the row stays while an open upload has it as its base.
    Column("purged_ns", BigInteger),
    Column("retain_until_ns", BigInteger, nullable=False, server_default=text("0")),
    Column("hold_ns", BigInteger),
    Column("hold_reason", Text, nullable=False, server_default=text("''")),
    UniqueConstraint("dataset", "number"),
)
Index("backups_begin", backups.c.dataset, backups.c.begin_ns)
_deleted = text("deleted_ns IS NOT NULL")
Index("backups_deleted", backups.c.deleted_ns, sqlite_where=_deleted)

uploads = Table(
    "uploads",
    metadata,
    Column("id", ID, primary_key=True),
    Column("tenant", ROW, ForeignKey("tenants.row"), nullable=False),
    Column("dataset", ROW, ForeignKey("datasets.row"), nullable=False),
    Column("request_id", Text, nullable=False),
    Column("token", ID, nullable=False),
    Column("principal", Text, nullable=False),  # the lease holder
    Column("authors", Text, nullable=False),  # JSON, see validation.pack_authors
    Column("asked_kind", SmallInteger, nullable=False),
    Column("kind", SmallInteger, nullable=False),
    Column("scope", SmallInteger, nullable=False),
    Column("base", ID, nullable=False),  # b"" for FULL
    Column("tags", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("root", Text, nullable=False),
    Column("new_root", Boolean, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("lease_expires_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger, nullable=False),
    Column("begin_ns", BigInteger, nullable=False),
    Column("durable", LargeBinary, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("entry_count", BigInteger, nullable=False),
    Column("data_bytes", BigInteger, nullable=False),
    Column("last_failure", Text, nullable=False),
    Column("backup", ID, nullable=False),  # b"" until committed
    # The server that writes it; no foreign key: servers come and go.
    Column("server", ID, nullable=False),
)
# Literal, not bound: the planner uses a partial index only if the query has the same condition.
IS_OPEN = uploads.c.state == literal(UploadState.OPEN.value, literal_execute=True)
_open = text(f"state = {UploadState.OPEN.value}")
Index("uploads_open", uploads.c.dataset, sqlite_where=_open)
Index("uploads_open_expires", uploads.c.expires_ns, sqlite_where=_open)

upload_requests = Table(
    "upload_requests",
    metadata,
    Column("tenant", ROW, ForeignKey("tenants.row"), nullable=False),
    Column("request_id", NAME, nullable=False),
    Column("upload", ID, ForeignKey("uploads.id"), nullable=False),
    Column("asked", DIGEST, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("taken_over", Boolean, nullable=False),
    PrimaryKeyConstraint("tenant", "request_id"),
)

upload_missing = Table(
    "upload_missing",
    metadata,
    Column("upload", ID, ForeignKey("uploads.id"), nullable=False),
    Column("digest", DIGEST, nullable=False),
    Column("length", Integer, nullable=False),
    PrimaryKeyConstraint("upload", "digest"),
    sqlite_with_rowid=False,
)

PACK_WRITING, PACK_LIVE, PACK_CONDEMNED = 1, 2, 3

packs = Table(
    "packs",
    metadata,
    Column("row", ROW, primary_key=True, autoincrement=True),
    Column("tenant", ROW, ForeignKey("tenants.row"), nullable=False),
    Column("id", ID, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("upload", ID, nullable=False),  # no foreign key: packs outlive the uploads that wrote them
    Column("epoch", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("chunk_count", BigInteger, nullable=False),
    Column("damaged", Boolean, nullable=False),  # something in it is: see pack_damage
    Column("created_ns", BigInteger, nullable=False),
    Column("condemned_ns", BigInteger),
    Column("verified_ns", BigInteger),  # when every byte was last read and found intact
    Column("tried_ns", BigInteger),  # when a scrubber last took it up: others leave it for a while
    Column(
        "parity_bytes", BigInteger, nullable=False, server_default=text("0")
    ),  # of its parity object; 0 for none
    # Until when the store's object lock protects it, by the store's clock; 0: not known.
    Column("locked_until_ns", BigInteger, nullable=False, server_default=text("0")),
    UniqueConstraint("tenant", "id"),
    # Row numbers are never reused: index rows of a removed pack must not point into another one.
    sqlite_autoincrement=True,
)
IS_WRITING = packs.c.state == literal(PACK_WRITING, literal_execute=True)
_writing = text(f"state = {PACK_WRITING}")
Index("packs_writing", packs.c.upload, sqlite_where=_writing)
IS_CONDEMNED = packs.c.state == literal(PACK_CONDEMNED, literal_execute=True)
_condemned = text(f"state = {PACK_CONDEMNED}")
Index("packs_condemned", packs.c.condemned_ns, sqlite_where=_condemned)

LIVE_WITHOUT_PARITY = and_(
    packs.c.state == literal(PACK_LIVE, literal_execute=True),
    packs.c.parity_bytes == literal(0, literal_execute=True),
)
_without_parity = text(f"state = {PACK_LIVE} AND parity_bytes = 0")
Index("packs_without_parity", packs.c.row, sqlite_where=_without_parity)

Index("packs_locked", packs.c.locked_until_ns, sqlite_where=text(f"state = {PACK_LIVE}"))

WHOLE_PACK = -1
FOOTER = -2

pack_damage = Table(
    "pack_damage",
    metadata,
    Column("pack", ROW, ForeignKey("packs.row"), nullable=False),
    Column(
        "segment_offset", BigInteger, nullable=False
    ),  # WHOLE_PACK: all of it; FOOTER: its header or footer, which reading chunks does not need
    # Whether a backup may need what was lost here; False once all backups were found intact without it.
    Column("needed", Boolean, nullable=False, server_default=text("TRUE")),
    PrimaryKeyConstraint("pack", "segment_offset"),
    sqlite_with_rowid=False,
)

# No foreign keys: this table has a row for each chunk, and rows are only inserted in the transaction that
# makes their pack live. Two copies of a chunk may exist, in two packs.
chunks = Table(
    "chunks",
    metadata,
    Column("tenant", ROW, nullable=False),
    Column("chunk_id", DIGEST, nullable=False),
    Column("pack", ROW, nullable=False),
    Column("segment_offset", BigInteger, nullable=False),
    Column("segment_length", Integer, nullable=False),
    Column("offset", Integer, nullable=False),
    Column("length", Integer, nullable=False),
    PrimaryKeyConstraint("tenant", "chunk_id", "pack"),
    sqlite_with_rowid=False,
)

claims = Table(
    "claims",
    metadata,
    Column("upload", ID, ForeignKey("uploads.id"), nullable=False),
    Column("pack", ROW, ForeignKey("packs.row"), nullable=False),
    PrimaryKeyConstraint("upload", "pack"),
    sqlite_with_rowid=False,
)
Index("claims_pack", claims.c.pack)

pending_records = Table(
    "pending_records",
    metadata,
    Column("id", ID, primary_key=True),
    Column("tenant", ROW, ForeignKey("tenants.row"), nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("previous", DIGEST, nullable=False),
    Column(
        "purges", ID
    ),  # the backup that a `purged` record ends: until it is durable, the backup counts as existing
)

# --- collection (docs/decisions/2026-11-25-collection.md)

MARK_WALKING, MARK_WALKED, MARK_DONE, MARK_FAILED = 1, 2, 3, 4

marks = Table(
    "marks",
    metadata,
    Column("number", ROW, primary_key=True, autoincrement=True),
    Column("tenant", ROW, ForeignKey("tenants.row"), nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("begun_ns", BigInteger, nullable=False),
    Column("ended_ns", BigInteger),
    Column("report", Text, nullable=False),
    sqlite_autoincrement=True,
)

# The manifests that a mark walks, listed at its start: those of all unpurged backups, and of bases of open
# uploads.
mark_roots = Table(
    "mark_roots",
    metadata,
    Column("mark", ROW, ForeignKey("marks.number"), nullable=False),
    Column("backup", ID, nullable=False),
    Column("upload", ID, nullable=False),  # which became the backup: its claims end with this mark
    Column("root_level", SmallInteger, nullable=False),
    Column("root_digest", DIGEST, nullable=False),
    Column("entry_count", BigInteger, nullable=False),
    Column("data_bytes", BigInteger, nullable=False),
    Column("walked", Boolean, nullable=False),
    PrimaryKeyConstraint("mark", "backup"),
    sqlite_with_rowid=False,
)

# The packs that were live at the start of a mark: only these may it condemn or compact.
mark_packs = Table(
    "mark_packs",
    metadata,
    Column("mark", ROW, ForeignKey("marks.number"), nullable=False),
    Column("pack", ROW, nullable=False),
    Column(
        "reached", LargeBinary, nullable=False
    ),  # which of its chunks are reachable: see upkeep/gc/live_chunks.py
    PrimaryKeyConstraint("mark", "pack"),
    sqlite_with_rowid=False,
)

# Objects of the store without a row, and since when they were seen so.
orphans = Table(
    "orphans",
    metadata,
    Column("name", NAME, primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("seen_ns", BigInteger, nullable=False),
)

# Records of purged backups, removed from the store: one that a stalled server writes again is removed again.
removed_records = Table(
    "removed_records",
    metadata,
    Column("tenant", ROW, ForeignKey("tenants.row"), nullable=False),
    Column("id", ID, nullable=False),
    Column("removed_ns", BigInteger, nullable=False),
    PrimaryKeyConstraint("tenant", "id"),
    sqlite_with_rowid=False,
)

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

# --- replication (upkeep/replication)

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
