"""What the dashboard shows of a tenant: one query for each part of a page, whose time grows with the page."""

from collections.abc import Sequence
from enum import Enum
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, case, func, literal, or_, select

from staddle_server.base.clock import DAY_NS, NS
from staddle_server.base.types import Kind, RunOutcome
from staddle_server.catalog import schema
from staddle_server.catalog.database import Database
from staddle_server.catalog.datasets import drill_of
from staddle_server.catalog.expectations import expectation_of
from staddle_server.catalog.rows import Page, dataset_row, page_of
from staddle_server.catalog.run_values import Expectation
from staddle_server.catalog.runs import BAD
from staddle_server.catalog.tenants import TenantRows
from staddle_server.catalog.values import DrillState, Hold

_b, _d, _p, _r = schema.backups.c, schema.datasets.c, schema.packs.c, schema.runs.c
_s, _u = schema.servers.c, schema.uploads.c
_SHOWN: Final = (schema.IS_SHOWN, schema.IS_KEPT)


class DatasetState(Enum):
    """Which datasets are listed: all, those that were backed up, never were, or have no expectation or a mute."""

    ALL = "all"
    NEVER = "never"
    UNEXPECTED = "unexpected"
    MUTED = "muted"


class DatasetLine(NamedTuple):
    """A dataset in a list.

    Attributes:
        row: Its number in the catalog.
        name: Its name.
        host: Where it was last backed up from.
        success_ns: When its newest backup was committed; 0: never.
        expectation: None: it has none.
        backups: How many there are, without deleted ones.
        first_ns: When the oldest of these was begun; None: there is none.
        last_ns: When the newest was begun.
        data_bytes: What the newest would restore.
        stored_bytes: What these added to the store.
        drill: What drills have found; None: there was none.

    """

    row: int
    name: str
    host: str
    success_ns: int
    expectation: Expectation | None
    backups: int
    first_ns: int | None
    last_ns: int | None
    data_bytes: int
    stored_bytes: int
    drill: DrillState | None


class DayRuns(NamedTuple):
    """A dataset's runs that began on one day (UTC), which is given in days since 1970."""

    dataset: int
    day: int
    good: int
    incomplete: int
    bad: int


class StoredFigures(NamedTuple):
    """A tenant's packs.

    `unread_ns`: when the one that was not read for the longest time was read, or else written; None: there is no
    pack. `unread`: packs that were written, and never read since.
    """

    packs: int
    live_bytes: int
    condemned_bytes: int
    parity_bytes: int
    unread_ns: int | None
    unread: int


class BackupPoint(NamedTuple):
    """A backup in a plot."""

    number: int
    id: bytes
    kind: Kind
    begin_ns: int
    commit_ns: int
    entry_count: int
    data_bytes: int
    stored_bytes: int


class ProtectedDataset(NamedTuple):
    """What protects the backups of a dataset; `policy` as in `Retention`."""

    name: str
    policy: str
    minimum_s: int
    hold: Hold | None


class HeldBackup(NamedTuple):
    """A backup with a hold of its own."""

    dataset: str
    number: int
    id: bytes
    hold: Hold


class BackupTotals(NamedTuple):
    """A tenant's backups that are not deleted, and what all of them would restore."""

    backups: int
    data_bytes: int


class Overview:
    """Reads what pages show. Unknown datasets raise DATASET_NOT_FOUND."""

    def __init__(self, database: Database, tenants: TenantRows) -> None:
        self._database = database
        self._tenants = tenants

    def datasets(
        self,
        tenant: bytes,
        *,
        named: str,
        state: DatasetState,
        names: Sequence[str] | None,
        after_name: str,
        limit: int,
        now_ns: int,
    ) -> Page[DatasetLine]:
        """Return at most `limit` datasets in name order, after `after_name`, whose name contains `named`, in capitals
        or not. `names`: only these.
        """
        with self._database.read() as connection:
            query = select(schema.datasets).where(
                _d.tenant == self._tenants.row(connection, tenant),
                ~_d.reported,
                _d.name > after_name,
                *_in_state(state, now_ns),
            )
            if named:
                query = query.where(func.lower(_d.name).contains(named.lower(), autoescape=True))
            if names is not None:
                query = query.where(_d.name.in_(names))
            rows = page_of(connection, query.order_by(_d.name), limit, lambda row: row)
            sums = _sums(connection, [row.row for row in rows])
            page = Page(_line(row, sums.get(row.row)) for row in rows)
        page.more = rows.more
        return page

    def days(self, datasets: Sequence[int], since_day: int) -> list[DayRuns]:
        """Return the runs of these datasets, given by row, by the day of their begin, from that day on."""
        day = _r.begin_ns // literal(DAY_NS)
        query = (
            select(
                _r.dataset,
                day.label("day"),
                func.count(case((_r.outcome == RunOutcome.DONE.value, 1))),
                func.count(case((_r.outcome == RunOutcome.PROBLEMS.value, 1))),
                func.count(case((_r.outcome.in_(BAD), 1))),
            )
            .where(_r.dataset.in_(datasets), _r.begin_ns >= since_day * DAY_NS)
            .group_by(_r.dataset, day)
        )
        with self._database.read() as connection:
            return [DayRuns(*map(int, row)) for row in connection.execute(query)]

    def points(self, tenant: bytes, dataset: str, limit: int) -> list[BackupPoint]:
        """Return the newest `limit` backups of a dataset, oldest first."""
        columns = (_b.number, _b.id, _b.kind, _b.begin_ns, _b.commit_ns)
        sizes = (_b.entry_count, _b.data_bytes, _b.stored_bytes)
        with self._database.read() as connection:
            row = dataset_row(connection, self._tenants.row(connection, tenant), dataset).row
            query = select(*columns, *sizes).where(_b.dataset == row, *_SHOWN)
            newest = connection.execute(query.order_by(_b.number.desc()).limit(limit))
            return [BackupPoint(each[0], each[1], Kind(each[2]), *each[3:]) for each in newest][::-1]

    def stops(self, tenant: bytes, dataset: str, at: int, limit: int) -> list[BackupPoint]:
        """Return backups all over a dataset's history to choose from, oldest first: all of them, or the newest
        `limit` / 3 and about `limit` spread over the rest; and always the first, the one numbered `at`, and its
        neighbours.
        """
        columns = (_b.number, _b.id, _b.kind, _b.begin_ns, _b.commit_ns)
        sizes = (_b.entry_count, _b.data_bytes, _b.stored_bytes)
        with self._database.read() as connection:
            row = dataset_row(connection, self._tenants.row(connection, tenant), dataset).row
            mine = (_b.dataset == row, *_SHOWN)
            total = connection.execute(select(func.count()).where(*mine)).scalar_one()
            recent = limit if total <= limit else limit // 3
            older = select(func.max(_b.number)).where(*mine, _b.number < at).scalar_subquery()
            newer = select(func.min(_b.number)).where(*mine, _b.number > at).scalar_subquery()
            place = (func.row_number().over(order_by=_b.number.desc()) - 1).label("place")
            ranked = select(*columns, *sizes, place).where(*mine).subquery()
            chosen = or_(
                ranked.c.place < recent,
                ranked.c.place % (total // limit + 1) == 0,
                ranked.c.place == total - 1,
                ranked.c.number.in_([older, literal(at), newer]),
            )
            found = connection.execute(select(ranked).where(chosen).order_by(ranked.c.number))
            return [BackupPoint(each[0], each[1], Kind(each[2]), *each[3:8]) for each in found]

    def durations_s(self, tenant: bytes, dataset: str, limit: int) -> list[float]:
        """Return how long the newest `limit` backups of a dataset took, deleted or not."""
        with self._database.read() as connection:
            row = dataset_row(connection, self._tenants.row(connection, tenant), dataset).row
            query = select(_b.commit_ns - _b.begin_ns).where(_b.dataset == row)
            return [
                took / NS
                for took in connection.execute(query.order_by(_b.number.desc()).limit(limit)).scalars()
            ]

    def receivers(self, uploads: Sequence[bytes]) -> dict[bytes, str]:
        """Return the endpoints of the servers that write these uploads, of those that are known."""
        query = select(_u.id, _s.endpoint).join_from(schema.uploads, schema.servers, _u.server == _s.id)
        with self._database.read() as connection:
            return {row.id: row.endpoint for row in connection.execute(query.where(_u.id.in_(uploads)))}

    def stored(self, tenant: bytes) -> StoredFigures:
        """Return the packs of a tenant."""
        live, condemned = _p.state == schema.PACK_LIVE, _p.state == schema.PACK_CONDEMNED
        query = select(
            func.count(case((live, 1))),
            func.coalesce(func.sum(case((live, _p.size_bytes))), 0),
            func.coalesce(func.sum(case((condemned, _p.size_bytes))), 0),
            func.coalesce(func.sum(case((live, _p.parity_bytes))), 0),
            func.min(case((live, func.coalesce(_p.verified_ns, _p.created_ns)))),
            func.count(case((and_(live, _p.verified_ns.is_(None)), 1))),
        )
        with self._database.read() as connection:
            mine = _p.tenant == self._tenants.row(connection, tenant)
            *sums, unread_ns, unread = connection.execute(query.where(mine)).one()
        packs, live_bytes, condemned_bytes, parity_bytes = map(int, sums)
        return StoredFigures(packs, live_bytes, condemned_bytes, parity_bytes, unread_ns, int(unread))

    def coverage(self, tenant: bytes, since_ns: Sequence[int]) -> list[tuple[int, int]]:
        """Return the number and the bytes of packs that were last read since each of these times, which fall, and not
        since the one before; then of those read before all of them; then of those that were never read.
        """
        never = len(since_ns) + 1
        read = [(_p.verified_ns >= each, place) for place, each in enumerate(since_ns)]
        place = case((_p.verified_ns.is_(None), never), *read, else_=len(since_ns)).label("place")
        query = select(place, func.count(), func.sum(_p.size_bytes)).where(_p.state == schema.PACK_LIVE)
        with self._database.read() as connection:
            mine = query.where(_p.tenant == self._tenants.row(connection, tenant)).group_by(place)
            found = {int(row[0]): (int(row[1]), int(row[2])) for row in connection.execute(mine)}
        return [found.get(number, (0, 0)) for number in range(never + 1)]

    def last_runs(self, tenant: bytes, since_ns: int) -> dict[str, int]:
        """Return when each token, by name, last began a run since then."""
        query = select(_r.principal, func.max(_r.begin_ns)).where(_r.begin_ns >= since_ns)
        with self._database.read() as connection:
            mine = query.where(_r.tenant == self._tenants.row(connection, tenant))
            return {name: int(at_ns) for name, at_ns in connection.execute(mine.group_by(_r.principal))}

    def protected(self, tenant: bytes, limit: int) -> list[ProtectedDataset]:
        """Return at most `limit` datasets that have a policy, a minimum retention or a hold, in name order."""
        columns = (_d.name, _d.policy, _d.min_retention_s, _d.hold_ns, _d.hold_reason)
        some = or_(_d.policy != "", _d.min_retention_s > 0, _d.hold_ns.is_not(None))
        with self._database.read() as connection:
            mine = _d.tenant == self._tenants.row(connection, tenant)
            query = select(*columns).where(mine, some).order_by(_d.name).limit(limit)
            return [
                ProtectedDataset(row.name, row.policy, row.min_retention_s, _hold(row))
                for row in connection.execute(query)
            ]

    def held(self, tenant: bytes, limit: int) -> list[HeldBackup]:
        """Return at most `limit` backups with a hold of their own, the first held first."""
        columns = (_d.name, _b.number, _b.id, _b.hold_ns, _b.hold_reason)
        with self._database.read() as connection:
            mine = _b.tenant == self._tenants.row(connection, tenant)
            query = (
                select(*columns)
                .join_from(schema.backups, schema.datasets, _b.dataset == _d.row)
                .where(mine, _b.hold_ns.is_not(None), schema.IS_KEPT)
                .order_by(_b.hold_ns)
                .limit(limit)
            )
            return [
                HeldBackup(row.name, row.number, row.id, Hold(row.hold_reason, row.hold_ns))
                for row in connection.execute(query)
            ]

    def backups(self, tenant: bytes) -> BackupTotals:
        """Return how many backups a tenant has, and what they would restore."""
        query = select(func.count(), func.coalesce(func.sum(_b.data_bytes), 0)).select_from(schema.backups)
        with self._database.read() as connection:
            mine = _b.tenant == self._tenants.row(connection, tenant)
            return BackupTotals(*map(int, connection.execute(query.where(mine, *_SHOWN)).one()))


def _hold(row: Any) -> Hold | None:
    return None if row.hold_ns is None else Hold(row.hold_reason, row.hold_ns)


def _in_state(state: DatasetState, now_ns: int) -> Sequence[ColumnElement[bool]]:
    match state:
        case DatasetState.NEVER:
            return (_d.success_ns == 0,)
        case DatasetState.UNEXPECTED:
            return (_d.expect_every_s == 0,)
        case DatasetState.MUTED:
            return (_d.expect_mute_ns > now_ns,)
    return ()


def _sums(connection: Connection, datasets: Sequence[int]) -> dict[int, Any]:
    """Return the sums over the backups of each dataset that has some, with the size of its newest one."""
    sums = (
        select(
            _b.dataset,
            func.count().label("backups"),
            func.min(_b.begin_ns).label("first_ns"),
            func.max(_b.begin_ns).label("last_ns"),
            func.sum(_b.stored_bytes).label("stored_bytes"),
            func.max(_b.number).label("newest"),
        )
        .where(_b.dataset.in_(datasets), *_SHOWN)
        .group_by(_b.dataset)
        .subquery()
    )
    query = select(sums, _b.data_bytes).join_from(
        sums, schema.backups, and_(_b.dataset == sums.c.dataset, _b.number == sums.c.newest)
    )
    return {row.dataset: row for row in connection.execute(query)}


def _line(row: Any, sums: Any) -> DatasetLine:
    known = (row.row, row.name, row.host, row.success_ns, expectation_of(row))
    found = (0, None, None, 0, 0)
    if sums is not None:
        found = (sums.backups, sums.first_ns, sums.last_ns, sums.data_bytes, int(sums.stored_bytes))
    return DatasetLine(*known, *found, drill_of(row, None if sums is None else sums.newest))
