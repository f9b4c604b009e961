"""Compare one pack with the catalog, by its footer or in every byte.

Damage is marked, and wrong marks are cleared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final, NamedTuple

from staddle._base.figures import counted

from staddle_server.base.clock import Clock
from staddle_server.base.digests import first_unsound
from staddle_server.base.errors import Damaged, Unavailable
from staddle_server.base.types import SegmentRef, StoredChunk
from staddle_server.catalog import (
    FOOTER,
    WHOLE_PACK,
    Catalog,
    IndexedChunk,
    IndexedId,
    LivePack,
    indexed_id,
)
from staddle_server.store.pack import PackDamaged, Segment, pack_name
from staddle_server.tenancy.tenant import Tenant

Pace = Callable[[int, int], None]
"""Receives the numbers of bytes and chunks read; may wait, and may raise to stop."""
READS: Final = 2
"""How often apparent damage is read before it counts: memory and cables fail too."""


class PackFault(NamedTuple):
    """A fault of a pack.

    `kind`: pack (the object is missing), footer (header or footer is damaged), segment, index (the catalog
    differs from the pack's footer), or unanswered (the store does not answer, which says nothing about the
    pack).
    """

    kind: str
    message: str
    segment: int = WHOLE_PACK
    chunks: int = 0


@dataclass
class Examined:
    """The result for a pack. `gone`: it is not live any more, and the rest does not count."""

    pack: LivePack
    faults: list[PackFault] = field(default_factory=list)
    cleared: list[int] = field(default_factory=list)
    read_bytes: int = 0
    gone: bool = False
    all_tried: bool = False
    """Whether every segment was checked; some may have been unanswered."""

    @property
    def unanswered(self) -> bool:
        """Whether the object is missing, or the store did not answer somewhere."""
        return any(fault.kind in {"pack", "unanswered"} for fault in self.faults)

    def marks(self) -> set[int]:
        """Return the offsets marked as damaged."""
        marks = {fault.segment for fault in self.faults if fault.kind in {"pack", "segment"}}
        return marks | {FOOTER for fault in self.faults if fault.kind == "footer"}


class Inspector:
    """Inspects one tenant's packs and marks damage. Not thread-safe.

    `mark_damage`: whether findings change the catalog; without it, nothing is written.
    """

    def __init__(
        self,
        tenant: Tenant,
        catalog: Catalog,
        pace: Pace = lambda _size, _chunks: None,
        *,
        mark_damage: bool = True,
    ) -> None:
        self._tenant = tenant
        self._catalog = catalog
        self._pace = pace
        self._mark_damage = mark_damage

    def glance(self, pack: LivePack) -> Examined:
        """Check that the object exists with its size, and that its footer opens and agrees with the index."""
        return self._glance(pack)[0]

    def _glance(self, pack: LivePack) -> tuple[Examined, Sequence[StoredChunk] | None]:
        """Check, and also return the chunks in the footer: thousands of objects, which no lasting object may
        hold.
        """
        seen = Examined(pack)
        try:
            size = self._tenant.blobs.size(pack_name(self._tenant.id, pack.id))
        except Damaged as e:
            seen.faults.append(PackFault("pack", e.message))
            return self._certain(seen), None
        except Unavailable as e:
            seen.faults.append(PackFault("unanswered", e.message))
            return seen, None
        if size != pack.size_bytes:
            seen.faults.append(PackFault("footer", f"it has {size} bytes, not {pack.size_bytes}"))
        chunks = self._footer_chunks(seen)
        if chunks is not None:
            self._compare_index(seen, chunks)
        return self._certain(seen), chunks

    def inspect(self, pack: LivePack) -> Examined:
        """Check as `glance` does, then read, open and inflate every segment, and check every digest.

        Marks the damage in the catalog.
        """
        seen, named = self._glance(pack)
        if seen.gone or seen.unanswered:
            return seen
        seen.all_tried = True
        for ref, chunks in self._segments(pack, named):
            fault = self._read_twice(ref, chunks)
            if fault is not None:
                seen.faults.append(fault)
                if fault.kind == "pack":
                    break
            seen.read_bytes += ref.length
            self._pace(ref.length, len(chunks))
        return self._certain(seen)

    def _footer_chunks(self, seen: Examined) -> Sequence[StoredChunk] | None:
        error: Damaged | None = None
        for _ in range(READS):
            try:
                return self._tenant.packs.footer(seen.pack.id).chunks
            except Damaged as e:
                error = e
            except Unavailable as e:
                seen.faults.append(PackFault("unanswered", e.message))
                return None
        assert error is not None
        seen.faults.append(PackFault("footer", error.message))
        return None

    def _compare_index(self, seen: Examined, chunks: Sequence[StoredChunk]) -> None:
        named = {(indexed_id(chunk.chunk_id), chunk.place) for chunk in chunks}
        ids = {each for each, _ in named}
        indexed = self._catalog.verification.indexed(self._tenant.id, seen.pack.id)
        missing = len(ids - {chunk.id for chunk in indexed})
        more = sum(chunk.id not in ids for chunk in indexed)
        wrong = sum(tuple(chunk) not in named for chunk in indexed) - more
        if missing or wrong or more:
            seen.faults.append(
                PackFault(
                    "index",
                    f"of its {counted(len(ids), 'chunk')}, the index lacks {missing}, has {wrong} in another place, and names "
                    f"{more} that the pack does not have",
                    chunks=missing + wrong + more,
                )
            )

    def _segments(
        self, pack: LivePack, named: Sequence[StoredChunk] | None
    ) -> list[tuple[SegmentRef, list[IndexedChunk]]]:
        """Return the segments, from the footer or, if it is damaged, from the index."""
        if named is None:
            chunks = self._catalog.verification.indexed(self._tenant.id, pack.id)
        else:
            chunks = [IndexedChunk(indexed_id(chunk_id), place) for chunk_id, place in named]
        return [(ref, list(group)) for ref, group in groupby(chunks, key=lambda chunk: chunk.place.segment)]

    def _read_twice(self, ref: SegmentRef, chunks: Sequence[IndexedChunk]) -> PackFault | None:
        error: Damaged | None = None
        for _ in range(READS):
            try:
                self._read(ref, chunks)
            except Damaged as e:
                error = e
            except Unavailable as e:
                return PackFault("unanswered", e.message, ref.offset, len(chunks))
            else:
                return None
        assert error is not None
        return PackFault("segment", error.message, ref.offset, len(chunks))

    def _read(self, ref: SegmentRef, chunks: Sequence[IndexedChunk]) -> None:
        segment = self._tenant.packs.segment(ref)
        check_digests(segment)
        at: dict[tuple[IndexedId, int], int] = {}
        offset = 0
        for length, digest in segment.table:
            at[indexed_id(self._tenant.chunk_id(segment.role, digest)), offset] = length
            offset += length
        for chunk in chunks:
            if at.get((chunk.id, chunk.place.offset)) != chunk.place.length:
                raise PackDamaged(ref.pack, ref.offset, "the segment does not have its chunks")

    def _certain(self, seen: Examined) -> Examined:
        """Return the result unless the pack was condemned meanwhile: its object may then rightly be gone.

        Marks certain damage.
        """
        if not seen.faults:
            return seen
        now = self._catalog.verification.live_pack(self._tenant.id, seen.pack.id)
        seen.gone = now is None
        if now is not None and self._mark_damage:
            for offset in sorted(seen.marks() - seen.pack.marks):
                where = None if offset == WHOLE_PACK else offset
                self._catalog.packs.mark_damaged(self._tenant.id, seen.pack.id, where)
        return seen


class Examiner(Inspector):
    """Inspects packs, and also records wrong marks and verified packs. Not thread-safe."""

    def __init__(
        self,
        tenant: Tenant,
        catalog: Catalog,
        clock: Clock,
        pace: Pace = lambda _size, _chunks: None,
        *,
        mark_damage: bool = True,
    ) -> None:
        super().__init__(tenant, catalog, pace, mark_damage=mark_damage)
        self._clock = clock

    def read(self, pack: LivePack) -> Examined:
        """Inspect a pack, clear wrong marks, and record that the pack was verified."""
        seen = self.inspect(pack)
        if seen.gone or not seen.all_tried:
            return seen
        wrong = any(fault.kind != "index" for fault in seen.faults)
        # An unread segment does not count as intact.
        unsound = {fault.segment for fault in seen.faults if fault.kind != "index"} | seen.marks()
        seen.cleared = sorted(seen.pack.marks - unsound)
        if self._mark_damage and (seen.cleared or not wrong):
            self._catalog.verification.read_whole(
                self._tenant.id, seen.pack.id, self._clock.now_ns(), verified=not wrong, cleared=seen.cleared
            )
        return seen


def check_digests(segment: Segment) -> None:
    """Hash every chunk of a segment. Raises PackDamaged."""
    number = first_unsound(segment.table, memoryview(segment.data))
    if number is not None:
        digest = segment.table[number].digest
        raise PackDamaged(segment.ref.pack, segment.ref.offset, f"a chunk in it is not {digest.hex()}")
