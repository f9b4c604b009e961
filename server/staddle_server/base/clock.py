"""Time, injected: the wall clock for what is recorded, a steady one for what is measured."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where the service takes its time from."""

    def now_ns(self) -> int:
        """Nanoseconds since 1970, by the server's clock."""

    def monotonic_s(self) -> float:
        """Seconds that only ever rise."""


class SystemClock:
    """The machine's own clocks."""

    def now_ns(self) -> int:
        return time.time_ns()

    def monotonic_s(self) -> float:
        return time.monotonic()
