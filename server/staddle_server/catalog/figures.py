"""What monitoring shows of the catalog: one query for each kind of thing, over all tenants."""

from typing import Any, NamedTuple

from sqlalchemy import and_, case, func, select

from staddle_server.base.types import Kind, RunOutcome
from staddle_server.catalog import schema
from staddle_server.catalog.database import Database
from staddle_server.catalog.drills import is_faulty
from staddle_server.catalog.expectations import expectation_of
from staddle_server.catalog.tasks import TaskRun

_b, _d, _p, _r, _t = schema.backups.c, schema.datasets.c, schema.packs.c, schema.runs.c, schema.tenants.c
_LIVE = (schema.IS_SHOWN, schema.IS_KEPT)


class DatasetFigures(NamedTuple):
    """How a dataset is.

    `success_ns`: when its newest success was committed, 0 for none ever. `late_ns`: from when it is late by its
    expectation, not before the end of a mute; None without an expectation. `proven_ns`: when a drill last found its
    newest backup whole, 0 for never; `drill_failed`: the last one found a
    fault in it.
    """

    tenant: str
    dataset: str
    success_ns: int
    late_ns: int | None
    proven_ns: int
    drill_failed: bool


class RunFigures(NamedTuple):
    """A tenant's runs of one outcome. One that is noted as running may be abandoned."""

    tenant: str
    outcome: RunOutcome
    number: int


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
        """Return at most `limit` datasets, the newest ones last."""
        columns = (
            _d.success_ns,
            _d.expect_every_s,
            _d.expect_grace_s,
            _d.expect_ns,
            _d.expect_mute_ns,
            _d.proven_ns,
            is_faulty().label("is_faulty"),
        )
        query = (
            select(_t.name.label("tenant_name"), _d.name.label("dataset_name"), *columns)
            .join_from(schema.datasets, schema.tenants, _d.tenant == _t.row)
            .where(~_d.reported)
            .order_by(_d.row)
            .limit(limit)
        )
        return list(map(_dataset, self._rows(query)))

    def runs(self, since_ns: int) -> list[RunFigures]:
        """Return the runs that have begun since, by tenant and outcome."""
        query = (
            select(_t.name, _r.outcome, func.count())
            .join_from(schema.tenants, schema.runs, _r.tenant == _t.row)
            .where(_r.begin_ns >= since_ns)
            .group_by(_t.name, _r.outcome)
        )
        return [
            RunFigures(name, RunOutcome(outcome), int(count)) for name, outcome, count in self._rows(query)
        ]

    def dataset_counts(self) -> dict[str, int]:
        """Return how many datasets each tenant has."""
        query = (
            select(_t.name, func.count(_d.row))
            .join_from(schema.tenants, schema.datasets, and_(_d.tenant == _t.row, ~_d.reported), isouter=True)
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


def _dataset(row: Any) -> DatasetFigures:
    expectation = expectation_of(row)
    late_ns = None
    if expectation is not None:
        late_ns = max(expectation.late_ns(row.success_ns), expectation.mute_until_ns)
    return DatasetFigures(
        row.tenant_name, row.dataset_name, row.success_ns, late_ns, row.proven_ns, bool(row.is_faulty)
    )
