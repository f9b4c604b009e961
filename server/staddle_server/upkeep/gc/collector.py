"""Garbage collection: removes what no backup needs any more, beside running backups and restores.

docs/decisions/2026-11-25-collection.md gives the order, and why nothing is lost.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from staddle_server.base.clock import NS, Clock
from staddle_server.base.errors import Conflict, Exhausted, StaddleError
from staddle_server.base.limits import REAP_GRACE_S
from staddle_server.base.observer import NOTHING, Observer
from staddle_server.catalog import Catalog, TenantRow
from staddle_server.catalog.collection_runs import CollectionRun
from staddle_server.tenancy.clock_guard import BelievedClock, ClockGuard
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.gc.compaction import compact
from staddle_server.upkeep.gc.dry_run import forecast
from staddle_server.upkeep.gc.mark import condemn_unreached, walk_mark
from staddle_server.upkeep.gc.preflight import look_at_objects, read_decided
from staddle_server.upkeep.gc.sweep import forget, purge, reap, sweep_left_over, sweep_orphans
from staddle_server.upkeep.gc.tenant_run import Graces, NotCollected, Stopped, TenantReport, Turn
from staddle_server.upkeep.held_lease import holder_name

log = logging.getLogger(__name__)

LEASE_S: Final = 120.0
RENEW_S: Final = 20.0
WAITS: Final = (
    "collection waits for you since the catalog was rebuilt: check that every backup exists, then run "
    "`staddle-server gc --after-rebuild`"
)

Show = Callable[[str, str, int, int], None]
"""The progress: tenant, current step, amount done, total (0: unknown)."""


@dataclass
class CollectionReport:
    """The result of a collection, tenant by tenant."""

    tenants: list[TenantReport] = field(default_factory=list)
    stopped: bool = False
    """It was stopped early; the next one does the rest."""

    def sum_of(self, name: str) -> int:
        """Return a figure summed over all tenants."""
        return sum(getattr(tenant, name) for tenant in self.tenants)

    @property
    def failed(self) -> list[TenantReport]:
        """Return the tenants that were not collected, or not completely."""
        return [tenant for tenant in self.tenants if tenant.failure]


class Collector:
    """Collects the garbage of all tenants in turn."""

    def __init__(
        self,
        catalog: Catalog,
        tenants: Tenants,
        clock: Clock,
        *,
        holder: str = "",
        show: Show = lambda _tenant, _what, _done, _of: None,
    ) -> None:
        """`holder` names this collector to others that must wait."""
        self._catalog = catalog
        self._tenants = tenants
        self._clock = clock
        self._holder = holder or holder_name()
        self._show = show

    def collect(
        self,
        stopping: Callable[[], bool] = lambda: False,
        *,
        grace_s: int | None = None,
        after_rebuild: bool = False,
    ) -> CollectionReport:
        """Run one collection. If a tenant cannot be collected, its report says why, and the others continue.

        Args:
            stopping: Called often; once it is true the collection ends soon, and the next one does the rest.
            grace_s: Replaces every tenant's grace period; and the reap grace, if shorter.
            after_rebuild: Tenants stop waiting for the operator.

        Raises:
            Conflict: LEASE_HELD, another collection is in progress; STALE_EPOCH, one has taken over.

        """
        fence = self._catalog.gc_lease.acquire(self._holder, self._clock.now_ns(), LEASE_S)
        report = CollectionReport()
        lease = _Leased(self._catalog, self._clock, fence, stopping)
        try:
            for row in self._catalog.tenants.list_all():
                report.tenants.append(TenantReport(row.name))
                turn = self._turn(row, report.tenants[-1], _graces(grace_s), lease)
                if turn is not None and _may_begin(turn, row, after_rebuild=after_rebuild):
                    self._collect(turn)
        except Stopped:
            report.stopped = True
        finally:
            self._catalog.gc_lease.release(fence)
        return report

    def look_ahead(
        self, stopping: Callable[[], bool] = lambda: False, *, grace_s: int | None = None
    ) -> CollectionReport:
        """Return what a collection now would do. Changes nothing, and needs no lease."""
        report = CollectionReport()
        try:
            for row in self._catalog.tenants.list_all():
                report.tenants.append(TenantReport(row.name))
                turn = self._turn(row, report.tenants[-1], _graces(grace_s), _Asked(stopping))
                if turn is None:
                    continue
                try:
                    forecast(turn)
                except (StaddleError, NotCollected) as e:
                    turn.report.failure = str(e)
                if row.gc_waits:
                    turn.report.failure = turn.report.failure or WAITS
        except Stopped:
            report.stopped = True
        return report

    def _turn(self, row: TenantRow, report: TenantReport, graces: Graces, lease: _Asked) -> Turn | None:
        """Return the tenant's turn; None if it cannot even be opened."""
        try:
            tenant = self._tenants.get(row.id)
        except StaddleError as e:
            report.failure = e.message
            return None
        return Turn(
            self._catalog,
            tenant,
            BelievedClock(ClockGuard(self._catalog, self._clock), self._clock),
            graces,
            fence=lease.fence,
            tick=lease.tick,
            show=lambda what, done, of: self._show(row.name, what, done, of),
            report=report,
        )

    def _collect(self, turn: Turn) -> None:
        begun_ns = self._clock.now_ns()
        try:
            collect_tenant(turn)
        except Conflict:
            raise  # the fence: another collector is at work on all of them
        except (StaddleError, NotCollected) as e:
            turn.report.failure = str(e)
            log.error("tenant %s was not collected: %s", turn.tenant.name, e)  # noqa: TRY400 - no fault of ours
        tenant, report = turn.tenant.id, turn.report
        self._catalog.tenants.set_gc_failure(tenant, report.failure)
        run = CollectionRun(begun_ns, self._clock.now_ns(), report.figures(), report.failure)
        self._catalog.collections.note(tenant, turn.fence, run)


def collect(
    catalog: Catalog,
    tenants: Tenants,
    clock: Clock,
    stopping: Callable[[], bool],
    observer: Observer = NOTHING,
) -> str:
    """Run a collection as a server's task; return a short summary, "" for nothing done."""
    try:
        report = Collector(catalog, tenants, clock).collect(stopping)
    except Conflict as e:
        return e.message
    observer.freed(report.sum_of("bytes_freed"))
    done = [
        f"{words}: {report.sum_of(name)}"
        for name, words in (
            ("backups_purged", "backups purged"),
            ("packs_condemned", "packs condemned"),
            ("packs_compacted", "packs compacted"),
            ("packs_reaped", "packs removed"),
            ("bytes_freed", "bytes freed"),
        )
        if report.sum_of(name)
    ]
    if report.failed:
        done.append("not collected: " + ", ".join(tenant.tenant for tenant in report.failed))
    return ", ".join(done) + (" (stopped early; the next one continues)" if report.stopped else "")


def collect_tenant(turn: Turn) -> None:
    """Run one tenant's collection: the order is the promise.

    Raises: NotCollected, Damaged, Unavailable, Exhausted: Something is unreadable or cannot be written; what
        was done stays valid.
        Stopped: The caller wants it to end.
        Conflict: STALE_EPOCH, another collector has taken over.

    """
    turn.clock.now_ns()  # nothing begins while the clock is in doubt
    decided = read_decided(turn)
    objects = look_at_objects(turn)
    sweep_left_over(turn)
    with _on_a_full_disk(turn, "purging"):
        purge(turn)
    turn.catalog.marks.clear_marks(turn.tenant.id, turn.fence)
    mark = walk_mark(turn)
    condemn_unreached(turn, mark)
    with _on_a_full_disk(turn, "compaction"):
        compact(turn, mark)
    turn.catalog.marks.end_claims(turn.fence, mark.number)
    turn.catalog.marks.end_mark(turn.fence, mark.number, turn.clock.now_ns(), "")
    reap(turn)
    # However short the operator's grace: an object without a row is seen twice before it is removed.
    sweep_orphans(turn, objects, turn.clock.now_ns() - REAP_GRACE_S * NS)
    forget(turn, decided)
    turn.catalog.marks.clear_marks(turn.tenant.id, turn.fence)


@contextlib.contextmanager
def _on_a_full_disk(turn: Turn, what: str) -> Iterator[None]:
    """Let the steps that free space run even if this one lacks some. Its failure becomes the tenant's.

    A purged backup without a durable record counts as existing, so its data stays.
    """
    try:
        yield
    except Exhausted as e:
        turn.report.failure = f"{what} needs more space, and all else was done: {e.message}; collect again"
        log.warning("tenant %s: %s", turn.tenant.name, turn.report.failure)


def _graces(grace_s: int | None) -> Graces:
    return Graces(grace_s, REAP_GRACE_S if grace_s is None else min(grace_s, REAP_GRACE_S))


def _may_begin(turn: Turn, row: TenantRow, *, after_rebuild: bool) -> bool:
    if row.gc_waits and not after_rebuild:
        turn.report.failure = WAITS
        return False
    if row.gc_waits:
        turn.catalog.tenants.set_gc_waits(row.id, waits=False)
    turn.tick()
    return True


class _Asked:
    """Checks from time to time whether to stop."""

    fence = 0

    def __init__(self, stopping: Callable[[], bool]) -> None:
        self._stopping = stopping

    def tick(self) -> None:
        """Raise Stopped when it is time to end."""
        if self._stopping():
            raise Stopped


class _Leased(_Asked):
    """Keeps the collector's lease during the work."""

    def __init__(self, catalog: Catalog, clock: Clock, fence: int, stopping: Callable[[], bool]) -> None:
        super().__init__(stopping)
        self.fence = fence
        self._catalog = catalog
        self._clock = clock
        self._renewed_s = clock.monotonic_s()

    def tick(self) -> None:
        """Renew the lease too when due. Conflict STALE_EPOCH if another collector has it."""
        super().tick()
        now_s = self._clock.monotonic_s()
        if now_s - self._renewed_s >= RENEW_S:
            self._catalog.gc_lease.renew(self.fence, self._clock.now_ns(), LEASE_S)
            self._renewed_s = now_s
