"""Every limit of the service, named, with its unit last.

Limits that a client can reach are also in docs/protocol.md, those of stored formats in docs/format.md.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# --- wire
MESSAGE_BYTES_MAX: Final = 4 * MIB
RESPONSE_BYTES_TARGET: Final = 768 * KIB
"""A streamed response is sent at this size. 1 MiB is no faster, and takes more memory for each stream."""
PUT_CHUNKS_BYTES_MAX: Final = 3 * MIB
PUT_CHUNKS_INFLATED_BYTES_MAX: Final = 2 * MIB
ZERO_BYTES_MAX: Final = 1024 * MIB
"""Zero bytes that one Data part may stand for."""
CHUNKS_PER_CALL_MAX: Final = 4096
ENTRIES_PER_CALL_MAX: Final = 4096
PARTS_PER_MESSAGE_MAX: Final = 65_536
ITEMS_PER_MESSAGE_MAX: Final = 262_144
"""Extended attributes, holes and chunk references in all entries of a message: each becomes an object."""
READ_RANGE_BYTES_MAX: Final = 3 * MIB
RESTORE_PATHS_MAX: Final = 65_536
PAGE_SIZE_MAX: Final = 10_000
SHORT_PAGE_SIZE_MAX: Final = 1_000
LISTED_BYTES_MAX: Final = 1 * MIB
"""Rows of the catalog that one page of a list loads: a row has up to 100 KiB of tags, and an open upload's
more than 1 MiB.
"""
PAGE_TOKEN_BYTES_MAX: Final = 64 * KIB
ERROR_STATUS_BYTES_MAX: Final = 3 * KIB
STREAMS_MAX: Final = 128
TOKENS_REMEMBERED_MAX: Final = 4096
"""Valid tokens that a server with a distant catalog keeps for a few seconds."""
CALLS_MAX: Final = 96
"""Concurrent calls without a stream: each holds a thread from before its message arrives until it is
answered.
"""
CALLS_TENANT_MAX: Final = 64
"""Of these, calls of one tenant, to leave room for others."""
CALLS_TOKEN_MAX: Final = 32
"""Of these, calls of one token."""
CALLS_WAITING_MAX: Final = 128
"""Calls that wait briefly for one of these slots; each holds a thread, and no message."""
CALLS_WAITING_TENANT_MAX: Final = 64
DECODED_CALL_BYTES: Final = 1 * MIB
"""Decoded memory of a call that needs no budget: this much each for its message, manifest pages, and entries
in flight.
"""
DECODED_TENANT_BYTES_MAX: Final = 96 * MIB
"""The share of a tenant's calls that need more."""
DECODED_BYTES_MAX: Final = 192 * MIB
"""All tenants together: while one uses up its share, the others have as much."""
CONNECTIONS_MAX: Final = 4096
"""Concurrent connections; fewer if the process may open few files, half of which are for the store."""
FILES_WANTED: Final = 65_536
"""Open files that the server requests from the system at its start."""
MIN_FREE_PART: Final = 0.01
"""Default share of a file system's bytes and inodes that must stay free for backups to be accepted."""
MIN_FREE_BYTES_AUTO_MAX: Final = 1024 * MIB
MIN_FREE_INODES_MAX: Final = 10_000
RESERVE_BYTES_MAX: Final = 16 * MIB
RESERVE_BYTES_MIN: Final = 1 * MIB
RESERVE_PART: Final = 1 / 64
"""The reserves of bytes and inodes: their share of a small file system."""
RESERVE_INODES_MAX: Final = 256
RESERVE_INODES_MIN: Final = 64
"""But at most an eighth of the file system's inodes. Deleting and purging a backup takes two; starting a
server ten.
"""
CATALOG_CHANGE_BYTES_MAX: Final = 40 * MIB
"""What one transaction may write to the catalog's log: PACK_CHUNKS_TARGET rows that leave the index, each in
its own page. Half of the reserve has room for it, or for the catalog's size.
"""
UNARY_THREADS: Final = 16
"""Threads that these calls cannot hold: they refuse excess calls."""

HTTP_CONNECTIONS_MAX: Final = 512
"""Concurrent HTTP connections, each with one call at a time."""
HTTP_CONNECTIONS_ADDRESS_MAX: Final = 128
"""Of these, connections from one address: a proxy needs several."""
HTTP_HEAD_BYTES_MAX: Final = 96 * KIB
"""The head of a request: room for the longest path of an entry, encoded, and a page token with another."""
HTTP_HANDSHAKE_S: Final = 20.0
HTTP_HEAD_S: Final = 15.0
"""The head of a request must arrive within this time of its first byte."""
HTTP_SILENCE_S: Final = 30.0
"""How long a connection may be idle, a body may pause, and an answer may wait without being read."""
HTTP_JSON_DEPTH_MAX: Final = 32
HTTP_TAR_SILENCE_S: Final = 5 * 60.0
"""How long the body may pause that becomes a backup: `tar` can search long for something to send."""
ARCHIVE_PIECE_BYTES: Final = 256 * KIB
"""An archive is sent in pieces of this size and more."""
INFLATED_PIECE_BYTES: Final = 64 * KIB
"""What is read of a compressed body at once."""
ZSTD_STREAM_WINDOW_BYTES_MAX: Final = 8 * MIB
"""The memory of a compressed body's reader: what zstd needs up to level 19, and without `--long`."""
SESSION_S: Final = 12 * 3600.0
"""How long a login to the dashboard lasts at most."""
FORM_BYTES_MAX: Final = 16 * KIB
"""A form of the dashboard."""
METRICS_DATASETS: Final = 10_000
"""Datasets with metrics of their own, unless the server is set otherwise."""
METRICS_DATASETS_MAX: Final = 100_000

# --- names and entries
DATASET_BYTES_MAX: Final = 255
REQUEST_ID_BYTES_MAX: Final = 128
FINGERPRINT_BYTES_MAX: Final = 128
HOST_BYTES_MAX: Final = 255
ROOT_BYTES_MAX: Final = 16 * KIB
TAGS_MAX: Final = 64
TAG_KEY_BYTES_MAX: Final = 128
TAG_VALUE_BYTES_MAX: Final = 1024
PATH_BYTES_MAX: Final = 16 * KIB
COMPONENT_BYTES_MAX: Final = 1024
PATH_COMPONENTS_MAX: Final = 1024
"""Each may imply a directory: the most directories that one entry adds."""
LINK_TARGET_BYTES_MAX: Final = 4096
OWNER_BYTES_MAX: Final = 256
LINK_GROUP_BYTES_MAX: Final = 64
XATTRS_MAX: Final = 1024
XATTR_NAME_BYTES_MAX: Final = 255
XATTR_VALUE_BYTES_MAX: Final = 64 * KIB
HOLES_MAX: Final = 32_768
ATTRIBUTES_BYTES_MAX: Final = 1 * MIB
"""Extended attributes and holes of one entry together, encoded."""
ATTRIBUTES_INLINE_BYTES_MAX: Final = 2 * KIB
ATTRIBUTES_INLINE_ITEMS_MAX: Final = 32
"""Extended attributes and holes: each takes about 150 bytes of memory in a decoded page, whatever its encoded
size.
"""
FILE_BYTES_MAX: Final = 2**56
CHUNKS_INLINE_MAX: Final = 16
"""Chunks that an entry names itself; a longer list becomes a tree of list chunks."""

# --- chunks, segments, packs
CHUNK_BYTES_MAX: Final = 1 * MIB
SEGMENT_RAW_BYTES_TARGET: Final = 1 * MIB
MANIFEST_SEGMENT_RAW_BYTES_TARGET: Final = 128 * KIB
SEGMENT_RAW_BYTES_MAX: Final = 3 * MIB
"""What a segment may inflate to: the target plus one chunk, and what PutChunks may carry."""
SEGMENTS_REFERRED_MAX: Final = 8
"""How many segments a client keeps of a restore that sends them as stored."""
SEGMENT_CHUNKS_MAX: Final = 65_536
PACK_BYTES_TARGET: Final = 64 * MIB
PACK_CHUNKS_TARGET: Final = 8_192
"""A pack of tiny chunks is closed at this count: the tables of an open pack are in memory."""
PACK_BYTES_MAX: Final = 128 * MIB
PACK_CHUNKS_MAX: Final = PACK_CHUNKS_TARGET + SEGMENT_CHUNKS_MAX
"""Reading a footer creates about 500 bytes of objects for each of its chunks."""
FOOTER_BYTES_MAX: Final = 8 * MIB
STORED_MEMORY_MAX: Final = 96 * MIB
"""The most memory that reading any stored object may add to the process, whatever its content."""
RECORD_BYTES_MAX: Final = 1 * MIB
PARITY_BLOCK_BYTES: Final = 4 * KIB
PARITY_COLUMNS_MAX: Final = 100
"""Data blocks for one set of parity blocks: a percentage of parity is a number of blocks."""
PARITY_PERCENT_MAX: Final = 100

# --- manifest
PAGE_BYTES_MAX: Final = 256 * KIB
"""A page closes at this size; with its last entry it has at most PAGE_BYTES_MAX + ENTRY_BYTES_MAX."""
ENTRY_BYTES_MAX: Final = 32 * KIB
TREE_HEIGHT_MAX: Final = 16

# --- uploads
CHECKPOINT_S: Final = 5.0
CHECKPOINT_ENTRIES: Final = 8_192
"""Entries that an upload holds in memory before it writes a run of them."""
CHECKPOINT_ENTRY_BYTES: Final = 4 * MIB
RUNS_MERGE: Final = 64
"""Runs of one level that become one of the next."""
MISSING_CHUNKS_MAX: Final = 65_536
UPLOAD_WRITERS_MAX: Final = 32
"""Names kept of tokens that wrote an upload; beyond, only the fact that there were more."""
UPLOADS_OPEN_MAX: Final = 256
"""Uploads that one server writes at once."""
UPLOADS_OPEN_TENANT_MAX: Final = 192
"""Of these, uploads of one tenant, to leave room for others."""
LEASE_S: Final = 300
UPLOAD_LIFE_S: Final = 7 * 24 * 3600

# --- servers that share a catalog
SERVER_BEAT_S: Final = 5.0
"""How often a server tells the catalog that it lives."""
SERVER_DEAD_S: Final = 20.0
"""A server whose last heartbeat is older counts as dead, by the database's clock."""
SERVER_FORGOTTEN_S: Final = 24 * 3600.0
"""How long a dead server stays in the list."""

# --- upkeep
INTEGRITY_EVERY_S: Final = 1.0
"""How often a server checks for new damage, and whether its store and catalog are present."""
GRACE_S: Final = 7 * 24 * 3600
"""How long a deleted backup can be undeleted, unless its tenant has another period."""
REAP_GRACE_S: Final = 24 * 3600
"""How long a condemned pack stays: longer than the longest restore."""
GRACE_S_MAX: Final = 100 * 365 * 24 * 3600
GC_EVERY_S: Final = 6 * 3600
REPLICA_GRACE_S: Final = 14 * 24 * 3600
"""How long an object stays at a second place after it is gone here."""
REPLICATE_EVERY_S: Final = 60
REMOVED_RECORDS_S: Final = 90 * 24 * 3600
"""How long the catalog keeps the ids of removed records: longer than a server can stall in writing one."""
HOLD_REASON_BYTES_MAX: Final = 1024
RUN_REASON_BYTES_MAX: Final = 1024
RUNS_DATASET_MAX: Final = 5_000
"""Runs kept of one dataset: one every half an hour for 90 days, and some."""
RUNS_KEPT_S: Final = 90 * 24 * 3600
RUNS_EVERY_S: Final = 3600
REPORTS_DATASET_MAX: Final = 100
"""Runs kept of one dataset that a client reported without an upload: a newer one replaces the oldest."""
REPORTS_TENANT_MAX: Final = 20_000
"""All of a tenant: about 20 MiB of the catalog, whatever its clients report."""
REPORTED_DATASETS_MAX: Final = 1_000
"""Datasets of a tenant that are known only from reports of failed runs."""
REPORTED_DATASET_S: Final = 7 * 24 * 3600
"""How long such a dataset is known: its name may be a mistake."""
EXPECT_S_MAX: Final = 10 * 366 * 24 * 3600
"""The longest period and the longest patience of an expectation."""
RETENTION_S_MAX: Final = 100 * 366 * 24 * 3600
"""The longest minimum retention, and how far ahead a backup can be retained."""
RETENTION_DELETIONS_MAX: Final = 1_000
"""The most backups that a plan deletes, the oldest first: they go in one transaction."""
RETENTION_COUNT_MAX: Final = 1_000_000
RETENTION_TAGS_MAX: Final = 64
POLICY_BYTES_MAX: Final = 16 * KIB
RETENTION_EVERY_S: Final = 3600
