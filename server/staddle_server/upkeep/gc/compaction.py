"""Compaction: copies the live chunks of packs that are mostly dead, or small, into a new pack, and condemns
the old ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from staddle_server.base.errors import Damaged
from staddle_server.base.limits import PACK_BYTES_TARGET, PACK_CHUNKS_TARGET
from staddle_server.base.types import ChunkPlace, ChunkRef, PackSummary, Role
from staddle_server.catalog import Mark, MarkedPack
from staddle_server.store.blobs import BlobMissing
from staddle_server.store.frame import compress
from staddle_server.store.pack import PackDamaged, Segment, pack_name
from staddle_server.store.pack_writer import PackWriter
from staddle_server.tenancy.chunk_writer import SEGMENT_BYTES
from staddle_server.tenancy.suspect_packs import doubt
from staddle_server.upkeep.gc.live_chunks import Positions
from staddle_server.upkeep.gc.mark import marked
from staddle_server.upkeep.gc.tenant_run import Turn

SMALL_PACK_BYTES: Final = PACK_BYTES_TARGET // 4
SMALL_PACKS_MIN: Final = 8
"""Small packs worth combining; with fewer, each byte would be copied too often as they grow."""
CHUNKS_MAX: Final = 4 * PACK_CHUNKS_TARGET
"""Chunks of old packs, dead ones included, that one transaction removes from the index."""


class CompactionCandidate(NamedTuple):
    """The facts of a pack for the choice. `live` is the number of its live chunks."""

    size_bytes: int
    chunk_count: int
    live: int

    @property
    def mostly_dead(self) -> bool:
        """Whether under half of its chunks are live."""
        return 2 * self.live < self.chunk_count

    @property
    def live_bytes(self) -> int:
        """Its approximate size without dead chunks."""
        return self.size_bytes * self.live // max(1, self.chunk_count)


def is_candidate(pack: CompactionCandidate) -> bool:
    """Return whether to compact it, if others can join."""
    return pack.live > 0 and (pack.mostly_dead or pack.size_bytes < SMALL_PACK_BYTES)


def has_room(group: Sequence[CompactionCandidate], another: CompactionCandidate) -> bool:
    """Return whether all live chunks fit into one pack, and all chunks out of the index in one
    transaction.
    """
    packs = [*group, another]
    return (
        sum(pack.live_bytes for pack in packs) <= PACK_BYTES_TARGET
        and sum(pack.live for pack in packs) <= PACK_CHUNKS_TARGET
        and sum(pack.chunk_count for pack in packs) <= CHUNKS_MAX
    )


def is_worth_it(group: Sequence[CompactionCandidate]) -> bool:
    """Return whether a group frees enough, or combines enough packs."""
    return any(pack.mostly_dead for pack in group) or len(group) >= SMALL_PACKS_MIN


def compact(turn: Turn, mark: Mark) -> None:
    """Compact what is worth it among the packs of a completed mark. Neighbours in time stay neighbours."""
    for group in _groups(turn, mark):
        turn.show("compacting packs", turn.report.packs_compacted, 0)
        _compact(turn, mark, group)


def _groups(turn: Turn, mark: Mark) -> Iterator[list[MarkedPack]]:
    packs: list[MarkedPack] = []
    group: list[CompactionCandidate] = []
    for pack in marked(turn, mark):
        candidate = CompactionCandidate(pack.size_bytes, pack.chunk_count, len(Positions(pack.reached)))
        # Damaged packs are left to repair, which may still save some of them.
        if pack.claimed or pack.damaged or not is_candidate(candidate):
            continue
        if group and not has_room(group, candidate):
            if is_worth_it(group):
                yield packs
            packs, group = [], []
        packs.append(pack)
        group.append(candidate)
    if is_worth_it(group):
        yield packs


def _compact(turn: Turn, mark: Mark, group: Sequence[MarkedPack]) -> None:
    copier = _Copier(turn)
    try:
        old = [pack.pack for pack in group if _copy(turn, pack, copier)]
        new = copier.finish()
    except BaseException:
        copier.abort()
        raise
    turn.tick()
    done = bool(old) and turn.catalog.marks.condemn(
        turn.tenant.id, turn.fence, mark.number, old, now_ns=turn.clock.now_ns(), replaced_by=new
    )
    if not done:
        _drop(turn, new)
        return
    turn.report.packs_compacted += len(old)
    turn.report.bytes_compacted += sum(pack.size_bytes for pack in group if pack.pack in old)
    turn.report.packs_written += len(new)
    turn.report.bytes_written += sum(summary.size_bytes for summary in new)


def _copy(turn: Turn, pack: MarkedPack, copier: _Copier) -> bool:
    """Copy the live chunks of a pack; return False if some were unreadable, and the pack stays."""
    alive = Positions(pack.reached).whole()
    try:
        places = [chunk.place for chunk in turn.tenant.packs.footer(pack.pack).chunks]
    except Damaged as e:
        if isinstance(e, PackDamaged):
            doubt(turn.tenant, turn.catalog, pack.pack, e.mark)
        else:
            turn.catalog.packs.mark_damaged(turn.tenant.id, pack.pack)
        return False
    copied = 0
    for ref in dict.fromkeys(place.segment for place in places if Positions.key(place) in alive):
        turn.tick()
        try:
            copied += copier.take(turn.tenant.packs.segment(ref), alive)
        except Damaged:
            doubt(turn.tenant, turn.catalog, pack.pack, ref.offset)
            return False
    return copied == len(alive)


def _drop(turn: Turn, new: Iterable[PackSummary]) -> None:
    """Remove packs that were written in vain: a claim came first, or nothing could be condemned."""
    for summary in new:
        with suppress(BlobMissing):
            turn.tenant.blobs.delete(pack_name(turn.tenant.id, summary.pack))
        turn.catalog.marks.drop_pack(turn.tenant.id, turn.fence, summary.pack)


class _Copier:
    """Chunks of old packs on their way into new ones, each verified, in order."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._pack: PackWriter | None = None
        self._finished: list[PackSummary] = []
        self._taken: set[tuple[Role, bytes]] = set()
        self._tables: dict[Role, list[ChunkRef]] = {role: [] for role in Role}
        self._data: dict[Role, bytearray] = {role: bytearray() for role in Role}

    def take(self, segment: Segment, alive: set[int]) -> int:
        """Copy the live chunks of a segment; return their number.

        PackDamaged: one does not match its digest.
        """
        offset, found = 0, 0
        for ref in segment.table:
            place = ChunkPlace(segment.ref, offset, ref.length)
            offset += ref.length
            if Positions.key(place) not in alive:
                continue
            found += 1
            data = segment.chunk(place.offset, ref.length, ref.digest)
            if (segment.role, ref.digest) not in self._taken:
                self._taken.add((segment.role, ref.digest))
                self._add(segment.role, ref, data)
        return found

    def _add(self, role: Role, ref: ChunkRef, data: memoryview) -> None:
        if self._data[role] and len(self._data[role]) + ref.length > SEGMENT_BYTES[role]:
            self._close_segment(role)
        self._tables[role].append(ref)
        self._data[role] += data

    def _close_segment(self, role: Role) -> None:
        table, self._tables[role] = self._tables[role], []
        data, self._data[role] = self._data[role], bytearray()
        if not table:
            return
        if self._pack is None:
            self._pack = self._begin()
        codec, payload = compress(bytes(data))
        self._pack.append(role, table, codec, payload, len(data))
        if self._pack.full:
            self._seal()

    def _begin(self) -> PackWriter:
        turn = self._turn
        pack = PackWriter(turn.tenant.blobs, turn.tenant.keys)
        try:
            turn.catalog.marks.begin_pack(turn.tenant.id, turn.fence, pack.pack, turn.clock.now_ns())
        except BaseException:
            pack.abort()
            raise
        return pack

    def _seal(self) -> None:
        if self._pack is not None:
            pack, self._pack = self._pack, None
            self._finished.append(pack.finish())

    def finish(self) -> list[PackSummary]:
        """Return all packs with what was taken, durable, and not published."""
        for role in Role:
            self._close_segment(role)
        self._seal()
        return self._finished

    def abort(self) -> None:
        """Drop the open pack; the next collection removes rows and finished packs."""
        if self._pack is not None:
            self._pack.abort()
