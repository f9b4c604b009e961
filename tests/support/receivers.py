"""Receivers of notifications for tests: an HTTP server, and peers that misbehave."""

from __future__ import annotations

import contextlib
import http.server
import json
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from staddle_server.upkeep.notify.http_post import HttpUrl, parse_http_url


class Posted(NamedTuple):
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def value(self) -> Any:
        return json.loads(self.body)


class Receiver:
    """An HTTP server that keeps what it gets, and answers with `status`."""

    def __init__(self, server: http.server.ThreadingHTTPServer, scheme: str) -> None:
        self.got: queue.SimpleQueue[Posted] = queue.SimpleQueue()
        self.status = 200
        self.said = b""
        self.location = ""
        self.port = server.server_address[1]
        self._scheme = scheme

    def url(self, path: str = "/hook", host: str = "127.0.0.1") -> str:
        return f"{self._scheme}://{host}:{self.port}{path}"

    def parsed(self, path: str = "/hook", host: str = "127.0.0.1") -> HttpUrl:
        return parse_http_url(self.url(path, host))

    def next(self, timeout_s: float = 60.0) -> Posted:
        return self.got.get(timeout=timeout_s)

    def all(self) -> list[Posted]:
        return [self.got.get() for _ in range(self.got.qsize())]


@contextmanager
def receiving(tls: tuple[Path, Path] | None = None, port: int = 0) -> Iterator[Receiver]:
    """An HTTP server on loopback, with the certificate and key of `tls`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.got.put(Posted(self.path, dict(self.headers), body))
            self.send_response(receiver.status)
            if receiver.location:
                self.send_header("Location", receiver.location)
            self.send_header("Content-Length", str(len(receiver.said)))
            self.end_headers()
            self.wfile.write(receiver.said)

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # a client that refuses the certificate

    server = Server(("127.0.0.1", port), Handler)
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    receiver = Receiver(server, "http" if tls is None else "https")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def misbehaving(behave: Callable[[socket.socket, threading.Event], None]) -> Iterator[int]:
    """The port of a peer that does this with each connection, until the event is set."""
    over = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):  # the other side has gone
            behave(connection, over)

    def accept() -> None:
        while not over.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            connection.settimeout(30)
            threads.append(threading.Thread(target=serve, args=(connection,)))
            threads[-1].start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        over.set()
        thread.join()
        for each in threads:
            each.join()
        listener.close()
