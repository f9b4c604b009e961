"""A backup, or paths of it, as a stream of entries and verified bytes; damage is reported, and the rest
restored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple

from staddle_server.base.errors import Damaged, NotFound
from staddle_server.base.limits import KIB, MIB
from staddle_server.base.types import (
    ChunkPlace,
    ChunkRef,
    Content,
    Entry,
    EntryType,
    Role,
    Root,
    SegmentRef,
    sort_key,
)
from staddle_server.catalog import Catalog
from staddle_server.manifest.content import chunks_of, read_attributes
from staddle_server.manifest.entries import shown
from staddle_server.manifest.read import Gap, Manifest
from staddle_server.restore.stored_segments import AsStored, Piece
from staddle_server.store.blobs import BlobUnreadable
from staddle_server.store.pack import Segment, StoredSegment
from staddle_server.tenancy.chunk_reader import DATA_KEPT_BYTES, ChunkReader
from staddle_server.tenancy.prefetch import Ahead
from staddle_server.tenancy.tenant import Tenant

INLINE_BYTES_MAX: Final = 64 * KIB
"""A file of one chunk up to this size is sent in its entry."""
WINDOW_STEPS: Final = 4096
WINDOW_BYTES: Final = 32 * MIB
"""The window of lookups, over which the needed part of each segment is counted."""


FOUND_MAX: Final = 4096
"""Entries looked up and kept until they are sent."""


class SentEntry(NamedTuple):
    """An entry; `data` is its whole content if it is inline, or a piece of a segment.

    `attributes` are its separately stored ones, encoded: they become objects where they are sent.
    """

    entry: Entry
    data: bytes | memoryview | Piece | None
    attributes: bytes | None = None


class SentSegment(NamedTuple):
    """A segment for later pieces."""

    segment: StoredSegment


class SentPiece(NamedTuple):
    """The next chunk of the last entry, as a piece of a segment."""

    piece: Piece


class SentData(NamedTuple):
    """The next chunk of the last entry."""

    data: memoryview


class SentZeros(NamedTuple):
    """The next chunk of the last entry: so many zero bytes."""

    length: int


class SentRef(NamedTuple):
    """The next chunk of the last entry, by reference."""

    ref: ChunkRef


class SentEnd(NamedTuple):
    """The last entry is complete."""

    content: Content


class SentDamage(NamedTuple):
    """The last entry, or the content of a damaged part of the manifest, cannot be restored."""

    path: bytes
    message: str
    offset: int
    subtree: bool


@dataclass
class Totals:
    """What was sent so far."""

    entries: int = 0
    data_bytes: int = 0
    damages: int = 0


Event = SentEntry | SentSegment | SentPiece | SentData | SentZeros | SentRef | SentEnd | SentDamage


class _Step(NamedTuple):
    """One thing to send: an entry, one chunk of the last one, or its end.

    `error`: its chunk list is unreadable.
    """

    entry: Entry | None = None
    ref: ChunkRef | None = None
    end: Content | None = None
    error: SentDamage | None = None


class Restore:
    """One restore. Iterate `events`; `totals` is current at any time."""

    def __init__(
        self,
        tenant: Tenant,
        catalog: Catalog,
        root: Root,
        opener: Executor,
        *,
        data: bool,
        refs: bool = False,
        segments: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`check` raises once the caller is gone; `data`: with the bytes, as stored where possible with
        `segments`; `refs`: with chunk references.
        """
        self._tenant = tenant
        self._catalog = catalog
        self._manifest_reader = ChunkReader(tenant, catalog, check=check)
        self._manifest = Manifest(root, self._manifest_reader)
        self._reader = ChunkReader(tenant, catalog, DATA_KEPT_BYTES, check)
        self._opener = opener
        self._check = check
        zeros = tenant.cutter.zeros
        self._zeros = ChunkRef(len(zeros.data), zeros.digest)
        self._as_stored = AsStored(tenant, catalog, opener) if data and segments else None
        self._data = data
        self._refs = refs
        self._found: dict[bytes, Entry] = {}
        """Requested entries without children: their pages need not be read twice."""
        self._path = b""
        self._offset = 0
        self._skipping = False
        """The rest of the last entry is not sent: it is damaged."""
        self._attributes: bytes | None = None
        """The chunks of the last entry, until it is sent."""
        self._held: Entry | None = None
        """An entry that waits for its only chunk."""
        self.totals = Totals()

    def select(self, paths: Sequence[bytes], *, exact: bool) -> list[bytes]:
        """Return the paths in order, without those below another one.

        Raises:
            NotFound: PATH_NOT_FOUND, one of them does not exist.

        """
        chosen: list[bytes] = []
        for path in sorted(set(paths), key=sort_key):
            self._check()
            if path and not self._may_have(path):
                raise path_not_found(path)
            if exact or not chosen or not _below(path, chosen[-1]):
                chosen.append(path)
        return chosen

    def _may_have(self, path: bytes) -> bool:
        """Return whether the backup has a path, or may have it: damage is reported in the stream."""
        try:
            entry = self._manifest.find(path)
        except Damaged:
            return True
        if entry is not None and entry.type is not EntryType.DIRECTORY and len(self._found) < FOUND_MAX:
            self._manifest_reader.held.change(_memory_of(_Step(entry=entry)))
            self._found[path] = entry
        return entry is not None

    def events(self, paths: Sequence[bytes], *, exact: bool) -> Iterator[Event]:
        """Yield what to send, in order. With no paths: everything."""
        entries = self._entries(paths, exact=exact)
        if not (self._data or self._refs):
            yield from self._without_content(entries)
            return
        steps = self._steps(entries)
        window: list[_Step] = []
        # Separate from the pages' memory, so that a window never blocks the next page.
        held = self._tenant.decoded.held(self._tenant.id, self._check)
        size = memory = 0
        for step in steps:
            self._check()
            window.append(step)
            size += _size_of(step)
            memory += _memory_of(step)
            fits = True
            if memory >= COUNTED_BYTES:  # without room, the window is only shorter
                fits, memory = held.may_change(memory), 0
            if len(window) >= WINDOW_STEPS or size >= WINDOW_BYTES or not fits:
                yield from self._send(window)
                held.close()
                window, size, memory = [], 0, 0
        yield from self._send(window)
        held.close()

    # ------------------------------------------------------------------ what there is to send

    def _entries(self, paths: Sequence[bytes], *, exact: bool) -> Iterator[Entry | Gap]:
        for path in paths or (b"",):
            found = self._found.pop(path, None)
            if found is not None:
                yield found
            elif exact:
                yield from self._exactly(path)
            else:
                yield from self._manifest.walk(path)

    def _exactly(self, path: bytes) -> Iterator[Entry | Gap]:
        try:
            entry = self._manifest.find(path)
        except Damaged as e:
            yield Gap(path, path, e.message)
            return
        if entry is not None:
            yield entry

    def _steps(self, entries: Iterable[Entry | Gap]) -> Iterator[_Step]:
        for entry in entries:
            if isinstance(entry, Gap):
                yield _Step(error=SentDamage(entry.after or b"", entry.message, 0, subtree=True))
                continue
            yield _Step(entry=entry)
            content = entry.content
            if content is not None and content.size and (self._data or self._refs):
                yield from self._content_steps(entry.path, content)

    def _content_steps(self, path: bytes, content: Content) -> Iterator[_Step]:
        offset = 0
        try:
            for offset, ref in chunks_of(content, self._manifest_reader):  # noqa: B007 - the last one is reported
                yield _Step(ref=ref)
        except Damaged as e:
            yield _Step(error=SentDamage(path, e.message, offset, subtree=False))
            return
        yield _Step(end=content)

    # ------------------------------------------------------------------ sending

    def _send(self, steps: Sequence[_Step]) -> Iterator[Event]:
        if not self._data:
            yield from self._send_without_data(steps)
            return
        digests = [step.ref.digest for step in steps if step.ref is not None and step.ref != self._zeros]
        places = self._reader.locate(Role.DATA, set(digests))
        as_stored = self._as_stored
        if as_stored is not None:
            pieces = as_stored.choose(digests, places)
            digests = [digest for digest in digests if digest not in pieces]
        self._reader.expect(Role.DATA, digests)
        ahead = segments_ahead(self._tenant, self._reader, self._opener, digests, places)
        try:
            yield from self._send_data(steps, places, ahead)
        finally:
            ahead.close()
            if as_stored is not None:
                as_stored.close()

    def _without_content(self, entries: Iterable[Entry | Gap]) -> Iterator[Event]:
        """Yield the entries alone: nothing has to be looked up for them, so none waits in a window."""
        for entry in entries:
            self._check()
            if isinstance(entry, Gap):
                yield from self._give_up(SentDamage(entry.after or b"", entry.message, 0, subtree=True))
            elif entry.attributes_ref is None:
                self.totals.entries += 1
                yield SentEntry(entry, None)
            else:
                yield from self._begin(entry)

    def _send_without_data(self, steps: Sequence[_Step]) -> Iterator[Event]:
        for step in steps:
            if step.entry is not None:
                yield from self._begin(step.entry)
            elif step.error is not None:
                yield from self._give_up(step.error)
            elif step.ref is not None and not self._skipping:
                yield SentRef(step.ref)

    def _send_data(
        self, steps: Sequence[_Step], places: dict[bytes, list[ChunkPlace]], ahead: Ahead[Segment]
    ) -> Iterator[Event]:
        for step in steps:
            if step.entry is not None:
                yield from self._begin(step.entry)
            elif step.error is not None:
                yield from self._give_up(step.error)
            elif self._skipping:
                continue
            elif step.ref is not None:
                yield from self._chunk(step.ref, places, ahead)
            elif step.end is not None:
                self.totals.data_bytes += step.end.size
                if not _inline(step.end):
                    yield SentEnd(step.end)

    def _begin(self, entry: Entry) -> Iterator[Event]:
        self._path, self._offset, self._skipping = entry.path, 0, False
        try:
            self._attributes = read_attributes(entry, self._manifest_reader)
        except Damaged as e:
            self._held = None
            yield self._entry(entry, None)
            yield from self._give_up(SentDamage(entry.path, e.message, 0, subtree=False))
            return
        if self._data and entry.content is not None and _inline(entry.content):
            self._held = entry
        else:
            empty = self._data and entry.content is not None and not entry.content.size
            yield self._entry(entry, b"" if empty else None)

    def _chunk(
        self, ref: ChunkRef, places: dict[bytes, list[ChunkPlace]], ahead: Ahead[Segment]
    ) -> Iterator[Event]:
        if ref == self._zeros and self._held is None:
            self._offset += ref.length
            yield SentZeros(ref.length)
            return
        if self._as_stored is not None:
            segment = self._as_stored.segment_for(ref.digest)
            if segment is not None:
                yield SentSegment(segment)
                del segment  # not needed while the following data is sent
            piece = self._as_stored.piece(ref.digest, ref.length)
            if piece is not None:
                yield self._sent_chunk(piece, ref.length)
                return
        try:
            take_ahead(ahead, self._reader, ref.digest)
            data = self._reader.data(ref, places.get(ref.digest, ()))
        except Damaged as e:
            yield from self._give_up(SentDamage(self._path, e.message, self._offset, subtree=False))
            return
        yield self._sent_chunk(data, len(data))

    def _sent_chunk(self, data: memoryview | Piece, length: int) -> Event:
        self._offset += length
        if self._held is not None:
            held, self._held = self._held, None
            return self._entry(held, data)
        return SentPiece(data) if isinstance(data, Piece) else SentData(data)

    def _give_up(self, damage: SentDamage) -> Iterator[Event]:
        """Yield the damage of the last entry, or of a part of the manifest; once for each entry."""
        if self._skipping and not damage.subtree:
            return
        if self._held is not None:
            held, self._held = self._held, None
            yield self._entry(held, None)
        self._skipping = True
        yield self._damage(damage)

    def _entry(self, entry: Entry, data: bytes | memoryview | Piece | None) -> SentEntry:
        self.totals.entries += 1
        attributes, self._attributes = self._attributes, None
        return SentEntry(entry, data, attributes)

    def _damage(self, damage: SentDamage) -> SentDamage:
        self.totals.damages += 1
        return damage


def segments_ahead(
    tenant: Tenant,
    reader: ChunkReader,
    opener: Executor,
    digests: Sequence[bytes],
    places: dict[bytes, list[ChunkPlace]],
) -> Ahead[Segment]:
    """Read the segments that chunks need, in order, before the reader needs them. Close it at the end."""
    firsts, ends = _needed_segments(digests, places)
    return Ahead(
        opener, lambda ref: tenant.cached.segment(ref, ends[ref]), lambda ref: not reader.has(ref), firsts
    )


def take_ahead(ahead: Ahead[Segment], reader: ChunkReader, digest: bytes) -> None:
    """Put a prefetched segment where chunks are read from."""
    with suppress(
        Damaged, BlobUnreadable
    ):  # the reader finds it again, records it, and searches for another copy
        taken = ahead.take(digest)
        if taken is not None:
            reader.keep(*taken)


def _needed_segments(
    digests: Iterable[bytes], places: dict[bytes, list[ChunkPlace]]
) -> tuple[list[tuple[bytes, SegmentRef]], dict[SegmentRef, int]]:
    """Return the segments that chunks need, each at the chunk that needs it first, and up to where."""
    firsts: list[tuple[bytes, SegmentRef]] = []
    ends: dict[SegmentRef, int] = {}
    for digest in digests:
        found = places.get(digest)
        if not found:
            continue
        ref, offset, length = found[0]
        if ref not in ends:
            firsts.append((digest, ref))
        ends[ref] = max(ends.get(ref, 0), offset + length)
    return firsts, ends


def path_not_found(path: bytes) -> NotFound:
    """The error for a path that a backup does not have."""
    return NotFound("PATH_NOT_FOUND", f"the backup has no path '{shown(path)}'", path=shown(path))


def _size_of(step: _Step) -> int:
    """Return what a window counts: bytes to come, and the entry's own memory, only a little of which is in
    pages.
    """
    if step.ref is not None:
        return step.ref.length
    attributes = None if step.entry is None else step.entry.attributes
    if attributes is None:
        return 0
    items = len(attributes.xattrs) + len(attributes.holes)
    return items * _ITEM_BYTES + sum(len(xattr.value) for xattr in attributes.xattrs)


_ITEM_BYTES: Final = 1024
"""What a window counts for an attribute or hole: more than its 150 bytes, because a window is large."""


COUNTED_BYTES: Final = 64 * KIB
"""The granularity in which windows count memory."""
STEP_BYTES: Final = 256
ENTRY_BYTES: Final = 768
"""A step, and an entry with a few chunks, as objects."""


def _memory_of(step: _Step) -> int:
    """Return what a step takes while it waits in a window."""
    entry = step.entry
    if entry is None:
        return STEP_BYTES
    size = STEP_BYTES + ENTRY_BYTES + len(entry.path) + len(entry.link_target or b"")
    return size + (0 if entry.attributes is None else _size_of(step))


def _inline(content: Content) -> bool:
    return len(content.chunks) == 1 and content.size <= INLINE_BYTES_MAX


def _below(path: bytes, parent: bytes) -> bool:
    return not parent or path.startswith(parent + b"/")
