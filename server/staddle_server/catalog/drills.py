"""Drills: which datasets are due for one, and what the last one found."""

from typing import NamedTuple

from sqlalchemy import ColumnElement, Select, and_, or_, select, update

from staddle_server.base.errors import NotFound
from staddle_server.catalog import schema
from staddle_server.catalog.database import Database
from staddle_server.catalog.rows import backup_of, dataset_row, select_backups
from staddle_server.catalog.tenants import TenantRows
from staddle_server.catalog.values import Backup

_b, _d, _t = schema.backups.c, schema.datasets.c, schema.tenants.c
_FAULT_CHARACTERS_MAX = 1000


class DrillWindow(NamedTuple):
    """What makes a dataset due: its last drill ended before `before_ns`; or after `after_ns`, which no right clock
    has reached; or it found a fault, and ended before `fault_before_ns` or before the newest backup.
    """

    before_ns: int
    fault_before_ns: int
    after_ns: int


class FailedDrill(NamedTuple):
    """A dataset whose last drill found a fault."""

    tenant_name: str
    dataset: str
    at_ns: int
    fault: str


class Drills:
    """The drills of all tenants' datasets."""

    def __init__(self, database: Database, tenants: TenantRows) -> None:
        self._database = database
        self._tenants = tenants

    def due(self, window: DrillWindow) -> Backup | None:
        """Return the newest backup of the dataset that has waited longest; None if none is due."""
        late = or_(
            _d.drill_ns < window.before_ns,
            and_(
                _d.drill_fault != "", or_(_d.drill_ns < window.fault_before_ns, _d.drill_ns < _d.success_ns)
            ),
            _d.drill_ns > window.after_ns,
        )
        with self._database.read() as connection:
            first = _newest().where(late).order_by(_d.drill_ns, _d.row).limit(1)
            backup = connection.execute(first).scalar_one_or_none()
            if backup is None:
                return None
            return backup_of(connection.execute(select_backups().where(_b.id == backup)).one())

    def newest(self, tenant: bytes, dataset: str) -> Backup:
        """Return a dataset's newest backup. NotFound DATASET_NOT_FOUND, or BACKUP_NOT_FOUND if it has none."""
        with self._database.read() as connection:
            row = dataset_row(connection, self._tenants.row(connection, tenant), dataset)
            backup = connection.execute(_newest().where(_d.row == row.row)).scalar_one_or_none()
            if backup is None:
                raise NotFound("BACKUP_NOT_FOUND", f"the dataset '{dataset}' has no backup", dataset=dataset)
            return backup_of(connection.execute(select_backups().where(_b.id == backup)).one())

    def note(self, backup: Backup, at_ns: int, fault: str) -> None:
        """Keep what the drill of a backup found; "" for nothing wrong."""
        values: dict[str, object] = {"drill_ns": at_ns, "drill_fault": fault[:_FAULT_CHARACTERS_MAX]}
        if not fault:
            values |= {"proven_ns": at_ns, "proven_number": backup.number}
        with self._database.write() as connection:
            row = dataset_row(connection, self._tenants.row(connection, backup.tenant), backup.dataset)
            connection.execute(update(schema.datasets).where(_d.row == row.row).values(**values))

    def failed(self) -> list[FailedDrill]:
        """Return the datasets whose last drill found a fault, of those that have a backup."""
        query = (
            select(_t.name.label("tenant_name"), _d.name, _d.drill_ns, _d.drill_fault)
            .join_from(schema.datasets, schema.tenants, _d.tenant == _t.row)
            .where(_d.drill_fault != "", _has_backup())
            .order_by(_d.drill_ns, _d.row)
        )
        with self._database.read() as connection:
            return [FailedDrill(*row) for row in connection.execute(query)]


def _has_backup() -> ColumnElement[bool]:
    return select(_b.id).where(_b.dataset == _d.row, schema.IS_SHOWN).exists()


def _newest() -> Select[tuple[bytes]]:
    """Return the query for the newest backups of datasets that have one."""
    newest = select(_b.id).where(_b.dataset == _d.row, schema.IS_SHOWN).order_by(_b.number.desc()).limit(1)
    return select(newest.scalar_subquery()).select_from(schema.datasets).where(~_d.reported, _has_backup())
