"""Final removal: purged backups and their rows, condemned packs, objects without a row."""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Select, case, delete, exists, func, select, update

from staddle_server.base.clock import NS
from staddle_server.base.limits import REMOVED_RECORDS_S
from staddle_server.base.types import Root
from staddle_server.catalog import schema
from staddle_server.catalog.database import Database, insert_or_ignore, insert_rows, locking, rows_in
from staddle_server.catalog.decisions import is_protected, keep_pending
from staddle_server.catalog.leases import require_fence
from staddle_server.catalog.marks import is_gone, is_root
from staddle_server.catalog.pack_values import (
    CondemnedPack,
    GoneBackup,
    MarkRoot,
    Orphan,
    PurgeableBackup,
    Waiting,
)
from staddle_server.catalog.tenants import TenantRows
from staddle_server.catalog.validation import batches
from staddle_server.catalog.values import PendingRecord

_b = schema.backups.c
_d = schema.datasets.c
_u = schema.uploads.c
_p = schema.packs.c
_t = schema.tenants.c
_o = schema.orphans.c
_n = schema.removed_records.c


class Purge:
    """Final removal.

    Writing methods check the collector's fence first (STALE_EPOCH); each is one short transaction.
    """

    def __init__(self, database: Database, tenants: TenantRows) -> None:
        self._database = database
        self._tenants = tenants

    # --- backups

    def purgeable(self, tenant: bytes, now_ns: int, grace_s: int | None = None) -> list[PurgeableBackup]:
        """Return deleted backups past their grace period (the tenant's, or `grace_s`) that no hold or
        retention protects.
        """
        with self._database.read() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            rows = connection.execute(_purgeable(tenant_row, now_ns, grace_s).order_by(_b.deleted_ns, _b.id))
            return [PurgeableBackup(*row) for row in rows]

    def hidden(self, tenant: bytes, now_ns: int, grace_s: int | None = None) -> tuple[int, int | None]:
        """Return how many deleted backups are in their grace period, and when the first one's ends."""
        with self._database.read() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            if grace_s is None:
                grace_s = connection.execute(select(_t.grace_s).where(_t.row == tenant_row)).scalar_one()
            hidden = (_b.tenant == tenant_row, _b.deleted_ns > now_ns - grace_s * NS, schema.IS_KEPT)
            count, first_ns = connection.execute(
                select(func.count(), func.min(_b.deleted_ns)).where(*hidden)
            ).one()
        return count, None if first_ns is None else int(first_ns) + grace_s * NS

    def purge(
        self,
        tenant: bytes,
        fence: int,
        backup: bytes,
        now_ns: int,
        record: PendingRecord,
        *,
        grace_s: int | None = None,
    ) -> bool:
        """Purge a backup, if allowed, and keep `record` as pending in the same transaction.

        Locks the backup and its dataset: a hold or an undelete comes first, or finds the backup gone.
        """
        with self._database.write() as connection:
            require_fence(connection, fence)
            tenant_row = self._tenants.row(connection, tenant)
            of_backup = select(_b.dataset).where(_b.id == backup, _b.tenant == tenant_row).scalar_subquery()
            connection.execute(locking(select(_d.row).where(_d.row == of_backup)))
            connection.execute(locking(select(_b.id).where(_b.id == backup)))
            may = _purgeable(tenant_row, now_ns, grace_s).where(_b.id == backup)
            if connection.execute(may).one_or_none() is None:
                return False
            connection.execute(update(schema.backups).where(_b.id == backup).values(purged_ns=now_ns))
            keep_pending(connection, tenant_row, [record], purges=backup)
            return True

    def known(self, tenant: bytes, backups: Iterable[bytes]) -> dict[bytes, bool]:
        """Return which of these backups the catalog has, and whether they are purged."""
        found: dict[bytes, bool] = {}
        with self._database.read() as connection:
            mine = _b.tenant == self._tenants.row(connection, tenant)
            for some in batches(backups):
                query = select(_b.id, _b.purged_ns).where(mine, _b.id.in_(some))
                found.update((row.id, row.purged_ns is not None) for row in connection.execute(query))
        return found

    def gone(self, tenant: bytes, before_ns: int) -> list[GoneBackup]:
        """Return backups durably purged before then that no open upload is based on: their records may go."""
        with self._database.read() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            rows = connection.execute(
                select(_b.id, _b.commit_ns, _b.purged_ns)
                .where(_b.tenant == tenant_row, _b.purged_ns <= before_ns, ~is_root(tenant_row))
                .order_by(_b.purged_ns)
            )
            return [GoneBackup(*row) for row in rows]

    def forget(self, tenant: bytes, fence: int, backup: bytes) -> bool:
        """Remove the row of a backup that `gone` named, after its records."""
        with self._database.write() as connection:
            require_fence(connection, fence)
            tenant_row = self._tenants.row(connection, tenant)
            over = select(_b.id).where(_b.id == backup, is_gone(), ~is_root(tenant_row))
            done = connection.execute(delete(schema.backups).where(_b.id.in_(over)))
            return bool(done.rowcount)

    def remove_records(self, tenant: bytes, fence: int, records: Iterable[bytes], now_ns: int) -> None:
        """Note that these records of purged backups are about to be removed from the store.

        A server that stalled while it wrote one, and wrote it again, finds this and removes it again.
        """
        with self._database.write() as connection:
            require_fence(connection, fence)
            row = self._tenants.row(connection, tenant)
            insert_rows(
                connection, (_n.tenant, _n.id, _n.removed_ns), [(row, id_, now_ns) for id_ in records]
            )
            old_ns = now_ns - REMOVED_RECORDS_S * NS
            connection.execute(delete(schema.removed_records).where(_n.tenant == row, _n.removed_ns < old_ns))

    def removed_records(self, tenant: bytes, records: Iterable[bytes]) -> set[bytes]:
        """Return which of these records `remove_records` named."""
        with self._database.read() as connection:
            mine = {_n.tenant: self._tenants.row(connection, tenant)}
            return {
                row[0]
                for some in batches(records)
                for row in rows_in(connection, (_n.id,), mine, _n.id, some)
            }

    def roots(self, tenant: bytes, without: Iterable[bytes] = ()) -> list[MarkRoot]:
        """Return the roots of a mark that would begin now, were the backups `without` purged: for
        a dry run.
        """
        gone = set(without)
        with self._database.read() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            bases = set(
                connection.execute(
                    select(_u.base).where(_u.tenant == tenant_row, schema.IS_OPEN).distinct()
                ).scalars()
            )
            rows = connection.execute(
                select(_b.id, _b.root_level, _b.root_digest, _b.entry_count, _b.data_bytes).where(
                    is_root(tenant_row)
                )
            ).all()
        return [MarkRoot(row[0], Root(*row[1:])) for row in rows if row[0] not in gone or row[0] in bases]

    # --- packs

    def live(self, tenant: bytes) -> set[bytes]:
        """Return the ids of all live packs."""
        with self._database.read() as connection:
            mine = _p.tenant == self._tenants.row(connection, tenant)
            return set(connection.execute(select(_p.id).where(mine, _p.state == schema.PACK_LIVE)).scalars())

    def unclaimed(self, tenant: bytes) -> dict[bytes, tuple[int, int]]:
        """Return live packs that no open upload claims, with their sizes and numbers of chunks: for a dry
        run.
        """
        claimed = exists().where(
            schema.claims.c.pack == _p.row, schema.claims.c.upload == _u.id, schema.IS_OPEN
        )
        with self._database.read() as connection:
            mine = _p.tenant == self._tenants.row(connection, tenant)
            query = select(_p.id, _p.size_bytes, _p.chunk_count)
            rows = connection.execute(query.where(mine, _p.state == schema.PACK_LIVE, ~claimed))
            return {row.id: (row.size_bytes, row.chunk_count) for row in rows}

    def condemned(self, tenant: bytes, before_ns: int, now_ns: int, limit: int = 1000) -> list[CondemnedPack]:
        """Return at most `limit` packs condemned before then that no object lock protects now, the oldest
        first.
        """
        with self._database.read() as connection:
            mine = _p.tenant == self._tenants.row(connection, tenant)
            query = select(_p.id, _p.size_bytes, _p.condemned_ns).where(
                mine, schema.IS_CONDEMNED, _p.condemned_ns <= before_ns, _p.locked_until_ns <= now_ns
            )
            rows = connection.execute(query.order_by(_p.condemned_ns, _p.row).limit(limit))
            return [CondemnedPack(*row) for row in rows]

    def waiting(self, tenant: bytes, grace_ns: int) -> Waiting:
        """Return the totals of condemned packs that still exist.

        They can be removed after this grace period, and the end of their object lock.
        """
        graced = _p.condemned_ns + grace_ns
        free = case((_p.locked_until_ns > graced, _p.locked_until_ns), else_=graced)
        with self._database.read() as connection:
            mine = _p.tenant == self._tenants.row(connection, tenant)
            query = select(
                func.count(),
                func.coalesce(func.sum(_p.size_bytes), 0),
                func.min(free),
                func.max(free),
            )
            count, size, first, last = connection.execute(query.where(mine, schema.IS_CONDEMNED)).one()
            return Waiting(count, int(size), first, last)

    def drop_condemned(self, tenant: bytes, fence: int, pack: bytes) -> bool:
        """Forget a condemned pack, after its object is gone; return whether it existed."""
        with self._database.write() as connection:
            require_fence(connection, fence)
            this = (_p.tenant == self._tenants.row(connection, tenant), _p.id == pack, schema.IS_CONDEMNED)
            pack_row = connection.execute(locking(select(_p.row).where(*this))).scalar()
            if pack_row is None:
                return False
            connection.execute(delete(schema.claims).where(schema.claims.c.pack == pack_row))
            connection.execute(delete(schema.pack_damage).where(schema.pack_damage.c.pack == pack_row))
            connection.execute(delete(schema.packs).where(_p.row == pack_row))
            return True

    # --- objects without a row

    def orphans(self, prefix: str) -> dict[str, Orphan]:
        """Return the objects below a prefix that were seen without a row, and since when."""
        with self._database.read() as connection:
            below = (_o.name >= f"{prefix}/", _o.name < f"{prefix}0")  # "0" sorts right after "/"
            rows = connection.execute(select(_o.name, _o.size_bytes, _o.seen_ns).where(*below))
            return {row.name: Orphan(*row) for row in rows}

    def note_orphans(self, fence: int, sizes: Mapping[str, int], now_ns: int) -> None:
        """Record that these objects have no row at the moment. Known ones keep their time."""
        for some in batches(sizes.items()):
            with self._database.write() as connection:
                require_fence(connection, fence)
                connection.execute(
                    insert_or_ignore(connection, schema.orphans),
                    [{"name": name, "size_bytes": size, "seen_ns": now_ns} for name, size in some],
                )

    def drop_orphans(self, fence: int, names: Iterable[str]) -> None:
        """Remove these objects from the list: they are gone, or have a row after all."""
        for some in batches(names):
            with self._database.write() as connection:
                require_fence(connection, fence)
                connection.execute(delete(schema.orphans).where(_o.name.in_(some)))


def _purgeable(tenant_row: int, now_ns: int, grace_s: int | None) -> Select[Any]:
    grace_ns: ColumnElement[int] | int = _t.grace_s * NS if grace_s is None else grace_s * NS
    return (
        select(_b.id, _d.name, _b.number, _b.deleted_ns)
        .join_from(schema.backups, schema.datasets, _b.dataset == _d.row)
        .join(schema.tenants, _b.tenant == _t.row)
        .where(
            _b.tenant == tenant_row,
            _b.deleted_ns.is_not(None),
            schema.IS_KEPT,
            _b.deleted_ns <= now_ns - grace_ns,
            ~is_protected(now_ns),
        )
    )
