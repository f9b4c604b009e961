"""One try to reach a target, which ends in time whatever the other side does."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Self

from staddle_server.base.threads import Background
from staddle_server.upkeep.events.kinds import printable

LOOK_S: Final = 0.25
CONNECT_S: Final = 10.0
QUIET_S: Final = 15.0
"""How long the other side may send nothing at all."""
WORDS_CHARS_MAX: Final = 300


class TargetError(Exception):
    """A target could not be reached, or refused. The message says why, in words, without secrets."""

    def __init__(self, words: str) -> None:
        super().__init__(printable(words, WORDS_CHARS_MAX))


class Attempt:
    """A try with a deadline. Another thread cuts its connection when the deadline has passed, or at a stop."""

    def __init__(self, timeout_s: float, stopping: Callable[[], bool] = lambda: False) -> None:
        self._timeout_s = timeout_s
        self._until_s = time.monotonic() + timeout_s
        self._stopping = stopping
        self._socket: socket.socket | None = None
        self.was_cut = False

    def left_s(self) -> float:
        """Return how much time is left. TargetError: none, or the server stops."""
        left_s = self._until_s - time.monotonic()
        if self.was_cut or left_s <= 0 or self._stopping():
            raise self.late()
        return left_s

    def late(self) -> TargetError:
        """Return the error for a try that took too long."""
        if self._stopping():
            return TargetError("the server stopped during the try")
        return TargetError(f"no complete answer within {self._timeout_s:g} s")

    def connect(self, host: str, port: int) -> socket.socket:
        """Return a connection. TargetError."""
        with reasons(self, host):
            made = socket.create_connection((host, port), min(CONNECT_S, self.left_s()))
            made.settimeout(QUIET_S)
            return self.watched(made)

    def secured(self, plain: socket.socket, context: ssl.SSLContext, host: str) -> ssl.SSLSocket:
        """Return the connection with TLS, with the other side's certificate verified for `host`."""
        made = context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
        self.watched(made)
        made.do_handshake()
        return made

    def watched(self, connection: socket.socket) -> socket.socket:
        """Cut this connection, from now on, when the time is over."""
        self._socket = connection
        return connection

    def close(self) -> None:
        """Close the connection, wherever the try ended."""
        if self._socket is not None:
            self._socket.close()

    def look(self) -> None:
        """Cut the connection if the time is over."""
        if self._socket is not None and (self._until_s <= time.monotonic() or self._stopping()):
            self.was_cut = True
            with contextlib.suppress(OSError):
                # The plain one: that of TLS is not made for another thread.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class Watchdog:
    """Looks after all tries that are under way, on one thread."""

    def __init__(self) -> None:
        self._attempts: set[Attempt] = set()
        self._thread = Background("notify-deadlines", LOOK_S, self._look)
        self._stopping = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def cut_all(self) -> None:
        """Cut all tries, and those to come."""
        self._stopping = True

    def stop(self) -> None:
        """Cut all tries, and stop the thread."""
        self.cut_all()
        self._thread.stop()

    @contextmanager
    def attempt(self, timeout_s: float) -> Iterator[Attempt]:
        """Return a try that is looked after during the block."""
        made = Attempt(timeout_s, lambda: self._stopping)
        self._attempts.add(made)
        try:
            yield made
        finally:
            self._attempts.discard(made)
            made.close()

    def _look(self) -> None:
        for each in list(self._attempts):
            each.look()


@contextmanager
def reasons(attempt: Attempt, host: str) -> Iterator[None]:
    """Turn the errors of connections into a TargetError."""
    try:
        yield
    except TargetError:
        raise
    except Exception as error:
        if attempt.was_cut:
            raise attempt.late() from error
        words = _words(error, host)
        if words is None:
            raise
        raise TargetError(words) from error


def _words(error: Exception, host: str) -> str | None:
    if isinstance(error, socket.gaierror | UnicodeError):
        return f"the host {host} is unknown ({error})"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of {host} is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"no TLS connection with {host}: {error.reason or error}"
    if isinstance(error, TimeoutError):
        return f"no answer from {host}"
    if isinstance(error, OSError):
        return f"no connection with {host}: {error.strerror or error}"
    return None
