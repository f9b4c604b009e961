"""Datasets: the named things that are backed up."""

from typing import Any

from sqlalchemy import Connection, Row, Select, func, select, update

from staddle_server.catalog import schema
from staddle_server.catalog.database import Database, insert_or_ignore, later
from staddle_server.catalog.rows import Page, backup_of, dataset_row, page_of, select_backups
from staddle_server.catalog.tenants import TenantRows
from staddle_server.catalog.values import Backup, Dataset, DrillState

_d = schema.datasets.c
_b = schema.backups.c


class Datasets:
    """The datasets of all tenants. A dataset's first upload, failed run or expectation creates it."""

    def __init__(self, database: Database, tenants: TenantRows) -> None:
        self._database = database
        self._tenants = tenants

    def get(self, tenant: bytes, name: str) -> Dataset:
        """Return one dataset. NotFound DATASET_NOT_FOUND."""
        with self._database.read() as connection:
            row = dataset_row(connection, self._tenants.row(connection, tenant), name)
            described = connection.execute(_described().where(_d.row == row.row)).one()
            newest = connection.execute(_newest([described.newest])).one_or_none()
            return _dataset(described, None if newest is None else backup_of(newest))

    def list_page(self, tenant: bytes, after_name: str, limit: int) -> Page[Dataset]:
        """Return at most `limit` datasets in name order, after `after_name` ("" for the first ones)."""
        with self._database.read() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            query = (
                _described()
                .where(_d.tenant == tenant_row, ~_d.reported, _d.name > after_name)
                .order_by(_d.name)
            )
            rows = page_of(connection, query, limit, lambda row: row)
            ids = [row.newest for row in rows]
            newest = page_of(connection, _newest(ids).order_by(_d.name), len(ids), backup_of)
        by_name = {backup.dataset: backup for backup in newest}
        known = ids.index(newest[-1].id) + 1 if newest.more else len(ids)
        page = Page(_dataset(row, by_name.get(row.name)) for row in rows[:known])
        page.more = rows.more or newest.more
        return page


def make_dataset(
    connection: Connection, tenant_row: int, name: str, created_ns: int, *, reported: bool = False
) -> None:
    """Make the dataset if it does not exist, no later than the next statement.

    A `reported` one is only a name for runs that failed, until `make_real`.
    """
    row = {
        "tenant": tenant_row,
        "name": name,
        "created_ns": created_ns,
        "host": "",
        "root": "",
        "last_number": 0,
        "reported": reported,
    }
    later(connection, insert_or_ignore(connection, schema.datasets), row)


def make_real(connection: Connection, tenant_row: int, name: str, created_ns: int) -> None:
    """Let a dataset exist of which only reports knew so far, no later than the next statement."""
    this = update(schema.datasets).where(_d.tenant == tenant_row, _d.name == name, _d.reported)
    later(connection, this.values(reported=False, created_ns=created_ns))


def _described() -> Select[Any]:
    shown = (_b.dataset == _d.row, schema.IS_SHOWN)
    newest = select(_b.id).where(*shown).order_by(_b.number.desc()).limit(1).scalar_subquery()
    count = select(func.count()).select_from(schema.backups).where(*shown).scalar_subquery()
    return select(schema.datasets, count.label("backup_count"), newest.label("newest"))


def _newest(ids: list[bytes | None]) -> Select[Any]:
    return select_backups().where(_b.id.in_([id_ for id_ in ids if id_ is not None]))


def _dataset(row: Row[Any], newest: Backup | None) -> Dataset:
    drill = drill_of(row, None if newest is None else newest.number)
    return Dataset(row.name, row.created_ns, row.host, row.root, row.backup_count, newest, drill)


def drill_of(row: Row[Any], newest: int | None) -> DrillState | None:
    """Return what drills of a dataset have found, by its row and the number of its newest backup; None for no drill.

    A fault counts only while the backup that has it is the newest one.
    """
    if not row.drill_ns:
        return None
    fault = row.drill_fault if newest == row.drill_number else ""
    return DrillState(row.drill_ns, fault, row.proven_ns, row.proven_number)
