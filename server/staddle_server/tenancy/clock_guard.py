"""Whether the wall clock can be trusted: irreversible work waits until it can.

The guard compares the wall clock with the real passage of time (a clock that only rises, and also counts
while the machine sleeps). The catalog keeps the last observation, so a restart changes nothing. After a
reboot the time that the machine was off is unknown, so an absence of up to ABSENCE_MAX_S is accepted, and a
longer one is not. A further machine counts as one that was off since the newest observation of any other.

A jump is accepted once an administrator confirms it, the clock returns, or as much time has really passed.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from staddle._base.figures import counted

from staddle_server.base.clock import NS, Clock
from staddle_server.base.errors import Unavailable
from staddle_server.catalog import Catalog, ClockSeen, PendingRecord

JUMP_S: Final = 3 * 3600
"""A difference up to this is a correction, not a jump."""
ABSENCE_MAX_S: Final = 3 * 86_400
"""An absence up to this, by the clock after a reboot, is accepted."""
SAVE_S: Final = 60
"""How often the catalog records that the clock is still right."""

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class ClockInDoubt(Unavailable):
    """The wall clock has jumped, and the jump is not confirmed: irreversible work is refused."""

    def __init__(self, words: str) -> None:
        super().__init__("STORE_UNAVAILABLE", words)


class Standing(NamedTuple):
    """The guard's view of the clock.

    Attributes:
        wall_ns: What the wall clock says.
        expected_ns: What it should say, by the real passage of time.
        jump_ns: How far the clock has jumped; negative: back. 0: it is trusted.
        left_ns: How much time must pass until the jump is accepted without confirmation.

    """

    wall_ns: int
    expected_ns: int
    jump_ns: int
    left_ns: int

    @property
    def earliest_ns(self) -> int:
        """The earlier of the two possible times: protection until a time still holds while the clock is in
        doubt.
        """
        return min(self.wall_ns, self.expected_ns) if self.jump_ns else self.wall_ns

    @property
    def latest_ns(self) -> int:
        """The later of the two possible times: a grace period that begins while the clock is in doubt is not
        shortened.
        """
        return max(self.wall_ns, self.expected_ns) if self.jump_ns else self.wall_ns

    @property
    def believed_ns(self) -> int:
        """The time that the server uses: the expected time while the clock is in doubt, else the wall
        clock's.
        """
        return self.expected_ns if self.jump_ns else self.wall_ns

    @property
    def jump_words(self) -> str:
        """How the clock jumped: "jumped forward by 5 hours"."""
        return f"jumped {'forward' if self.jump_ns > 0 else 'back'} by {_amount(self.jump_ns)}"

    @property
    def words(self) -> str:
        """What is wrong, its consequence, and what to do; "" for a trusted clock."""
        if not self.jump_ns:
            return ""
        return (
            f"the clock {self.jump_words}: it says {_utc(self.wall_ns)}, and {_utc(self.expected_ns)} was "
            "expected. Nothing is purged, expired, collected or deleted by policy until the clock is set right, or "
            f"`staddle-server clock --confirm` confirms it, or another {_amount(self.left_ns)} have passed"
        )


class ClockGuard:
    """Watches one machine's clock for one catalog.

    Guards in any number of processes of a machine agree: the catalog holds the state. Guards of other
    machines watch theirs: one clock that jumps is not compared with another that is right. Every method
    raises what the catalog raises.
    """

    def __init__(self, catalog: Catalog, clock: Clock, boot: str = "") -> None:
        """`boot` names this boot of the machine, if the system does not."""
        self._catalog = catalog
        self._clock = clock
        self._boot = boot or _boot_id()
        self._seen: ClockSeen | None = None
        """The observation of the last look."""
        self._looked_ns = 0
        """The machine's uptime then."""

    def look(self) -> Standing:
        """Compare the clocks now, and store the observation."""
        wall_ns, uptime_ns = self._clock.now_ns(), self._uptime_ns()
        before = self._catalog.clock.get(self._boot)
        if before is None:
            after = _first(self._boot, wall_ns, uptime_ns, self._catalog.clock.newest_ns())
            self._catalog.clock.put(after, before)
        else:
            after = _next(before, self._boot, wall_ns, uptime_ns)
            if _is_news(before, after):
                # Another process may have looked or confirmed meanwhile: its result stands, and the next look
                # starts from it.
                self._catalog.clock.put(after, before)
        self._seen, self._looked_ns = after, uptime_ns
        return _standing(after, wall_ns, uptime_ns)

    def glance(self) -> Standing:
        """Compare the clocks as `look` does, without a read if the clock was right at a look within SAVE_S, and
        still is.
        """
        wall_ns, uptime_ns, seen = self._clock.now_ns(), self._uptime_ns(), self._seen
        if seen is not None and not seen.jump_ns and uptime_ns - self._looked_ns < SAVE_S * NS:
            expected_ns = uptime_ns + seen.offset_ns
            if abs(wall_ns - expected_ns) <= JUMP_S * NS:
                return Standing(wall_ns, expected_ns, 0, 0)
        return self.look()

    def believed_ns(self) -> int:
        """Return `Standing.believed_ns` as of this guard's last look: for frequent use, without a read."""
        if self._seen is None:
            return self.look().believed_ns
        wall_ns, expected_ns = self._clock.now_ns(), self._uptime_ns() + self._seen.offset_ns
        return wall_ns if abs(wall_ns - expected_ns) <= JUMP_S * NS else expected_ns

    def require(self) -> int:
        """Return the wall time, in ns, if it is trusted. ClockInDoubt if not."""
        standing = self.look()
        if standing.jump_ns:
            raise ClockInDoubt(standing.words)
        return standing.wall_ns

    def confirm(self, records: Sequence[PendingRecord] = ()) -> Standing:
        """Confirm that the clock is right now. Returns the view before that.

        Keeps `records` as pending in the same transaction.
        """
        while True:
            standing = self.look()
            wall_ns, uptime_ns = self._clock.now_ns(), self._uptime_ns()
            right = ClockSeen(self._boot, wall_ns - uptime_ns, uptime_ns, wall_ns, 0, 0)
            if self._catalog.clock.put(right, self._catalog.clock.get(self._boot), records):
                return standing

    def _uptime_ns(self) -> int:
        """Return the real time since the machine's start, by the injected clock, sleep included."""
        asleep_s = 0.0
        if hasattr(time, "CLOCK_BOOTTIME"):
            asleep_s = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
        return int((self._clock.monotonic_s() + asleep_s) * NS)


class BelievedClock:
    """A clock for irreversible work: it returns the time only while the guard trusts it."""

    def __init__(self, guard: ClockGuard, clock: Clock) -> None:
        self._guard = guard
        self._clock = clock

    def now_ns(self) -> int:
        """Return the wall time. ClockInDoubt."""
        return self._guard.require()

    def monotonic_s(self) -> float:
        """Return seconds that only ever rise."""
        return self._clock.monotonic_s()


def _boot_id() -> str:
    """Return the id of this boot; of this process alone if the system has none."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return secrets.token_hex(16)


def _first(boot: str, wall_ns: int, uptime_ns: int, newest_ns: int) -> ClockSeen:
    """Return the first observation: based on the newest time in the catalog, if it was rebuilt."""
    if not newest_ns:
        return ClockSeen(boot, wall_ns - uptime_ns, uptime_ns, wall_ns, 0, 0)
    return _next(ClockSeen("", 0, 0, newest_ns, 0, 0), boot, wall_ns, uptime_ns)


def _next(before: ClockSeen, boot: str, wall_ns: int, uptime_ns: int) -> ClockSeen:
    """Return the new observation, after an earlier one."""
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
    """Return whether this is the jump seen before, give or take a correction."""
    return before_ns != 0 and abs(now_ns - before_ns) <= JUMP_S * NS


def _is_news(before: ClockSeen, after: ClockSeen) -> bool:
    """Return whether the catalog must record it now."""
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
