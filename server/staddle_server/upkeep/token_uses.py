"""When each token was last used, to within minutes: noted beside the calls, never in one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from staddle_server.base.errors import StaddleError
from staddle_server.base.threads import Background
from staddle_server.catalog import Catalog

log = logging.getLogger(__name__)

EVERY_S: Final = 300.0


class TokenUses:
    """Writes which tokens were used into the catalog, every few minutes, and nothing while it takes no writes."""

    def __init__(
        self,
        catalog: Catalog,
        used: Callable[[], set[bytes]],
        takes_writes: Callable[[], bool],
        now_ns: Callable[[], int],
    ) -> None:
        """`used` returns the ids of the tokens that were used since it was last asked."""
        self._catalog = catalog
        self._used = used
        self._takes_writes = takes_writes
        self._now_ns = now_ns
        self._pending: dict[bytes, int] = {}
        self._thread = Background("token-uses", EVERY_S, self.write)

    def start(self) -> None:
        """Start; the first write is after EVERY_S."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and write what was used since the last time."""
        self._thread.stop()
        self.write()

    def write(self) -> None:
        """Note the tokens that were used since the last time as used now. What cannot be written waits."""
        # A write may be possible only hours later: each use keeps its time.
        self._pending |= dict.fromkeys(self._used(), self._now_ns())
        if not self._pending or not self._takes_writes():
            return
        try:
            self._catalog.tokens.note_used(self._pending)
        except StaddleError as e:
            log.info("which tokens were used could not be noted, and is kept: %s", e.message)
            return
        self._pending.clear()
