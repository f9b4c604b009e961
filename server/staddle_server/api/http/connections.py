"""HTTP connections: how many, from where, and for how long they may keep the server waiting."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from staddle_server.base.limits import (
    HTTP_CONNECTIONS_ADDRESS_MAX,
    HTTP_CONNECTIONS_MAX,
    HTTP_HANDSHAKE_S,
    HTTP_HEAD_S,
    HTTP_SILENCE_S,
)

log = logging.getLogger(__name__)
PAUSE_S: Final = 0.5
"""The wait after an accept that failed: the process has no file left."""

REFUSED_S: Final = 2.0
"""How long a client that did not send HTTP may go on, unheard, so that it can read why."""
_RESET: Final = struct.pack("ii", 1, 0)
"""Close at once, by a reset: what is not sent is not sent."""

Tls = Callable[[], ssl.SSLContext]


class HttpProtocol(H11Protocol):
    """A connection that ends when its client keeps the server waiting: for a head, or with unread answers."""

    def __init__(self, *arguments: Any, left: Callable[[], None], **more: Any) -> None:
        """`left` is called when the connection has ended."""
        super().__init__(*arguments, **more)
        self._left = left
        self._head_timer: asyncio.TimerHandle | None = None
        self._is_idle = False
        self._unread_timer: asyncio.TimerHandle | None = None
        self._unread_bytes = 0
        self._is_lost = False
        self._is_refused = False
        self.app_state["cut"] = self.cut

    def cut(self) -> None:
        """Break the connection off, so that its client sees an error, and never the end of an answer."""
        if self._is_lost:
            return
        connection = self.transport.get_extra_info("socket")
        if connection is not None:
            with contextlib.suppress(OSError):  # it is closed
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()

    def end(self) -> None:
        """End the connection at once. An answer that has not left whole is broken off: in HTTP/1.0, the end of the
        connection is that of the answer.
        """
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering or self.transport.get_write_buffer_size():
            self.cut()
        else:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._await_head(HTTP_HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._stop_waiting()
        self.resume_writing()
        try:
            super().connection_lost(exc)
        finally:
            self._left()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, and end the connection once its client has stopped sending: closing with bytes unread
        is a reset, which may take the answer away from the client.
        """
        text = msg.encode("ascii")
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(text)).encode()),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers),
            h11.Data(data=text),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self._is_refused = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._stop_waiting()
        self._head_timer = self.loop.call_later(REFUSED_S, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        if self._is_idle:
            self._await_head(HTTP_HEAD_S)
        super().data_received(data)
        self._stop_waiting_at_work()

    def on_response_complete(self) -> None:
        self._await_head(HTTP_SILENCE_S, idle=True)
        super().on_response_complete()  # which may begin the next request
        self._stop_waiting_at_work()

    # ------------------------------------------------------------------ for a head

    def _await_head(self, seconds: float, *, idle: bool = False) -> None:
        self._stop_waiting()
        self._is_idle = idle
        self._head_timer = self.loop.call_later(seconds, self._end_slow)

    def _stop_waiting(self) -> None:
        self._is_idle = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_waiting_at_work(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def _end_slow(self) -> None:
        if self._unread_timer is not None:  # the last answer is still being read
            self._await_head(HTTP_SILENCE_S, idle=True)
        else:
            self.end()

    # ------------------------------------------------------------------ for a reader

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _await_reader(self) -> None:
        self._unread_bytes = self.transport.get_write_buffer_size()
        self._unread_timer = self.loop.call_later(HTTP_SILENCE_S, self._end_unread)

    def _end_unread(self) -> None:
        """End the connection if its client has read nothing since."""
        if self.transport.get_write_buffer_size() < self._unread_bytes:
            self._await_reader()
        else:
            self.end()


class Acceptor:
    """Accepts connections on one socket, within the limits."""

    def __init__(
        self,
        listening: socket.socket,
        make: Callable[[Callable[[], None]], HttpProtocol],
        tls: Tls | None,
        threads: Executor,
    ) -> None:
        """`make` returns the protocol of a new connection; `tls` the context for it, which may change."""
        self._listening = listening
        self._make = make
        self._tls = tls
        self._threads = threads
        self._open: Counter[str] = Counter()
        self._handshakes: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Accept until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(self._listening)
            except OSError as error:
                log.warning("a connection could not be accepted: %s", error)
                await asyncio.sleep(PAUSE_S)
                continue
            host = address[0]
            if self._open.total() >= HTTP_CONNECTIONS_MAX or self._open[host] >= HTTP_CONNECTIONS_ADDRESS_MAX:
                connection.close()
                continue
            self._open[host] += 1
            task = loop.create_task(self._connect(connection, host))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _connect(self, connection: socket.socket, host: str) -> None:
        """Hand the connection to its protocol; after a failed handshake, close it."""
        loop = asyncio.get_running_loop()
        is_open = True

        def left() -> None:
            nonlocal is_open
            if is_open:
                is_open = False
                self._open[host] -= 1
                if not self._open[host]:
                    del self._open[host]

        try:
            secured: dict[str, Any] = {}
            if self._tls is not None:
                secured = {
                    "ssl": await loop.run_in_executor(self._threads, self._tls),
                    "ssl_handshake_timeout": HTTP_HANDSHAKE_S,
                }
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.connect_accepted_socket(lambda: self._make(left), connection, **secured)
        except (OSError, TimeoutError) as error:  # TLS errors are OSErrors
            log.debug("a connection from %s failed: %s", host, error)
            connection.close()
            left()
        except BaseException:
            connection.close()
            left()
            raise

    async def stop(self) -> None:
        """End the connections that are not made yet."""
        self._listening.close()
        for task in list(self._handshakes):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
