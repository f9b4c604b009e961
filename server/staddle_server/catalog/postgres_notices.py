"""Notices between the servers that share a database: LISTEN and NOTIFY of PostgreSQL."""

import select
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import psycopg

from staddle_server.base.errors import StaddleError
from staddle_server.catalog.postgres_link import Link

CHANNEL: Final = "staddle_revoked"
RETRY_S: Final = 5.0


class Listener:
    """One connection that receives notices, and is looked at where they matter. Thread-safe.

    Looking costs no round trip. Notices are lost while there is no connection.
    """

    def __init__(self, connect: Callable[[], Link]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._missed = False
        self._opening = False
        self._retry_s = 0.0

    def listen(self) -> None:
        """Connect, unless it is connected or failed a moment ago. A failure is not an error."""
        with self._lock:
            if self._link is not None or self._opening or time.monotonic() < self._retry_s:
                return
            self._opening = True
        link = None
        try:
            with suppress(psycopg.Error, StaddleError):
                link = self._opened()
        finally:
            with self._lock:
                self._opening = False
                self._link, self._missed = link, True
                if link is None:
                    self._retry_s = time.monotonic() + RETRY_S

    def _opened(self) -> Link:
        link = self._connect()
        try:
            link.execute(f"LISTEN {CHANNEL}")
        except BaseException:
            link.close()
            raise
        return link

    def heard(self) -> Sequence[bytes] | None:
        """Return the notices since the last call; None: some may be lost."""
        with self._lock:
            try:
                found = self._received()
            except (psycopg.Error, ValueError):
                self._close()
                self._missed = True
            if self._missed:
                self._missed = False
                return None
            return found

    def _received(self) -> list[bytes]:
        found: list[bytes] = []
        if self._link is not None and has_input(self._link):
            self._link.pgconn.consume_input()
            while (notice := self._link.pgconn.notifies()) is not None:
                found.append(bytes.fromhex(notice.extra.decode("ascii")))
        return found

    def close(self) -> None:
        """Disconnect; `listen` connects again."""
        with self._lock:
            self._close()
            self._missed = True
            self._retry_s = 0.0

    def _close(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None


def has_input(link: Link) -> bool:
    """Return whether something arrived on an idle connection: a notice, or its end."""
    poll = select.poll()
    poll.register(link.fileno(), select.POLLIN)
    return bool(poll.poll(0))
