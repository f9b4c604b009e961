"""Expectations: how often each dataset must have a new backup; and which datasets need somebody."""

from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, func, or_, select, update

from staddle_server.base.errors import BadRequest
from staddle_server.catalog import schema
from staddle_server.catalog.database import Database, locking
from staddle_server.catalog.datasets import make_dataset, make_real
from staddle_server.catalog.decisions import keep_pending
from staddle_server.catalog.rows import Page, dataset_row, page_of
from staddle_server.catalog.run_values import (
    BackupRun,
    DatasetTotals,
    Expectation,
    ExpectedDataset,
    Troubled,
)
from staddle_server.catalog.runs import newest_bad, runs_by_id
from staddle_server.catalog.tenants import TenantRows
from staddle_server.catalog.validation import check_dataset, rfc3339
from staddle_server.catalog.values import PendingRecord, Terms

_d = schema.datasets.c
_t = schema.tenants.c
_r = schema.runs.c
_u = schema.uploads.c
_EXPECTED = _d.expect_every_s > 0


class Expectations:
    """The expectations of all tenants' datasets."""

    def __init__(self, database: Database, tenants: TenantRows) -> None:
        self._database = database
        self._tenants = tenants

    def set(
        self,
        tenant: bytes,
        dataset: str,
        asked: Expectation,
        record: Callable[[Expectation], PendingRecord],
    ) -> ExpectedDataset:
        """Set a dataset's expectation; make the dataset if necessary: one that never had a backup is late, too.

        An earlier expectation's `since_ns` stays, and `asked` has the present time there. `record` is called only
        for a change. BAD_FIELD, also for a new end of a mute that has passed: it would mute nothing.
        """
        check_dataset(dataset)
        with self._database.write() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            make_dataset(connection, tenant_row, dataset, asked.since_ns)
            make_real(connection, tenant_row, dataset, asked.since_ns)
            row = _locked(connection, tenant_row, dataset)
            before = expectation_of(row)
            _check_mute(asked, before)
            after = asked if before is None else asked._replace(since_ns=before.since_ns)
            if after != before:
                _put(connection, row, after)
                keep_pending(connection, tenant_row, [record(after)])
            return ExpectedDataset(dataset, after, row.success_ns)

    def remove(self, tenant: bytes, dataset: str, record: PendingRecord) -> None:
        """Remove a dataset's expectation. Without one, `record` is not kept. DATASET_NOT_FOUND."""
        with self._database.write() as connection:
            row = _locked(connection, self._tenants.row(connection, tenant), dataset)
            if expectation_of(row) is not None:
                _put(connection, row, None)
                keep_pending(connection, row.tenant, [record])

    def list_page(self, tenant: bytes, after_name: str, limit: int) -> Page[ExpectedDataset]:
        """Return at most `limit` datasets with an expectation in name order, after `after_name`."""
        with self._database.read() as connection:
            mine = (_d.tenant == self._tenants.row(connection, tenant), _EXPECTED, _d.name > after_name)
            query = select(schema.datasets).where(*mine).order_by(_d.name)
            return page_of(connection, query, limit, _expected)

    def troubled(self, now_ns: int, terms: Terms, tenant: bytes | None = None) -> Iterator[Troubled]:
        """Yield the datasets that need somebody now, of one tenant or of all, each once, in no order.

        One query, and one for every thousand of these runs. A dataset needs somebody if it is late by its expectation, or if a run failed or was abandoned
        and no backup was committed since, or if its newest backup was made with problems. A muted one does not.
        `now_ns` must be the earliest possible time while the clock is in doubt: a jump must not make all of them late.
        """
        query = _datasets(now_ns, terms)
        with self._database.read() as connection:
            if tenant is not None:
                query = query.where(_d.tenant == self._tenants.row(connection, tenant))
            found = [row for row in connection.execute(query) if row.run or _late_ns(row, now_ns)]
            runs = runs_by_id(connection, [row.run for row in found if row.run], now_ns, terms)
        for row in found:
            troubled = _trouble(row, runs.get(row.run), now_ns)
            if troubled is not None:
                yield troubled

    def totals(self, tenant: bytes, now_ns: int) -> DatasetTotals:
        """Return how many datasets the tenant has, and how they are."""
        with self._database.read() as connection:
            mine = and_(_d.tenant == self._tenants.row(connection, tenant), ~_d.reported)
            totals = select(
                func.count(),
                func.count().filter(_EXPECTED),
                func.count().filter(_EXPECTED, _d.expect_mute_ns > now_ns),
                func.coalesce(func.min(_d.success_ns).filter(_d.success_ns > 0), 0),
            )
            return DatasetTotals(*map(int, connection.execute(totals.where(mine)).one()))

    def clamp(self, now_ns: int, ahead_ns: int) -> None:
        """Let successes and expectations later than `ahead_ns` count as of now: a clock that was ahead noted them."""
        with self._database.read() as connection:
            ahead = or_(_d.success_ns > ahead_ns, _d.expect_ns > ahead_ns)
            if connection.execute(select(_d.row).where(ahead).limit(1)).first() is None:
                return
        with self._database.write() as connection:
            for column in (_d.success_ns, _d.expect_ns):
                late = update(schema.datasets).where(column > ahead_ns)
                connection.execute(late.values({column.name: now_ns}))


def expectation_of(row: Any) -> Expectation | None:
    """Return the expectation in a dataset's row; None for none."""
    if not row.expect_every_s:
        return None
    return Expectation(row.expect_every_s, row.expect_grace_s, row.expect_ns, row.expect_mute_ns)


def _check_mute(asked: Expectation, before: Expectation | None) -> None:
    until_ns, now_ns = asked.mute_until_ns, asked.since_ns
    if 0 < until_ns <= now_ns and (before is None or until_ns != before.mute_until_ns):
        raise BadRequest(
            "BAD_FIELD",
            f"mute_until_time: {rfc3339(until_ns)} has passed (the server's clock says {rfc3339(now_ns)}), so it would mute nothing",
            field="mute_until_time",
        )


def _locked(connection: Connection, tenant_row: int, dataset: str) -> Row[Any]:
    connection.execute(locking(select(_d.row).where(_d.tenant == tenant_row, _d.name == dataset)))
    return dataset_row(connection, tenant_row, dataset)


def expectation_columns(expectation: Expectation | None) -> dict[str, int]:
    """Return an expectation as columns of a dataset's row."""
    names = ("expect_every_s", "expect_grace_s", "expect_ns", "expect_mute_ns")
    return dict(zip(names, expectation or (0, 0, 0, 0), strict=True))


def _put(connection: Connection, row: Row[Any], expectation: Expectation | None) -> None:
    values = expectation_columns(expectation)
    connection.execute(update(schema.datasets).where(_d.row == row.row).values(**values))


def _expected(row: Row[Any]) -> ExpectedDataset:
    expectation = expectation_of(row)
    assert expectation is not None
    return ExpectedDataset(row.name, expectation, row.success_ns)


def _datasets(now_ns: int, terms: Terms) -> Select[Any]:
    """Return the query for the datasets that are not muted, each with the id of the run because of which it needs
    somebody.
    """
    # The runs themselves are a query of their own: joined here, a database may read all of them.
    return (
        select(
            _t.id.label("tenant_id"),
            _t.name.label("tenant_name"),
            _d.name,
            _d.success_ns,
            _d.expect_every_s,
            _d.expect_grace_s,
            _d.expect_ns,
            _d.expect_mute_ns,
            newest_bad(_d.row, _d.success_ns, now_ns, terms).label("run"),
        )
        .join_from(schema.datasets, schema.tenants, _d.tenant == _t.row)
        .where(_d.expect_mute_ns <= now_ns)
    )


def _late_ns(row: Row[Any], now_ns: int) -> int | None:
    """Return since when a dataset is late; None: it is not."""
    expectation = expectation_of(row)
    late_ns = None if expectation is None else expectation.late_ns(row.success_ns)
    return late_ns if late_ns is not None and now_ns > late_ns else None


def _trouble(row: Row[Any], run: BackupRun | None, now_ns: int) -> Troubled | None:
    """Return why a dataset needs somebody; None if it does not any more: its run was removed just now."""
    late_ns = _late_ns(row, now_ns)
    if late_ns is None and run is None:
        return None
    names = (row.tenant_id, row.tenant_name, row.name)
    return Troubled(*names, late_ns, row.success_ns, expectation_of(row), run)
