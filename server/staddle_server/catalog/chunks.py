"""The chunk index: where chunks lie, and claims, which protect an upload's packs.

The index names a chunk by the first 16 of the 32 bytes of its id
(docs/decisions/2026-11-30-rows-of-the-chunk-index.md).
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from sqlalchemy import Connection, select

from staddle_server.base.types import ChunkPlace, PackSummary, SegmentRef
from staddle_server.catalog import schema
from staddle_server.catalog.database import (
    Database,
    ListQuery,
    insert_or_ignore,
    insert_rows,
    later,
    locking,
    rows_of,
)
from staddle_server.catalog.rows import lock_upload, require_epoch, require_open, upload_not_found
from staddle_server.catalog.tenants import TenantRows
from staddle_server.catalog.validation import batches

_c = schema.chunks.c
_p = schema.packs.c

# Written as text: one statement answers all, without a lock and without a transaction around it. A row without
# a live pack of the tenant is none of a chunk that exists. Subqueries of single rows keep the order: without
# statistics, PostgreSQL would join all packs.
_HIT: Final = f"""c.id_head, c.id_tail, c.pack, c.segment_offset, c.segment_length, c."offset", c.length,
    (SELECT p.id FROM packs p WHERE p."row" = c.pack AND p.state = {schema.PACK_LIVE} AND p.tenant = {{tenant}}),
    EXISTS (SELECT 1 FROM pack_damage d
        WHERE d.pack = c.pack AND d.segment_offset IN (c.segment_offset, {schema.WHOLE_PACK}))"""  # noqa: S608 - numbers of our own
_FOUND: Final = ListQuery(f"SELECT {_HIT.format(tenant='?')} FROM {{found}} AS c", _c.id_head)  # noqa: S608
_CLAIMED: Final = ListQuery(
    f"""SELECT u.state, u.epoch, t.damage_epoch, {_HIT.format(tenant="u.tenant")},
        (SELECT k.pack FROM claims k WHERE k.upload = u.id AND k.pack = c.pack)
    FROM uploads u JOIN tenants t ON t."row" = u.tenant AND u.id = ? AND u.tenant = ?
    LEFT JOIN {{found}} AS c ON TRUE""",  # noqa: S608 - numbers of our own
    _c.id_head,
)
_INDEXED: Final = struct.Struct(">qq")
_NO_CHUNK: Final = bytes(32)


class IndexedId(NamedTuple):
    """The name of a chunk in the index: the first 16 bytes of its id, as two numbers."""

    head: int
    tail: int


class IndexedChunk(NamedTuple):
    """A row of the index."""

    id: IndexedId
    place: ChunkPlace


def indexed_id(chunk_id: bytes) -> IndexedId:
    """Return the index's name of a chunk. Two chunks of a tenant have different ones, except by a chance that
    is negligible; readers therefore check what they read against the chunk's digest.
    """
    return IndexedId(*_INDEXED.unpack_from(chunk_id))


class Claimed(NamedTuple):
    """The answer to a claim.

    Attributes:
        places: Where the chunks lie that exist, and are claimed.
        damage_epoch: The tenant's from before these were looked up; see `Packs.damage_epoch`.

    """

    places: dict[bytes, ChunkPlace]
    damage_epoch: int


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
        segments = _Segments()
        found: dict[bytes, list[ChunkPlace]] = {}
        damaged_ones: list[tuple[bytes, ChunkPlace]] = []
        with self._database.look_up() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            for some in batches(chunk_ids):
                wanted = _IdsByName(some)
                for head, tail, *where, pack, damaged in rows_of(
                    connection, _FOUND, (tenant_row,), wanted.heads
                ):
                    if pack is None:
                        continue
                    place = segments.place(pack, where)
                    for chunk_id in wanted.ids(head, tail):
                        if damaged:
                            damaged_ones.append((chunk_id, place))
                        else:
                            found.setdefault(chunk_id, []).append(place)
        if include_damaged:
            for chunk_id, place in damaged_ones:
                found.setdefault(chunk_id, []).append(place)
        return found

    def claim(self, tenant: bytes, upload: bytes, epoch: int, chunk_ids: Iterable[bytes]) -> Claimed:
        """Return which of these chunks exist, and claim their packs: they stay as long as the upload is open.

        The client must send the others. UPLOAD_NOT_FOUND, UPLOAD_CLOSED, STALE_EPOCH.
        """
        wanted = list(dict.fromkeys(chunk_ids)) or [_NO_CHUNK]
        with self._database.look_up() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            seen = _look(connection, tenant_row, upload, epoch, wanted)
        # A pack claimed by an open upload is never condemned: chunks in such packs need no writing
        # transaction.
        if not seen.unclaimed:
            return Claimed(seen.claimed, seen.damage_epoch)
        with self._database.write() as connection:
            # The look-up comes in a second statement, which sees what the lock waited for.
            lock_upload(connection, tenant_row, upload)
            return _claim(connection, upload, _look(connection, tenant_row, upload, epoch, wanted))


class _Seen(NamedTuple):
    """The chunks that exist: the places in packs that the upload has claimed, and others with their packs."""

    claimed: dict[bytes, ChunkPlace]
    unclaimed: dict[bytes, list[tuple[int, ChunkPlace]]]
    damage_epoch: int


def _look(
    connection: Connection, tenant_row: int, upload: bytes, epoch: int, wanted: Sequence[bytes]
) -> _Seen:
    """Look up chunks for an upload that is open under this epoch. Each batch sees one state of the catalog."""
    segments = _Segments()
    claimed: dict[bytes, ChunkPlace] = {}
    unclaimed: dict[bytes, list[tuple[int, ChunkPlace]]] = {}
    damage_epochs: list[int] = []
    for some in batches(wanted):
        names = _IdsByName(some)
        rows = rows_of(connection, _CLAIMED, (upload, tenant_row), names.heads)
        if not rows:
            raise upload_not_found(upload)
        state, found_epoch, damage_epoch = rows[0][:3]
        require_open(upload, state)
        require_epoch(upload, found_epoch, epoch)
        damage_epochs.append(damage_epoch)
        for _, _, _, head, tail, *where, pack, damaged, claim in rows:
            if pack is None or damaged:
                continue
            place = segments.place(pack, where)
            for chunk_id in names.ids(head, tail):
                if claim is not None:
                    claimed.setdefault(chunk_id, place)
                else:
                    unclaimed.setdefault(chunk_id, []).append((where[0], place))
    for chunk_id in claimed:
        unclaimed.pop(chunk_id, None)
    return _Seen(claimed, unclaimed, damage_epochs[0])


def _claim(connection: Connection, upload: bytes, seen: _Seen) -> Claimed:
    locked = _lock_live(connection, {hits[0][0] for hits in seen.unclaimed.values()})
    if locked:
        later(
            connection,
            insert_or_ignore(connection, schema.claims),
            [{"upload": upload, "pack": pack_row} for pack_row in sorted(locked)],
        )
    places = seen.claimed
    for chunk_id, hits in seen.unclaimed.items():
        for pack_row, place in hits:
            if pack_row in locked:
                places[chunk_id] = place
                break
    return Claimed(places, seen.damage_epoch)


def _lock_live(connection: Connection, pack_rows: Iterable[int]) -> set[int]:
    """Lock the live ones of these packs, in row order to avoid deadlocks."""
    locked: set[int] = set()
    for some in batches(sorted(pack_rows)):
        query = select(_p.row).where(_p.row.in_(some), _p.state == schema.PACK_LIVE).order_by(_p.row)
        locked.update(connection.execute(locking(query)).scalars())
    return locked


class _IdsByName:
    """Ids to look up, and which of them a row of the index stands for."""

    def __init__(self, chunk_ids: Iterable[bytes]) -> None:
        self._ids: dict[tuple[int, int], list[bytes]] = {}  # as `indexed_id` does, four times as fast
        for chunk_id in chunk_ids:
            self._ids.setdefault(_INDEXED.unpack_from(chunk_id), []).append(chunk_id)
        self.heads = [head for head, _ in self._ids]

    def ids(self, head: int, tail: int) -> Sequence[bytes]:
        """Return the ids that the index names so; none for a row that was found by its head alone."""
        return self._ids.get((head, tail), ())


class _Segments:
    """Makes places. Neighbouring chunks share the value of their segment."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, int], SegmentRef] = {}

    def place(self, pack: bytes, indexed: Sequence[int]) -> ChunkPlace:
        """Return the place that an index row names with its columns after the chunk."""
        pack_row, segment_offset, segment_length, offset, length = indexed
        segment = self._made.get((pack_row, segment_offset))
        if segment is None:
            segment = SegmentRef(pack, segment_offset, segment_length)
            self._made[(pack_row, segment_offset)] = segment
        return ChunkPlace(segment, offset, length)


def index_pack(connection: Connection, pack_row: int, summary: PackSummary) -> None:
    """Insert the index rows of a pack, in the transaction that makes it live: one for each of its chunks."""
    places: dict[bytes, ChunkPlace] = {}
    for chunk_id, place in summary.chunks:
        places.setdefault(chunk_id, place)
    insert_rows(
        connection,
        tuple(_c),
        (
            (*indexed_id(chunk_id), pack_row, segment.offset, segment.length, offset, length)
            for chunk_id, (segment, offset, length) in places.items()
        ),
    )
