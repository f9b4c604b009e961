"""A real TCP proxy between an S3 client and a server, which does harm to one answer at a time."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

Harm = Callable[[bytes, bytes], bytes | None]
"""From a request's head and its whole answer: what the client gets, before the connection is cut; None: the whole answer."""

_LENGTH = re.compile(rb"content-length: *([0-9]+)", re.IGNORECASE)


class Proxy:
    """Passes requests to 127.0.0.1:`port`, each on a connection of its own, one after the other per connection.

    Attributes:
        requests: The first lines of all requests that came.

    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._harm: Harm = lambda _request, _answer: None
        self._swallow: Callable[[bytes], bytes | None] = lambda _request: None
        self.requests: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def harm(self, harm: Harm) -> None:
        """What is done to the answers from now on. The request has reached the server."""
        self._harm = harm

    def instead(self, swallow: Callable[[bytes], bytes | None]) -> None:
        """What is answered from now on in place of the server, which then gets no request; None: the server is asked."""
        self._swallow = swallow

    def stop(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError, ConnectionError):
            while (request := _message(client)) is not None:
                head = request.partition(b"\r\n\r\n")[0]
                self.requests.append(head.partition(b"\r\n")[0].decode())
                answer = self._swallow(head)
                if answer is not None:
                    client.sendall(answer)
                    return
                with socket.create_connection(("127.0.0.1", self._port)) as server:
                    server.sendall(request)
                    answer = _message(server, head=head.startswith(b"HEAD"))
                if answer is None:  # the server has ended
                    return
                harmed = self._harm(head, answer)
                if harmed is not None:
                    client.sendall(harmed)
                    return
                client.sendall(answer)


def once(method: str, then: Callable[[bytes], bytes], *, containing: str = "") -> Harm:
    """Harms the first answer to such a request, and no other."""
    left = [True]

    def harm(request: bytes, answer: bytes) -> bytes | None:
        line = request.partition(b"\r\n")[0].decode()
        if left[0] and line.startswith(method + " ") and containing in line:
            left[0] = False
            return then(answer)
        return None

    return harm


def status(code: int, s3_code: str) -> bytes:
    """An answer of an S3 server that fails."""
    body = f"<Error><Code>{s3_code}</Code><Message>no</Message></Error>".encode()
    return b"HTTP/1.1 %d No\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (code, len(body), body)


def _message(peer: socket.socket, *, head: bool = False) -> bytes | None:
    """One request or answer, whole; None: the peer has closed. `head`: the answer to HEAD, which has no body."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = peer.recv(65_536)
        if not part:
            return None
        data += part
    top, _, body = data.partition(b"\r\n\r\n")
    if head or top.startswith((b"HTTP/1.1 204", b"HTTP/1.1 304")):
        return data
    if b"transfer-encoding: chunked" in top.lower():
        while not body.endswith(b"0\r\n\r\n") and (part := peer.recv(65_536)):
            body += part
        return top + b"\r\n\r\n" + body
    found = _LENGTH.search(top)
    length = int(found.group(1)) if found else 0
    parts, have = [body], len(body)
    while have < length:
        part = peer.recv(65_536)
        if not part:
            break
        parts.append(part)
        have += len(part)
    return top + b"\r\n\r\n" + b"".join(parts)
