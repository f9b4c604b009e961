"""Runs: attempts to back up, with how each of them ended.

An upload's begin, commit, abort and expiry write its run in their own transactions (`begun`, `taken_over`,
`done`, `ended`). Whether an open upload still runs is not written down: its lease decides, so a run is
abandoned as soon as its client or its server has been silent for that long, and runs again once it is resumed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from staddle_server.base import errors, limits
from staddle_server.base.clock import NS
from staddle_server.base.types import RunOutcome, UploadState
from staddle_server.catalog import schema
from staddle_server.catalog.database import Database, insert_or_ignore, later
from staddle_server.catalog.datasets import make_dataset
from staddle_server.catalog.rows import Page, dataset_row, page_of, upload_not_found
from staddle_server.catalog.run_values import BackupRun, RunFilter, RunReport
from staddle_server.catalog.tenants import TenantRows
from staddle_server.catalog.validation import batches, check_dataset, check_id
from staddle_server.catalog.values import Backup, Principal, Terms

_r = schema.runs.c
_u = schema.uploads.c
_d = schema.datasets.c
ABORTED: Final = "The client ended the upload."
EXPIRED: Final = "The upload was not resumed in time."
GOOD: Final = (RunOutcome.DONE.value, RunOutcome.PROBLEMS.value)
BAD: Final = (RunOutcome.FAILED.value, RunOutcome.ABANDONED.value)
_RUNNING: Final = literal(RunOutcome.RUNNING.value, literal_execute=True)
_DONE: Final = literal(RunOutcome.DONE.value, literal_execute=True)
_TRIMMED_AT_ONCE: Final = 1000
# Every upload needs these, and building a statement takes as long as running it.
_ENTER: Final = insert(schema.runs)
_SET: Final = update(schema.runs).where(_r.id == bindparam("this"))
_newer = schema.runs.alias("newer")


class Runs:
    """The runs of all tenants. Unknown datasets raise DATASET_NOT_FOUND."""

    def __init__(self, database: Database, tenants: TenantRows) -> None:
        self._database = database
        self._tenants = tenants

    def list_page(
        self,
        tenant: bytes,
        asked: RunFilter,
        limit: int,
        *,
        now_ns: int,
        terms: Terms,
        before: tuple[int, bytes] | None = None,
    ) -> Page[BackupRun]:
        """Return at most `limit` runs, the latest begun first, after the one with this begin and id."""
        with self._database.read() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            query = select_runs(now_ns, terms)
            if asked.dataset:
                query = query.where(_r.dataset == _dataset_row(connection, tenant_row, asked.dataset))
            else:
                query = query.where(_r.tenant == tenant_row)
            if asked.since_ns is not None:
                query = query.where(_r.begin_ns >= asked.since_ns)
            if asked.until_ns is not None:
                query = query.where(_r.begin_ns < asked.until_ns)
            if asked.outcomes:
                wanted = [outcome.value for outcome in asked.outcomes]
                query = query.where(_outcome(now_ns, terms).in_(wanted))
            if before is not None:
                query = query.where(tuple_(_r.begin_ns, _r.id) < tuple_(*map(literal, before)))
            return page_of(connection, query.order_by(_r.begin_ns.desc(), _r.id.desc()), limit, run_of)

    def report(self, principal: Principal, report: RunReport, *, now_ns: int, terms: Terms) -> BackupRun:
        """Keep that a run failed, and why: of the upload that it began, or by itself. A replay changes nothing.

        A run by itself may name a dataset that does not exist, which then is in lists of runs alone. It takes the place of the dataset's oldest one once
        there are REPORTS_DATASET_MAX. A run with a backup stays as it is.

        BAD_FIELD; UPLOAD_NOT_FOUND, also for an upload that another token holds; REQUEST_ID_REUSED; TOO_MANY,
        once the tenant's reports reach their limit.
        """
        check_dataset(report.dataset)
        with self._database.write(erase=True) as connection:
            tenant_row = self._tenants.row(connection, principal.tenant)
            if report.upload:
                _fail(connection, tenant_row, principal, report)
            else:
                _keep(connection, tenant_row, principal, report)
            query = select_runs(now_ns, terms).where(_r.id == (report.upload or report.id))
            return run_of(connection.execute(query).one())

    def trim(
        self,
        before_ns: int,
        reported_before_ns: int = 0,
        most: int = limits.RUNS_DATASET_MAX,
        stopping: Callable[[], bool] = lambda: False,
    ) -> int:
        """Remove runs that began before then, and of each dataset all beyond the `most` latest; return how many.

        Whatever their age, these stay: runs in progress, and each dataset's newest success and newest failure. But
        a dataset that only reports named is forgotten `reported_before_ns`. Ends early once `stopping` returns
        true.
        """
        unreal = select(_d.row).where(_d.reported)
        removed = self._remove(stopping, _r.dataset.in_(unreal), _r.begin_ns < reported_before_ns)
        with self._database.read() as connection:
            tenants = list(connection.execute(select(schema.tenants.c.row)).scalars())
        for tenant_row in tenants:  # the index of old runs begins with the tenant
            removed += self._remove(stopping, _r.tenant == tenant_row, _r.begin_ns < before_ns, _is_outdone())
        return removed + self._trim_counts(most, stopping)

    def _trim_counts(self, most: int, stopping: Callable[[], bool]) -> int:
        full = select(_r.dataset).group_by(_r.dataset).having(func.count() > most)
        with self._database.read() as connection:
            datasets = list(connection.execute(full).scalars())
        removed = 0
        for dataset in datasets:
            latest = select(_r.begin_ns).where(_r.dataset == dataset).order_by(_r.begin_ns.desc())
            with self._database.look_up() as connection:
                oldest_ns = connection.execute(latest.offset(most - 1).limit(1)).scalar()
            if oldest_ns is not None:
                removed += self._remove(
                    stopping, _r.dataset == dataset, _r.begin_ns < oldest_ns, _is_outdone()
                )
        return removed

    def _remove(self, stopping: Callable[[], bool], *which: ColumnElement[bool]) -> int:
        """Remove these runs, a few in each transaction."""
        removed = 0
        query = select(_r.id).where(*which).order_by(_r.begin_ns).limit(_TRIMMED_AT_ONCE)
        while not stopping():
            with self._database.read() as connection:
                ids = list(connection.execute(query).scalars())
            if ids:
                with self._database.write(erase=True) as connection:
                    done = connection.execute(delete(schema.runs).where(_r.id.in_(ids), *which))
                    removed += done.rowcount
            if len(ids) < _TRIMMED_AT_ONCE:
                break
        return removed


def _is_outdone() -> ColumnElement[bool]:
    """Return the condition that a run has ended, and its dataset has a newer one with as good an end."""
    later_than = tuple_(_newer.c.begin_ns, _newer.c.id) > tuple_(_r.begin_ns, _r.id)
    same = or_(*(and_(_r.outcome.in_(ends), _newer.c.outcome.in_(ends)) for ends in (GOOD, BAD)))
    return exists(select(literal(1)).where(_newer.c.dataset == _r.dataset, later_than, same))


# --- what the steps of an upload write; each goes with the next statement or the commit of its transaction


def begun(connection: Connection, upload: Mapping[str, Any]) -> None:
    """Enter the run of an upload that begins, from its row."""
    row = _row(outcome=RunOutcome.RUNNING, reported=False, end_ns=None, reason="")
    row |= {key: upload[key] for key in ("id", "tenant", "dataset", "principal", "host", "begin_ns")}
    later(connection, _ENTER, row)


def taken_over(connection: Connection, upload: bytes, principal: str) -> None:
    """Let the run of an upload that is resumed run again, in the hands of this principal."""
    again = {"outcome": RunOutcome.RUNNING.value, "principal": principal, "end_ns": None, "reason": ""}
    later(connection, _SET, {"this": upload, **again})


def done(connection: Connection, backup: Backup, problem_count: int) -> None:
    """End the run of an upload that is a backup now."""
    outcome = RunOutcome.PROBLEMS if problem_count else RunOutcome.DONE
    values = {
        "outcome": outcome.value,
        "principal": backup.principal,
        "end_ns": backup.commit_ns,
        "entry_count": backup.root.entries,
        "data_bytes": backup.root.data_bytes,
        "stored_bytes": backup.stored_bytes,
        "problem_count": problem_count,
        "backup": backup.id,
        "reason": "",
    }
    later(connection, _SET, {"this": backup.upload, **values})


def ended(connection: Connection, upload: bytes, reason: str, now_ns: int) -> None:
    """End the run of an upload that ends without a backup; a failure that its client reported stays."""
    over = {"outcome": RunOutcome.ABANDONED.value, "end_ns": now_ns, "reason": reason}
    this = update(schema.runs).where(_r.id == upload, _r.outcome == _RUNNING)
    later(connection, this.values(**over))


def _row(**values: Any) -> dict[str, Any]:
    row = {"entry_count": 0, "data_bytes": 0, "stored_bytes": 0, "problem_count": 0, "backup": b""}
    return row | values


# --- reports


def _fail(connection: Connection, tenant_row: int, principal: Principal, report: RunReport) -> None:
    """Set the failure of the run of an upload, unless the upload is a backup."""
    mine = select(_u.id).where(_u.id == report.upload, _u.tenant == tenant_row, _u.token == principal.token)
    if connection.execute(mine).first() is None:
        raise upload_not_found(report.upload)
    failed = {"outcome": RunOutcome.FAILED.value, "reason": report.reason, "end_ns": report.end_ns}
    this = update(schema.runs).where(_r.id == report.upload, _r.backup == b"")
    if not connection.execute(this.values(**failed)).rowcount:
        found = connection.execute(select(_r.id).where(_r.id == report.upload)).first()
        if found is None:  # it ended so long ago that its run was removed
            raise upload_not_found(report.upload)


def _keep(connection: Connection, tenant_row: int, principal: Principal, report: RunReport) -> None:
    check_id("run", report.id)
    known = connection.execute(select(_r.dataset, _r.reason, _r.tenant).where(_r.id == report.id)).first()
    dataset = _dataset_for(connection, tenant_row, report)
    if known is not None:
        if (known.tenant, known.dataset, known.reason) != (tenant_row, dataset, report.reason):
            raise errors.AlreadyExists(
                "REQUEST_ID_REUSED",
                "This request id was used for another report: use a new one",
                field="request_id",
            )
        return
    _make_room(connection, tenant_row, dataset)
    row = _row(
        id=report.id,
        tenant=tenant_row,
        dataset=dataset,
        outcome=RunOutcome.FAILED.value,
        reported=True,
        principal=principal.name,
        host=report.host,
        begin_ns=report.begin_ns,
        end_ns=report.end_ns,
        reason=report.reason,
    )
    connection.execute(insert_or_ignore(connection, schema.runs), row)


def _dataset_row(connection: Connection, tenant_row: int, name: str) -> int:
    """Return the row number of a dataset, also of one that only reports named. DATASET_NOT_FOUND."""
    this = select(_d.row).where(_d.tenant == tenant_row, _d.name == name)
    found = connection.execute(this).scalar()
    return int(dataset_row(connection, tenant_row, name).row) if found is None else int(found)


def _dataset_for(connection: Connection, tenant_row: int, report: RunReport) -> int:
    """Return the row number of the report's dataset, which is made if the tenant may have one more that only
    reports name.
    """
    this = select(_d.row).where(_d.tenant == tenant_row, _d.name == report.dataset)
    found = connection.execute(this).scalar()
    if found is not None:
        return int(found)
    empty = select(_d.row).where(_d.tenant == tenant_row, _d.reported)
    counted = select(func.count()).select_from(empty.limit(limits.REPORTED_DATASETS_MAX).subquery())
    if connection.execute(counted).scalar_one() >= limits.REPORTED_DATASETS_MAX:
        raise errors.Exhausted(
            "TOO_MANY",
            f"{limits.REPORTED_DATASETS_MAX} datasets of this tenant are known from reports alone: no report names a further one",
        )
    make_dataset(connection, tenant_row, report.dataset, report.begin_ns, reported=True)
    return int(connection.execute(this).scalar_one())


def _make_room(connection: Connection, tenant_row: int, dataset: int) -> None:
    """Remove the dataset's oldest reported run if there are too many, of the dataset or of the tenant."""
    mine = (_r.tenant == tenant_row, schema.IS_REPORTED)
    own = select(_r.id).where(*mine, _r.dataset == dataset).order_by(_r.begin_ns, _r.id)
    ids = list(connection.execute(own).scalars())
    excess = ids[: max(0, len(ids) + 1 - limits.REPORTS_DATASET_MAX)]
    if not excess:
        some = select(_r.id).where(*mine).limit(limits.REPORTS_TENANT_MAX)
        total = connection.execute(select(func.count()).select_from(some.subquery())).scalar_one()
        if total < limits.REPORTS_TENANT_MAX:
            return
        excess = ids[:1]
        if not excess:
            raise errors.Exhausted(
                "TOO_MANY",
                f"The tenant's clients have reported {limits.REPORTS_TENANT_MAX} failed runs that are still kept: this one "
                "is not kept",
            )
    for some_ids in batches(excess):
        connection.execute(delete(schema.runs).where(_r.id.in_(some_ids)))


# --- reading


def select_runs(now_ns: int, terms: Terms) -> Select[Any]:
    """Return the query for runs as they are at this time; `run_of` reads the rows."""
    return (
        select(*_run_columns(now_ns, terms), _d.name.label("dataset_name"))
        .join_from(schema.runs, schema.datasets, _r.dataset == _d.row)
        .join(schema.uploads, _u.id == _r.id, isouter=True)
    )


def runs_by_id(
    connection: Connection, ids: Iterable[bytes], now_ns: int, terms: Terms
) -> dict[bytes, BackupRun]:
    """Return those of these runs that exist."""
    query = select_runs(now_ns, terms)
    return {
        row.run: run_of(row)
        for some in batches(ids)
        for row in connection.execute(query.where(_r.id.in_(some)))
    }


def _run_columns(now_ns: int, terms: Terms) -> Sequence[ColumnElement[Any]]:
    """Return the columns of a run, in a query that joins its upload, if there is one."""
    open_ = _r.outcome == _RUNNING
    runs = and_(open_, _holds(_u, now_ns, terms))
    whole = _r.backup != b""
    return (
        _r.id.label("run"),
        _outcome(now_ns, terms).label("outcome"),
        _r.reported,
        _r.principal.label("run_principal"),
        _r.host.label("run_host"),
        _r.begin_ns,
        case((runs, None), (open_, _u.lease_expires_ns), else_=_r.end_ns).label("run_end_ns"),
        case((whole, _r.entry_count), else_=func.coalesce(_u.entry_count, 0)).label("run_entries"),
        case((whole, _r.data_bytes), else_=func.coalesce(_u.data_bytes, 0)).label("run_bytes"),
        _r.stored_bytes,
        _r.problem_count,
        _r.backup.label("run_backup"),
        case((open_, func.coalesce(_u.last_failure, "")), else_=_r.reason).label("run_reason"),
    )


def run_of(row: Row[Any]) -> BackupRun:
    """Return the value of a row of `select_runs`."""
    return BackupRun(
        id=row.run,
        dataset=row.dataset_name,
        outcome=RunOutcome(row.outcome),
        reported=row.reported,
        principal=row.run_principal,
        host=row.run_host,
        begin_ns=row.begin_ns,
        end_ns=row.run_end_ns,
        entry_count=row.run_entries,
        data_bytes=row.run_bytes,
        stored_bytes=row.stored_bytes,
        problem_count=row.problem_count,
        backup=row.run_backup,
        reason=row.run_reason,
    )


def newest_bad(dataset: ColumnElement[int], success_ns: ColumnElement[int], now_ns: int, terms: Terms) -> Any:
    """Return, for a query of datasets, the id of the latest run of each that needs somebody; NULL for none.

    Such a run failed or was abandoned, and no backup was committed since; or it made the newest backup, and had
    problems.
    """
    other, upload = schema.runs.alias("other").c, schema.uploads.alias("other_upload").c
    lost = select(literal(1)).where(
        upload.id == other.id, ~_holds(upload, now_ns, terms), upload.lease_expires_ns > success_ns
    )
    bad = or_(
        and_(other.outcome.in_(BAD), other.end_ns > success_ns),
        and_(other.outcome == RunOutcome.PROBLEMS.value, other.end_ns >= success_ns),
        and_(other.outcome == _RUNNING, exists(lost)),
    )
    return (
        select(other.id)
        .where(other.dataset == dataset, other.outcome != _DONE, bad)
        .order_by(other.begin_ns.desc(), other.id.desc())
        .limit(1)
        .scalar_subquery()
    )


def _outcome(now_ns: int, terms: Terms) -> ColumnElement[int]:
    lost = and_(_r.outcome == _RUNNING, ~_holds(_u, now_ns, terms))
    return case((lost, RunOutcome.ABANDONED.value), else_=_r.outcome)


def _holds(upload: ReadOnlyColumnCollection[str, Any], now_ns: int, terms: Terms) -> ColumnElement[bool]:
    """Return `Terms.holds` as a condition on a run's upload, which there may not be."""
    until = func.coalesce(upload.lease_expires_ns, 0)
    open_ = func.coalesce(upload.state, 0) == UploadState.OPEN.value
    return and_(open_, until > now_ns, until <= now_ns + 2 * int(terms.lease_s * NS))
