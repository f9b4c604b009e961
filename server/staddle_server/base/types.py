"""Values passed between packages: frozen, typed, checked where they arrive from outside.

The stored state of an upload also holds Entry and its parts (docs/format.md, "Entries"): array-like, so a field
keeps its position forever and new ones go to the end, with a default. Leaves hold its fields as columns.
"""

import enum
import struct
from typing import Annotated, Final, NamedTuple

import msgspec
from blake3 import blake3

from staddle_server.base.limits import UPLOAD_WRITERS_MAX

_LINK: Final = struct.Struct("<16s16sQ32s")
Count = Annotated[int, msgspec.Meta(ge=0)]
NO_LINK: Final = bytes(32)
"""What the first record of a tenant names as its predecessor."""


class Role(enum.IntEnum):
    """A chunk's purpose. Bound into its stored id and into the seal of its segment."""

    DATA = 1
    MANIFEST = 2


class EntryType(enum.IntEnum):
    """The type of an entry, as stored and as on the wire. REMOVED is only valid in runs."""

    REMOVED = 0
    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    FIFO = 4
    CHAR_DEVICE = 5
    BLOCK_DEVICE = 6
    SOCKET = 7


class Profile(enum.IntEnum):
    """How a content was chunked."""

    CONTENT_DEFINED = 1
    FIXED = 2


class Kind(enum.IntEnum):
    """AUTO is only valid in requests; it resolves to one of the others."""

    AUTO = 0
    FULL = 1
    INCREMENTAL = 2
    DIFFERENTIAL = 3


class Scope(enum.IntEnum):
    WHOLE = 1
    CHANGES = 2


class UploadState(enum.IntEnum):
    OPEN = 1
    COMMITTED = 2
    ABORTED = 3
    EXPIRED = 4


class RunOutcome(enum.IntEnum):
    """How an attempt to back up ended. An abandoned one has no result: its client or its server is gone."""

    RUNNING = 1
    DONE = 2
    PROBLEMS = 3
    FAILED = 4
    ABANDONED = 5


class TokenRole(enum.IntEnum):
    """Each includes those below it, except that metrics, which are about all tenants, are for MONITOR alone."""

    MONITOR = 0
    READER = 1
    WRITER = 2
    ADMIN = 3


class ChunkRef(NamedTuple):
    """A chunk by its plain digest."""

    length: int
    digest: bytes


class ListRoot(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The top of a tree of list chunks: `level` 0 is a list of data chunks."""

    level: int
    digest: bytes


class Content(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The bytes of one file: either up to CHUNKS_INLINE_MAX chunks inline, or a tree of list chunks."""

    size: int
    content_id: bytes
    profile: Profile = Profile.CONTENT_DEFINED
    chunks: tuple[ChunkRef, ...] = ()
    root: ListRoot | None = None


class Xattr(NamedTuple):
    name: bytes
    value: bytes


class Hole(NamedTuple):
    offset: int
    length: int


class Attributes(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What few entries have and may be large: in the entry up to ATTRIBUTES_INLINE_BYTES_MAX, else in a
    separate chunk.
    """

    xattrs: tuple[Xattr, ...] = ()
    holes: tuple[Hole, ...] = ()


class Authors(NamedTuple):
    """Who made an upload, by the names of their tokens.

    Attributes:
        begun_by: Who began it.
        written_by: Who sent something that became durable, in order of their first; at most
            UPLOAD_WRITERS_MAX.
        more_writers: Whether there were more writers than are kept.

    """

    begun_by: str
    written_by: tuple[str, ...] = ()
    more_writers: bool = False

    def and_writer(self, name: str) -> "Authors":
        """Return the authors with this writer added."""
        if name in self.written_by:
            return self
        if len(self.written_by) >= UPLOAD_WRITERS_MAX:
            return self._replace(more_writers=True)
        return self._replace(written_by=(*self.written_by, name))


class Flag(enum.IntFlag):
    READ_AGAIN = 1
    IMPLIED = 2
    DIGEST_VERIFIED = 4
    INCOMPLETE = 8


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One path of a backup.

    `path` is bytes relative to the root; the root itself is b"". Times are nanoseconds since 1970; None
    means: as the restoring process sets it. `attributes_ref` replaces `attributes` if those are large.
    """

    path: bytes
    type: EntryType = EntryType.FILE
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    inode: int | None = None
    content: Content | None = None
    link_target: bytes | None = None
    owner: str = ""
    group: str = ""
    device: tuple[int, int] | None = None
    link_group: bytes = b""
    attributes: Attributes | None = None
    attributes_ref: ChunkRef | None = None
    file_digest: bytes = b""
    flags: int = 0


def sort_key(path: bytes) -> bytes:
    """Return the sort key of a path: component by component, so that a subtree is contiguous.

    A path never contains NUL, so treating "/" as the least byte compares components.
    """
    return path.replace(b"/", b"\0")


class Root(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The first page of a manifest (or run): `level` 0 is a leaf.

    An empty one has no page: level 0, digest b"".
    """

    level: int
    digest: bytes
    entries: int
    """Its entries, removals included."""
    data_bytes: int
    """The sum of the sizes of its regular files."""


EMPTY_ROOT = Root(0, b"", 0, 0)


class ChangeCounts(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How many entries of a backup differ from its base, by how; `metadata_kept` have the base's metadata."""

    added: Count = 0
    content_changed: Count = 0
    metadata_changed: Count = 0
    removed: Count = 0
    metadata_kept: Count = 0


class SegmentRef(NamedTuple):
    """Where a segment lies: `pack` is the pack's 16-byte id, offset and length are bytes in the
    pack object.
    """

    pack: bytes
    offset: int
    length: int


class ChunkPlace(NamedTuple):
    """Where a chunk lies: the segment, and the chunk's offset and length in the inflated segment."""

    segment: SegmentRef
    offset: int
    length: int


class StoredChunk(NamedTuple):
    """A chunk of a finished pack, as stored in the chunk index."""

    chunk_id: bytes
    place: ChunkPlace


class PackSummary(NamedTuple):
    """A pack that is durable in the store."""

    pack: bytes
    size_bytes: int
    chunks: list[StoredChunk]


class TenantKeys(msgspec.Struct, frozen=True):
    """A tenant's secrets.

    `root` never changes; `pack_keys` grows by versions, the highest seals new packs.
    """

    tenant: bytes
    root: bytes
    pack_keys: dict[int, bytes]

    def __repr__(self) -> str:
        return f"TenantKeys(tenant={self.tenant.hex()}, …)"


class Place(NamedTuple):
    """A record's place in its tenant's chain: its number, from 1, and the link of the previous record."""

    sequence: int
    previous: bytes


def record_link(tenant: bytes, record_id: bytes, place: Place, body: bytes) -> bytes:
    """Return the link that the tenant's next record names: the digest (32 bytes) of a record with its place.

    See docs/format.md, "Records".
    """
    head = _LINK.pack(tenant, record_id, *place)
    return blake3(head + body, derive_key_context="staddle.v1 record link").digest()
