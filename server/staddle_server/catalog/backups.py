"""Backups: list and look up, delete and undelete, and the records still to be written."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, delete, select, update

from staddle_server.base import errors
from staddle_server.base.limits import LISTED_BYTES_MAX, MIB
from staddle_server.base.types import Place
from staddle_server.catalog import schema
from staddle_server.catalog.database import Database
from staddle_server.catalog.decisions import keep_pending, require_unprotected
from staddle_server.catalog.rows import (
    ROWS_AT_ONCE,
    Page,
    backup_not_found,
    backup_of,
    dataset_number,
    dataset_row,
    lock_backup,
    select_backups,
    size_of,
)
from staddle_server.catalog.tenants import TenantRows
from staddle_server.catalog.validation import ID_BYTES, batches, rfc3339, unpack_tags
from staddle_server.catalog.values import Backup, BackupFilter, PendingRecord

PREFIX_DIGITS_MIN: Final = 4
ALL: Final = BackupFilter()
LOOKED_AT_MAX: Final = 20_000
LOOKED_AT_BYTES_MAX: Final = 16 * MIB
"""Of backups, for one page of those that a filter names: about a second of work."""

_b = schema.backups.c
_p = schema.pending_records.c
"""Visible, or deleted and still recoverable."""


class Backups:
    """The backups of all tenants. `Uploads.commit` creates them."""

    def __init__(self, database: Database, tenants: TenantRows) -> None:
        self._database = database
        self._tenants = tenants

    def list_page(
        self,
        tenant: bytes,
        dataset: str,
        *,
        limit: int,
        before_number: int | None = None,
        show_deleted: bool = False,
        among: BackupFilter = ALL,
        check: Callable[[], None] = lambda: None,
    ) -> Page[Backup]:
        """Return at most `limit` backups, newest first, with a number below `before_number`.

        No more than LOOKED_AT_MAX backups are looked at, of LOOKED_AT_BYTES_MAX. If few of them are `among` those
        asked for, the page is short or empty, and others may follow. `check` raises once the caller is gone.

        DATASET_NOT_FOUND.
        """
        page: Page[Backup] = Page()
        page.reached = before_number
        looked_at = looked_at_bytes = size = 0
        while True:
            check()
            step = min(ROWS_AT_ONCE, limit + 1 - len(page)) if among == ALL else ROWS_AT_ONCE
            rows = self._next_rows(tenant, dataset, step, page.reached, show_deleted=show_deleted)
            for row in rows:
                if _is_among(among, row):
                    size += size_of(row)
                    if page and (len(page) == limit or size > LISTED_BYTES_MAX):
                        page.more = True
                        return page
                    page.append(backup_of(row))
                page.reached = row.number
            if len(rows) < step:
                return page
            looked_at += step
            looked_at_bytes += sum(map(size_of, rows))
            if looked_at >= LOOKED_AT_MAX or looked_at_bytes >= LOOKED_AT_BYTES_MAX:
                page.more = True
                return page

    def _next_rows(
        self, tenant: bytes, dataset: str, count: int, before_number: int | None, *, show_deleted: bool
    ) -> Sequence[Row[Any]]:
        """Return the rows of the next backups; no filter, so that the database reads no others for them."""
        with self._database.look_up() as connection:
            row = dataset_number(self._tenants.row(connection, tenant), dataset)
            query = select_backups().where(
                _b.dataset == row, schema.IS_KEPT if show_deleted else schema.IS_SHOWN
            )
            if before_number is not None:
                query = query.where(_b.number < before_number)
            rows = connection.execute(query.order_by(_b.number.desc()).limit(count)).all()
            if not rows:
                self._of_dataset(connection, tenant, dataset)
            return rows

    def get(self, tenant: bytes, backup: bytes) -> Backup:
        """Return the backup with this id, deleted or not, also a purged one while its row exists.

        BACKUP_NOT_FOUND.
        """
        with self._database.look_up() as connection:
            mine = _b.tenant == self._tenants.row(connection, tenant)
            row = connection.execute(select_backups().where(_b.id == backup, mine)).one_or_none()
        if row is None:
            raise backup_not_found(backup)
        return backup_of(row)

    def resolve(
        self,
        tenant: bytes,
        dataset: str,
        *,
        backup: str = "",
        at_ns: int | None = None,
        include_deleted: bool = False,
    ) -> Backup:
        """Pick one backup of a dataset.

        By `at_ns`: the newest whose capture began at that time or earlier. By `backup`: an id, a prefix of
        one (4 digits or more), or "latest", the one with the highest number, which is also the default.

        DATASET_NOT_FOUND; BACKUP_NOT_FOUND, with `earliest` if a time was requested; AMBIGUOUS_BACKUP;
        BAD_FIELD for an invalid prefix.
        """
        with self._database.read() as connection:
            found = self._of_dataset(connection, tenant, dataset)
            among = (found, schema.IS_KEPT if include_deleted else schema.IS_SHOWN)
            if at_ns is not None:
                return _at(connection, among, dataset, at_ns)
            if backup in {"", "latest"}:
                return _latest(connection, among, dataset)
            return _by_prefix(connection, among, dataset, backup)

    def delete(
        self,
        tenant: bytes,
        backup: bytes,
        now_ns: int,
        record: PendingRecord,
        *,
        protected_ns: int | None = None,
    ) -> tuple[Backup, bool]:
        """Hide a backup, and keep `record` as pending in the same transaction.

        Return the backup and whether this call changed it: an already deleted one stays unchanged, and
        `record` is then not kept. BACKUP_NOT_FOUND; PROTECTED, if the backup was protected at `protected_ns`
        (`now_ns` unless given).
        """
        protected_ns = now_ns if protected_ns is None else protected_ns
        return self._set_deleted(tenant, backup, now_ns, record, deleted=True, protected_ns=protected_ns)

    def undelete(
        self, tenant: bytes, backup: bytes, now_ns: int, record: PendingRecord
    ) -> tuple[Backup, bool]:
        """Make a deleted backup visible again; otherwise as `delete`."""
        return self._set_deleted(tenant, backup, now_ns, record, deleted=False, protected_ns=now_ns)

    def _set_deleted(
        self,
        tenant: bytes,
        backup: bytes,
        now_ns: int,
        record: PendingRecord,
        *,
        deleted: bool,
        protected_ns: int,
    ) -> tuple[Backup, bool]:
        with self._database.write() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            found = lock_backup(connection, tenant_row, backup)
            changed = (found.deleted_ns is not None) != deleted
            if changed:
                if deleted:
                    require_unprotected(found, protected_ns)
                this = update(schema.backups).where(_b.id == backup)
                connection.execute(this.values(deleted_ns=now_ns if deleted else None))
                keep_pending(connection, tenant_row, [record])
            return backup_of(connection.execute(select_backups().where(_b.id == backup)).one()), changed

    def pending_records(self, tenant: bytes | None = None) -> list[PendingRecord]:
        """Return decisions without a durable record, of all tenants or of one, each tenant's in
        chain order.
        """
        query = (
            select(_p.id, schema.tenants.c.id, _p.body, _p.sequence, _p.previous)
            .join_from(schema.pending_records, schema.tenants, _p.tenant == schema.tenants.c.row)
            .order_by(schema.tenants.c.id, _p.sequence)
        )
        with self._database.look_up() as connection:
            if tenant is not None:
                query = query.where(_p.tenant == self._tenants.row(connection, tenant))
            return [PendingRecord(*row[:3], Place(*row[3:])) for row in connection.execute(query)]

    def mark_records_written(self, tenant: bytes, records: Iterable[bytes]) -> int:
        """Remove these records from the pending ones: they are durable in the store.

        Returns how many were still pending: another server may have written the others.
        """
        removed = 0
        for some in batches(records):
            with self._database.write_once() as connection:
                mine = _p.tenant == self._tenants.row(connection, tenant)
                done = connection.execute(delete(schema.pending_records).where(_p.id.in_(some), mine))
                removed += done.rowcount
        return removed

    def _of_dataset(self, connection: Connection, tenant: bytes, dataset: str) -> ColumnElement[bool]:
        row = dataset_row(connection, self._tenants.row(connection, tenant), dataset)
        of_dataset: ColumnElement[bool] = _b.dataset == row.row
        return of_dataset


def _is_among(among: BackupFilter, row: Row[Any]) -> bool:
    if among.host and row.host != among.host:
        return False
    if among.since_ns is not None and row.begin_ns < among.since_ns:
        return False
    if among.until_ns is not None and row.begin_ns >= among.until_ns:
        return False
    if among.held and row.hold_ns is None:
        return False
    tags = unpack_tags(row.tags) if among.tags else {}
    return all(key in tags and value in {None, tags[key]} for key, value in among.tags)


def _latest(connection: Connection, among: tuple[ColumnElement[bool], ...], dataset: str) -> Backup:
    newest = select_backups().where(*among).order_by(_b.number.desc()).limit(1)
    row = connection.execute(newest).one_or_none()
    if row is None:
        raise errors.NotFound(
            "BACKUP_NOT_FOUND", f"Dataset {dataset!r} has no backup", dataset=dataset, backup="latest"
        )
    return backup_of(row)


def _at(connection: Connection, among: tuple[ColumnElement[bool], ...], dataset: str, at_ns: int) -> Backup:
    newest = (
        select_backups()
        .where(*among, _b.begin_ns <= at_ns)
        .order_by(_b.begin_ns.desc(), _b.number.desc())
        .limit(1)
    )
    row = connection.execute(newest).one_or_none()
    if row is not None:
        return backup_of(row)
    earliest = connection.execute(select(_b.begin_ns).where(*among).order_by(_b.begin_ns).limit(1)).scalar()
    if earliest is None:
        raise errors.NotFound("BACKUP_NOT_FOUND", f"Dataset {dataset!r} has no backup", dataset=dataset)
    raise errors.NotFound(
        "BACKUP_NOT_FOUND",
        f"Dataset {dataset!r} has no backup from {rfc3339(at_ns)} or earlier: its earliest is from {rfc3339(earliest)}",
        dataset=dataset,
        earliest=rfc3339(earliest),
    )


def _by_prefix(
    connection: Connection, among: tuple[ColumnElement[bool], ...], dataset: str, prefix: str
) -> Backup:
    low, high = _prefix_range(prefix)
    query = select_backups().where(*among, _b.id >= low, _b.id <= high).limit(2)
    rows = connection.execute(query).all()
    if not rows:
        raise errors.NotFound(
            "BACKUP_NOT_FOUND",
            f"Dataset {dataset!r} has no backup {prefix}",
            dataset=dataset,
            backup=prefix,
        )
    if len(rows) > 1:
        raise errors.BadRequest(
            "AMBIGUOUS_BACKUP",
            f"Several backups of dataset {dataset!r} begin with {prefix}: give more digits",
            backup=prefix,
        )
    return backup_of(rows[0])


def _prefix_range(prefix: str) -> tuple[bytes, bytes]:
    """Return the first and the last id that begin with these hexadecimal digits."""
    digits = prefix.lower()
    if not PREFIX_DIGITS_MIN <= len(digits) <= 2 * ID_BYTES or not set(digits) <= set("0123456789abcdef"):
        raise errors.BadRequest(
            "BAD_FIELD",
            f'Name a backup by {PREFIX_DIGITS_MIN} to {2 * ID_BYTES} hexadecimal digits or "latest", not {prefix[:80]!r}',
            field="backup",
        )
    return (
        bytes.fromhex(digits.ljust(2 * ID_BYTES, "0")),
        bytes.fromhex(digits.ljust(2 * ID_BYTES, "f")),
    )
