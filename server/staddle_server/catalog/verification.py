"""The catalog's side of check and scrub: which packs to read, where their chunks should be, what records
should say.
"""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, func, or_, select, update

from staddle_server.base.types import ChunkPlace, SegmentRef
from staddle_server.catalog import schema
from staddle_server.catalog.chunks import IndexedChunk, IndexedId
from staddle_server.catalog.database import Database, locking
from staddle_server.catalog.expectations import expectation_of
from staddle_server.catalog.pack_values import LivePack
from staddle_server.catalog.rows import Page, backup_of, page_of, select_backups
from staddle_server.catalog.tenants import TenantRows
from staddle_server.catalog.validation import batches
from staddle_server.catalog.values import Backup, BackupFacts, DatasetFacts, Facts

_p = schema.packs.c
_d = schema.pack_damage.c
_c = schema.chunks.c
_b = schema.backups.c
_s = schema.datasets.c
_t = schema.tenants.c
_r = schema.pending_records.c
_LIVE = _p.state == schema.PACK_LIVE
Span = tuple[int, int]
"""Times after the first one and up to the second, in ns."""


class Verification:
    """What the store should hold, and when it was last read."""

    def __init__(self, database: Database, tenants: TenantRows) -> None:
        self._database = database
        self._tenants = tenants

    # --- packs

    def live_packs(self, tenant: bytes, *, after: bytes = b"", limit: int = 1000) -> list[LivePack]:
        """Return at most `limit` of the tenant's live packs by id, after `after`."""
        with self._database.read() as connection:
            mine = _p.tenant == self._tenants.row(connection, tenant)
            query = _packs().where(mine, _LIVE, _p.id > after).order_by(_p.id).limit(limit)
            return _live(connection, connection.execute(query).all())

    def live_pack(self, tenant: bytes, pack: bytes) -> LivePack | None:
        """Return the pack as it is now; None if it is not live any more."""
        with self._database.read() as connection:
            mine = _p.tenant == self._tenants.row(connection, tenant)
            found = _live(connection, connection.execute(_packs().where(mine, _LIVE, _p.id == pack)).all())
        return found[0] if found else None

    def due(
        self, before_ns: int, limit: int, ahead_ns: int | None = None, tried: Span | None = None
    ) -> list[LivePack]:
        """Return live packs of all tenants not completely read since then, the longest unread first.

        A read after `ahead_ns`, by a clock that was ahead, does not count. Without those that a scrubber took
        up within the span `tried`.
        """
        which = [_LIVE, _waits(before_ns, ahead_ns), *([] if tried is None else [_not_tried(tried)])]
        query = _packs().where(*which).order_by(func.coalesce(_p.verified_ns, 0), _p.row).limit(limit)
        with self._database.read() as connection:
            return _live(connection, connection.execute(query).all())

    def take_up(self, tenant: bytes, pack: bytes, now_ns: int, tried: Span) -> LivePack | None:
        """Take up a pack of `due` to read it: no scrubber of another server does until it is out of the span.

        Returns the pack as it is now; None if another scrubber was faster, or it is not live any more.
        """
        with self._database.write() as connection:
            this = (_p.tenant == self._tenants.row(connection, tenant), _p.id == pack, _LIVE)
            taken = connection.execute(
                update(schema.packs).where(*this, _not_tried(tried)).values(tried_ns=now_ns)
            )
            if taken.rowcount != 1:
                return None
            return _live(connection, connection.execute(_packs().where(*this)).all())[0]

    def put_back(self, tenant: bytes, pack: bytes) -> None:
        """Leave a pack that was taken up, but not read, to the next scrubber."""
        with self._database.write() as connection:
            this = (_p.tenant == self._tenants.row(connection, tenant), _p.id == pack)
            connection.execute(update(schema.packs).where(*this).values(tried_ns=None))

    def due_bytes(self, before_ns: int, ahead_ns: int | None = None) -> int:
        """Return the total bytes of all packs that are `due`."""
        waits = _waits(before_ns, ahead_ns)
        with self._database.read() as connection:
            total = select(func.coalesce(func.sum(_p.size_bytes), 0)).where(_LIVE, waits)
            return int(connection.execute(total).scalar_one())

    def totals(self, tenant: bytes) -> tuple[int, int]:
        """Return how many live packs the tenant has, and their bytes."""
        with self._database.read() as connection:
            mine = _p.tenant == self._tenants.row(connection, tenant)
            query = select(func.count(), func.coalesce(func.sum(_p.size_bytes), 0)).where(mine, _LIVE)
            count, size = connection.execute(query).one()
        return int(count), int(size)

    def stands(self, tenant: bytes) -> tuple[int, int, int]:
        """Return a value that changes with backups and chunks: the numbers of backups and live packs, and the
        newest pack.
        """
        with self._database.read() as connection:
            row = self._tenants.row(connection, tenant)
            backups = select(func.count()).where(_b.tenant == row, schema.IS_KEPT)
            packs = select(func.count(), func.coalesce(func.max(_p.row), 0)).where(_p.tenant == row, _LIVE)
            count, last = connection.execute(packs).one()
            return int(connection.execute(backups).scalar_one()), int(count), int(last)

    def read_whole(
        self, tenant: bytes, pack: bytes, now_ns: int, *, verified: bool, cleared: Collection[int]
    ) -> None:
        """Record that every byte of a pack was read.

        `verified`: all intact; `cleared`: marks that were wrong, to remove. Ignores a pack that is not live
        any more.
        """
        with self._database.write() as connection:
            this = (_p.tenant == self._tenants.row(connection, tenant), _p.id == pack, _LIVE)
            row = connection.execute(locking(select(_p.row).where(*this))).scalar()
            if row is None:
                return
            for some in batches(sorted(cleared)):
                connection.execute(
                    delete(schema.pack_damage).where(_d.pack == row, _d.segment_offset.in_(some))
                )
            left = connection.execute(select(func.count()).where(_d.pack == row)).scalar_one()
            values: dict[str, Any] = {"damaged": left > 0}
            if verified:
                values["verified_ns"] = now_ns
            connection.execute(update(schema.packs).where(_p.row == row).values(**values))

    def without_row(self, tenant: bytes, packs: Sequence[bytes]) -> set[bytes]:
        """Return which of these packs the catalog does not know."""
        with self._database.read() as connection:
            mine = _p.tenant == self._tenants.row(connection, tenant)
            known: set[bytes] = set()
            for some in batches(packs):
                known.update(connection.execute(select(_p.id).where(mine, _p.id.in_(some))).scalars())
        return set(packs) - known

    # --- the chunk index

    def indexed(self, tenant: bytes, pack: bytes) -> list[IndexedChunk]:
        """Return everything that the index has in this pack, in the order of the pack."""
        with self._database.read() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            pack_row = select(_p.row).where(_p.tenant == tenant_row, _p.id == pack).scalar_subquery()
            query = select(
                _c.id_head, _c.id_tail, _c.segment_offset, _c.segment_length, _c.offset, _c.length
            ).where(_c.pack == pack_row)
            rows = connection.execute(query).all()
        found = [
            IndexedChunk(IndexedId(*row[:2]), ChunkPlace(SegmentRef(pack, *row[2:4]), *row[4:]))
            for row in rows
        ]
        return sorted(found, key=lambda chunk: chunk.place)

    # --- backups and what was decided

    def backups(self, tenant: bytes, *, after: bytes = b"", limit: int = 1000) -> Page[Backup]:
        """Return at most `limit` unpurged backups of the tenant by id, deleted ones included,
        after `after`.
        """
        with self._database.read() as connection:
            mine = and_(_b.tenant == self._tenants.row(connection, tenant), schema.IS_KEPT)
            query = select_backups().where(mine, _b.id > after).order_by(_b.id)
            return page_of(connection, query, limit, backup_of)

    def facts(self, tenant: bytes) -> Facts:
        """Return what was decided in a tenant, as of one moment."""
        with self._database.read() as connection:
            row = self._tenants.row(connection, tenant)
            own = connection.execute(select(_t.grace_s, _t.records_rebuilt).where(_t.row == row)).one()
            query = select(
                _b.id, _s.name, _b.commit_ns, _b.deleted_ns, _b.purged_ns, _b.retain_until_ns,
                _b.hold_ns, _b.hold_reason,
            ).join_from(schema.backups, schema.datasets)  # fmt: skip
            backups = {
                each.id: BackupFacts(*each[:6], None if each.hold_ns is None else each.hold_reason)
                for each in connection.execute(query.where(_b.tenant == row))
            }
            settings = select(schema.datasets).where(_s.tenant == row)
            datasets = {each.name: _dataset_facts(each) for each in connection.execute(settings)}
            pending = frozenset(connection.execute(select(_r.id).where(_r.tenant == row)).scalars())
            recorded = _recorded(connection, row)
        return Facts(backups, datasets, own.grace_s, pending, recorded, own.records_rebuilt)

    def recorded(self, tenant: bytes) -> int:
        """Return the number up to which all records of the tenant are durable."""
        with self._database.read() as connection:
            return _recorded(connection, self._tenants.row(connection, tenant))


def _recorded(connection: Connection, tenant_row: int) -> int:
    decided = connection.execute(select(_t.records_sequence).where(_t.row == tenant_row)).scalar_one()
    # Records become durable in chain order.
    waiting = connection.execute(select(func.min(_r.sequence)).where(_r.tenant == tenant_row)).scalar()
    return int(decided if waiting is None else min(decided, waiting - 1))


def _waits(before_ns: int, ahead_ns: int | None) -> ColumnElement[bool]:
    times = [_p.verified_ns.is_(None), _p.verified_ns < before_ns]
    return or_(*times, *([] if ahead_ns is None else [_p.verified_ns > ahead_ns]))


def _not_tried(span: Span) -> ColumnElement[bool]:
    return or_(_p.tried_ns.is_(None), _p.tried_ns <= span[0], _p.tried_ns > span[1])


def _dataset_facts(row: Row[Any]) -> DatasetFacts:
    hold = None if row.hold_ns is None else row.hold_reason
    return DatasetFacts(row.name, row.policy, row.min_retention_s, hold, expectation_of(row))


def _packs() -> Any:
    return select(
        _p.row, _t.id.label("tenant"), _p.id, _p.size_bytes, _p.chunk_count, _p.verified_ns, _p.damaged
    ).join_from(schema.packs, schema.tenants)


def _live(connection: Connection, rows: Sequence[Row[Any]]) -> list[LivePack]:
    marks: dict[int, set[int]] = {}
    for some in batches([row.row for row in rows if row.damaged]):
        query = select(_d.pack, _d.segment_offset).where(_d.pack.in_(some))
        for pack, offset in connection.execute(query):
            marks.setdefault(pack, set()).add(offset)
    return [
        LivePack(
            row.tenant,
            row.id,
            row.size_bytes,
            row.chunk_count,
            row.verified_ns,
            frozenset(marks.get(row.row, ())),
        )
        for row in rows
    ]
