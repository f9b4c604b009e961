"""Watches what protects the store besides itself: its object lock, and the copy at a second site.

It logs a warning when one begins to be late and every hour while it stays so, and says when it is over.
"""

from __future__ import annotations

import logging
from typing import Final

from staddle_server.base.clock import Clock
from staddle_server.base.errors import StaddleError
from staddle_server.base.threads import Background
from staddle_server.catalog import Catalog
from staddle_server.store.locks import ObjectLock
from staddle_server.upkeep.integrity.lock_standing import LockStanding, lock_standing
from staddle_server.upkeep.replication.lag import SiteLag, site_lag

log = logging.getLogger(__name__)

LOOK_S: Final = 60.0
AGAIN_S: Final = 3600.0
"""How often the log repeats a warning."""


class StoreWatch:
    """Looks on its own thread. What it saw last is free to ask for."""

    def __init__(
        self, catalog: Catalog, clock: Clock, lock: ObjectLock | None, place: str, every_s: float
    ) -> None:
        """`place` is the second site, empty for none, which gets what is new every `every_s`."""
        self._catalog = catalog
        self._clock = clock
        self._lock = lock
        self._place = place
        self._every_s = every_s
        self._since_ns = clock.now_ns()
        self._thread = Background("store-watch", LOOK_S, self.look)
        self._said: dict[str, float] = {}
        """What was logged as late, and when."""
        self.lock: LockStanding | None = None
        """None: the store has no locks, or was not looked at yet."""
        self.site: SiteLag | None = None
        """None: there is no second site, or it was not looked at yet."""

    @property
    def lock_lasts(self) -> bool:
        """Whether the locks of the store are extended in time."""
        return self.lock is None or not self.lock.warnings

    @property
    def site_is_current(self) -> bool:
        """Whether the second site is not behind for too long."""
        return self.site is None or not self.site.warning

    def start(self) -> None:
        """Look once, and then every LOOK_S, if there is something to look at."""
        if self._lock is not None or self._place:
            self.look()
            self._thread.start()

    def stop(self) -> None:
        """Stop the thread."""
        self._thread.stop()

    def look(self) -> None:
        """Look now, and log what is late."""
        now_ns = self._clock.now_ns()
        try:
            if self._lock is not None:
                self.lock = lock_standing(self._catalog, self._lock.span_s, now_ns)
            if self._place:
                self.site = site_lag(self._catalog, self._place, self._every_s, now_ns, self._since_ns)
        except StaddleError as e:
            log.warning("the object lock and the second site could not be looked at: %s", e.message)
            return
        self._say("object lock", "; ".join(self.lock.warnings) if self.lock else "")
        self._say("second site", self.site.warning if self.site else "")

    def _say(self, subject: str, warning: str) -> None:
        now_s = self._clock.monotonic_s()
        if not warning:
            if self._said.pop(subject, None) is not None:
                log.warning("%s: nothing is late any more", subject)
        elif subject not in self._said or now_s - self._said[subject] >= AGAIN_S:
            self._said[subject] = now_s
            log.error("%s: %s", subject, warning)
