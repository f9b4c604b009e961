"""A proxy before the Unix socket of a PostgreSQL server, which can lose the answer to a COMMIT that the server has carried out."""

from __future__ import annotations

import shutil
import socket
import threading
from contextlib import suppress
from pathlib import Path

SOCKET = ".s.PGSQL.5432"
PART = 65_536
COMMITTED = b"C\x00\x00\x00\x0bCOMMIT\x00"
"""What a server answers once a transaction has ended well."""


class PostgresProxy:
    """Passes connections to the server whose socket is in `server`; its own socket is in the new directory `place`."""

    def __init__(self, server: Path, place: Path) -> None:
        place.mkdir()
        self.place = place
        self._server = str(server / SOCKET)
        self._lock = threading.Lock()
        self._losing: bytes | None = None
        self.lost = threading.Event()
        """An answer was lost since `lose_commit`."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.socket))
        self._listener.listen(64)
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def socket(self) -> Path:
        return self.place / SOCKET

    def refuse(self) -> None:
        """The server is down: whoever connects finds nothing, as without a proxy."""
        self.socket.rename(self.place / "down")

    def accept(self) -> None:
        """The server is up again."""
        (self.place / "down").rename(self.socket)

    def lose_commit(self, after: bytes = b"") -> None:
        """The server carries the next COMMIT out; the connection breaks instead of its answer.

        `after`: of a connection that has sent these bytes since now. Statements that were sent five times are not sent in full again.
        """
        with self._lock:
            self._losing = after
        self.lost.clear()

    def lose_nothing(self) -> None:
        """Takes `lose_commit` back."""
        with self._lock:
            self._losing = None

    def stop(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        shutil.rmtree(self.place)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self._server)
            except OSError:  # no server: the client is refused
                server.close()
                client.close()
                continue
            sent = bytearray()
            for source, target, answers in ((client, server, False), (server, client, True)):
                arguments = (source, target, sent, answers)
                threading.Thread(target=self._carry, args=arguments, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, sent: bytearray, answers: bool) -> None:
        """`sent`: what the client has sent since its last commit. `answers`: this is the server's direction."""
        with suppress(OSError):
            while part := source.recv(PART):
                if not answers:
                    sent += part
                elif COMMITTED in part:
                    if self._loses(bytes(sent)):
                        break
                    sent.clear()
                target.sendall(part)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        source.close()

    def _loses(self, sent: bytes) -> bool:
        with self._lock:
            if self._losing is None or self._losing not in sent:
                return False
            self._losing = None
        self.lost.set()
        return True
