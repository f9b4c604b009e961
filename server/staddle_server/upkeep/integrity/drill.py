"""Drills: restore the newest backup of each dataset now and then, to nowhere, so that it is known that it can be."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Final, NamedTuple

from staddle._base.figures import counted

from staddle_server.base.clock import NS
from staddle_server.base.errors import Exhausted, NotFound, StaddleError, Unavailable
from staddle_server.catalog import Alarm, Backup, Catalog
from staddle_server.catalog.drills import DrillWindow
from staddle_server.restore.proof import Proof, prove
from staddle_server.store.wrapped import CountedReads
from staddle_server.tenancy.clock_guard import JUMP_S
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.events import kinds
from staddle_server.upkeep.events.kinds import CRITICAL, alarm
from staddle_server.upkeep.integrity.findings import Kept
from staddle_server.upkeep.integrity.scrub import Rate
from staddle_server.upkeep.schedule import StoppedError, Stopping, Task

log = logging.getLogger(__name__)

TASK: Final = "drill"
EVERY_S: Final = 600.0
"""How often it is looked whether a dataset is due."""
AGAIN_S: Final = 24 * 3600
"""After a fault the next drill of a dataset is due so much later, if its period is longer."""


class Drilled(NamedTuple):
    """What the drill of one dataset found. `fault` is "" if its newest backup can be restored whole."""

    backup: Backup
    proof: Proof
    fault: str
    took_s: float


class Drilling:
    """Runs drills, and keeps in the catalog what they find."""

    def __init__(
        self,
        kept: Kept,
        opener: Executor,
        *,
        period_s: float = 0.0,
        bytes_per_s: float = 0.0,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """`bytes_per_s` 0: as fast as it can; `busy` returns whether clients are active, who are let go first."""
        self._kept = kept
        # Without the cache: what counts is what the store has.
        self._blobs = CountedReads(kept.blobs)
        self._tenants = Tenants(self._blobs, kept.catalog, kept.keys)
        self._opener = opener
        self._period_s = period_s
        self._bytes_per_s = bytes_per_s
        self._busy = busy

    def task(self) -> Task:
        """Return the drills as a task of one server; without a period, one that never runs."""
        return Task(TASK, min(EVERY_S, self._period_s), self.run)

    def run(self, stopping: Stopping) -> str:
        """Drill each dataset that is due, once, the one that waited longest first. Return a summary; "" if none was due.

        A drill that is stopped does not count. The next run begins with the others.
        """
        datasets = size = failed = broken = 0
        window = self._window()
        while (backup := self._kept.catalog.drills.due(window)) is not None and not stopping():
            try:
                drilled = self.drill(backup, stopping)
            except (StoppedError, StaddleError):
                raise
            except Exception:  # a fault of ours costs this dataset its drill, and no other
                log.exception("a fault in the drill of %s", backup.dataset)
                broken += 1
                continue
            datasets, size = datasets + 1, size + drilled.proof.data_bytes
            if drilled.fault:
                failed += 1
                log.error(
                    "backup #%d of %s cannot be restored whole: %s",
                    backup.number,
                    backup.dataset,
                    drilled.fault,
                )
        if not datasets and not broken:
            return ""
        found = f"; {counted(failed, 'dataset')} cannot be restored whole" if failed else ""
        ended = f"; {counted(broken, 'drill')} ended by a fault of the server" if broken else ""
        return f"{counted(datasets, 'dataset')} drilled, {counted(size, 'byte')}{found}{ended}"

    def drill(self, backup: Backup, stopping: Stopping = lambda: False) -> Drilled:
        """Read all of a dataset's newest backup as a restore does, and keep what was found.

        Raises:
            StoppedError: `stopping` became true; nothing is kept.
            Exhausted, Unavailable: The store or the catalog cannot be used now, which says nothing about the backup;
                nothing is kept.

        """

        def check() -> None:
            if stopping():
                raise StoppedError

        clock, begun_s = self._kept.clock, self._kept.clock.monotonic_s()
        self._kept.catalog.drills.begin(backup, clock.now_ns())
        proof = Proof()
        try:
            tenant = self._tenants.get(backup.tenant)
            proof = prove(
                tenant,
                self._kept.catalog,
                backup.root,
                self._opener,
                check=check,
                pace=self._pace(stopping),
            )
            fault = _words(proof)
        except (Exhausted, Unavailable):
            raise
        except StaddleError as e:
            fault = e.message
        if fault and self._is_past(backup):
            fault = ""
        else:
            self._kept.catalog.drills.note(backup, clock.now_ns(), fault)
        return Drilled(backup, proof, fault, clock.monotonic_s() - begun_s)

    def _is_past(self, backup: Backup) -> bool:
        """Return whether a backup was deleted, and perhaps purged, or has a successor since its drill began: then
        what the drill missed is no fault of the newest one, which is due next.
        """
        try:
            return self._kept.catalog.drills.newest(backup.tenant, backup.dataset).id != backup.id
        except NotFound:
            return True

    def _pace(self, stopping: Stopping) -> Callable[[], None]:
        """Return what waits after each entry and chunk, for what was read of the store: a chunk to which many files refer
        is read once.
        """
        if not self._bytes_per_s:
            return lambda: None
        rate = Rate(self._bytes_per_s, self._kept.clock, stopping, busy=self._busy)
        self._blobs.take()
        return lambda: rate(self._blobs.take(), 1)

    def _window(self) -> DrillWindow:
        now_ns = self._kept.clock.now_ns()
        again_s = min(AGAIN_S, self._period_s)
        return DrillWindow(
            now_ns - int(self._period_s * NS),
            now_ns - int(again_s * NS),
            now_ns + int(JUMP_S * NS),
            begun_before_ns=now_ns,
        )


class FailedDrills:
    """The datasets whose last drill found a fault, as alarms."""

    kinds: Final = frozenset({kinds.DRILL.name})

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def alarms(self, server: str, now_ns: int) -> Iterator[Alarm]:  # noqa: ARG002 - all servers know the same
        """Yield one alarm for each."""
        for each in self._catalog.drills.failed():
            yield alarm(
                kinds.DRILL,
                CRITICAL,
                f"The newest backup of the dataset {each.dataset} of tenant {each.tenant_name} cannot be restored whole: "
                f"{each.fault.rstrip('.')}.",
                "Run `staddle-server check --read-data`, then `staddle-server repair`; the next full backup brings again "
                "what its source still has. `staddle-server drill` then tries again.",
                tenant=each.tenant_name,
                subject=each.dataset,
                since_ns=each.at_ns,
            )


def _words(proof: Proof) -> str:
    if not proof.faults:
        return ""
    return f"{counted(proof.faults, 'path is', 'paths are')} damaged, the first is {proof.first}"
