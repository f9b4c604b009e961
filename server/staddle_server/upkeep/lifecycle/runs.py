"""Attempts to back up, the expectations of datasets, and which datasets need somebody."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, NamedTuple

from blake3 import blake3
from staddle._base.figures import counted

from staddle_server.base.clock import NS, Clock
from staddle_server.base.limits import REPORTED_DATASET_S, RUNS_EVERY_S
from staddle_server.catalog import (
    BackupRun,
    Catalog,
    DatasetTotals,
    Expectation,
    ExpectedDataset,
    Page,
    Principal,
    RunFilter,
    RunReport,
    Terms,
    Troubled,
)
from staddle_server.tenancy.clock_guard import JUMP_S, ClockGuard
from staddle_server.tenancy.records import as_pending, expected_record, finish_missing
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.schedule import Stopping, Task

TASK: Final = "runs"
ID_BYTES: Final = 16


class FailedRun(NamedTuple):
    """What a client reports of a run that failed. `upload` is the one that it began; empty for none."""

    request_id: str
    dataset: str
    upload: bytes
    host: str
    reason: str
    duration_s: int


class Status(NamedTuple):
    """A tenant's datasets that need somebody, the worst first, and its totals."""

    troubled: list[Troubled]
    totals: DatasetTotals


class RunHistory:
    """The runs and expectations of all tenants. Unknown datasets raise NotFound."""

    def __init__(self, catalog: Catalog, tenants: Tenants, clock: Clock, terms: Terms, kept_s: float) -> None:
        """`terms` are those of uploads: a run is abandoned when its lease is over. `kept_s`: how long runs are kept."""
        self._catalog = catalog
        self._tenants = tenants
        self._terms = terms
        self._kept_ns = int(kept_s * NS)
        self._guard = ClockGuard(catalog, clock)

    def list_page(
        self, principal: Principal, asked: RunFilter, limit: int, before: tuple[int, bytes] | None
    ) -> Page[BackupRun]:
        """Return at most `limit` runs, the latest begun first, after the one with this begin and id."""
        now_ns = self._guard.glance().earliest_ns
        return self._catalog.runs.list_page(
            principal.tenant, asked, limit, now_ns=now_ns, terms=self._terms, before=before
        )

    def report(self, principal: Principal, failed: FailedRun) -> BackupRun:
        """Keep that a run failed, and why. A replay changes nothing. Raises as the catalog's `report` does."""
        now_ns = self._guard.glance().believed_ns
        report = RunReport(
            id=_run_id(principal, failed.request_id),
            dataset=failed.dataset,
            upload=failed.upload,
            host=failed.host,
            reason=failed.reason,
            begin_ns=now_ns - failed.duration_s * NS,
            end_ns=now_ns,
        )
        return self._catalog.runs.report(principal, report, now_ns=now_ns, terms=self._terms)

    def expect(
        self, principal: Principal, dataset: str, every_s: int, grace_s: int, mute_until_ns: int
    ) -> ExpectedDataset:
        """Set how often the dataset, which is made if necessary, must have a new backup.

        Raises:
            Exhausted, Unavailable: It is decided, but no record of that is durable; a replay writes it.

        """
        self._tenants.require_recording(principal.tenant)
        tenant, now_ns = principal.tenant, self._guard.look().believed_ns
        asked = Expectation(every_s, grace_s, now_ns, mute_until_ns)
        with self._catalog.tenants.deciding(tenant, now_ns) as at_ns:
            expected = self._catalog.expectations.set(
                tenant,
                dataset,
                asked,
                lambda after: as_pending(tenant, expected_record(dataset, after, at_ns)),
            )
        finish_missing(self._tenants.get(tenant), self._catalog)
        return expected

    def expect_none(self, principal: Principal, dataset: str) -> None:
        """Remove a dataset's expectation. Raises as `expect` does."""
        self._tenants.require_recording(principal.tenant)
        tenant, now_ns = principal.tenant, self._guard.look().believed_ns
        with self._catalog.tenants.deciding(tenant, now_ns) as at_ns:
            record = as_pending(tenant, expected_record(dataset, None, at_ns))
            self._catalog.expectations.remove(tenant, dataset, record)
        finish_missing(self._tenants.get(tenant), self._catalog)

    def expected(self, principal: Principal, after_name: str, limit: int) -> Page[ExpectedDataset]:
        """Return at most `limit` datasets with an expectation in name order, after `after_name`."""
        return self._catalog.expectations.list_page(principal.tenant, after_name, limit)

    def troubled(self, tenant: bytes | None = None) -> Iterator[Troubled]:
        """Yield the datasets of a tenant, or of all, that need somebody now: late, failed, or with problems.

        Each once, in no order, from one query. One that was yielded before and is not any more has recovered, or
        is muted. While the clock is in doubt, no dataset becomes late by its jump.
        """
        now_ns = self._guard.look().earliest_ns
        return self._catalog.expectations.troubled(now_ns, self._terms, tenant)

    def status(self, principal: Principal) -> Status:
        """Return the tenant's datasets that need somebody, the worst first, and of each kind the oldest first."""
        totals = self._catalog.expectations.totals(principal.tenant, self._guard.look().earliest_ns)
        return Status(sorted(self.troubled(principal.tenant), key=severity), totals)

    def task(self) -> Task:
        """Return the task that removes old runs."""
        return Task(TASK, RUNS_EVERY_S, self.trim)

    def trim(self, stopping: Stopping) -> str:
        """Remove runs that are too old or too many; return a short summary.

        Raises:
            ClockInDoubt: The clock has jumped, and the jump is not confirmed.

        """
        now_ns = self._guard.require()
        self._catalog.expectations.clamp(now_ns, now_ns + JUMP_S * NS)
        reported_ns = now_ns - REPORTED_DATASET_S * NS
        removed = self._catalog.runs.trim(now_ns - self._kept_ns, reported_ns, stopping=stopping)
        return f"{counted(removed, 'old run')} removed" if removed else ""


def severity(troubled: Troubled) -> tuple[int, int, str]:
    """Return a key that sorts the worst first."""
    return -troubled.concern, troubled.since_ns, troubled.dataset


def _run_id(principal: Principal, request_id: str) -> bytes:
    """Return the id of a run that began no upload: the same one for a replay by the same token."""
    if not request_id:
        return os.urandom(ID_BYTES)
    about = blake3(derive_key_context="staddle.v1 reported run")
    return about.update(principal.token + request_id.encode()).digest(ID_BYTES)
