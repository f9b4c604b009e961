"""What monitoring shows of the catalog: one query for each kind of thing, over all tenants."""

from typing import Any, NamedTuple

from sqlalchemy import case, func, select

from staddle_server.base.types import Kind
from staddle_server.catalog import schema
from staddle_server.catalog.database import Database
from staddle_server.catalog.tasks import TaskRun

_b, _d, _p, _t = schema.backups.c, schema.datasets.c, schema.packs.c, schema.tenants.c
_LIVE = (_b.deleted_ns.is_(None), _b.purged_ns.is_(None))


class DatasetFigures(NamedTuple):
    """When the newest backup of a dataset was committed; None if it has none."""

    tenant: str
    dataset: str
    last_ns: int | None


class BackupFigures(NamedTuple):
    """A tenant's backups of one kind, without deleted ones."""

    tenant: str
    kind: Kind
    number: int
    data_bytes: int


class PackFigures(NamedTuple):
    """A tenant's packs: those in use, and those that wait for their removal.

    `unread_ns`: when the one that was not read for the longest time was read, or else written; None: no pack.
    """

    tenant: str
    live_bytes: int
    condemned_bytes: int
    parity_bytes: int
    unread_ns: int | None


class Figures:
    """Reads figures for monitoring. Every method is one query, whose time grows with what it counts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def datasets(self, limit: int) -> list[DatasetFigures]:
        """Return at most `limit` datasets, those with the newest names last."""
        newest = (
            select(_b.commit_ns)
            .where(_b.dataset == _d.row, *_LIVE)
            .order_by(_b.number.desc())
            .limit(1)
            .scalar_subquery()
        )
        query = (
            select(_t.name, _d.name, newest)
            .join_from(schema.datasets, schema.tenants, _d.tenant == _t.row)
            .order_by(_d.row)
            .limit(limit)
        )
        return [DatasetFigures(*row) for row in self._rows(query)]

    def dataset_counts(self) -> dict[str, int]:
        """Return how many datasets each tenant has."""
        query = (
            select(_t.name, func.count(_d.row))
            .join_from(schema.tenants, schema.datasets, _d.tenant == _t.row, isouter=True)
            .group_by(_t.name)
        )
        return {name: int(count) for name, count in self._rows(query)}

    def backups(self) -> list[BackupFigures]:
        """Return the backups by tenant and kind."""
        query = (
            select(_t.name, _b.kind, func.count(), func.sum(_b.data_bytes))
            .join_from(schema.backups, schema.tenants, _b.tenant == _t.row)
            .where(*_LIVE)
            .group_by(_t.name, _b.kind)
        )
        return [
            BackupFigures(name, Kind(kind), int(count), int(size))
            for name, kind, count, size in self._rows(query)
        ]

    def packs(self) -> list[PackFigures]:
        """Return the packs by tenant."""
        live = _p.state == schema.PACK_LIVE
        condemned = _p.state == schema.PACK_CONDEMNED
        query = (
            select(
                _t.name,
                func.coalesce(func.sum(case((live, _p.size_bytes))), 0),
                func.coalesce(func.sum(case((condemned, _p.size_bytes))), 0),
                func.coalesce(func.sum(case((live, _p.parity_bytes))), 0),
                func.min(case((live, func.coalesce(_p.verified_ns, _p.created_ns)))),
            )
            .join_from(schema.tenants, schema.packs, _p.tenant == _t.row, isouter=True)
            .group_by(_t.name)
        )
        return [
            PackFigures(name, int(live_), int(condemned_), int(parity), unread)
            for name, live_, condemned_, parity, unread in self._rows(query)
        ]

    def tasks(self) -> list[TaskRun]:
        """Return the last run of every task."""
        tasks = schema.tasks.c
        return [
            TaskRun(*row)
            for row in self._rows(
                select(tasks.name, tasks.begun_ns, tasks.ended_ns, tasks.outcome)
                .where(tasks.begun_ns.is_not(None))
                .order_by(tasks.name)
            )
        ]

    def _rows(self, query: Any) -> list[Any]:
        with self._database.read() as connection:
            return list(connection.execute(query))
