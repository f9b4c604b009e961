"""Watches the clock, and logs a jump, and again every hour while the clock is in doubt."""

from __future__ import annotations

import logging
from typing import Final

from staddle_server.base.errors import StaddleError
from staddle_server.base.threads import Background
from staddle_server.tenancy.clock_guard import ClockGuard, Standing

log = logging.getLogger(__name__)

LOOK_S: Final = 10.0
AGAIN_S: Final = 3600.0
"""How often the log repeats that the clock is in doubt."""


class ClockWatch:
    """Checks the clock on its own thread. `in_doubt` is true within LOOK_S of a jump."""

    def __init__(self, guard: ClockGuard) -> None:
        self._guard = guard
        self._thread = Background("clock-watch", LOOK_S, self.look)
        self._said_ns: int | None = None
        self.in_doubt = False
        self.standing: Standing | None = None
        """The guard's last result."""

    def start(self) -> None:
        """Check once, and then every LOOK_S."""
        self.look()
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread."""
        self._thread.stop()

    def look(self) -> None:
        """Compare the clocks now, and log changes."""
        try:
            standing = self._guard.look()
        except StaddleError as e:
            log.warning("the clock could not be compared with the catalog: %s", e.message)
            return
        self.in_doubt = bool(standing.jump_ns)
        self.standing = standing
        self._say(standing)

    def _say(self, standing: Standing) -> None:
        if not standing.jump_ns:
            if self._said_ns is not None:
                log.warning("the clock is trusted again: purging, expiry and policies resume")
            self._said_ns = None
            return
        if self._said_ns is None or abs(standing.expected_ns - self._said_ns) >= AGAIN_S * 1e9:
            self._said_ns = standing.expected_ns
            log.error("%s", standing.words)
