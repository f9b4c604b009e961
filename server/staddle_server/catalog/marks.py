"""Marks: what is reachable, what may go, and its removal from the index
(docs/decisions/2026-11-25-collection.md).

Every writing method is one short transaction, checks the collector's fence first, and is correct at READ
COMMITTED; comments say where the order of statements matters.
"""

from collections.abc import Collection, Iterable, Sequence

from sqlalchemy import ColumnElement, Connection, and_, delete, exists, func, insert, or_, select, update
from sqlalchemy import false as sql_false
from sqlalchemy import literal as value

from staddle_server.base import errors
from staddle_server.base.types import PackSummary, Root, UploadState
from staddle_server.catalog import schema
from staddle_server.catalog.chunks import index_pack
from staddle_server.catalog.database import Database, later, locking
from staddle_server.catalog.leases import require_fence
from staddle_server.catalog.pack_values import Mark, MarkedPack, MarkRoot
from staddle_server.catalog.tenants import TenantRows
from staddle_server.catalog.validation import batches, check_id

REACHED_BYTES = 1024 * 1024
"""How many reached chunks one transaction saves."""

_b = schema.backups.c
_u = schema.uploads.c
_p = schema.packs.c
_k = schema.claims.c
_m = schema.marks.c
_r = schema.mark_roots.c
_mp = schema.mark_packs.c
_WORKING = (schema.MARK_WALKING, schema.MARK_WALKED)
_COLLECTORS_OWN = b""
"""The upload id of a pack that a collector writes."""


class Marks:
    """The marks of all tenants."""

    def __init__(self, database: Database, tenants: TenantRows) -> None:
        self._database = database
        self._tenants = tenants

    # --- marks

    def begin_mark(self, tenant: bytes, fence: int, now_ns: int) -> Mark:
        """Begin a mark, or resume the one that a dead collector left; see `Mark.resumed`.

        A new mark ends the claims of uploads whose backups are gone, then lists the roots in one statement,
        then the packs in another. In this order a statement may see a later state than the one before it:
        what was committed in between has claims, and these count.
        """
        with self._database.write() as connection:
            require_fence(connection, fence)
            tenant_row = self._tenants.row(connection, tenant)
            left = connection.execute(
                select(_m.number, _m.state).where(_m.tenant == tenant_row, _m.state.in_(_WORKING))
            ).one_or_none()
            if left is not None:
                connection.execute(update(schema.marks).where(_m.number == left.number).values(fence=fence))
                return Mark(left.number, walked=left.state == schema.MARK_WALKED, resumed=True)
            made = connection.execute(
                insert(schema.marks).values(
                    tenant=tenant_row, fence=fence, state=schema.MARK_WALKING, begun_ns=now_ns, report=""
                )
            )
            assert made.inserted_primary_key is not None
            number = int(made.inserted_primary_key[0])
            _end_claims_of_the_gone(connection, tenant_row)
            _list_roots(connection, tenant_row, number)
            _list_packs(connection, tenant_row, number)
            return Mark(number, walked=False, resumed=False)

    def roots(self, mark: int) -> list[MarkRoot]:
        """Return the roots not yet walked, the newest backup first."""
        query = select(_r.backup, _r.root_level, _r.root_digest, _r.entry_count, _r.data_bytes)
        with self._database.read() as connection:
            rows = connection.execute(query.where(_r.mark == mark, ~_r.walked).order_by(_r.backup))
            return [MarkRoot(row[0], Root(*row[1:])) for row in rows]

    def save_reached(
        self, tenant: bytes, fence: int, mark: int, reached: Iterable[tuple[bytes, bytes]]
    ) -> None:
        """Save which chunks were reached in these packs so far. Skips packs that the mark does not list."""
        rest = iter(reached)
        pair = next(rest, None)
        while pair is not None:
            some: list[tuple[bytes, bytes]] = []
            size = 0
            while pair is not None and (not some or size + len(pair[1]) <= REACHED_BYTES):
                some.append(pair)
                size += len(pair[1])
                pair = next(rest, None)
            with self._database.write() as connection:
                require_fence(connection, fence)
                tenant_row = self._tenants.row(connection, tenant)
                for pack, positions in some:
                    pack_row = select(_p.row).where(_p.tenant == tenant_row, _p.id == pack).scalar_subquery()
                    connection.execute(
                        update(schema.mark_packs)
                        .where(_mp.mark == mark, _mp.pack == pack_row)
                        .values(reached=positions)
                    )

    def roots_walked(self, fence: int, mark: int, backups: Iterable[bytes]) -> None:
        """State that all that these roots reach is saved.

        Call after `save_reached`, so that a killed mark misses nothing.
        """
        for some in batches(backups):
            with self._database.write() as connection:
                require_fence(connection, fence)
                connection.execute(
                    update(schema.mark_roots).where(_r.mark == mark, _r.backup.in_(some)).values(walked=True)
                )

    def walk_done(self, fence: int, mark: int) -> None:
        """State that every root was walked: packs may now be condemned. Fault INTERNAL if a root was not."""
        with self._database.write() as connection:
            require_fence(connection, fence)
            left = select(func.count()).select_from(schema.mark_roots).where(_r.mark == mark, ~_r.walked)
            if connection.execute(left).scalar_one():
                raise errors.Fault("INTERNAL", f"mark {mark} has roots that were not walked")
            connection.execute(
                update(schema.marks)
                .where(_m.number == mark, _m.state == schema.MARK_WALKING)
                .values(state=schema.MARK_WALKED)
            )

    def end_mark(self, fence: int, mark: int, now_ns: int, report: str, *, failed: bool = False) -> None:
        """End the mark: it is complete, or it failed and condemns nothing."""
        state = schema.MARK_FAILED if failed else schema.MARK_DONE
        with self._database.write() as connection:
            require_fence(connection, fence)
            connection.execute(
                update(schema.marks)
                .where(_m.number == mark)
                .values(state=state, ended_ns=now_ns, report=report)
            )

    def clear_marks(self, tenant: bytes, fence: int) -> None:
        """Delete the lists of ended marks in small steps, and all marks except the newest."""
        with self._database.read() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            query = select(_m.number).where(_m.tenant == tenant_row, _m.state.not_in(_WORKING))
            ended = list(connection.execute(query.order_by(_m.number)).scalars())
        for number in ended:
            while self._clear_some(fence, number):
                pass
        with self._database.write() as connection:
            require_fence(connection, fence)
            connection.execute(delete(schema.marks).where(_m.number.in_(ended[:-1])))

    def _clear_some(self, fence: int, number: int) -> int:
        with self._database.write() as connection:
            require_fence(connection, fence)
            packs = select(_mp.pack).where(_mp.mark == number).limit(1000)
            roots = select(_r.backup).where(_r.mark == number).limit(1000)
            gone = connection.execute(
                delete(schema.mark_packs).where(_mp.mark == number, _mp.pack.in_(packs))
            ).rowcount
            gone += connection.execute(
                delete(schema.mark_roots).where(_r.mark == number, _r.backup.in_(roots))
            ).rowcount
            return gone

    # --- what was reached

    def reached(self, mark: int, after: int = 0, limit: int = 64) -> list[MarkedPack]:
        """Return at most `limit` still live packs of the mark after `after`, with what was
        reached in them.
        """
        query = (
            select(_p.row, _p.id, _p.size_bytes, _p.chunk_count, _p.damaged, _mp.reached, _counting(mark))
            .join_from(schema.mark_packs, schema.packs, _mp.pack == _p.row)
            .where(_mp.mark == mark, _mp.pack > after, _p.state == schema.PACK_LIVE)
            .order_by(_mp.pack)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [MarkedPack(*row) for row in connection.execute(query)]

    # --- condemn and compact

    def condemn(
        self,
        tenant: bytes,
        fence: int,
        mark: int,
        packs: Collection[bytes],
        *,
        now_ns: int,
        replaced_by: Sequence[PackSummary] = (),
    ) -> bool:
        """Condemn packs that the mark listed, all or none: their chunks leave the index.

        They were not reached, or what was reached is also in `replaced_by`, packs of this collector, which
        become live. Return False, with nothing changed, if one is not live any more, or has a claim that
        counts.
        """
        with self._database.write() as connection:
            require_fence(connection, fence)
            tenant_row = self._tenants.row(connection, tenant)
            if not _condemn(connection, tenant_row, mark, packs, now_ns):
                return False
            for summary in replaced_by:
                _publish(connection, tenant_row, fence, summary)
            return True

    def begin_pack(self, tenant: bytes, fence: int, pack: bytes, now_ns: int) -> None:
        """Announce a pack that the collector is about to write. Call before its object is begun."""
        check_id("pack", pack)
        with self._database.write() as connection:
            require_fence(connection, fence)
            connection.execute(
                insert(schema.packs),
                {
                    "tenant": self._tenants.row(connection, tenant),
                    "id": pack,
                    "state": schema.PACK_WRITING,
                    "upload": _COLLECTORS_OWN,
                    "epoch": fence,
                    "size_bytes": 0,
                    "chunk_count": 0,
                    "damaged": False,
                    "created_ns": now_ns,
                },
            )

    def drop_pack(self, tenant: bytes, fence: int, pack: bytes) -> None:
        """Forget a pack that this collector began and did not publish.

        Call after its object, if any, is gone.
        """
        with self._database.write() as connection:
            require_fence(connection, fence)
            mine = _p.tenant == self._tenants.row(connection, tenant)
            connection.execute(
                delete(schema.packs).where(
                    mine, _p.id == pack, _p.upload == _COLLECTORS_OWN, _p.epoch == fence, schema.IS_WRITING
                )
            )

    def end_claims(self, fence: int, mark: int) -> int:
        """End some claims of the uploads whose manifests the mark has read; return of how many uploads."""
        ended = 0
        while True:
            with self._database.write() as connection:
                require_fence(connection, fence)
                theirs = select(_r.upload).where(_r.mark == mark)
                uploads = list(
                    connection.execute(
                        select(_k.upload).where(_k.upload.in_(theirs)).distinct().limit(100)
                    ).scalars()
                )
                connection.execute(delete(schema.claims).where(_k.upload.in_(uploads)))
            ended += len(uploads)
            if not uploads:
                return ended


# --- mark begins


def is_root(tenant_row: int) -> ColumnElement[bool]:
    """Return the condition for roots: backups not gone, or the base of an open upload.

    Gone: durably recorded as purged.
    """
    base = exists().where(_u.base == _b.id, _u.tenant == tenant_row, schema.IS_OPEN)
    return and_(_b.tenant == tenant_row, or_(~is_gone(), base))


def is_gone() -> ColumnElement[bool]:
    """Return the condition for purged backups with a durable record."""
    pending = exists().where(schema.pending_records.c.purges == _b.id)
    return and_(_b.purged_ns.is_not(None), ~pending)


def _list_roots(connection: Connection, tenant_row: int, mark: int) -> None:
    columns = [_r.mark, _r.backup, _r.upload, _r.root_level, _r.root_digest]
    columns += [_r.entry_count, _r.data_bytes, _r.walked]
    listed = select(
        value(mark),
        _b.id,
        _b.upload,
        _b.root_level,
        _b.root_digest,
        _b.entry_count,
        _b.data_bytes,
        sql_false(),
    ).where(is_root(tenant_row))
    connection.execute(insert(schema.mark_roots).from_select([c.name for c in columns], listed))


def _list_packs(connection: Connection, tenant_row: int, mark: int) -> None:
    live = select(value(mark), _p.row, value(b"")).where(
        _p.tenant == tenant_row, _p.state == schema.PACK_LIVE
    )
    connection.execute(insert(schema.mark_packs).from_select(["mark", "pack", "reached"], live))


def _end_claims_of_the_gone(connection: Connection, tenant_row: int) -> None:
    """End the claims of committed uploads whose backup is no longer a root, and so never will be again.

    Before the roots are listed: a backup purged later may be the base of an upload begun later, and then only
    these claims protect what that upload carries over.
    """
    root = exists().where(_b.id == _u.backup, is_root(tenant_row))
    over = select(_k.upload).join_from(schema.claims, schema.uploads, _k.upload == _u.id)
    over = over.where(_u.tenant == tenant_row, _u.state == UploadState.COMMITTED.value, ~root)
    connection.execute(delete(schema.claims).where(_k.upload.in_(over)))


# --- condemn


def _counting(mark: int) -> ColumnElement[bool]:
    """Return the condition for packs with a claim that counts: any except a committed upload's whose manifest
    the mark reads.
    """
    read = exists().where(_r.mark == mark, _r.backup == _u.backup)
    return exists().where(_k.pack == _p.row, _k.upload == _u.id, ~read)


def _condemn(
    connection: Connection,
    tenant_row: int,
    mark: int,
    packs: Collection[bytes],
    now_ns: int,
) -> bool:
    # First lock the rows, in the order in which claims lock them; then check the claims, in a statement of
    # its own: an earlier claim is seen, and a later one finds the pack condemned. In a single statement or
    # snapshot, the claim waited for would stay invisible, and its chunks would be lost.
    locked = connection.execute(
        locking(
            select(_p.row, _p.id)
            .join_from(schema.packs, schema.mark_packs, and_(_mp.pack == _p.row, _mp.mark == mark))
            .where(_p.tenant == tenant_row, _p.id.in_(packs), _p.state == schema.PACK_LIVE)
            .order_by(_p.row),
            of=schema.packs,
        )
    ).all()
    if len(locked) != len(packs):
        return False
    rows = [row.row for row in locked]
    if connection.execute(select(_p.row).where(_p.row.in_(rows), _counting(mark)).limit(1)).first():
        return False
    connection.execute(
        update(schema.packs).where(_p.row.in_(rows)).values(state=schema.PACK_CONDEMNED, condemned_ns=now_ns)
    )
    for row in rows:  # one by one: without statistics, a list of packs counts as a good part of the index
        later(connection, delete(schema.chunks).where(schema.chunks.c.pack == row))
    return True


def _publish(connection: Connection, tenant_row: int, fence: int, summary: PackSummary) -> None:
    this = (_p.tenant == tenant_row, _p.id == summary.pack, _p.upload == _COLLECTORS_OWN, _p.epoch == fence)
    pack_row = connection.execute(locking(select(_p.row).where(*this, schema.IS_WRITING))).scalar()
    if pack_row is None:
        raise errors.Fault("INTERNAL", f"pack {summary.pack.hex()} was not begun by this collector")
    connection.execute(
        update(schema.packs)
        .where(_p.row == pack_row)
        .values(state=schema.PACK_LIVE, size_bytes=summary.size_bytes, chunk_count=len(summary.chunks))
    )
    index_pack(connection, int(pack_row), summary)
