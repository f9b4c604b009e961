"""The chunk index: where chunks lie, and claims, which protect an upload's packs."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, select

from staddle_server.base.types import ChunkPlace, PackSummary, SegmentRef
from staddle_server.catalog import schema
from staddle_server.catalog.database import Database, insert_or_ignore, insert_rows, later, locking, rows_in
from staddle_server.catalog.rows import look_at_upload, open_upload_row
from staddle_server.catalog.tenants import TenantRows
from staddle_server.catalog.validation import batches

_c = schema.chunks.c
_p = schema.packs.c
_d = schema.pack_damage.c
_k = schema.claims.c


_INDEX_COLUMNS = (_c.chunk_id, _c.pack, _c.segment_offset, _c.segment_length, _c.offset, _c.length)


class _Hit(NamedTuple):
    pack_row: int
    place: ChunkPlace


class Chunks:
    """The locations of all tenants' chunks. Ids are keyed (docs/format.md, "Chunks")."""

    def __init__(self, database: Database, tenants: TenantRows) -> None:
        self._database = database
        self._tenants = tenants

    def find(
        self, tenant: bytes, chunk_ids: Iterable[bytes], *, include_damaged: bool = False
    ) -> dict[bytes, list[ChunkPlace]]:
        """Return the places of these chunks in live packs: undamaged places first, damaged ones last or not
        at all.
        """
        with self._database.read() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            hits = _find(connection, tenant_row, chunk_ids, include_damaged=include_damaged)
        return {chunk_id: [hit.place for hit in found] for chunk_id, found in hits.items()}

    def claim(
        self, tenant: bytes, upload: bytes, epoch: int, chunk_ids: Iterable[bytes]
    ) -> dict[bytes, ChunkPlace]:
        """Return which of these chunks exist, and claim their packs: they stay as long as the upload is open.

        The client must send the others. UPLOAD_NOT_FOUND, UPLOAD_CLOSED, STALE_EPOCH.
        """
        wanted = list(dict.fromkeys(chunk_ids))
        with self._database.read() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            look_at_upload(connection, tenant_row, upload, epoch)
            hits = _find(connection, tenant_row, wanted)
            # A pack claimed by an open upload is never condemned: chunks in such packs need no writing
            # transaction.
            claimed = _claimed(connection, upload, hits)
        placed = _in_packs(hits, claimed)
        if len(placed) == len(hits):
            return placed
        with self._database.write() as connection:
            open_upload_row(connection, tenant_row, upload, epoch)
            return _claim(connection, tenant_row, upload, wanted)


def _claim(
    connection: Connection, tenant_row: int, upload: bytes, wanted: Sequence[bytes]
) -> dict[bytes, ChunkPlace]:
    hits = _find(connection, tenant_row, wanted)
    placed = _in_packs(hits, _claimed(connection, upload, hits))
    rest = {chunk_id: found for chunk_id, found in hits.items() if chunk_id not in placed}
    chosen = {hit.pack_row for found in rest.values() for hit in found[:1]}
    locked = _lock_live(connection, chosen)
    if locked:
        later(
            connection,
            insert_or_ignore(connection, schema.claims),
            [{"upload": upload, "pack": pack_row} for pack_row in sorted(locked)],
        )
    return placed | _in_packs(rest, locked)


def _lock_live(connection: Connection, pack_rows: Iterable[int]) -> set[int]:
    """Lock the live ones of these packs, in row order to avoid deadlocks."""
    locked: set[int] = set()
    for some in batches(sorted(pack_rows)):
        query = select(_p.row).where(_p.row.in_(some), _p.state == schema.PACK_LIVE).order_by(_p.row)
        locked.update(connection.execute(locking(query)).scalars())
    return locked


def _find(
    connection: Connection, tenant_row: int, chunk_ids: Iterable[bytes], *, include_damaged: bool = False
) -> dict[bytes, list[_Hit]]:
    rows = index_rows(connection, tenant_row, chunk_ids)
    # Neighbouring chunks lie in few packs: one query for these is faster than a join for each chunk.
    packs = _live_packs(connection, {row[1] for row in rows})
    damage = _damage(connection, [pack_row for pack_row, (_, damaged) in packs.items() if damaged])
    segments: dict[tuple[int, int], SegmentRef] = {}
    hits: dict[bytes, list[_Hit]] = {}
    damaged_hits: list[tuple[bytes, _Hit]] = []
    for chunk_id, pack_row, segment_offset, segment_length, offset, length in rows:
        pack = packs.get(pack_row)
        if pack is None:
            continue
        where = (pack_row, segment_offset)
        segment = segments.get(where)
        if segment is None:
            segment = segments[where] = SegmentRef(pack[0], segment_offset, segment_length)
        hit = _Hit(pack_row, ChunkPlace(segment, offset, length))
        if damage and (where in damage or (pack_row, schema.WHOLE_PACK) in damage):
            damaged_hits.append((chunk_id, hit))
        else:
            hits.setdefault(chunk_id, []).append(hit)
    if include_damaged:
        for chunk_id, hit in damaged_hits:
            hits.setdefault(chunk_id, []).append(hit)
    return hits


def index_rows(connection: Connection, tenant_row: int, chunk_ids: Iterable[bytes]) -> list[Any]:
    """Return the index rows of these chunks: (chunk_id, pack row, segment_offset, segment_length, offset,
    length).
    """
    return [
        row
        for some in batches(chunk_ids)
        for row in rows_in(connection, _INDEX_COLUMNS, {_c.tenant: tenant_row}, _c.chunk_id, some)
    ]


def _live_packs(connection: Connection, pack_rows: Iterable[int]) -> dict[int, tuple[bytes, bool]]:
    """Return the ids of the live packs among these, and whether anything in them is damaged."""
    packs: dict[int, tuple[bytes, bool]] = {}
    for some in batches(sorted(pack_rows)):
        live = rows_in(connection, (_p.row, _p.id, _p.damaged), {_p.state: schema.PACK_LIVE}, _p.row, some)
        packs.update((row, (pack, bool(damaged))) for row, pack, damaged in live)
    return packs


def _damage(connection: Connection, pack_rows: Iterable[int]) -> set[tuple[int, int]]:
    damage: set[tuple[int, int]] = set()
    for some in batches(sorted(pack_rows)):
        query = select(_d.pack, _d.segment_offset).where(_d.pack.in_(some))
        damage.update((row.pack, row.segment_offset) for row in connection.execute(query))
    return damage


def _claimed(connection: Connection, upload: bytes, hits: dict[bytes, list[_Hit]]) -> set[int]:
    """Return which packs with hits the upload has claimed. (It may have claimed many thousands of others.)"""
    claimed: set[int] = set()
    for some in batches({hit.pack_row for found in hits.values() for hit in found}):
        claimed.update(
            pack for (pack,) in rows_in(connection, (_k.pack,), {_k.upload: upload}, _k.pack, some)
        )
    return claimed


def _in_packs(hits: dict[bytes, list[_Hit]], pack_rows: set[int]) -> dict[bytes, ChunkPlace]:
    placed: dict[bytes, ChunkPlace] = {}
    for chunk_id, found in hits.items():
        for hit in found:
            if hit.pack_row in pack_rows:
                placed[chunk_id] = hit.place
                break
    return placed


def index_pack(connection: Connection, tenant_row: int, pack_row: int, summary: PackSummary) -> None:
    """Insert the index rows of a pack, in the transaction that makes it live."""
    insert_rows(
        connection,
        (_c.tenant, *_INDEX_COLUMNS),
        (
            (tenant_row, chunk_id, pack_row, segment.offset, segment.length, offset, length)
            for chunk_id, (segment, offset, length) in summary.chunks
        ),
    )
