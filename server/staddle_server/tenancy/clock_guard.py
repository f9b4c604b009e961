"""Whether the wall clock can be believed: what cannot be undone waits until it can.

The guard compares the wall clock with the time that really passes (a clock that only rises, and also counts while the
machine sleeps). The catalog keeps what it last saw, so a restart changes nothing. After a reboot nothing has counted the
time that the machine was off, so an absence of up to ABSENCE_MAX_S is believed, and a longer one is not.

A jump is believed once an administrator confirms it, once the clock returns, or once as much time has really passed.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from staddle._base.figures import counted

from staddle_server.base.clock import Clock
from staddle_server.base.errors import Unavailable
from staddle_server.catalog import Catalog, ClockSeen, PendingRecord

NS: Final = 1_000_000_000
JUMP_S: Final = 3 * 3600
"""A difference of up to this is a correction, not a jump."""
ABSENCE_MAX_S: Final = 3 * 86_400
"""A machine that was off this long, by its clock after the reboot, is believed."""
SAVE_S: Final = 60
"""How often the catalog learns that the clock is still right."""

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class ClockInDoubt(Unavailable):
    """The wall clock has jumped, and the jump is not confirmed: nothing is done that cannot be undone."""

    def __init__(self, words: str) -> None:
        super().__init__("STORE_UNAVAILABLE", words)


class Standing(NamedTuple):
    """What the guard thinks of the clock.

    Attributes:
        wall_ns: What the wall clock says.
        expected_ns: What it should say, by the time that has really passed.
        jump_ns: How far the clock has jumped; negative: back. 0: it can be believed.
        left_ns: How much time has to pass before the jump is believed without a confirmation.

    """

    wall_ns: int
    expected_ns: int
    jump_ns: int
    left_ns: int

    @property
    def earliest_ns(self) -> int:
        """The earlier of the times that it may be: what protects until a time still does while the clock is in doubt."""
        return min(self.wall_ns, self.expected_ns) if self.jump_ns else self.wall_ns

    @property
    def latest_ns(self) -> int:
        """The later of the times that it may be: a grace that begins while the clock is in doubt is not cut short."""
        return max(self.wall_ns, self.expected_ns) if self.jump_ns else self.wall_ns

    @property
    def believed_ns(self) -> int:
        """What the server goes by: the expected time while the clock is in doubt, and the wall clock's if it is not."""
        return self.expected_ns if self.jump_ns else self.wall_ns

    @property
    def words(self) -> str:
        """What is wrong, what follows, and what to do; "" for a clock that can be believed."""
        if not self.jump_ns:
            return ""
        way = "forward" if self.jump_ns > 0 else "back"
        return (
            f"the clock jumped {way} by {_amount(self.jump_ns)}: it says {_utc(self.wall_ns)}, and {_utc(self.expected_ns)} was "
            "expected. Nothing is purged, expired, collected or deleted by policy until the clock is set right, or "
            f"`staddle-server clock --confirm` says that it is right, or another {_amount(self.left_ns)} have passed"
        )


class ClockGuard:
    """Watches one clock for one catalog. Any number of guards, in any number of processes, agree: the catalog has the state.

    Every method raises what the catalog raises.
    """

    def __init__(self, catalog: Catalog, clock: Clock) -> None:
        self._catalog = catalog
        self._clock = clock
        self._boot = _boot_id()
        self._offset_ns: int | None = None
        """What the last look found between the time that really passes and the right time."""

    def look(self) -> Standing:
        """Compares the clocks now, and remembers what it saw."""
        wall_ns, uptime_ns = self._clock.now_ns(), self._uptime_ns()
        before = self._catalog.clock.get()
        if before is None:
            after = _first(self._boot, wall_ns, uptime_ns, self._catalog.clock.newest_ns())
            self._catalog.clock.put(after, before)
        else:
            after = _next(before, self._boot, wall_ns, uptime_ns)
            if _is_news(before, after):
                # Another process may have looked, or confirmed, meanwhile: then its result stands, and the next look starts from it.
                self._catalog.clock.put(after, before)
        self._offset_ns = after.offset_ns
        return _standing(after, wall_ns, uptime_ns)

    def believed_ns(self) -> int:
        """As `Standing.believed_ns`, by the last look of this guard: for what is asked all the time, as it reads nothing."""
        if self._offset_ns is None:
            return self.look().believed_ns
        wall_ns, expected_ns = self._clock.now_ns(), self._uptime_ns() + self._offset_ns
        return wall_ns if abs(wall_ns - expected_ns) <= JUMP_S * NS else expected_ns

    def require(self) -> int:
        """The wall time, in ns, if it can be believed. ClockInDoubt if not."""
        standing = self.look()
        if standing.jump_ns:
            raise ClockInDoubt(standing.words)
        return standing.wall_ns

    def confirm(self, records: Sequence[PendingRecord] = ()) -> Standing:
        """An administrator says that the clock is right now. Answers what was thought of it before.

        Keeps `records` as pending in the same transaction.
        """
        while True:
            standing = self.look()
            wall_ns, uptime_ns = self._clock.now_ns(), self._uptime_ns()
            right = ClockSeen(self._boot, wall_ns - uptime_ns, uptime_ns, wall_ns, 0, 0)
            if self._catalog.clock.put(right, self._catalog.clock.get(), records):
                return standing

    def _uptime_ns(self) -> int:
        """Real time since the machine started, as the injected clock counts it, with the time that the machine slept."""
        asleep_s = 0.0
        if hasattr(time, "CLOCK_BOOTTIME"):
            asleep_s = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
        return int((self._clock.monotonic_s() + asleep_s) * NS)


class BelievedClock:
    """A clock for what cannot be undone: it gives the time only while the guard believes it."""

    def __init__(self, guard: ClockGuard, clock: Clock) -> None:
        self._guard = guard
        self._clock = clock

    def now_ns(self) -> int:
        """The wall time. ClockInDoubt."""
        return self._guard.require()

    def monotonic_s(self) -> float:
        """Seconds that only ever rise."""
        return self._clock.monotonic_s()


def _boot_id() -> str:
    """Names this run of the machine; where the system does not, this process alone."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return secrets.token_hex(16)


def _first(boot: str, wall_ns: int, uptime_ns: int, newest_ns: int) -> ClockSeen:
    """What is known without anything seen before: the newest time in the catalog, of a rebuilt one."""
    if not newest_ns:
        return ClockSeen(boot, wall_ns - uptime_ns, uptime_ns, wall_ns, 0, 0)
    return _next(ClockSeen("", 0, 0, newest_ns, 0, 0), boot, wall_ns, uptime_ns)


def _next(before: ClockSeen, boot: str, wall_ns: int, uptime_ns: int) -> ClockSeen:
    """What is seen now, after what was seen before."""
    offset_ns, passed_ns = before.offset_ns, max(0, uptime_ns - before.uptime_ns)
    if before.boot != boot:
        absent_ns, passed_ns = wall_ns - before.seen_ns, 0
        believed = not before.jump_ns and -JUMP_S * NS <= absent_ns <= ABSENCE_MAX_S * NS
        offset_ns = (wall_ns if believed else before.seen_ns) - uptime_ns
    jump_ns = wall_ns - uptime_ns - offset_ns
    waited_ns = before.waited_ns + passed_ns if _is_same(before.jump_ns, jump_ns) else 0
    if abs(jump_ns) <= JUMP_S * NS:
        return ClockSeen(boot, offset_ns, uptime_ns, wall_ns, 0, 0)
    if waited_ns >= abs(jump_ns):
        return ClockSeen(boot, wall_ns - uptime_ns, uptime_ns, wall_ns, 0, 0)
    return ClockSeen(boot, offset_ns, uptime_ns, uptime_ns + offset_ns, jump_ns, waited_ns)


def _is_same(before_ns: int, now_ns: int) -> bool:
    """Whether it is the jump that was seen before, give or take a correction."""
    return before_ns != 0 and abs(now_ns - before_ns) <= JUMP_S * NS


def _is_news(before: ClockSeen, after: ClockSeen) -> bool:
    """Whether the catalog has to learn it now."""
    if before.boot != after.boot or bool(before.jump_ns) != bool(after.jump_ns):
        return True
    if after.jump_ns and not _is_same(before.jump_ns, after.jump_ns):
        return True
    return abs(after.uptime_ns - before.uptime_ns) >= SAVE_S * NS


def _standing(seen: ClockSeen, wall_ns: int, uptime_ns: int) -> Standing:
    left_ns = max(0, abs(seen.jump_ns) - seen.waited_ns)
    return Standing(wall_ns, uptime_ns + seen.offset_ns, seen.jump_ns, left_ns)


def _amount(ns: int) -> str:
    hours = abs(ns) / NS / 3600
    return counted(round(hours / 24), "day") if hours >= 48 else counted(round(hours), "hour")


def _utc(ns: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(ns // NS))
    except (OverflowError, ValueError, OSError):
        return f"{ns // NS} s after 1970"
