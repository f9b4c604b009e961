"""Counts the round trips between a program and a PostgreSQL server: a proxy that sees which side speaks."""

from __future__ import annotations

import select
import socket
import tempfile
import threading
from pathlib import Path

BYTES = 1 << 16


class RoundTrips:
    """Listens on a Unix socket, and passes everything on to another one. Threads end with their connections."""

    def __init__(self, server: Path) -> None:
        """`server`: the directory of the socket of the database."""
        self._server = str(server / ".s.PGSQL.5432")
        self.place = Path(tempfile.mkdtemp(prefix="rt", dir="/tmp"))
        self.count = 0
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.place / ".s.PGSQL.5432"))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """No further connections."""
        self._listener.shutdown(socket.SHUT_RDWR)  # closing alone leaves a thread in accept for ever
        self._listener.close()
        (self.place / ".s.PGSQL.5432").unlink()
        self.place.rmdir()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        """A round trip begins when the client speaks after the server has spoken."""
        server = socket.socket(socket.AF_UNIX)
        with client, server:
            server.connect(self._server)
            server_spoke = True
            while True:
                for source in select.select([client, server], [], [])[0]:
                    if not (data := source.recv(BYTES)):
                        return
                    if source is client and server_spoke:
                        with self._lock:
                            self.count += 1
                    server_spoke = source is server
                    try:
                        (server if source is client else client).sendall(data)
                    except BrokenPipeError:
                        return
