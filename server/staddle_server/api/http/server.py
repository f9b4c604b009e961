"""The HTTP server: a thread with an event loop, which the calls' own threads never hold up."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, Final, NamedTuple

from starlette.applications import Starlette
from uvicorn import Config
from uvicorn.server import ServerState

from staddle_server.api.answering import Method
from staddle_server.api.gate import Gate
from staddle_server.api.http import connect
from staddle_server.api.http.connections import Acceptor, HttpProtocol, Tls
from staddle_server.api.http.headers import Guarded
from staddle_server.api.http.metrics import Metrics, MetricsPage
from staddle_server.api.http.pages.site import Dashboard
from staddle_server.api.http.pages.table import LINKS, PAGES
from staddle_server.api.http.pages.visit import PageSources
from staddle_server.api.http.rest.calls import Calls
from staddle_server.api.http.rest.reference import reference_routes
from staddle_server.api.http.rest.serving import RestRoute
from staddle_server.api.http.rest.table import RestParts, operations
from staddle_server.api.http.state import Sources, StateCollector
from staddle_server.base.limits import HTTP_CONNECTIONS_MAX, HTTP_HEAD_BYTES_MAX, HTTP_SILENCE_S
from staddle_server.base.threads import Threads, no_thread, start_thread

log = logging.getLogger(__name__)
GRACE_S: Final = 1.0
"""How long remaining calls may take for their answer when the server stops."""
LOOK_S: Final = 0.05
BACKLOG: Final = 128


class Opening(NamedTuple):
    """What a listener is opened with.

    Attributes:
        listening: A bound socket.
        tls: Returns the context of each new connection; None without TLS.
        metrics: The counters of the server, which observe it already.
        certificate_ends: When the certificate expires, in seconds since 1970; None without TLS.

    """

    listening: socket.socket
    tls: Tls | None
    metrics: Metrics
    certificate_ends: Callable[[], float] | None


class HttpServer:
    """Serves HTTP on one socket. Start it once, stop it once."""

    def __init__(
        self,
        gate: Gate,
        table: dict[str, Method],
        metrics: Metrics,
        sources: Sources,
        *,
        pages: PageSources,
        parts: RestParts,
        public: bool,
    ) -> None:
        """`public`: metrics need no token."""
        self._threads = Threads(HTTP_CONNECTIONS_MAX, "call-http", ahead=1)
        page = MetricsPage(gate, metrics, StateCollector(sources), self._threads, public=public)
        self._site = site = Dashboard(gate, table, pages, pages=PAGES, links=LINKS, threads=self._threads)
        addresses = operations(Calls(table), parts)
        rest = [
            RestRoute(gate, addresses, self._threads),
            site.downloads(addresses),
            *reference_routes(addresses),
        ]
        calls = connect.routes(gate, table, self._threads)
        routes = [*rest, *calls, page.route(), *site.routes()]
        app = Starlette(routes=routes, exception_handlers=dict.fromkeys((404, 405), site.unknown))
        self._config = Config(
            Guarded(app),
            loop="asyncio",
            http=HttpProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=HTTP_HEAD_BYTES_MAX,
            # Its own time for idle connections; HttpProtocol's ends them first.
            timeout_keep_alive=int(2 * HTTP_SILENCE_S),
        )
        # What clients do wrong is no matter for the log.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._state = ServerState()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread: threading.Thread | None = None

    def start(self, listening: socket.socket, tls: Tls | None) -> None:
        """Listen and serve on a bound socket. `tls` returns the context for each new connection.

        Raises:
            OSError: Another program listens there.
            RuntimeError, Exhausted (TOO_MANY): The system does not give the threads that the server needs.

        """
        self._config.load()
        self._threads.start()
        if self._threads.is_short:
            raise no_thread()
        listening.setblocking(False)
        listening.listen(BACKLOG)
        acceptor = Acceptor(listening, self._protocol, tls, self._threads)
        self._thread = start_thread("http", lambda: self._run(acceptor))

    def _protocol(self, left: Callable[[], None]) -> HttpProtocol:
        return HttpProtocol(
            config=self._config, server_state=self._state, app_state={}, _loop=self._loop, left=left
        )

    def _run(self, acceptor: Acceptor) -> None:
        self._loop.set_exception_handler(_log_fault)
        try:
            self._loop.run_until_complete(self._serve(acceptor))
        finally:
            self._loop.close()

    async def _serve(self, acceptor: Acceptor) -> None:
        accepting = self._loop.create_task(acceptor.run())
        while not self._stopping.is_set():
            date = formatdate(usegmt=True).encode()
            self._state.default_headers = [(b"date", date)]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), 1.0)
        accepting.cancel()
        await acceptor.stop()
        await self._end_connections()

    async def _end_connections(self) -> None:
        """Let the calls in progress answer, then end what is left."""
        for connection in list(self._state.connections):
            connection.shutdown()
        end_s = self._loop.time() + GRACE_S
        while self._state.connections and self._loop.time() < end_s:
            await asyncio.sleep(LOOK_S)
        for connection in list(self._state.connections):
            if isinstance(connection, HttpProtocol):  # as every one is
                connection.end()
        while self._state.tasks and self._loop.time() < end_s + GRACE_S:
            await asyncio.sleep(LOOK_S)

    def stop(self) -> None:
        """End the calls in progress, and return when their connections are closed.

        The gate is closed before, so new calls are refused with a reason.
        """
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()
        self._threads.shutdown(wait=False)


def _log_fault(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    log.error("a fault in the HTTP server: %s", context.get("message"), exc_info=context.get("exception"))
