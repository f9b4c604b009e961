"""One run of replication: what is new since the last one goes to another place, records last.

The order is the promise. A snapshot of the catalog says which records are durable. Then come the keys, then all
packs that are live and not there, then parity, and then the records of the snapshot. So a backup whose record
is at the place has everything there: `rebuild` finds it whole, whenever the copying stops.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillRunning
from dataclasses import dataclass
from typing import Final

from staddle._base.figures import counted, size

from staddle_server.base.clock import NS
from staddle_server.base.errors import Conflict, Damaged, StaddleError
from staddle_server.base.limits import REPLICA_GRACE_S
from staddle_server.base.threads import Threads
from staddle_server.catalog.replicas import Replica, Snapshot, SnapshotTenant, WaitingPack
from staddle_server.store.blobs import BlobMissing, BlobUnreadable
from staddle_server.tenancy.clock_guard import BelievedClock, ClockGuard, ClockInDoubt
from staddle_server.tenancy.tenant import Tenant
from staddle_server.upkeep.held_lease import leased
from staddle_server.upkeep.integrity.findings import Kept
from staddle_server.upkeep.integrity.scrub import Rate
from staddle_server.upkeep.replication.packs import PackCopier
from staddle_server.upkeep.replication.records import RecordCopier, newest_there
from staddle_server.upkeep.replication.removal import Comparison
from staddle_server.upkeep.replication.site import (
    ReplicationReport,
    Site,
    SiteDamagedError,
    SitePlace,
    SiteRefused,
    SourceLostError,
    require_ours,
)
from staddle_server.upkeep.schedule import StoppedError, Stopping, Task

log = logging.getLogger(__name__)

COPIERS: Final = 4
"""Packs copied at once; each holds one segment in memory."""
PAGE: Final = 100
LOOK_S: Final = 1.0
"""How often a wait for a pack checks whether to stop."""
LOGGED_MAX: Final = 20
"""Problems of one run that a server logs; all are counted."""
LOOK_EVERY_S: Final = 300
"""How often a place to which nothing has to be copied is looked at."""
COMPARE_EVERY_S: Final = 24 * 3600
"""How often everything at the place is listed and compared."""


@dataclass(frozen=True)
class ReplicationPlan:
    """How to copy.

    Attributes:
        bytes_per_s: The most that is sent; 0: no limit.
        grace_s: How long an object stays at the place after it is gone here.
        compare: List and compare everything there, even if that was done within a day.
        verify: Read every byte back; and every byte of what is there already.
        look: Open the place even if nothing is new and it was opened within LOOK_EVERY_S.

    """

    bytes_per_s: float = 0
    grace_s: float = REPLICA_GRACE_S
    compare: bool = False
    verify: bool = False
    look: bool = False


@dataclass(frozen=True)
class ReplicationProgress:
    """What a run is doing: packs and their bytes, done and in total."""

    packs: int
    packs_total: int
    bytes_sent: int
    bytes_total: int


Show = Callable[[ReplicationProgress], None]


class Replication:
    """Copies one store to one place. `run` may be repeated; it resumes wherever the last one ended."""

    def __init__(
        self,
        kept: Kept,
        place: SitePlace,
        plan: ReplicationPlan,
        *,
        show: Show = lambda _progress: None,
    ) -> None:
        self._kept = kept
        self._place = place
        self._plan = plan
        self._show = show

    def run(self, stopping: Stopping = lambda: False) -> ReplicationReport:
        """Copy what is new; if nothing is, mostly read nothing but the catalog.

        Raises:
            SiteRefused: The place is not a copy of this store, a server serves it, or it had copies and is missing.
            Conflict: LEASE_HELD, another process copies there; STALE_EPOCH, one has taken over.
            Exhausted, Unavailable: The place is full, or does not answer; what was copied stays.

        """
        replicas, now_ns = self._kept.catalog.replicas, self._kept.clock.now_ns()
        name = self._place.name
        state = replicas.get(name)
        compare = self._plan.compare or self._plan.verify or self._is_due(state and state.compared_ns, now_ns)
        if state is not None and state.is_whole and not (compare or self._plan.look):
            whole_ns = state.whole_ns or 0
            if 0 <= now_ns - whole_ns < LOOK_EVERY_S * NS:
                return ReplicationReport(name, whole_ns=whole_ns, idle=True)
        with leased(replicas.lease(name), self._kept.clock) as lease:
            replica = replicas.begin(name, lease.fence, now_ns)
            report, outcome = ReplicationReport(name), "a fault of the server"
            known = state is not None and state.has_copies
            try:
                self._copy(replica, report, lambda: stopping() or lease.lost, compare=compare, known=known)
                outcome = outcome_of(report)
            except StoppedError:
                report.stopped = True
                outcome = "stopped; the next run continues"
            except StaddleError as error:
                outcome = f"failed: {error.message}"
                raise
            finally:
                with contextlib.suppress(StaddleError):
                    replicas.end(replica, outcome, whole_ns=report.whole_ns or None)
        return report

    def _copy(
        self,
        replica: Replica,
        report: ReplicationReport,
        stopping: Stopping,
        *,
        compare: bool,
        known: bool,
    ) -> None:
        with self._place.opened(known=known) as site:
            run = _ReplicationRun(
                self._kept,
                site,
                self._plan,
                replica=replica,
                stopping=stopping,
                show=self._show,
                report=report,
            )
            try:
                run.run(compare=compare)
            finally:
                run.end()

    def _is_due(self, compared_ns: int | None, now_ns: int) -> bool:
        return compared_ns is None or not 0 <= now_ns - compared_ns < COMPARE_EVERY_S * NS


def replication_task(kept: Kept, place: SitePlace | None, plan: ReplicationPlan, every_s: float) -> Task:
    """Return replication as a server's task; without a place, one that never runs."""

    def run(stopping: Stopping) -> str:
        assert place is not None
        try:
            report = Replication(kept, place, plan).run(stopping)
        except Conflict as error:
            return error.message
        for problem in report.problems[:LOGGED_MAX]:
            log.error("not copied to %s: %s", place.name, problem.message)
        return outcome_of(report)

    return Task("replicate", 0 if place is None else every_s, run)


def outcome_of(report: ReplicationReport) -> str:
    """Return in a few words what a run did; "" for nothing."""
    said = (
        [f"{counted(report.objects, 'object')} copied, {size(report.bytes_sent)}"] if report.objects else []
    )
    said += [f"{counted(report.removed, 'object')} removed there"] if report.removed else []
    if report.problems:
        said.append(f"{counted(report.problem_count, 'problem')}, such as: {report.problems[0].message}")
    return "; ".join(said)


class _ReplicationRun:
    """The state of one run."""

    def __init__(
        self,
        kept: Kept,
        site: Site,
        plan: ReplicationPlan,
        *,
        replica: Replica,
        stopping: Stopping,
        show: Show,
        report: ReplicationReport,
    ) -> None:
        self._kept = kept
        self._catalog = kept.catalog
        self._replicas = kept.catalog.replicas
        self._clock = kept.clock
        self._site = site
        self._plan = plan
        self._replica = replica
        self._stopping = stopping
        self._show = show
        self._ending = False
        self._copiers: dict[bytes, PackCopier | None] = {}
        self._failed: set[int] = set()
        """Rows of packs that could not be copied."""
        self._withheld: set[bytes] = set()
        """Tenants with a flaw at the place, whose records must wait."""
        self._incomplete: set[bytes] = set()
        """Tenants of which not everything could be copied: nothing of theirs is removed there."""
        self._damaged_there: set[bytes] = set()
        """Packs that are damaged there, to be replaced."""
        self._compares = False
        """Whether everything there is listed and compared."""
        self._rate_lock = threading.Lock()
        self._rate_of_all = Rate(
            plan.bytes_per_s or float("inf"), kept.clock, self._is_ending, busy=lambda: False
        )
        self._totals = (0, 0)
        self.report = report

    def run(self, *, compare: bool) -> None:
        self._tick()
        begun_ns = self._clock.now_ns()
        require_ours(self._site, (tenant.id for tenant in self._catalog.tenants.list_all()))
        self._compares = compare
        if not compare and self._is_older():
            self._compares = True
            self._copiers.clear()
            self.report.notes.append(f"{self._site.name} was put back from an older state, and was compared")
        if self._compares:
            self._compare()
        state = self._replicas.get(self._site.name)
        self._totals = (state.packs_behind, state.bytes_behind) if state else (0, 0)
        snapshot = self._replicas.snapshot()
        for tenant in snapshot.tenants:
            self._copier(tenant.tenant)
        self._copy_packs(snapshot)
        if self._site.keeps_parity:
            self._copy_parity()
        for tenant in snapshot.tenants:
            self._copy_records(tenant)
        if self._compares:
            self._remove()
            self._replicas.note_compared(self._replica, begun_ns)
        if not self.report.problem_count:
            self.report.whole_ns = begun_ns
            self.report.idle = not (self._compares or self.report.objects)

    def _is_older(self) -> bool:
        """Return whether the newest record of a tenant there is older than one that was copied there."""
        rows = self._catalog.tenants.list_all()
        copied = {row.id: self._replicas.progress(self._replica, row.id)[1] for row in rows}
        return any(
            sequence
            and self._copier(tenant)
            and newest_there(self._kept.tenants.get(tenant), self._site) < sequence
            for tenant, sequence in copied.items()
        )

    def end(self) -> None:
        """Let copiers that still run end soon."""
        self._ending = True

    # --- pace

    def _is_ending(self) -> bool:
        return self._ending or self._stopping()

    def _tick(self) -> None:
        """Raise StoppedError when the run must end, or has lost its lease."""
        if self._stopping():
            raise StoppedError

    def _rate(self, length: int, chunks: int) -> None:
        """Wait until so many bytes may be sent: all copiers share one limit."""
        if self._plan.bytes_per_s:
            with self._rate_lock:
                self._rate_of_all(length, chunks)
        elif self._is_ending():
            raise StoppedError

    # --- keys

    def _copier(self, tenant: bytes) -> PackCopier | None:
        """Return what copies the tenant's packs, once its keys are there; None if they are damaged."""
        if tenant not in self._copiers:
            self._copiers[tenant] = None
            try:
                opened = self._kept.tenants.get(tenant)
                self._copy_keys(opened)
                self._copiers[tenant] = PackCopier(opened, self._catalog, self._site, self._rate)
            except (Damaged, BlobUnreadable) as error:
                self._withheld.add(tenant)
                self.report.problem(f"keys/{tenant.hex()}", error.message)
        return self._copiers[tenant]

    def _copy_keys(self, tenant: Tenant) -> None:
        """Copy the keys that are not there, oldest first."""
        row = self._catalog.tenants.get(tenant.id)
        version, sequence = self._replicas.progress(self._replica, tenant.id)
        if row is None or (version >= row.keys_version and not self._compares):
            return
        copies = self._kept.keys.copies
        for name in copies.names(f"keys/{tenant.id.hex()}"):
            self._tick()
            data = copies.found(name)[1]
            try:
                there = self._site.blobs.read(name, 0, self._site.blobs.size(name))
            except BlobMissing:
                self._site.blobs.put(name, data)
                self.report.keys += 1
                self.report.bytes_sent += len(data)
                continue
            if there != data:
                raise SiteRefused(
                    f"{self._site.name} has other keys of tenant {tenant.name} ({name}): it belongs to another "
                    "installation, or the object is damaged. Nothing else was copied: name an empty place, or remove "
                    "that object there"
                )
        self._replicas.note_progress(self._replica, tenant.id, row.keys_version, sequence)

    # --- packs

    def _copy_packs(self, snapshot: Snapshot) -> None:
        """Copy every pack that a record of the snapshot may need.

        They are live and have rows up to the snapshot's last one, unless a collection or a repair has moved
        chunks to another pack since: then whatever is live by now comes, too.
        """
        last, seen = snapshot.last_pack, self._replicas.collections()
        while True:
            self._copy_up_to(last)
            now = self._replicas.collections()
            if now == (seen[0], False):
                return
            seen, last = now, self._replicas.snapshot().last_pack
            if all(pack.row in self._failed for pack in self._replicas.waiting(self._replica, last)):
                return

    def _copy_up_to(self, last: int) -> None:
        running: deque[tuple[WaitingPack, Future[int]]] = deque()
        after = 0
        with Threads(COPIERS, thread_name_prefix="replicate") as threads:
            try:
                while page := self._replicas.waiting(self._replica, last, after=after, limit=PAGE):
                    after = page[-1].row
                    for pack in page:
                        copier = self._copier(pack.tenant)
                        if copier is None or pack.row in self._failed:
                            self._failed.add(pack.row)
                            continue
                        running.append((pack, threads.submit(self._copy, copier, pack)))
                        if len(running) >= 2 * COPIERS:
                            self._end_of(*running.popleft())
                while running:
                    self._end_of(*running.popleft())
            except BaseException:
                self.end()
                raise

    def _copy(self, copier: PackCopier, pack: WaitingPack) -> int:
        replace = pack.pack in self._damaged_there
        return copier.copy(pack, verify=self._plan.verify, replace=replace)

    def _end_of(self, pack: WaitingPack, copying: Future[int]) -> None:
        """Wait until a pack was copied, and note it."""
        while True:
            self._tick()
            try:
                sent = copying.result(timeout=LOOK_S)
                break
            except StillRunning:
                continue
            except SourceLostError as error:
                self._lost(pack, error)
                return
            except SiteDamagedError as error:
                self._failed.add(pack.row)
                self._withheld.add(pack.tenant)
                self.report.problem(error.what, error.message)
                return
        self._replicas.note_copied(self._replica, pack.row)
        self.report.bytes_sent += sent
        self.report.packs += sent > 0
        self.report.there += sent == 0
        done = self.report.packs + self.report.there
        self._show(ReplicationProgress(done, self._totals[0], self.report.bytes_sent, self._totals[1]))

    def _lost(self, pack: WaitingPack, error: SourceLostError) -> None:
        """Report a pack that this store has lost, unless a collector has just removed it."""
        self._failed.add(pack.row)
        self._incomplete.add(pack.tenant)
        if self._catalog.verification.live_pack(pack.tenant, pack.pack) is not None:
            self.report.problem(
                error.what,
                f"{error.message}. It was not copied, and what needs it is not whole at {self._site.name}: run "
                "`staddle-server repair`, then back up the same data again",
            )

    def _copy_parity(self) -> None:
        after = 0
        while page := self._replicas.waiting_parity(self._replica, after=after, limit=PAGE):
            after = page[-1].row
            for pack in page:
                self._tick()
                copier = self._copier(pack.tenant)
                if copier is None:
                    continue
                try:
                    sent = copier.copy_parity(pack)
                except SourceLostError as error:
                    if self._catalog.verification.live_pack(pack.tenant, pack.pack) is not None:
                        self.report.problem(error.what, error.message)
                    continue
                self._replicas.note_copied(self._replica, pack.row, pack.parity_bytes)
                self.report.parities += sent > 0
                self.report.bytes_sent += sent

    # --- records

    def _copy_records(self, tenant: SnapshotTenant) -> None:
        version, there = self._replicas.progress(self._replica, tenant.tenant)
        if tenant.tenant in self._withheld or (there >= tenant.sequence and not self._compares):
            return
        opened = self._kept.tenants.get(tenant.tenant)
        copier = RecordCopier(opened, self._catalog, self._site, report=self.report, tick=self._tick)
        try:
            reached = copier.copy(tenant.sequence, verify=self._plan.verify)
        except SiteDamagedError as error:
            self._withheld.add(tenant.tenant)
            self.report.problem(error.what, error.message)
            return
        if reached < tenant.sequence:
            self._incomplete.add(tenant.tenant)
        self._replicas.note_progress(self._replica, tenant.tenant, version, max(there, reached))

    # --- what is gone

    def _compare(self) -> None:
        now_ns = ClockGuard(self._catalog, self._clock).look().latest_ns
        for row in self._catalog.tenants.list_all():
            copier = self._copier(row.id)
            if copier is None:
                continue
            comparison = self._comparison(row.id)
            damaged = comparison.compare_packs(now_ns, copier if self._plan.verify else None)
            self._damaged_there |= damaged
            comparison.compare_records(now_ns)

    def _remove(self) -> None:
        """Remove what has been gone for the grace period, of tenants that were copied without a flaw."""
        try:
            before_ns = BelievedClock(ClockGuard(self._catalog, self._clock), self._clock).now_ns()
        except ClockInDoubt as error:
            self.report.notes.append(f"nothing was removed there: {error.message}")
            return
        before_ns -= int(self._plan.grace_s * NS)
        for row in self._catalog.tenants.list_all():
            flawed = row.id in self._withheld | self._incomplete
            if row.gc_waits or flawed or self._copiers.get(row.id) is None:
                continue
            self._comparison(row.id).remove(before_ns)

    def _comparison(self, tenant: bytes) -> Comparison:
        opened = self._kept.tenants.get(tenant)
        return Comparison(
            opened,
            self._catalog,
            site=self._site,
            replica=self._replica,
            report=self.report,
            tick=self._tick,
        )
