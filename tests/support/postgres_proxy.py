"""A proxy before a PostgreSQL server, which can lose the answer to a COMMIT that the server has carried out, or refuse everybody."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress
from pathlib import Path

from round_trips import BYTES, RoundTrips

COMMITTED = b"C\x00\x00\x00\x0bCOMMIT\x00"
"""What a server answers once a transaction has ended well."""


class PostgresProxy(RoundTrips):
    """Listens on a Unix socket of its own (`place`).

    Attributes:
        lost: An answer was lost since `lose_commit`.

    """

    def __init__(self, server: Path) -> None:
        self.lost = threading.Event()
        self._losing: bytes | None = None
        super().__init__(server)
        self._socket, self._hidden = self.place / ".s.PGSQL.5432", self.place / "down"

    def refuse(self) -> None:
        """The server is down: whoever connects finds nothing, as without a proxy."""
        self._socket.rename(self._hidden)

    def accept(self) -> None:
        """The server is up again."""
        self._hidden.rename(self._socket)

    def lose_commit(self, after: bytes = b"") -> None:
        """The server carries the next COMMIT out; the connection breaks instead of its answer.

        `after`: of a transaction that has sent these bytes. A statement that a connection has sent five times is not sent in full again.
        """
        self.lost.clear()
        with self._lock:
            self._losing = after

    def lose_nothing(self) -> None:
        """Takes `lose_commit` back."""
        with self._lock:
            self._losing = None

    def close(self) -> None:
        if self._hidden.exists():
            self.accept()
        super().close()

    def _pass_on(self, client: socket.socket) -> None:
        server, sent = socket.socket(socket.AF_UNIX), bytearray()
        with client, server, suppress(OSError):
            server.connect(self._server)
            while True:
                for source in select.select([client, server], [], [])[0]:
                    if not (data := source.recv(BYTES)):
                        return
                    if source is client:
                        sent += data
                    elif COMMITTED in data:
                        if self._loses(sent):
                            return
                        sent.clear()
                    (server if source is client else client).sendall(data)

    def _loses(self, sent: bytearray) -> bool:
        with self._lock:
            if self._losing is None or self._losing not in sent:
                return False
            self._losing = None
        self.lost.set()
        return True
