"""Calls that read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Final

from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

from staddle_server.api import convert, convert_filters, encoding
from staddle_server.api.convert import bad
from staddle_server.api.convert_columns import ColumnsOut, EncodedColumns
from staddle_server.api.encoding import Pieces
from staddle_server.api.gate import Call
from staddle_server.api.page_tokens import PageTokens
from staddle_server.base import limits
from staddle_server.base.types import Entry
from staddle_server.catalog import Backup, Catalog
from staddle_server.manifest.content import with_attributes
from staddle_server.manifest.entries import check_path
from staddle_server.restore.browse import Listed, Reads
from staddle_server.restore.restore import (
    Event,
    Restore,
    SentDamage,
    SentData,
    SentEnd,
    SentEntry,
    SentPiece,
    SentRef,
    SentSegment,
    SentZeros,
)
from staddle_server.restore.stored_segments import Piece
from staddle_server.store.blobs import compact
from staddle_server.store.frame import Codec
from staddle_server.tenancy.tenant import Tenants

PAGE: Final = 100
LONG_PAGE: Final = 1_000
PAGE_BYTES: Final = 2 * limits.MIB
"""A page is sent at this size, whatever its number of items."""
PARTS_MAX: Final = 4096
REFS_PER_PART: Final = 1024


class ReadCalls:
    """Answers the calls that read."""

    def __init__(self, reads: Reads, catalog: Catalog, tenants: Tenants) -> None:
        self._reads = reads
        self._catalog = catalog
        self._tenants = tenants

    # ------------------------------------------------------------------ restore

    def restore(self, request: sv.RestoreRequest, call: Call) -> Iterator[bytes]:
        paths = [path.encode("utf-8") for path in request.paths] + list(request.raw_paths)
        if len(paths) > limits.RESTORE_PATHS_MAX:
            raise bad("paths", f"the limit is {limits.RESTORE_PATHS_MAX} a call")
        for path in paths:
            check_path(path)
        if request.exact and not paths:
            raise bad("exact", "it needs paths")
        view = request.view or sv.ENTRY_VIEW_DATA
        if request.segments and view != sv.ENTRY_VIEW_DATA:
            raise bad("segments", "it requires the view DATA")
        if request.columns and view != sv.ENTRY_VIEW_BASIC and not request.segments:
            raise bad("columns", "it requires the view BASIC, or DATA with segments")
        backup = self._pick(request, call)
        restore = self._reads.restore(
            call.principal,
            backup,
            data=view == sv.ENTRY_VIEW_DATA,
            refs=view == sv.ENTRY_VIEW_REFERENCES,
            segments=request.segments,
            check=call.check,
        )
        chosen = restore.select(paths, exact=request.exact)
        large = self._large(call)
        complete = _CompleteEntries(large, data=request.segments) if request.columns else None
        header = sv.RestorePart(header=sv.RestoreHeader(backup=convert.backup_out(backup)))
        parts: Iterator[Pieces] = chain(
            [encoding.part(header)],
            _parts_of(restore.events(chosen, exact=request.exact), large, complete),
            _end(restore),
        )

        def noted(response: bytes) -> bytes:
            call.facts.update(
                entries=restore.totals.entries,
                bytes=restore.totals.data_bytes,
                damages=restore.totals.damages,
            )
            return response

        # No local name holds a message while the next one is built.
        yield from map(noted, _messages(parts))

    def _pick(
        self,
        request: sv.RestoreRequest | sv.ReadRangeRequest | sv.GetBackupRequest | sv.ListEntriesRequest,
        call: Call,
    ) -> Backup:
        call.facts["dataset"] = request.dataset
        dataset = convert.dataset_name(request.dataset)
        backup = self._reads.pick(call.principal, dataset, convert.selector_of(request.backup))
        call.facts["backup"] = backup.id.hex()
        return backup

    def read_range(self, request: sv.ReadRangeRequest, call: Call) -> sv.ReadRangeResponse:
        backup = self._pick(request, call)
        found = self._reads.read_range(
            call.principal,
            backup,
            convert.path_of(request),
            request.offset_bytes,
            request.length_bytes,
            check=call.check,
        )
        call.facts["bytes"] = len(found.data)
        return sv.ReadRangeResponse(
            data=found.data,
            file_size_bytes=found.file_size,
            content_id=found.content_id,
            backup_id=backup.id.hex(),
        )

    # ------------------------------------------------------------------ lists

    def list_datasets(self, request: sv.ListDatasetsRequest, call: Call) -> sv.ListDatasetsResponse:
        limit = convert.size(request.page_size, "page_size", PAGE, limits.SHORT_PAGE_SIZE_MAX)
        tokens = self._tokens(call)
        after = tokens.read(("datasets",), request.page_token, str) if request.page_token else ""
        found = self._catalog.datasets.list_page(call.principal.tenant, after, limit)
        page = convert.fitting(map(convert.dataset_out, found), PAGE_BYTES)
        more = tokens.make(("datasets",), page[-1].name) if found.more or len(found) > len(page) else ""
        return sv.ListDatasetsResponse(datasets=page, next_page_token=more)

    def list_backups(self, request: sv.ListBackupsRequest, call: Call) -> sv.ListBackupsResponse:
        call.facts["dataset"] = request.dataset
        dataset = convert.dataset_name(request.dataset)
        limit = convert.size(request.page_size, "page_size", PAGE, limits.SHORT_PAGE_SIZE_MAX)
        among = convert_filters.backup_filter_of(request)
        tokens, query = self._tokens(call), ("backups", dataset, request.show_deleted, *among)
        before = tokens.read(query, request.page_token, int) if request.page_token else None
        found = self._catalog.backups.list_page(
            call.principal.tenant,
            dataset,
            show_deleted=request.show_deleted,
            before_number=before,
            limit=limit,
            among=among,
            check=call.check,
        )
        page = convert.fitting(map(convert.backup_out, found), PAGE_BYTES)
        more = tokens.make(query, found.reached) if found.more else ""
        if len(found) > len(page):
            more = tokens.make(query, page[-1].number)
        return sv.ListBackupsResponse(backups=page, next_page_token=more)

    def get_backup(self, request: sv.GetBackupRequest, call: Call) -> sv.GetBackupResponse:
        return sv.GetBackupResponse(backup=convert.backup_out(self._pick(request, call)))

    def list_entries(self, request: sv.ListEntriesRequest, call: Call) -> bytes:
        call.facts["dataset"] = request.dataset
        path = convert.path_of(request)
        limit = convert.size(request.page_size, "page_size", LONG_PAGE, limits.PAGE_SIZE_MAX)
        if request.view == sv.ENTRY_VIEW_DATA:
            raise bad("view", "a list carries no data; use Restore")
        if request.columns and request.view == sv.ENTRY_VIEW_REFERENCES:
            raise bad("columns", "it requires the view BASIC")
        tokens, query = self._tokens(call), ("entries", request.dataset, path, request.recursive)
        after = None
        if request.page_token:
            picked, after = tokens.read(query, request.page_token, tuple[str, bytes])
            request.backup.backup = picked
        backup = self._pick(request, call)
        entries = self._reads.entries(
            call.principal, backup, path, recursive=request.recursive, after=after, check=call.check
        )
        refs = limits.CHUNKS_PER_CALL_MAX if request.view == sv.ENTRY_VIEW_REFERENCES else 0
        response = sv.ListEntriesResponse(backup_id=backup.id.hex())

        def encoded(listed: Listed) -> bytes:
            chunks = self._reads.chunks(call.principal, listed.entry, refs, call.check) if refs else ()
            return _listed_bytes(listed, chunks, self._large(call))

        page = _ColumnPage(self._large(call)) if request.columns else _EntryPage(encoded)
        last = b""
        for listed in entries:
            call.check()
            if page.count >= limit or page.size >= PAGE_BYTES:
                response.next_page_token = tokens.make(query, (backup.id.hex(), last))
                break
            page.add(listed)
            last = listed.entry.path
        call.facts["entries"] = page.count
        return encoding.entries_response(response, page.items(), columns=request.columns)

    def list_changes(self, request: sv.ListChangesRequest, call: Call) -> sv.ListChangesResponse:
        call.facts["dataset"] = request.dataset
        dataset = convert.dataset_name(request.dataset)
        limit = convert.size(request.page_size, "page_size", LONG_PAGE, limits.PAGE_SIZE_MAX)
        selectors = [convert.selector_of(request.from_backup), convert.selector_of(request.to_backup)]
        tokens = self._tokens(call)
        query = (
            "changes",
            dataset,
            request.from_backup.SerializeToString(),
            request.to_backup.SerializeToString(),
        )
        behind = None
        if request.page_token:
            *picked, behind = tokens.read(query, request.page_token, tuple[str, str, bytes])
            selectors = [selectors[0]._replace(backup=b, at_ns=None, ago_ns=None) for b in picked]
        before, after = (self._reads.pick(call.principal, dataset, selector) for selector in selectors)
        response = sv.ListChangesResponse(from_backup_id=before.id.hex(), to_backup_id=after.id.hex())
        size, last = 0, b""
        for changed in self._reads.changes(call.principal, before, after, behind, call.check):
            if len(response.changes) >= limit or size >= PAGE_BYTES:
                response.next_page_token = tokens.make(query, (before.id.hex(), after.id.hex(), last))
                break
            message = convert.changed_out(changed)
            size += message.ByteSize()
            response.changes.append(message)
            last = changed.path
        call.facts["entries"] = len(response.changes)
        return response

    def _large(self, call: Call) -> threading.Lock:
        """Return the lock that lets each tenant convert entries with large attributes one at a time."""
        return self._tenants.get(call.principal.tenant).large

    def _tokens(self, call: Call) -> PageTokens:
        return PageTokens(self._tenants.get(call.principal.tenant).secrets.token_key)


class _EntryPage:
    """The encoded entries of one page of a list."""

    def __init__(self, encoded: Callable[[Listed], bytes]) -> None:
        self._encoded = encoded
        self._items: list[bytes] = []
        self.size = 0
        self.count = 0

    def add(self, listed: Listed) -> None:
        self._items.append(self._encoded(listed))
        self.size += len(self._items[-1])
        self.count += 1

    def items(self) -> list[bytes]:
        return self._items


class _ColumnPage:
    """The same in columns."""

    def __init__(self, large: threading.Lock) -> None:
        self._large = large
        self._gathered = ColumnsOut()
        self._items: list[bytes] = []
        self.size = 0
        self.count = 0

    def add(self, listed: Listed) -> None:
        for each in _columns_with(self._gathered, *listed, self._large):
            self._items.append(each.columns)
            self.size += len(each.columns)
        self.count += 1

    def items(self) -> list[bytes]:
        return [*self._items, *(each.columns for each in self._gathered.take())]


def _columns_with(
    gathered: ColumnsOut,
    entry: Entry,
    attributes: bytes | None,
    large: threading.Lock,
    data: Piece | bytes | memoryview | None = None,
) -> Iterator[EncodedColumns]:
    """Add an entry, and yield the columns that are complete.

    One with separate attributes has columns of its own, so that they are decoded for one entry at a time.
    """
    if attributes is None:
        yield from gathered.add(entry, data)
        return
    yield from gathered.take()
    with large:
        gathered.add(with_attributes(entry, attributes), data)
        alone = gathered.take()
    yield from alone


def _parts_of(
    events: Iterator[Event], large: threading.Lock, complete: _CompleteEntries | None
) -> Iterator[Pieces]:
    """Yield parts, combining adjacent ones of the same kind, and entries into columns if `complete` takes
    them.
    """
    gathered = _OnePart()
    for event in events:
        if complete is not None:
            if complete.takes(event):
                yield from gathered.parts()
                yield from complete.add(event)
                continue
            yield from complete.before(event)
        if not gathered.takes(event):
            yield from gathered.parts()
            if not gathered.takes(event):
                yield _part(event, large)
                continue
        gathered.add(event)
    yield from gathered.parts()
    if complete is not None:
        yield from complete.parts()


class _CompleteEntries:
    """Consecutive entries that nothing follows: with `data`, those that have their content."""

    def __init__(self, large: threading.Lock, *, data: bool) -> None:
        self._large = large
        self._data = data
        self._gathered = ColumnsOut()
        self._segments = 0
        """Sent so far."""

    def takes(self, event: Event) -> bool:
        """Return whether an event goes into columns."""
        if not isinstance(event, SentEntry):
            return False
        return not self._data or event.data is not None or event.entry.content is None

    def add(self, event: Event) -> Iterator[Pieces]:
        """Add an entry, and yield the parts that are complete."""
        assert isinstance(event, SentEntry)
        entry, data, attributes = event
        for each in _columns_with(self._gathered, entry, attributes, self._large, data):
            yield self._part(each)

    def before(self, event: Event) -> Iterator[Pieces]:
        """Yield what must be sent before another event: all, unless it is a segment after which the client
        still has those that are referred to.
        """
        if isinstance(event, SentSegment):
            self._segments += 1
            oldest = self._gathered.oldest_segment
            if oldest is None or oldest >= self._segments - limits.SEGMENTS_REFERRED_MAX:
                return
        yield from self.parts()

    def parts(self) -> Iterator[Pieces]:
        """Yield what was gathered."""
        for each in self._gathered.take():
            yield self._part(each)

    @staticmethod
    def _part(encoded: EncodedColumns) -> Pieces:
        return encoding.columns_part(*encoded)


class _OnePart:
    """Consecutive chunks of one file, all of them bytes, pieces or references."""

    def __init__(self) -> None:
        self._kind: type[Event] | None = None
        self._data: Pieces = []
        self._size = 0
        self._part = sv.RestorePart()

    def takes(self, event: Event) -> bool:
        """Return whether this event fits into the same part."""
        kind = type(event)
        if kind not in _GATHERED or (self._kind is not None and kind is not self._kind):
            return False
        if isinstance(event, SentData):
            return not self._size or self._size + len(event.data) <= limits.RESPONSE_BYTES_TARGET
        return self._size < REFS_PER_PART

    def add(self, event: Event) -> None:
        self._kind = type(event)
        match event:
            case SentData(data):
                self._data.append(compact(data))
                self._size += len(data)
            case SentPiece(piece):
                self._part.pieces.pieces.append(_piece_out(piece))
                self._size += 1
            case SentRef((length, digest)):
                self._part.content.chunks.add(digest=digest, length_bytes=length)
                self._size += 1

    def parts(self) -> Iterator[Pieces]:
        """Yield what was gathered, and clear it."""
        if self._kind is SentData:
            yield encoding.data_part(self._data)
            self._data.clear()
        elif self._kind is not None:
            yield encoding.part(self._part)
            self._part.Clear()
        self._kind, self._size = None, 0


_GATHERED: Final = frozenset({SentData, SentPiece, SentRef})


def _part(event: Event, large: threading.Lock) -> Pieces:
    match event:
        case SentEntry(entry, data, attributes):
            if attributes is None:
                return _entry_part(convert.entry_out(entry), data)
            with large:
                return _entry_part(convert.entry_out(with_attributes(entry, attributes)), data)
        case SentSegment(segment):
            raw = segment.codec is Codec.RAW
            return encoding.segment_part(sv.Segment(raw=raw, raw_bytes=segment.raw_bytes), segment.payload)
        case SentZeros(length):
            part = sv.RestorePart(data=sv.Data(zero_bytes=length, chunk_lengths=[length]))
        case SentEnd(content):
            part = sv.RestorePart(
                entry_end=sv.EntryEnd(size_bytes=content.size, content_id=content.content_id)
            )
        case SentDamage(path, message, offset, subtree):
            part = sv.RestorePart(damage=sv.Damage(message=message, offset_bytes=offset, subtree=subtree))
            convert.set_name(part.damage, "path", path)
        case _:
            raise AssertionError(event)
    return encoding.part(part)


def _listed_bytes(listed: Listed, chunks: Iterable[tuple[int, bytes]], large: threading.Lock) -> bytes:
    entry, attributes = listed
    if attributes is None:
        return convert.entry_out(entry, chunks).SerializeToString()
    with large:
        return convert.entry_out(with_attributes(entry, attributes), chunks).SerializeToString()


def _entry_part(entry: pb.Entry, data: bytes | memoryview | Piece | None) -> Pieces:
    if data is None:
        return encoding.entry_part(entry)
    if isinstance(data, Piece):
        return encoding.entry_and_piece(entry, _piece_out(data))
    return encoding.inline_part(entry, data)


def _piece_out(piece: Piece) -> sv.Piece:
    segment, offset, length = piece
    return sv.Piece(segment=segment, offset_bytes=offset, length_bytes=length)


def _end(restore: Restore) -> Iterator[Pieces]:
    totals = restore.totals
    end = sv.End(entry_count=totals.entries, data_bytes=totals.data_bytes, damage_count=totals.damages)
    yield encoding.part(sv.RestorePart(end=end))


def _messages(parts: Iterator[Pieces]) -> Iterator[bytes]:
    """Yield RestoreResponse messages of about RESPONSE_BYTES_TARGET from parts."""
    pieces: Pieces = []
    count = size = 0
    for part in parts:
        part_size = sum(map(len, part))
        if count and (size + part_size > limits.RESPONSE_BYTES_TARGET or count >= PARTS_MAX):
            count = size = 0
            yield encoding.response(pieces)
        pieces += part
        count, size = count + 1, size + part_size
    yield encoding.response(pieces)
