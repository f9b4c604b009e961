"""Entries as columns: messages to values, with every length checked, and back."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from struct import Struct
from typing import Any, Final, NamedTuple

from staddle._protocol.columns import IMPLIED, INCOMPLETE, READ_AGAIN, EntryRow, presence
from staddle._protocol.columns import columns_of as columns_from
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

from staddle_server.api.convert import attributes_of, bad, change_of, file_digest_of, profile_of, set_rare
from staddle_server.base.limits import ENTRIES_PER_CALL_MAX, KIB
from staddle_server.base.types import ChunkRef, Entry, EntryType, Flag, Profile
from staddle_server.manifest.columns import NOTHING_RARE, Columns, Rare
from staddle_server.restore.stored_segments import Piece
from staddle_server.store.blobs import compact
from staddle_server.upload.intake import Change

_DIGEST: Final = Struct("32s")
_TYPES: Final = bytes(each.value for each in EntryType if each is not EntryType.REMOVED)
_FILE: Final = EntryType.FILE.value
_SYMLINK: Final = EntryType.SYMLINK.value
_SENT_FLAGS: Final = bytes(range(8))
_TO_FLAGS: Final = bytes(
    (Flag.READ_AGAIN.value if bits & 1 else 0) | (Flag.INCOMPLETE.value if bits & 2 else 0)
    for bits in range(256)
)
"""From the bits of a message; the one for implied is out only."""
_RARE_FIELDS: Final = frozenset(
    {"device_major", "device_minor", "link_group", "xattrs", "holes", "file_digest", "content"}
)


def changes_of(request: sv.PutEntriesRequest) -> list[Change]:
    """Convert the changes of a PutEntries call."""
    changes: list[Change] = []
    count = 0
    for index, change in enumerate(request.changes):
        if change.HasField("columns"):
            if change.more:
                raise bad("changes", "columns cannot be continued")
            changes.append(columns_of(change.columns, f"changes[{index}].columns"))
            count += len(change.columns.types)
        else:
            changes.append(change_of(change))
            count += 1
        if count > ENTRIES_PER_CALL_MAX:
            raise bad("changes", f"the limit is {ENTRIES_PER_CALL_MAX} entries and removals a call")
    return changes


def columns_of(m: pb.EntryColumns, at: str) -> Columns:
    """Convert columns, and check that each has as many values as it should; `at` names them in messages."""
    types = m.types
    count = len(types)
    if not 1 <= count <= ENTRIES_PER_CALL_MAX:
        raise bad(f"{at}.types", f"expected 1 to {ENTRIES_PER_CALL_MAX}, received {count}")
    if types.translate(None, _TYPES):
        raise bad(f"{at}.types", f"the type of an entry must be 1 to {max(_TYPES)}")
    if m.flags.translate(None, _SENT_FLAGS):
        raise bad(f"{at}.flags", f"flags must be 0 to {max(_SENT_FLAGS)}")

    def column(name: str, wanted: int = count, *, optional: bool = True) -> Any:
        values = getattr(m, name)
        if len(values) != wanted and not (optional and not values):
            raise bad(f"{at}.{name}", f"expected one value for each of {wanted}, received {len(values)}")
        return values[:]

    files = types.count(_FILE)
    return Columns(
        paths=_split(m.paths, count, f"{at}.paths"),
        types=types,
        flags=column("flags").translate(_TO_FLAGS),
        modes=column("modes"),
        uids=column("uids"),
        gids=column("gids"),
        mtimes_ns=column("mtimes_ns"),
        ctimes_ns=column("ctimes_ns"),
        inodes=column("inodes"),
        owners=_named(m, column("owners"), f"{at}.owners"),
        groups=_named(m, column("groups"), f"{at}.groups"),
        sizes=column("sizes", files, optional=False),
        content_ids=_digests(m.content_ids, files, f"{at}.content_ids"),
        link_targets=_split(m.link_targets, types.count(_SYMLINK), f"{at}.link_targets"),
        profiles=bytes([profile_of(m.profile, f"{at}.profile")]) * files,
        rare=_rare(m, count, at),
    )


def _split(joined: bytes, wanted: int, field: str) -> list[bytes]:
    """Return values that are joined by NUL."""
    received = joined.count(b"\0") + 1 if wanted or joined else 0
    if received != wanted:
        raise bad(field, f"expected {wanted}, joined by NUL, received {received}")
    return joined.split(b"\0") if wanted else []


def _digests(joined: bytes, wanted: int, field: str) -> list[bytes]:
    if len(joined) != wanted * _DIGEST.size:
        raise bad(
            field,
            f"expected {wanted * _DIGEST.size} bytes, {_DIGEST.size} for each FILE, received {len(joined)}",
        )
    return [digest for (digest,) in _DIGEST.iter_unpack(joined)]


def _named(m: pb.EntryColumns, places: list[int], field: str) -> list[str]:
    """Return the names of owners or groups by their places."""
    # A tree has few distinct values of these, and thousands of its entries are in memory at once.
    names = ["", *map(sys.intern, m.names)]
    if len(set(names)) != len(names):
        raise bad(field.rpartition(".")[0] + ".names", "a name is empty or appears twice")
    if places and max(places) >= len(names):
        raise bad(field, f"no name has the place {max(places)}: there are {len(names) - 1}")
    return [names[place] for place in places]


def _rare(m: pb.EntryColumns, count: int, at: str) -> dict[int, Rare]:
    places = m.rare_at[:]
    if len(places) != len(m.rare):
        raise bad(f"{at}.rare_at", f"expected {len(m.rare)}, one for each of rare, received {len(places)}")
    if any(place <= before for before, place in pairwise(places)):
        raise bad(f"{at}.rare_at", "positions must ascend")
    if places and places[-1] >= count:
        raise bad(f"{at}.rare_at", f"positions must be under {count}, the last is {places[-1]}")
    found = {
        place: _rare_of(entry, m.types[place], f"{at}.rare[{index}]")
        for index, (place, entry) in enumerate(zip(places, m.rare, strict=True))
    }
    # One form of each entry: a leaf has no place for rare fields that are all unset.
    return {place: rare for place, rare in found.items() if rare != NOTHING_RARE}


def _rare_of(m: pb.Entry, kind: int, at: str) -> Rare:
    fields = {field.name for field, _ in m.ListFields()}
    if not fields <= _RARE_FIELDS:
        raise bad(f"{at}.{min(fields - _RARE_FIELDS)}", "this field is a column, or is not valid here")
    chunks: tuple[ChunkRef, ...] = ()
    if m.HasField("content"):
        if {field.name for field, _ in m.content.ListFields()} != {"chunks"}:
            raise bad(f"{at}.content", "only chunks are valid here, 2 or more of them")
        chunks = tuple(ChunkRef(ref.length_bytes, ref.digest) for ref in m.content.chunks)
    has_device = kind in _DEVICES or m.device_major or m.device_minor
    return Rare(
        device=(m.device_major, m.device_minor) if has_device else None,
        link_group=m.link_group,
        attributes=attributes_of(m),
        file_digest=file_digest_of(m),
        chunks=chunks,
    )


_DEVICES: Final = frozenset({EntryType.CHAR_DEVICE.value, EntryType.BLOCK_DEVICE.value})


# ---------------------------------------------------------------------- entries out

ROWS_MAX: Final = 1024
"""Entries in one message of columns: what is gathered takes about as many KiB."""
ROWS_BYTES: Final = 256 * KIB
"""What these may have beside their columns."""
_FROM_FLAGS: Final = [
    (READ_AGAIN if flags & Flag.READ_AGAIN else 0)
    | (INCOMPLETE if flags & Flag.INCOMPLETE else 0)
    | (IMPLIED if flags & Flag.IMPLIED else 0)
    for flags in range(2 * max(each.value for each in Flag))
]


class EncodedColumns(NamedTuple):
    """Columns of entries, and the contents of their files: a PieceColumns, or bytes, or nothing."""

    columns: bytes
    pieces: bytes
    data: Sequence[bytes | memoryview]


class ColumnsOut:
    """Gathers consecutive entries, without their chunks, for columns."""

    def __init__(self) -> None:
        self._rows: list[EntryRow] = []
        self._presence: tuple[bool, ...] = ()
        self._profile: Profile | None = None
        self._pieces: list[Piece] = []
        self._data: list[bytes | memoryview] = []
        self._size = 0

    def add(self, entry: Entry, content: Piece | bytes | memoryview | None = None) -> list[EncodedColumns]:
        """Add the next entry, and the content of a file; return those before it, if they are complete."""
        row = _row_out(entry)
        profile = self._profile if entry.content is None else entry.content.profile
        has = presence(row)
        is_piece = isinstance(content, Piece)
        before = []
        if (
            has != self._presence
            or (profile is not self._profile and self._profile is not None)
            or (content and (self._data if is_piece else self._pieces))
            or len(self._rows) >= ROWS_MAX
            or self._size >= ROWS_BYTES
        ):
            before = self.take()
        self._rows.append(row)
        self._presence = has
        self._profile = profile
        self._size += len(row.path) + len(row.link_target) + (row.rare.ByteSize() if row.rare else 0)
        if isinstance(content, Piece):
            self._pieces.append(content)
        elif content:
            self._data.append(compact(content))
            self._size += len(content)
        return before

    @property
    def oldest_segment(self) -> int | None:
        """The first of the segments that gathered entries refer to."""
        return min((piece.segment for piece in self._pieces), default=None)

    def take(self) -> list[EncodedColumns]:
        """Return what was gathered: one, or none."""
        if not self._rows:
            return []
        profile = (self._profile or Profile.CONTENT_DEFINED).value
        columns = columns_from(self._rows, profile)  # type: ignore[arg-type] # the numbers are the same
        pieces = sv.PieceColumns(
            segments=[piece.segment for piece in self._pieces],
            offsets_bytes=[piece.offset for piece in self._pieces],
        )
        data = self._data
        self._rows, self._profile, self._size = [], None, 0
        self._pieces, self._data = [], []
        return [EncodedColumns(columns.SerializeToString(), pieces.SerializeToString(), data)]


def _row_out(entry: Entry) -> EntryRow:
    content = entry.content
    rare = None
    if entry.link_group or entry.device is not None or entry.attributes is not None or entry.file_digest:
        rare = pb.Entry()
        set_rare(entry, rare)
    return EntryRow(
        entry.path,
        entry.type,
        _FROM_FLAGS[entry.flags % len(_FROM_FLAGS)],
        entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime_ns,
        entry.ctime_ns,
        entry.inode,
        entry.owner,
        entry.group,
        0 if content is None else content.size,
        b"" if content is None else content.content_id,
        entry.link_target or b"",
        rare,
    )
