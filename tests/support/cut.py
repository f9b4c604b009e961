"""A connection between client and server that a test can cut, as when a cable is pulled or a process is killed."""

from __future__ import annotations

import math
import os
import select
import socket
import struct
import threading
from contextlib import suppress
from typing import Self

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends RST."""
PIECE_BYTES = 1 << 16


class Line:
    """Passes one connection on to a port of this machine until it is cut, or until so many bytes have come from both ends."""

    def __init__(self, port: int, bytes_max: float = math.inf) -> None:
        self._port = port
        self._bytes_left = bytes_max
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._wakes, self._wake = os.pipe()
        self._ends: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        """Reset both ends, and refuse new connections. May be called again."""
        with suppress(OSError):
            os.write(self._wake, b"1")
        self._thread.join(60)
        assert not self._thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        os.close(self._wake)
        os.close(self._wakes)

    def _run(self) -> None:
        with self._listener:
            ready, _, _ = select.select([self._listener, self._wakes], [], [])
            if self._listener in ready:
                self._ends = [self._listener.accept()[0], socket.create_connection(("127.0.0.1", self._port))]
                self._pass_on()
        for end in self._ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            end.close()

    def _pass_on(self) -> None:
        one, other = self._ends
        one.setblocking(False)
        other.setblocking(False)
        waiting = {one: b"", other: b""}
        """What is still to be sent to each."""
        while True:
            readable = [end for end in (one, other) if not waiting[other if end is one else one]]
            ready, writable, _ = select.select(
                [*readable, self._wakes], [e for e in waiting if waiting[e]], []
            )
            if self._wakes in ready:
                return
            try:
                for end in writable:
                    waiting[end] = waiting[end][end.send(waiting[end]) :]
                for end in ready:
                    assert isinstance(end, socket.socket)
                    data = end.recv(PIECE_BYTES)
                    self._bytes_left -= len(data)
                    if not data or self._bytes_left < 0:
                        return
                    waiting[other if end is one else one] = data
            except ConnectionError:
                return
