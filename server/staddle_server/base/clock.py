"""Injected time: a wall clock for what is recorded, a steady one for what is measured."""

from __future__ import annotations

import time
from typing import Final, Protocol

NS: Final = 1_000_000_000
"""Nanoseconds in a second."""
DAY_NS: Final = 86_400 * NS


class Clock(Protocol):
    """The service's source of time."""

    def now_ns(self) -> int:
        """Return nanoseconds since 1970, by the server's clock."""

    def monotonic_s(self) -> float:
        """Return seconds that only ever rise."""


class SystemClock:
    """The machine's own clocks."""

    def now_ns(self) -> int:
        return time.time_ns()

    def monotonic_s(self) -> float:
        return time.monotonic()
