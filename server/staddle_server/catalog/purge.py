"""What goes for good: purged backups and their rows, condemned packs, objects that no row names."""

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, exists, func, select, update

from staddle_server.base.types import Root
from staddle_server.catalog import schema
from staddle_server.catalog.database import Database, insert_or_ignore
from staddle_server.catalog.decisions import is_protected, keep_pending
from staddle_server.catalog.gc_lease import require_fence
from staddle_server.catalog.marks import is_gone, is_root
from staddle_server.catalog.tenants import TenantRows
from staddle_server.catalog.validation import NS, batches
from staddle_server.catalog.values import (
    CondemnedPack,
    GoneBackup,
    MarkRoot,
    Orphan,
    PendingRecord,
    PurgeableBackup,
    Waiting,
)

_b = schema.backups.c
_d = schema.datasets.c
_u = schema.uploads.c
_p = schema.packs.c
_t = schema.tenants.c
_o = schema.orphans.c


class Purge:
    """Methods that write check the collector's fence first (STALE_EPOCH), and are one short transaction each."""

    def __init__(self, database: Database, tenants: TenantRows) -> None:
        self._database = database
        self._tenants = tenants

    # --- backups

    def purgeable(self, tenant: bytes, now_ns: int, grace_s: int | None = None) -> list[PurgeableBackup]:
        """Deleted backups whose grace is over (the tenant's, or this one) and that neither a hold nor a time protects."""
        with self._database.read() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            rows = connection.execute(_purgeable(tenant_row, now_ns, grace_s).order_by(_b.deleted_ns, _b.id))
            return [PurgeableBackup(*row) for row in rows]

    def hidden(self, tenant: bytes, now_ns: int, grace_s: int | None = None) -> tuple[int, int | None]:
        """How many deleted backups are in their grace, and when that of the first of them is over."""
        with self._database.read() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            if grace_s is None:
                grace_s = connection.execute(select(_t.grace_s).where(_t.row == tenant_row)).scalar_one()
            hidden = (_b.tenant == tenant_row, _b.deleted_ns > now_ns - grace_s * NS, _b.purged_ns.is_(None))
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
        """Ends a backup for good, if it may be, and keeps `record` as pending in the same transaction.

        Its dataset and the backup itself are locked, so that a hold or an undelete comes before, or finds it gone.
        """
        with self._database.write() as connection:
            require_fence(connection, fence)
            tenant_row = self._tenants.row(connection, tenant)
            of_backup = select(_b.dataset).where(_b.id == backup, _b.tenant == tenant_row).scalar_subquery()
            connection.execute(select(_d.row).where(_d.row == of_backup).with_for_update())
            connection.execute(select(_b.id).where(_b.id == backup).with_for_update())
            may = _purgeable(tenant_row, now_ns, grace_s).where(_b.id == backup)
            if connection.execute(may).one_or_none() is None:
                return False
            connection.execute(update(schema.backups).where(_b.id == backup).values(purged_ns=now_ns))
            keep_pending(connection, tenant_row, [record], purges=backup)
            return True

    def known(self, tenant: bytes, backups: Iterable[bytes]) -> dict[bytes, bool]:
        """Those of these backups that the catalog has, and whether they are purged."""
        found: dict[bytes, bool] = {}
        with self._database.read() as connection:
            mine = _b.tenant == self._tenants.row(connection, tenant)
            for some in batches(backups):
                query = select(_b.id, _b.purged_ns).where(mine, _b.id.in_(some))
                found.update((row.id, row.purged_ns is not None) for row in connection.execute(query))
        return found

    def gone(self, tenant: bytes, before_ns: int) -> list[GoneBackup]:
        """Backups that were purged before, durably, and that no open upload starts from: their records may go."""
        with self._database.read() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            rows = connection.execute(
                select(_b.id, _b.commit_ns, _b.purged_ns)
                .where(_b.tenant == tenant_row, _b.purged_ns <= before_ns, ~is_root(tenant_row))
                .order_by(_b.purged_ns)
            )
            return [GoneBackup(*row) for row in rows]

    def forget(self, tenant: bytes, fence: int, backup: bytes) -> bool:
        """Removes the row of a backup that `gone` named; after its records."""
        with self._database.write() as connection:
            require_fence(connection, fence)
            tenant_row = self._tenants.row(connection, tenant)
            over = select(_b.id).where(_b.id == backup, is_gone(), ~is_root(tenant_row))
            done = connection.execute(delete(schema.backups).where(_b.id.in_(over)))
            return bool(done.rowcount)

    def roots(self, tenant: bytes, without: Iterable[bytes] = ()) -> list[MarkRoot]:
        """What a mark that began now would list, were the backups `without` purged; for looking ahead."""
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
        """The ids of all live packs."""
        with self._database.read() as connection:
            mine = _p.tenant == self._tenants.row(connection, tenant)
            return set(connection.execute(select(_p.id).where(mine, _p.state == schema.PACK_LIVE)).scalars())

    def unclaimed(self, tenant: bytes) -> dict[bytes, tuple[int, int]]:
        """Live packs that no open upload claims, with their sizes and numbers of chunks; for looking ahead."""
        claimed = exists().where(
            schema.claims.c.pack == _p.row, schema.claims.c.upload == _u.id, schema.IS_OPEN
        )
        with self._database.read() as connection:
            mine = _p.tenant == self._tenants.row(connection, tenant)
            query = select(_p.id, _p.size_bytes, _p.chunk_count)
            rows = connection.execute(query.where(mine, _p.state == schema.PACK_LIVE, ~claimed))
            return {row.id: (row.size_bytes, row.chunk_count) for row in rows}

    def condemned(self, tenant: bytes, before_ns: int, limit: int = 1000) -> list[CondemnedPack]:
        """At most `limit` packs that were condemned by then, the oldest first."""
        with self._database.read() as connection:
            mine = _p.tenant == self._tenants.row(connection, tenant)
            query = select(_p.id, _p.size_bytes, _p.condemned_ns).where(
                mine, schema.IS_CONDEMNED, _p.condemned_ns <= before_ns
            )
            rows = connection.execute(query.order_by(_p.condemned_ns, _p.row).limit(limit))
            return [CondemnedPack(*row) for row in rows]

    def waiting(self, tenant: bytes) -> Waiting:
        """The condemned packs that are still there, together."""
        with self._database.read() as connection:
            mine = _p.tenant == self._tenants.row(connection, tenant)
            query = select(
                func.count(),
                func.coalesce(func.sum(_p.size_bytes), 0),
                func.min(_p.condemned_ns),
                func.max(_p.condemned_ns),
            )
            count, size, first, last = connection.execute(query.where(mine, schema.IS_CONDEMNED)).one()
            return Waiting(count, int(size), first, last)

    def drop_condemned(self, tenant: bytes, fence: int, pack: bytes) -> bool:
        """Forgets a condemned pack, after its object is gone. Whether there was such a one."""
        with self._database.write() as connection:
            require_fence(connection, fence)
            this = (_p.tenant == self._tenants.row(connection, tenant), _p.id == pack, schema.IS_CONDEMNED)
            pack_row = connection.execute(select(_p.row).where(*this).with_for_update()).scalar()
            if pack_row is None:
                return False
            connection.execute(delete(schema.claims).where(schema.claims.c.pack == pack_row))
            connection.execute(delete(schema.pack_damage).where(schema.pack_damage.c.pack == pack_row))
            connection.execute(delete(schema.packs).where(_p.row == pack_row))
            return True

    # --- objects without a row

    def orphans(self, prefix: str) -> dict[str, Orphan]:
        """The objects below a prefix that were seen without a row, and since when."""
        with self._database.read() as connection:
            below = _o.name.between(f"{prefix}/", f"{prefix}0")  # "0" comes behind "/"
            rows = connection.execute(select(_o.name, _o.size_bytes, _o.seen_ns).where(below))
            return {row.name: Orphan(*row) for row in rows}

    def note_orphans(self, fence: int, sizes: Mapping[str, int], now_ns: int) -> None:
        """These objects were seen without a row now. Those that were seen so before keep their time."""
        for some in batches(sizes.items()):
            with self._database.write() as connection:
                require_fence(connection, fence)
                connection.execute(
                    insert_or_ignore(connection, schema.orphans),
                    [{"name": name, "size_bytes": size, "seen_ns": now_ns} for name, size in some],
                )

    def drop_orphans(self, fence: int, names: Iterable[str]) -> None:
        """These are gone, or have a row after all."""
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
            _b.purged_ns.is_(None),
            _b.deleted_ns <= now_ns - grace_ns,
            ~is_protected(now_ns),
        )
    )
