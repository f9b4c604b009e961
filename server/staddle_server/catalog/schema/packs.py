"""Packs, the index of their chunks, and what collects them (docs/decisions/2026-11-25-collection.md)."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    and_,
    literal,
    text,
)

from staddle_server.catalog.schema.columns import DIGEST, ID, NAME, ROW, metadata

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

# A row for each chunk, as short as it gets (docs/decisions/2026-11-30-rows-of-the-chunk-index.md): no keys,
# the columns in an order without padding, the first 16 bytes of the id as two numbers. Rows are only inserted
# in the transaction that makes their pack live; the pack says whose they are. Two copies of a chunk may exist,
# in two packs.
chunks = Table(
    "chunks",
    metadata,
    Column("id_head", BigInteger, nullable=False),
    Column("id_tail", BigInteger, nullable=False),
    Column("pack", BigInteger, nullable=False),
    Column("segment_offset", Integer, nullable=False),
    Column("segment_length", Integer, nullable=False),
    Column("offset", Integer, nullable=False),
    Column("length", Integer, nullable=False),
)
Index("chunks_id", chunks.c.id_head)
Index("chunks_pack", chunks.c.pack)

claims = Table(
    "claims",
    metadata,
    Column("upload", ID, ForeignKey("uploads.id"), nullable=False),
    Column("pack", ROW, ForeignKey("packs.row"), nullable=False),
    PrimaryKeyConstraint("upload", "pack"),
    sqlite_with_rowid=False,
)
Index("claims_pack", claims.c.pack)


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

# What the last collections of a tenant did, for people, in the order of their numbers: clocks may jump.
collections = Table(
    "collections",
    metadata,
    Column("tenant", ROW, ForeignKey("tenants.row"), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("begun_ns", BigInteger, nullable=False),
    Column("ended_ns", BigInteger, nullable=False),
    Column("figures", Text, nullable=False),  # a JSON object of numbers
    Column("failure", Text, nullable=False),
    PrimaryKeyConstraint("tenant", "number"),
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
