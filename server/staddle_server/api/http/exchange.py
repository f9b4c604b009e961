"""One HTTP request as the connection of a call: its body on demand, and its end from either side."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any, Final

from staddle_server.api.gate import CallerGone
from staddle_server.base.errors import BadRequest
from staddle_server.base.limits import HTTP_SILENCE_S, MESSAGE_BYTES_MAX

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
DISCONNECT: Final = "http.disconnect"


class BodyTooLong(Exception):  # noqa: N818 - as over gRPC, the transport refuses it, not the service
    """A body is longer than a message may be."""


class Exchange:
    """A request in progress: the Connection of its call.

    The event loop's side is `follow` and `expire_after`; all else is for any thread.

    Attributes:
        expired: Whether it ended because the time that its caller allowed is over.
        silence_s: How long the body may pause.

    """

    def __init__(self, loop: asyncio.AbstractEventLoop, receive: Receive) -> None:
        self.expired = False
        self.silence_s = HTTP_SILENCE_S
        self._loop = loop
        self._receive = receive
        self._wanted = asyncio.Event()
        self._arrived: queue.SimpleQueue[tuple[bytes, bool] | Exception] = queue.SimpleQueue()
        """Pieces of the body, each with whether more follow; or why there are no more."""
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] | None = []

    # ------------------------------------------------------------------ a call's connection

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Register a callback for the end of the call; return False if it has already ended."""
        with self._lock:
            if self._callbacks is None:
                return False
            self._callbacks.append(callback)
            return True

    def cancel(self) -> None:
        """End the call; does nothing if it has already ended."""
        with self._lock:
            callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            callback()
        self._arrived.put(CallerGone())

    def pieces(self) -> Iterator[bytes]:
        """Yield the body, once, as it arrives. Each piece is read when it is wanted: its sender has to wait.

        Raises:
            CallerGone, BadRequest (it paused for too long).

        """
        more = True
        while more:
            self._loop.call_soon_threadsafe(self._wanted.set)
            found = self._arrived.get()
            if isinstance(found, Exception):
                raise found
            piece, more = found
            del found  # no local name holds a piece while its reader works on it
            if piece:
                yield piece
            del piece

    def messages(self, most: int = MESSAGE_BYTES_MAX) -> Iterator[bytes]:
        """Yield the body, the call's single message of at most so many bytes. Only then is it read, so its sender is
        known.

        Raises:
            CallerGone, BodyTooLong, BadRequest (it paused for too long).

        """
        pieces: list[bytes] = []
        size = 0
        for piece in self.pieces():
            size += len(piece)
            if size > most:
                raise BodyTooLong
            pieces.append(piece)
        whole = b"".join(pieces)
        pieces.clear()
        yield whole

    # ------------------------------------------------------------------ the event loop's side

    async def follow(self) -> None:
        """Read the body as it is wanted, then wait until the client has gone."""
        more = True
        while more:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                message = await asyncio.wait_for(self._receive(), self.silence_s)
            except TimeoutError:
                self._arrived.put(
                    BadRequest(
                        "BAD_SEQUENCE", f"the body paused for more than {self.silence_s:.0f} s: send it again"
                    )
                )
                return
            if message["type"] == DISCONNECT:
                self.cancel()
                return
            more = message["more_body"]
            self._arrived.put((message["body"], more))
            del message
        while (await self._receive())["type"] != DISCONNECT:
            pass
        self.cancel()

    def expire_after(self, seconds: float) -> asyncio.TimerHandle:
        """End the call when its caller no longer waits for it."""
        return self._loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        self.expired = True
        self.cancel()
