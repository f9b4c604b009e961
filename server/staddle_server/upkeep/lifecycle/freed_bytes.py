"""How many stored bytes become free if some backups are purged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from staddle_server.base.errors import Damaged
from staddle_server.base.types import PackSummary, Root, SegmentRef
from staddle_server.catalog import Catalog, StandingRoots
from staddle_server.store.blobs import BlobMissing
from staddle_server.tenancy.tenant import Tenant
from staddle_server.upkeep.gc.live_chunks import Positions, Reached


class Freed(NamedTuple):
    """The bytes; None if unknown, with a reason in words."""

    stored_bytes: int | None
    unknown: str = ""


def freed_by(
    tenant: Tenant,
    catalog: Catalog,
    going: Iterable[Root],
    standing: StandingRoots,
    tick: Callable[[], None] = lambda: None,
) -> Freed:
    """Return what purging the backups `going` would free, with `standing` as all that stays.

    Counts the stored bytes of chunks that only they reach. In a segment with other chunks it is their share
    of its data, which becomes free when the pack is rewritten. Packs that open uploads rely on are left out.
    """
    staying = Reached(tenant, catalog)
    leaving = Reached(tenant, catalog, behind=staying)
    try:
        for root in (*standing.backups.values(), *standing.bases.values()):
            staying.walk(root, tick)
        for root in going:
            leaving.walk(root, tick)
        total = 0
        for pack, positions in leaving.packs.items():
            tick()
            if pack not in standing.claimed:
                total += _freed_in(tenant, pack, positions, staying.packs.get(pack))
    except (Damaged, BlobMissing) as e:
        return Freed(None, f"data that has to be read for that is damaged: {e.message}")
    return Freed(total)


def _freed_in(tenant: Tenant, pack: bytes, leaving: Positions, staying: Positions | None) -> int:
    alone = leaving.whole() - (staying.whole() if staying is not None else set())
    return _stored_bytes(tenant.packs.footer(pack), alone) if alone else 0


def _stored_bytes(pack: PackSummary, positions: set[int]) -> int:
    """Return all of a pack without other users; else their share of each segment."""
    all_bytes: dict[SegmentRef, int] = {}
    free_bytes: dict[SegmentRef, int] = {}
    free_chunks = 0
    for chunk in pack.chunks:
        segment = chunk.place.segment
        all_bytes[segment] = all_bytes.get(segment, 0) + chunk.place.length
        if Positions.key(chunk.place) in positions:
            free_bytes[segment] = free_bytes.get(segment, 0) + chunk.place.length
            free_chunks += 1
    if free_chunks == len(pack.chunks):
        return pack.size_bytes
    return sum(segment.length * free // all_bytes[segment] for segment, free in free_bytes.items())
