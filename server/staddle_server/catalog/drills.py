"""Drills: which datasets are due for one, and what the last one found."""

from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, and_, func, or_, select, update

from staddle_server.base.errors import NotFound
from staddle_server.catalog import schema
from staddle_server.catalog.database import Database
from staddle_server.catalog.rows import backup_of, dataset_row, select_backups
from staddle_server.catalog.tenants import TenantRows
from staddle_server.catalog.values import Backup

_b, _d, _t = schema.backups.c, schema.datasets.c, schema.tenants.c
_FAULT_CHARACTERS_MAX: Final = 1000
_NEWEST: Final = select(func.max(_b.number)).where(_b.dataset == _d.row, schema.IS_SHOWN).scalar_subquery()
"""The number of a dataset's newest backup; NULL if it has none."""


class DrillWindow(NamedTuple):
    """What makes a dataset due.

    Attributes:
        before_ns: Its last drill ended before this.
        fault_before_ns: That found a fault, and ended before this; or it found one in a backup that is not the
            newest one any more.
        after_ns: Its last drill ended after this, which no right clock has reached.
        begun_before_ns: In any case it began before this, or after `after_ns`.

    """

    before_ns: int
    fault_before_ns: int
    after_ns: int
    begun_before_ns: int


class FailedDrill(NamedTuple):
    """A dataset in whose newest backup the last drill found a fault."""

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
        """Return the newest backup of the dataset whose last drill began longest ago; None if none is due."""
        known = and_(
            _d.drill_fault != "", or_(_d.drill_ns < window.fault_before_ns, _d.drill_number != _NEWEST)
        )
        late = or_(_d.drill_ns < window.before_ns, _d.drill_ns > window.after_ns, known)
        begun = or_(_d.drill_begun_ns < window.begun_before_ns, _d.drill_begun_ns > window.after_ns)
        query = (
            select(_d.row, _NEWEST.label("number"))
            .where(~_d.reported, _NEWEST.is_not(None), late, begun)
            .order_by(_d.drill_begun_ns, _d.row)
            .limit(1)
        )
        with self._database.read() as connection:
            found = connection.execute(query).one_or_none()
            if found is None:
                return None
            this = select_backups().where(_b.dataset == found.row, _b.number == found.number)
            return backup_of(connection.execute(this).one())

    def newest(self, tenant: bytes, dataset: str) -> Backup:
        """Return a dataset's newest backup. NotFound DATASET_NOT_FOUND, or BACKUP_NOT_FOUND if it has none."""
        with self._database.read() as connection:
            row = dataset_row(connection, self._tenants.row(connection, tenant), dataset)
            this = select_backups().where(_b.dataset == row.row, schema.IS_SHOWN)
            found = connection.execute(this.order_by(_b.number.desc()).limit(1)).one_or_none()
            if found is None:
                raise NotFound("BACKUP_NOT_FOUND", f"the dataset '{dataset}' has no backup", dataset=dataset)
            return backup_of(found)

    def begin(self, backup: Backup, at_ns: int) -> None:
        """Keep that a drill of a backup begins: if it does not end, the others come first."""
        self._set(backup, {"drill_begun_ns": at_ns})

    def note(self, backup: Backup, at_ns: int, fault: str) -> None:
        """Keep what the drill of a backup found; "" for nothing wrong."""
        values: dict[str, object] = {
            "drill_ns": at_ns,
            "drill_number": backup.number,
            "drill_fault": fault[:_FAULT_CHARACTERS_MAX],
        }
        if not fault:
            values |= {"proven_ns": at_ns, "proven_number": backup.number}
        self._set(backup, values)

    def failed(self) -> list[FailedDrill]:
        """Return the datasets in whose newest backup the last drill found a fault."""
        query = (
            select(_t.name.label("tenant_name"), _d.name, _d.drill_ns, _d.drill_fault)
            .join_from(schema.datasets, schema.tenants, _d.tenant == _t.row)
            .where(is_faulty())
            .order_by(_d.drill_ns, _d.row)
        )
        with self._database.read() as connection:
            return [FailedDrill(*row) for row in connection.execute(query)]

    def _set(self, backup: Backup, values: dict[str, object]) -> None:
        with self._database.write() as connection:
            row = dataset_row(connection, self._tenants.row(connection, backup.tenant), backup.dataset)
            connection.execute(update(schema.datasets).where(_d.row == row.row).values(**values))


def is_faulty() -> ColumnElement[bool]:
    """Return the condition for a dataset in whose newest backup the last drill found a fault."""
    return and_(_d.drill_fault != "", _d.drill_number == _NEWEST)
