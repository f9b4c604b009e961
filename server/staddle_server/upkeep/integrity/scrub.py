"""Read all stored data once in a period, a little at a time, to find damage before a restore
needs the data.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from staddle._base.figures import counted

from staddle_server.base.clock import Clock
from staddle_server.base.errors import StaddleError
from staddle_server.catalog import LivePack
from staddle_server.tenancy.clock_guard import JUMP_S
from staddle_server.tenancy.pack_check import Examined, Examiner
from staddle_server.tenancy.tenant import Tenant
from staddle_server.upkeep.integrity.findings import Kept
from staddle_server.upkeep.integrity.parity import Outcome, repair_if_possible
from staddle_server.upkeep.schedule import NS, StoppedError, Stopping, Task

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
    """Each run reads packs not read for a period, the longest unread first, until its time is over."""

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
        self._period_s = period_s
        self._bytes_per_s = bytes_per_s
        self._busy = busy
        self._wait = wait
        self._not_right: dict[bytes, int] = {}
        """Packs that were read and stay due, because they are damaged: when that was."""

    def task(self) -> Task:
        """Return the scrubber as a server's task; without a period, one that never runs."""
        return Task("scrub", EVERY_S if self._period_s else 0, self.run)

    def run(self, stopping: Stopping) -> str:
        """Run once. Return a summary; "" if nothing was due."""
        clock = self._kept.clock
        rate = Rate(self._bytes_per_s, clock, stopping, busy=self._busy, wait=self._wait)
        end_s = clock.monotonic_s() + RUN_S
        packs = size = faults = 0
        while clock.monotonic_s() < end_s:
            due = self._due()
            if not due or stopping():
                break
            for pack in due:
                if clock.monotonic_s() >= end_s:
                    break
                try:
                    seen = self._read(pack, rate)
                except StoppedError:
                    break
                if seen is not None:
                    packs, size, faults = packs + 1, size + seen.read_bytes, faults + len(seen.faults)
        if not packs:
            return ""
        left = self._kept.catalog.verification.due_bytes(*self._bounds_ns())
        found = f"; {counted(faults, 'finding')} of damage: run `staddle-server check`" if faults else ""
        return f"{counted(packs, 'pack')} read, {counted(size, 'byte')}; {counted(left, 'byte')} due{found}"

    def _bounds_ns(self) -> tuple[int, int]:
        """Return the times between which a read pack is not due; a later time cannot come from a right clock."""
        now_ns = self._kept.clock.now_ns()
        return now_ns - int(self._period_s * NS), now_ns + JUMP_S * NS

    def _due(self) -> list[LivePack]:
        """Return the next packs. A damaged one stays due, and is read again a day later."""
        recent_ns = self._kept.clock.now_ns() - AGAIN_S * NS
        self._not_right = {
            pack: at_ns
            for pack, at_ns in self._not_right.items()
            if recent_ns < at_ns <= recent_ns + 2 * AGAIN_S * NS
        }
        limit = len(self._not_right) + BATCH
        since_ns, ahead_ns = self._bounds_ns()
        due = self._kept.catalog.verification.due(since_ns, limit, ahead_ns)
        return [pack for pack in due if pack.id not in self._not_right]

    def _read(self, pack: LivePack, rate: Rate) -> Examined | None:
        """Read a pack, unless it was condemned since it was listed; return None if it, or its tenant's keys,
        are unreadable.
        """
        catalog = self._kept.catalog
        now = catalog.verification.live_pack(pack.tenant, pack.id)
        if now is None:
            return None
        self._not_right[pack.id] = self._kept.clock.now_ns()
        try:
            tenant = self._kept.tenants.get(pack.tenant)
            seen = Examiner(tenant, catalog, self._kept.clock, rate).read(now)
        except StoppedError:
            del self._not_right[pack.id]
            raise
        except StaddleError as e:
            log.error("pack %s was not scrubbed: %s", pack.id.hex(), e.message)  # noqa: TRY400 - no fault of ours
            return None
        if seen.gone:
            del self._not_right[pack.id]
            return None
        self._log(seen, tenant.name)
        if self._is_right_now(seen, tenant):
            del self._not_right[pack.id]
        return seen

    def _is_right_now(self, seen: Examined, tenant: Tenant) -> bool:
        """Return whether the pack was intact, or was repaired from its parity."""
        if all(fault.kind == "index" for fault in seen.faults):
            return True
        pack = seen.pack.id
        report = repair_if_possible(tenant, self._kept.catalog, pack, self._kept.clock.now_ns())
        return report is not None and report.outcome in {Outcome.REPAIRED, Outcome.SOUND}

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
