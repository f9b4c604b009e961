"""A Restore stream, checked part by part: what comes out of here came as the protocol says.

The order is checked, each file's bytes against its content id, and the counts at the end. A stream that stops without its
End, or breaks a rule, raises ProtocolError; what came before may then be used only as far as whole files go: those whose
FileEnd came.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any, Final, NamedTuple, TypeVar

from blake3 import blake3

from staddle._base.figures import counted
from staddle._errors import ProtocolError
from staddle._protocol.answers import check_id
from staddle._protocol.columns import EntryRow, message_of_row, rows_in
from staddle._protocol.convert import is_below, path_of, sort_key
from staddle._protocol.entry_rules import check_entry
from staddle._protocol.segments import Chunk, Segments
from staddle._protocol.streamed_file import Referred, StreamedFile
from staddle.chunking import EMPTY_CONTENT_ID
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

MESSAGE_CHARACTERS_MAX: Final = 1_024
EMPTY_MAX: Final = 64
"""So many messages or parts in a row may bring nothing."""
DIRECTORIES_BYTES_MAX: Final = 64 * 1024 * 1024
"""The memory for the directories above a path: writers keep each until everything in it is written."""

VIEW_DATA: Final = sv.ENTRY_VIEW_DATA
VIEW_BASIC: Final = sv.ENTRY_VIEW_BASIC
VIEW_REFERENCES: Final = sv.ENTRY_VIEW_REFERENCES

D = TypeVar("D", bytes, memoryview)
_NOTHING: Final = memoryview(b"")
_FILES: Final = frozenset({pb.ENTRY_TYPE_UNSPECIFIED, pb.ENTRY_TYPE_FILE})


class HeaderEvent(NamedTuple):
    """First: the backup that was picked."""

    backup: pb.Backup


class EntryEvent(NamedTuple):
    """The next entry. `open`: its bytes follow, and then FileEndEvent or DamageEvent. Otherwise it is whole: inline `data` was checked."""

    path: bytes
    entry: pb.Entry
    open: bool
    data: bytes | memoryview = b""


class RowsEvent(NamedTuple):
    """The next entries, where columns were asked for."""

    rows: list[EntryRow]


class DataEvent(NamedTuple):
    """The next bytes of the open entry, not yet checked as a whole: `data`, or so many zeros."""

    data: bytes | memoryview
    zero_bytes: int


class ChunksEvent(NamedTuple):
    """View REFERENCES: the next chunks of the last entry."""

    chunks: tuple[pb.ChunkRef, ...]


class FileEndEvent(NamedTuple):
    """All bytes of the open entry have come, and match the content id."""

    size_bytes: int
    content_id: bytes


class DamageEvent(NamedTuple):
    """The open entry (discard its bytes), or a part of the tree, is damaged."""

    path: bytes
    message: str
    offset_bytes: int
    subtree: bool


class EndEvent(NamedTuple):
    """Last: everything came. The counts were checked."""

    entry_count: int
    data_bytes: int
    damage_count: int


Event = HeaderEvent | EntryEvent | RowsEvent | DataEvent | ChunksEvent | FileEndEvent | DamageEvent | EndEvent


def is_file(entry: pb.Entry) -> bool:
    """Whether an entry is a regular file."""
    return entry.type in _FILES


def read_restore(
    responses: Iterable[sv.RestoreResponse],
    *,
    view: sv.EntryView.ValueType = VIEW_DATA,
    segments: Segments | None = None,
    columns: bool = False,
    paths: int = 0,
) -> Iterator[Event]:
    """The events of a Restore stream that was asked for with `view`, so many `paths`, and with segments if `segments` are given.

    With `columns`, entries come as RowsEvents alone; of a stream with data, as without columns.

    Raises ProtocolError, and what `responses` raises.
    """
    reader = _Reader(view=view, segments=segments, columns=columns, paths=paths)
    for response in responses if segments is None else segments.ahead(responses):
        if not response.parts:
            reader.nothing()
        for part in response.parts:
            yield from reader.read(part)
    reader.finish()


class _Reader:
    """The state between parts."""

    def __init__(
        self, *, view: sv.EntryView.ValueType, segments: Segments | None, columns: bool, paths: int
    ) -> None:
        self._data = view == VIEW_DATA
        self._refers = view == VIEW_REFERENCES
        self._segments = segments
        self._columns = columns
        self._paths = paths
        self._started = False
        self._ended = False
        self._last_key: bytes | None = None
        self._open: StreamedFile | None = None
        self._entries = 0
        self._data_bytes = 0
        self._file_bytes = 0
        """Of all files so far, also those that are damaged."""
        self._damages = 0
        self._zeros: dict[int, bytes] = {}
        self._backup = pb.Backup()
        self._empty = 0
        self._above: list[tuple[bytes, int]] = []
        """Directories above the last entry, and what they take."""
        self._above_bytes = 0
        self._referred: Referred | None = None
        """The file whose chunks are coming."""

    def nothing(self) -> None:
        """A message or part came that brings nothing."""
        self._empty += 1
        if self._empty > EMPTY_MAX:
            raise ProtocolError(
                f"The restore has {counted(self._empty, 'message or part', 'messages or parts')} in a row that bring nothing."
            )

    def read(self, part: sv.RestorePart) -> Iterable[Event]:
        kind = part.WhichOneof("part")
        if self._ended:
            raise ProtocolError("The restore continued after its end.")
        if not self._started and kind != "header":
            raise ProtocolError("The restore did not begin with its header.")
        if kind not in _BRINGS_NOTHING:
            self._empty = 0
        if kind == "entry" and (self._data or not self._columns):
            piece = self._piece(part.piece) if part.HasField("piece") else None
            return (self._entry(part.entry, piece),)
        if kind == "columns" and self._data:
            return self._whole_entries(part)
        read = _PARTS.get(kind or "")
        if read is None:
            raise ProtocolError("The restore has a part that this client does not know: it is too old.")
        return read(self, getattr(part, kind or ""))

    def finish(self) -> None:
        if not self._ended:
            raise ProtocolError(
                f"The restore stopped after {counted(self._entries, 'entry', 'entries')}, without its end: the rest did not come."
            )

    def header(self, header: sv.RestoreHeader) -> tuple[HeaderEvent]:
        if self._started:
            raise ProtocolError("The restore has two headers.")
        check_id("The restore is of a backup with the id", header.backup.id)
        self._started = True
        self._backup.CopyFrom(header.backup)
        return (HeaderEvent(header.backup),)

    def _opened_segments(self) -> Segments:
        if self._segments is None:
            raise ProtocolError("The restore has segments that were not requested.")
        return self._segments

    def _entry(self, entry: pb.Entry, piece: Chunk | None) -> EntryEvent:
        path = path_of(entry)
        self._no_open_file(f"before {path!r} came")
        key = sort_key(path)
        if self._last_key is not None and key <= self._last_key:
            raise ProtocolError(f"The restore is out of order at {path!r}.")
        self._last_key = key
        check_entry(path, entry)
        self._entries += 1
        self._at_most("entries", self._entries, self._backup.entry_count)
        self._enter(path, entry)
        if not is_file(entry):
            return EntryEvent(path, entry, open=False)
        size = entry.content.size_bytes
        self._file_bytes += size
        self._at_most("bytes", self._file_bytes, self._backup.data_bytes)
        if self._refers:
            self._referred = Referred(path, size)
            self._referred.add(entry.content.chunks)
        data: bytes | memoryview = b""
        if self._data and (piece is not None or entry.HasField("data")):
            data, digest = piece or _hashed(entry.data)
            _check_inline(path, entry, data, digest)
        elif self._data and size:
            self._open = StreamedFile(path, size, entry.content.content_id, self._zeros)
            return EntryEvent(path, entry, open=True)
        self._data_bytes += size
        return EntryEvent(path, entry, open=False, data=data)

    def _piece(self, piece: sv.Piece) -> Chunk:
        return self._opened_segments().chunk(piece.segment, piece.offset_bytes, piece.length_bytes)

    def columns(self, columns: pb.EntryColumns) -> tuple[RowsEvent]:
        return (RowsEvent(self._rows(columns)),)

    def _rows(self, columns: pb.EntryColumns) -> list[EntryRow]:
        """The next entries, of columns that were asked for."""
        if not self._columns:
            raise ProtocolError("The restore has columns that were not requested.")
        rows = rows_in(columns)
        self._no_open_file(f"before {rows[0].path!r} came")
        if self._last_key is not None and sort_key(rows[0].path) <= self._last_key:
            raise ProtocolError(f"The restore is out of order at {rows[0].path!r}.")
        self._last_key = sort_key(rows[-1].path)
        self._entries += len(rows)
        self._at_most("entries", self._entries, self._backup.entry_count)
        self._file_bytes += sum(columns.sizes)
        self._at_most("bytes", self._file_bytes, self._backup.data_bytes)
        return rows

    def _whole_entries(self, part: sv.RestorePart) -> Iterator[EntryEvent]:
        """Complete entries, with their contents."""
        rows = self._rows(part.columns)
        contents = self._contents(part, [row.size_bytes for row in rows if row.size_bytes])
        for row in rows:
            entry = message_of_row(row)
            self._enter(row.path, entry)
            if not row.is_file:
                yield EntryEvent(row.path, entry, open=False)
                continue
            data, digest = next(contents) if row.size_bytes else (_NOTHING, EMPTY_CONTENT_ID)
            if digest != row.content_id:
                raise ProtocolError(f"{row.path!r}: the bytes that came are not what its content id says.")
            self._data_bytes += row.size_bytes
            yield EntryEvent(row.path, entry, open=False, data=data)

    def _contents(self, part: sv.RestorePart, sizes: list[int]) -> Iterator[tuple[memoryview, bytes]]:
        """The content of each file of columns that is not empty, and its digest."""
        pieces, data = part.piece_columns, memoryview(part.column_data)
        if data:
            agrees = len(data) == sum(sizes) and not pieces.segments and not pieces.offsets_bytes
        else:
            agrees = len(sizes) == len(pieces.segments) == len(pieces.offsets_bytes)
        if not agrees:
            raise ProtocolError("The restore has columns with more or fewer contents than files.")
        if data:
            return (
                _hashed(data[end - size : end]) for end, size in zip(accumulate(sizes), sizes, strict=True)
            )
        places = zip(pieces.segments[:], pieces.offsets_bytes[:], sizes, strict=True)
        return (self._opened_segments().chunk(*place) for place in places)

    def _enter(self, path: bytes, entry: pb.Entry) -> None:
        """Keep the directories above the path, and drop the others."""
        while self._above and not is_below(path, self._above[-1][0]):
            self._above_bytes -= self._above.pop()[1]
        if entry.type == pb.ENTRY_TYPE_DIRECTORY:
            self._above.append((path, entry.ByteSize()))
            self._above_bytes += self._above[-1][1]
            if self._above_bytes > DIRECTORIES_BYTES_MAX:
                raise ProtocolError(
                    f"The restore has directories above {path!r} that take over {DIRECTORIES_BYTES_MAX} bytes."
                )

    def _at_most(self, what: str, count: int, said: int) -> None:
        """The stream cannot have more than its backup has; so it has an end."""
        if count > said:
            raise ProtocolError(f"The restore has more {what} than the {said:,} of its backup.")

    def more_data(self, data: sv.Data) -> tuple[DataEvent]:
        if self._open is None:
            raise ProtocolError("The restore has data outside a file.")
        payload = data.data  # each look at it copies it
        self._open.add(data, payload)
        return (DataEvent(payload, data.zero_bytes),)

    def segment(self, _: sv.Segment) -> tuple[()]:
        self._opened_segments().next_segment()
        self.nothing()  # until something refers to it
        return ()

    def pieces(self, pieces: sv.Pieces) -> Iterator[DataEvent]:
        segments = self._opened_segments()
        if not pieces.pieces:
            self.nothing()
        for _ in pieces.pieces:
            self._empty = 0
            if self._open is None:
                raise ProtocolError("The restore has a piece outside a file.")
            chunk = segments.next_chunk()
            self._open.add_chunk(chunk)
            yield DataEvent(chunk.data, 0)

    def entry_end(self, end: sv.EntryEnd) -> tuple[FileEndEvent]:
        if self._open is None:
            raise ProtocolError("The restore ends a file that was not open.")
        file, self._open = self._open, None
        file.check(end)
        self._data_bytes += file.size_bytes
        return (FileEndEvent(file.size_bytes, end.content_id),)

    def damage(self, damage: sv.Damage) -> tuple[DamageEvent]:
        path = path_of(damage)
        if self._open is not None:
            if path != self._open.path:
                raise ProtocolError(
                    f"The restore reports damage of {path!r} in the middle of {self._open.path!r}."
                )
            self._open = None
        self._damages += 1
        # Of a part of the tree that cannot be read, each page is named, and has an entry at least. For each path that was asked for,
        # whether the backup has it or not, the page that it would be in is named, and sometimes the next one.
        self._at_most("damages", self._damages, self._backup.entry_count + 1 + 2 * self._paths)
        if self._referred is not None and self._referred.path == path and not damage.subtree:
            self._referred = None
        return (
            DamageEvent(path, damage.message[:MESSAGE_CHARACTERS_MAX], damage.offset_bytes, damage.subtree),
        )

    def content(self, content: sv.ContentPart) -> tuple[ChunksEvent]:
        if not self._refers or self._referred is None:
            raise ProtocolError("The restore has chunk references that were not requested.")
        self._referred.add(content.chunks)
        if content.chunks:
            self._empty = 0
        else:
            self.nothing()
        return (ChunksEvent(tuple(content.chunks)),)

    def end(self, end: sv.End) -> tuple[EndEvent]:
        self._no_open_file("at the end")
        said = (end.entry_count, end.data_bytes, end.damage_count)
        seen = (self._entries, self._data_bytes, self._damages)
        # A restore without data finds no damage, and does not know which bytes are complete.
        if said != seen if self._data else said[0] != seen[0]:
            raise ProtocolError(
                f"The restore's end says {said} of entries, bytes and damages, and {seen} came."
            )
        self._ended = True
        return (EndEvent(*said),)

    def _no_open_file(self, when: str) -> None:
        if self._referred is not None:
            self._referred.end()
            self._referred = None
        if self._open is not None:
            raise ProtocolError(f"The restore left {self._open.path!r} unfinished {when}.")


_BRINGS_NOTHING: Final = frozenset({"segment", "pieces", "content"})
"""Parts that may bring nothing; they say so themselves."""
_PARTS: Final[Mapping[str, Callable[[_Reader, Any], Iterable[Event]]]] = {
    "header": _Reader.header,
    "data": _Reader.more_data,
    "segment": _Reader.segment,
    "pieces": _Reader.pieces,
    "entry_end": _Reader.entry_end,
    "damage": _Reader.damage,
    "content": _Reader.content,
    "columns": _Reader.columns,
    "end": _Reader.end,
}


def _hashed(data: D) -> tuple[D, bytes]:
    return data, blake3(data).digest()


def _check_inline(path: bytes, entry: pb.Entry, data: bytes | memoryview, digest: bytes) -> None:
    """Inline bytes are one chunk, or none: their digest is the content id."""
    if len(data) != entry.content.size_bytes:
        raise ProtocolError(f"{path!r}: {len(data)} bytes came of {entry.content.size_bytes}.")
    if digest != entry.content.content_id:
        raise ProtocolError(f"{path!r}: the bytes that came are not what its content id says.")
