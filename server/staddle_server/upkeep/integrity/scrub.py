"""Read all stored data once in a period, a little at a time, to find damage before a restore
needs the data.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from typing import Final

from staddle._base.figures import counted

from staddle_server.base.clock import NS, Clock
from staddle_server.base.errors import StaddleError
from staddle_server.catalog import LivePack
from staddle_server.tenancy.clock_guard import JUMP_S
from staddle_server.tenancy.pack_check import Examined, Examiner
from staddle_server.tenancy.tenant import Tenant
from staddle_server.upkeep.integrity.findings import Kept
from staddle_server.upkeep.integrity.parity import repair_if_possible
from staddle_server.upkeep.schedule import StoppedError, Stopping, Task
from staddle_server.upkeep.shared_setting import SCRUB_PERIOD_S, SharedSetting

log = logging.getLogger(__name__)

EVERY_S: Final = 60.0
RUN_S: Final = 300.0
"""How long a run lasts before it reports; the next one resumes there."""
BATCH: Final = 64
AGAIN_S: Final = 24 * 3600
PAUSE_S: Final = 0.5
"""The longest time between two checks whether the server is about to end."""
CHUNK_BYTES: Final = 4096
"""The extra cost of checking a chunk, in bytes: packs of tiny chunks are much work and few bytes."""
TOO_SHORT_S: Final = 0.001
"""Shorter waits are not worth it: they add up until the next bytes."""
BUSY_PART: Final = 16
"""While clients are active, the rate is divided by this: enough to complete a round, too little to notice."""


class Rate:
    """Limits reads to so many bytes a second, by waiting, and to a small share of that while the server is
    `busy`.

    `wait(seconds)` is for tests.
    """

    def __init__(
        self,
        bytes_per_s: float,
        clock: Clock,
        stopping: Stopping,
        *,
        busy: Callable[[], bool],
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._stopping = stopping
        self._busy = busy
        self._wait = wait or threading.Event().wait
        self._ahead_bytes = 0.0
        """The wait owed for what was read; credit is limited to one second."""
        self._at_s = clock.monotonic_s()

    def __call__(self, size: int, chunks: int) -> None:
        """Wait after so many bytes were read, until more may be.

        Raises StoppedError when the server is about to end.
        """
        size += CHUNK_BYTES * chunks
        self._pass()
        self._ahead_bytes = max(self._ahead_bytes, -self._now_bytes_per_s()) + size
        while not self._stopping():
            rest_s = self._ahead_bytes / self._now_bytes_per_s()
            if rest_s <= TOO_SHORT_S:
                return
            self._wait(min(rest_s, PAUSE_S))
            self._pass()
        raise StoppedError

    def _pass(self) -> None:
        """Account for the time that has passed."""
        now_s = self._clock.monotonic_s()
        self._ahead_bytes -= (now_s - self._at_s) * self._now_bytes_per_s()
        self._at_s = now_s

    def _now_bytes_per_s(self) -> float:
        return self._bytes_per_s / BUSY_PART if self._busy() else self._bytes_per_s


class Scrubber:
    """Each run reads packs not read for a period, the longest unread first, until its time is over.

    Scrubbers of several servers divide the packs: the catalog keeps which one was taken up, and when. The
    period belongs to the installation, the rate to each server.
    """

    def __init__(
        self,
        kept: Kept,
        *,
        period_s: float,
        bytes_per_s: float,
        busy: Callable[[], bool] = lambda: False,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self._kept = kept
        self._on = period_s > 0
        self._period = SharedSetting(kept.catalog, kept.clock, SCRUB_PERIOD_S, math.ceil(period_s))
        self._bytes_per_s = bytes_per_s
        self._busy = busy
        self._wait = wait

    def task(self) -> Task:
        """Return the scrubber as a task of each server; without a period, one that never runs."""
        return Task("scrub", EVERY_S if self._on else 0, self.run, everywhere=True)

    def run(self, stopping: Stopping) -> str:
        """Run once. Return a summary; "" if nothing was due."""
        period_s = self._period.in_force().value
        if not period_s:
            return ""
        clock = self._kept.clock
        rate = Rate(self._bytes_per_s, clock, stopping, busy=self._busy, wait=self._wait)
        end_s = clock.monotonic_s() + RUN_S
        packs = size = faults = 0
        while clock.monotonic_s() < end_s:
            due = self._due(period_s)
            if not due or stopping():
                break
            for pack in due:
                if clock.monotonic_s() >= end_s:
                    break
                try:
                    seen = self._read(pack, period_s, rate)
                except StoppedError:
                    break
                if seen is not None:
                    packs, size, faults = packs + 1, size + seen.read_bytes, faults + len(seen.faults)
        if not packs:
            return ""
        left = self._kept.catalog.verification.due_bytes(*self._bounds_ns(period_s))
        found = f"; {counted(faults, 'finding')} of damage: run `staddle-server check`" if faults else ""
        return f"{counted(packs, 'pack')} read, {counted(size, 'byte')}; {counted(left, 'byte')} due{found}"

    def _bounds_ns(self, period_s: float) -> tuple[int, int]:
        """Return the times between which a read pack is not due; a later time cannot come from a
        right clock.
        """
        now_ns = self._kept.clock.now_ns()
        return now_ns - int(period_s * NS), now_ns + JUMP_S * NS

    def _tried(self, period_s: float) -> tuple[int, int]:
        """Return the span in which a pack that was taken up is left alone: a damaged one, or one whose server
        died, is read again a day later.
        """
        now_ns, again_ns = self._kept.clock.now_ns(), int(min(AGAIN_S, period_s) * NS)
        return now_ns - again_ns, now_ns + again_ns

    def _due(self, period_s: float) -> list[LivePack]:
        """Return the next packs."""
        before_ns, ahead_ns = self._bounds_ns(period_s)
        return self._kept.catalog.verification.due(before_ns, BATCH, ahead_ns, self._tried(period_s))

    def _read(self, pack: LivePack, period_s: float, rate: Rate) -> Examined | None:
        """Read a pack, unless another server took it up, or it was condemned, since it was listed.

        Returns None also if it, or its tenant's keys, are unreadable.
        """
        verification = self._kept.catalog.verification
        now_ns = self._kept.clock.now_ns()
        now = verification.take_up(pack.tenant, pack.id, now_ns, self._tried(period_s))
        if now is None:
            return None
        try:
            tenant = self._kept.tenants.get(pack.tenant)
            seen = Examiner(tenant, self._kept.catalog, self._kept.clock, rate).read(now)
        except StoppedError:
            verification.put_back(pack.tenant, pack.id)
            raise
        except StaddleError as e:
            log.error("pack %s was not scrubbed: %s", pack.id.hex(), e.message)  # noqa: TRY400 - no fault of ours
            return None
        if seen.gone:
            return None
        self._log(seen, tenant.name)
        self._repair(seen, tenant)
        return seen

    def _repair(self, seen: Examined, tenant: Tenant) -> None:
        """Repair a damaged pack from its parity, if it has some."""
        if not all(fault.kind == "index" for fault in seen.faults):
            now_ns = self._kept.clock.now_ns()
            repair_if_possible(tenant, self._kept.catalog, seen.pack.id, now_ns)

    def _log(self, seen: Examined, tenant: str) -> None:
        for fault in seen.faults:
            fields = {
                "tenant": tenant,
                "pack": seen.pack.id.hex(),
                "segment": fault.segment,
                "kind": fault.kind,
            }
            log.error("damage found: %s", fault.message, extra={"fields": fields})
        for offset in seen.cleared:
            fields = {"tenant": tenant, "pack": seen.pack.id.hex(), "segment": offset}
            log.warning("a mark of damage was wrong, and was removed", extra={"fields": fields})
