"""Tells the catalog that this server lives, so that the other servers of the catalog know whom to ask."""

from __future__ import annotations

import logging
from typing import Final

from staddle_server.base.clock import Clock
from staddle_server.base.errors import StaddleError
from staddle_server.base.limits import SERVER_BEAT_S, SERVER_DEAD_S
from staddle_server.base.threads import Background
from staddle_server.catalog import Catalog, ServerIdentity

log = logging.getLogger(__name__)

OFF: Final = 0.0


class Heartbeat:
    """One server's row in the catalog, renewed on its own thread.

    A server whose heartbeats failed for a while counts as dead: others may take its uploads over, and the
    uploads' epochs then refuse what it still writes. So it simply registers again with its next heartbeat.
    """

    def __init__(self, catalog: Catalog, clock: Clock, every_s: float = SERVER_BEAT_S) -> None:
        """`every_s`: OFF for the one heartbeat at the start."""
        self._catalog = catalog
        self._clock = clock
        self._every_s = every_s
        self._thread = Background("heartbeat", every_s, self._beat)
        self._me: ServerIdentity | None = None
        self._draining = False
        self._beaten_s = clock.monotonic_s()
        self._failing = False

    @property
    def failing(self) -> bool:
        """True if the last heartbeat could not be written: then the catalog takes no backup either."""
        return self._failing

    def start(self, me: ServerIdentity) -> None:
        """Register the server, and keep its row current."""
        self._me = me
        self._beat()
        if self._every_s:
            self._thread.start()

    def drain(self) -> None:
        """State that the server finishes its work: other servers may take its uploads over."""
        self._draining = True
        self._beat()

    def stop(self) -> None:
        """Remove the row: the server has stopped."""
        self._thread.stop()
        if self._me is None:
            return
        try:
            self._catalog.servers.remove(self._me.id)
        except StaddleError as e:
            log.warning("this server stays in the list of servers, as dead: %s", e.message)

    def _beat(self) -> None:
        if self._me is None:
            return
        try:
            self._catalog.servers.beat(self._me, draining=self._draining)
        except StaddleError as e:
            if not self._failing:
                log.warning("the catalog does not learn that this server lives: %s", e.message)
            self._failing = True
            return
        now_s = self._clock.monotonic_s()
        if self._failing:
            silent_s = now_s - self._beaten_s
            dead = ", so other servers may have taken its uploads over" if silent_s > SERVER_DEAD_S else ""
            log.warning("the catalog knows again that this server lives, after %.0f s%s", silent_s, dead)
        self._failing = False
        self._beaten_s = now_s
