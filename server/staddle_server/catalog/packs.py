"""Packs: a row comes before its object, and only a live pack counts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    ScalarSelect,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from staddle_server.base import errors
from staddle_server.base.types import PackSummary, UploadState
from staddle_server.catalog import schema
from staddle_server.catalog.chunks import index_pack
from staddle_server.catalog.database import Database, Query, insert_or_ignore, later, locking, rows_in
from staddle_server.catalog.leases import COLLECTOR
from staddle_server.catalog.pack_values import KnownDamage, LeftOverPack, LockDue, PackParity, ParityTotals
from staddle_server.catalog.rows import open_upload_row
from staddle_server.catalog.tenants import TenantRows, no_tenant
from staddle_server.catalog.validation import batches, check_id

_p = schema.packs.c
_d = schema.pack_damage.c
_u = schema.uploads.c
_b = schema.backups.c
_t = schema.tenants.c


class Packs:
    """The packs of all tenants."""

    def __init__(self, database: Database, tenants: TenantRows) -> None:
        self._database = database
        self._tenants = tenants

    def begin(self, tenant: bytes, upload: bytes, epoch: int, pack: bytes, now_ns: int) -> None:
        """Announce a pack that this upload is about to write, and claim it. Call before its object is begun.

        UPLOAD_NOT_FOUND, UPLOAD_CLOSED, STALE_EPOCH. A pack id is used once: ValueError for an existing one.
        """
        check_id("pack", pack)
        try:
            self._begin(tenant, upload, epoch, pack, now_ns)
        except IntegrityError as error:
            raise ValueError(f"pack {pack.hex()} was begun before: a pack id is used once") from error

    def _begin(self, tenant: bytes, upload: bytes, epoch: int, pack: bytes, now_ns: int) -> None:
        with self._database.write() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            open_upload_row(connection, tenant_row, upload, epoch)
            later(
                connection,
                insert(schema.packs),
                {
                    "tenant": tenant_row,
                    "id": pack,
                    "state": schema.PACK_WRITING,
                    "upload": upload,
                    "epoch": epoch,
                    "size_bytes": 0,
                    "chunk_count": 0,
                    "damaged": False,
                    "created_ns": now_ns,
                },
            )
            this = select(literal(upload), _p.row).where(_p.tenant == tenant_row, _p.id == pack)
            later(connection, insert(schema.claims).from_select(["upload", "pack"], this))

    def mark_damaged(self, tenant: bytes, pack: bytes, segment_offset: int | None = None) -> None:
        """Mark the segment at this offset, or the whole pack, as damaged: its chunks count as missing from
        now on.

        Ignores an unknown pack: it may have been reaped meanwhile.
        """
        with self._database.write() as connection:
            this = (_p.tenant == self._tenants.row(connection, tenant), _p.id == pack)
            pack_row = connection.execute(locking(select(_p.row).where(*this))).scalar()
            if pack_row is None:
                return
            mark_damage(connection, pack_row, schema.WHOLE_PACK if segment_offset is None else segment_offset)

    def doubt(self, tenant: bytes, pack: bytes, segment_offset: int) -> bool:
        """Mark a segment as damaged and, if that is news, the whole pack until `believe`: the rest is still
        unread.

        Return whether the caller must read the pack now: it is live, and this damage was not known. If the
        caller fails, the scrubber reads it next.
        """
        with self._database.write() as connection:
            this = (_p.tenant == self._tenants.row(connection, tenant), _p.id == pack)
            row = connection.execute(locking(select(_p.row, _p.state).where(*this))).one_or_none()
            if row is None or not mark_damage(connection, row.row, segment_offset):
                return False
            if row.state != schema.PACK_LIVE or not mark_damage(connection, row.row, schema.WHOLE_PACK):
                return False
            connection.execute(update(schema.packs).where(_p.row == row.row).values(verified_ns=None))
            return True

    def believe(self, tenant: bytes, pack: bytes) -> None:
        """Count only the marked segments of a doubted pack as damaged: every segment was read."""
        with self._database.write() as connection:
            this = (_p.tenant == self._tenants.row(connection, tenant), _p.id == pack)
            row = connection.execute(locking(select(_p.row).where(*this))).scalar()
            connection.execute(
                delete(schema.pack_damage).where(_d.pack == row, _d.segment_offset == schema.WHOLE_PACK)
            )

    def mark_lost(self, tenant: bytes, packs: Iterable[bytes]) -> list[bytes]:
        """Mark the live ones of these packs as damaged as a whole, and return them.

        Their objects are missing, or not as they were published.
        """
        marked: list[bytes] = []
        for some in batches(sorted(packs)):
            with self._database.write() as connection:
                mine = _p.tenant == self._tenants.row(connection, tenant)
                query = select(_p.row, _p.id).where(mine, _p.state == schema.PACK_LIVE, _p.id.in_(some))
                for row in connection.execute(locking(query.order_by(_p.row))).all():
                    mark_damage(connection, row.row, schema.WHOLE_PACK)
                    marked.append(row.id)
        return marked

    def mark_sound(self, tenant: bytes, pack: bytes, now_ns: int) -> bool:
        """Clear all marks of damage of a pack: every byte was read at `now_ns` and found intact.

        Return whether the pack exists.
        """
        with self._database.write() as connection:
            this = (_p.tenant == self._tenants.row(connection, tenant), _p.id == pack)
            pack_row = connection.execute(locking(select(_p.row).where(*this))).scalar()
            if pack_row is None:
                return False
            connection.execute(delete(schema.pack_damage).where(schema.pack_damage.c.pack == pack_row))
            connection.execute(
                update(schema.packs).where(_p.row == pack_row).values(damaged=False, verified_ns=now_ns)
            )
            return True

    def damaged(self, tenant: bytes) -> list[bytes]:
        """Return the tenant's live packs with marks of damage, oldest first."""
        with self._database.read() as connection:
            mine = _p.tenant == self._tenants.row(connection, tenant)
            query = select(_p.id).where(mine, _p.state == schema.PACK_LIVE, _p.damaged).order_by(_p.row)
            return list(connection.execute(query).scalars())

    def damaged_count(self, tenant: bytes) -> int:
        """Return how many segments, or whole packs, of the tenant's live packs are damaged."""
        with self._database.look_up() as connection:
            mine = _p.tenant == self._tenants.row(connection, tenant)
            query = select(func.count()).select_from(schema.pack_damage).join(schema.packs)
            lost = (mine, _p.state == schema.PACK_LIVE, _d.segment_offset != schema.FOOTER)
            return connection.execute(query.where(*lost)).scalar_one()

    def damage_epoch(self, tenant: bytes) -> int:
        """Return a number that rises with every mark of damage in the tenant."""
        with self._database.look_up() as connection:
            rows = rows_in(connection, (_t.damage_epoch,), {}, _t.id, (tenant,))
        if not rows:
            raise no_tenant(tenant)
        return int(rows[0][0])

    def known_damage(self) -> dict[bytes, KnownDamage]:
        """Return, for each tenant with damage, what is damaged and may be needed by a backup: the one
        definition of damage.

        Almost free while nothing is damaged.
        """
        whole, footers = (
            func.sum(case((_d.segment_offset == offset, 1), else_=0))
            for offset in (schema.WHOLE_PACK, schema.FOOTER)
        )
        query = (
            select(schema.tenants.c.id, schema.tenants.c.damage_epoch, whole, footers, func.count())
            .select_from(schema.pack_damage.join(schema.packs).join(schema.tenants))
            .where(_d.needed, _p.state == schema.PACK_LIVE)
            .group_by(schema.tenants.c.row)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return {
            tenant: KnownDamage(epoch, packs, marks - packs - footers, footers)
            for tenant, epoch, packs, footers, marks in rows
        }

    def not_needed(self, tenant: bytes, damage_epoch: int) -> bool:
        """State that no backup needs what is damaged: the marks of this epoch stop counting, except those of
        footers.

        Return False, with nothing changed, if damage was found meanwhile.
        """
        with self._database.write() as connection:
            row = self._tenants.row(connection, tenant)
            now = locking(select(schema.tenants.c.damage_epoch).where(schema.tenants.c.row == row))
            if connection.execute(now).scalar_one() != damage_epoch:
                return False
            mine = select(_p.row).where(_p.tenant == row, _p.damaged)
            connection.execute(
                update(schema.pack_damage)
                .where(_d.needed, _d.pack.in_(mine), _d.segment_offset != schema.FOOTER)
                .values(needed=False)
            )
            return True

    def live_sizes(self, tenant: bytes, packs: Iterable[bytes]) -> dict[bytes, int]:
        """Return the sizes in bytes of the live ones of these packs."""
        sizes: dict[bytes, int] = {}
        with self._database.read() as connection:
            mine = (_p.tenant == self._tenants.row(connection, tenant), _p.state == schema.PACK_LIVE)
            for some in batches(packs):
                query = select(_p.id, _p.size_bytes).where(*mine, _p.id.in_(some))
                sizes.update((row.id, row.size_bytes) for row in connection.execute(query))
        return sizes

    def claimed(self, tenant: bytes, upload: bytes) -> list[bytes]:
        """Return the live packs that an upload relies on, without those damaged as a whole."""
        whole = select(_d.pack).where(_d.segment_offset == schema.WHOLE_PACK)
        query = (
            select(_p.id)
            .join_from(schema.claims, schema.packs, schema.claims.c.pack == _p.row)
            .where(schema.claims.c.upload == upload, _p.state == schema.PACK_LIVE, _p.row.not_in(whole))
        )
        with self._database.look_up() as connection:
            mine = _p.tenant == self._tenants.row(connection, tenant)
            return list(connection.execute(query.where(mine)).scalars())

    def without_parity(self, after: int, limit: int, since_ns: int = 0) -> list[PackParity]:
        """Return live, undamaged packs of all tenants without parity, begun at `since_ns` or later.

        In row order, after the row `after`.
        """
        return self._parities(
            schema.LIVE_WITHOUT_PARITY,
            _p.damaged.is_(False),
            _p.created_ns >= since_ns,
            after=after,
            limit=limit,
        )

    def with_parity(self, after: int, limit: int) -> list[PackParity]:
        """Return live packs of all tenants with parity, in row order, after the row `after`."""
        return self._parities(_p.state == schema.PACK_LIVE, _p.parity_bytes > 0, after=after, limit=limit)

    def _parities(self, *which: ColumnElement[bool], after: int, limit: int) -> list[PackParity]:
        query = (
            select(_p.row, schema.tenants.c.id, _p.id, _p.size_bytes, _p.parity_bytes)
            .join_from(schema.packs, schema.tenants, _p.tenant == schema.tenants.c.row)
            .where(_p.row > after, *which)
            .order_by(_p.row)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [PackParity(*row) for row in connection.execute(query)]

    def parity_totals(self) -> ParityTotals:
        """Return the number of live packs of all tenants, and how many have parity."""
        with_parity = func.sum(case((_p.parity_bytes > 0, 1), else_=0))
        query = select(
            func.count(),
            func.coalesce(func.sum(_p.size_bytes), 0),
            func.coalesce(with_parity, 0),
            func.coalesce(func.sum(_p.parity_bytes), 0),
        )
        with self._database.read() as connection:
            return ParityTotals(*connection.execute(query.where(_p.state == schema.PACK_LIVE)).one())

    def set_parity(self, tenant: bytes, pack: bytes, parity_bytes: int) -> bool:
        """Record that the pack has a durable parity object of this length, or none (0).

        Return False if it is not live.
        """
        with self._database.write() as connection:
            mine = _p.tenant == self._tenants.row(connection, tenant)
            changed = connection.execute(
                update(schema.packs)
                .where(mine, _p.id == pack, _p.state == schema.PACK_LIVE)
                .values(parity_bytes=parity_bytes)
            )
            return changed.rowcount == 1

    def lock_due(self, before_ns: int, after: tuple[int, int], limit: int) -> list[LockDue]:
        """Return live packs of all tenants that are locked until `before_ns` at most, those first whose lock
        ends first.

        `after` is the last one's end of lock and row; (-1, 0) to begin.
        """
        until_ns, row = after
        query = (
            select(_p.row, schema.tenants.c.id, _p.id, _p.locked_until_ns)
            .join_from(schema.packs, schema.tenants, _p.tenant == schema.tenants.c.row)
            .where(
                _p.state == literal(schema.PACK_LIVE, literal_execute=True),
                _p.locked_until_ns <= before_ns,
                or_(_p.locked_until_ns > until_ns, and_(_p.locked_until_ns == until_ns, _p.row > row)),
            )
            .order_by(_p.locked_until_ns, _p.row)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [LockDue(*each) for each in connection.execute(query)]

    def least_locked_ns(self) -> int | None:
        """Return when the lock of the least protected live pack ends, of those whose end is known."""
        query = select(func.min(_p.locked_until_ns)).where(
            _p.state == literal(schema.PACK_LIVE, literal_execute=True), _p.locked_until_ns > 0
        )
        with self._database.read() as connection:
            found = connection.execute(query).scalar()
        return None if found is None else int(found)

    def note_locked(self, until_ns: Mapping[int, int]) -> None:
        """Record until when these packs, by row, are locked: at least."""
        rows = [{"pack": row, "until": until_ns[row]} for row in sorted(until_ns)]
        if rows:
            with self._database.write() as connection:
                changed = update(schema.packs).where(_p.row == bindparam("pack"))
                connection.execute(changed.values(locked_until_ns=bindparam("until")), rows)

    def known(self, tenant: bytes, packs: Iterable[bytes]) -> set[bytes]:
        """Return which of the packs have a row, in whatever state."""
        with self._database.read() as connection:
            mine = _p.tenant == self._tenants.row(connection, tenant)
            found: set[bytes] = set()
            for some in batches(packs):
                found.update(connection.execute(select(_p.id).where(mine, _p.id.in_(some))).scalars())
            return found

    def of_live_backups(self, tenant: bytes, packs: Iterable[bytes]) -> set[bytes]:
        """Return which of the packs were uploaded for a backup that exists and is not deleted.

        All their content was sent for that backup, so anyone allowed to read the backup may read it.
        """
        mine = (_p.tenant == _b.tenant, _p.upload == _b.upload, schema.IS_SHOWN)
        found: set[bytes] = set()
        with self._database.read() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            for some in batches(packs):
                query = select(_p.id).join_from(schema.packs, schema.backups, and_(*mine))
                found.update(
                    connection.execute(query.where(_p.tenant == tenant_row, _p.id.in_(some))).scalars()
                )
        return found

    def writing_left_over(self, tenant: bytes, limit: int = 1000) -> list[LeftOverPack]:
        """Return packs that were begun and can never become live: their upload or collector closed or was
        replaced.

        Their objects, if any, can be removed, and then their rows (`drop_left_over`).
        """
        query = (
            select(_p.id, _p.upload, _p.created_ns)
            .join_from(schema.packs, schema.uploads, _p.upload == _u.id, isouter=True)
            .where(_LEFT_OVER)
            .order_by(_p.row)
            .limit(limit)
        )
        with self._database.read() as connection:
            mine = _p.tenant == self._tenants.row(connection, tenant)
            return [LeftOverPack(tenant, *row) for row in connection.execute(query.where(mine))]

    def drop_left_over(self, tenant: bytes, pack: bytes) -> bool:
        """Forget a pack that `writing_left_over` named, after its object is gone; return whether
        it existed.
        """
        with self._database.write() as connection:
            left_over = (
                select(_p.row)
                .join_from(schema.packs, schema.uploads, _p.upload == _u.id, isouter=True)
                .where(_p.tenant == self._tenants.row(connection, tenant), _p.id == pack, _LEFT_OVER)
            )
            pack_row = connection.execute(left_over).scalar()
            if pack_row is None:
                return False
            connection.execute(delete(schema.claims).where(schema.claims.c.pack == pack_row))
            connection.execute(delete(schema.pack_damage).where(schema.pack_damage.c.pack == pack_row))
            connection.execute(delete(schema.packs).where(_p.row == pack_row))
            return True


# A collector's own pack has no upload, and its fence as the epoch: without a newer fence it may still be at
# work.
_fence = select(schema.tasks.c.fence).where(schema.tasks.c.name == COLLECTOR).scalar_subquery()
_LEFT_OVER = and_(
    schema.IS_WRITING,
    or_(
        and_(_p.upload == b"", _p.epoch < func.coalesce(_fence, 0)),
        and_(
            _p.upload != b"",
            or_(_u.id.is_(None), _u.state != UploadState.OPEN.value, _u.epoch != _p.epoch),
        ),
    ),
)


def mark_damage(connection: Connection, pack_row: int, segment_offset: int) -> bool:
    """Mark a segment, WHOLE_PACK or FOOTER as damaged, and return whether that is new.

    The caller locked the pack's row. A mark that is not needed stays so: nothing stored since relies on a
    damaged place.
    """
    made = connection.execute(
        insert_or_ignore(connection, schema.pack_damage),
        {"pack": pack_row, "segment_offset": segment_offset, "needed": True},
    )
    if made.rowcount != 1:
        return False
    connection.execute(update(schema.packs).where(_p.row == pack_row).values(damaged=True))
    raise_damage_epoch(connection, select(_p.tenant).where(_p.row == pack_row).scalar_subquery())
    return True


def raise_damage_epoch(connection: Connection, tenant_row: int | ScalarSelect[int]) -> None:
    """State that damage was marked in the tenant: nobody looks for any while the epoch is 0."""
    this = update(schema.tenants).where(_t.row == tenant_row)
    connection.execute(this.values(damage_epoch=_t.damage_epoch + 1))


def locked_packs(tenant_row: int, summaries: Sequence[PackSummary]) -> Query | None:
    """Return the query for the rows of packs to publish, locked in row order; None for none."""
    if not summaries:
        return None
    columns = (_p.id, _p.row, _p.state, _p.upload, _p.epoch)
    these = _p.id.in_([summary.pack for summary in summaries])
    return Query(locking(select(*columns).where(_p.tenant == tenant_row, these).order_by(_p.row)))


def publish(
    connection: Connection, upload: Row[Any], packs: Sequence[Any], summaries: Sequence[PackSummary]
) -> None:
    """Make packs live and index their chunks: only packs that this upload began under its current epoch.

    `packs` are the rows of `locked_packs`. STALE_EPOCH for any other; then the transaction must not be
    committed. Packs published before stay unchanged.
    """
    rows = {pack.id: pack for pack in packs}
    for summary in summaries:
        pack = rows.get(summary.pack)
        if (
            pack is None
            or (pack.upload, pack.epoch) != (upload.id, upload.epoch)
            or pack.state not in {schema.PACK_WRITING, schema.PACK_LIVE}
        ):
            raise errors.Conflict(
                "STALE_EPOCH",
                f"Pack {summary.pack.hex()} was not begun by upload {upload.id.hex()} under epoch {upload.epoch}",
                upload=upload.id.hex(),
                epoch=str(upload.epoch),
            )
        if pack.state == schema.PACK_LIVE:
            continue
        later(
            connection,
            update(schema.packs)
            .where(_p.row == pack.row)
            .values(state=schema.PACK_LIVE, size_bytes=summary.size_bytes, chunk_count=len(summary.chunks)),
        )
        index_pack(connection, pack.row, summary)
