"""One HTTP request as the connection of a call: its body on demand, and its end from either side."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from concurrent.futures import Future, InvalidStateError
from typing import Any, Final

from staddle_server.api.gate import CallerGone
from staddle_server.base.errors import BadRequest, StaddleError
from staddle_server.base.limits import HTTP_SILENCE_S, MESSAGE_BYTES_MAX

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_DISCONNECT: Final = "http.disconnect"


class BodyTooLong(Exception):  # noqa: N818 - as over gRPC, the transport refuses it, not the service
    """A body is longer than a message may be."""


class Exchange:
    """A request in progress: the Connection of its call.

    The event loop's side is `follow` and `expire_after`; all else is for any thread.

    Attributes:
        expired: Whether it ended because the time that its caller allowed is over.

    """

    def __init__(self, loop: asyncio.AbstractEventLoop, receive: Receive) -> None:
        self.expired = False
        self._loop = loop
        self._receive = receive
        self._wanted = asyncio.Event()
        self._body: Future[bytes] = Future()
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
        self._fail(CallerGone())

    def messages(self) -> Iterator[bytes]:
        """Yield the body, the call's single message. Only then is it read, so its sender is known.

        Raises:
            CallerGone, BodyTooLong, BadRequest (it paused for too long).

        """
        self._loop.call_soon_threadsafe(self._wanted.set)
        yield self._body.result()

    # ------------------------------------------------------------------ the event loop's side

    async def follow(self) -> None:
        """Read the body once it is wanted, then wait until the client has gone."""
        await self._wanted.wait()
        try:
            body = await self._read()
        except (StaddleError, BodyTooLong) as error:
            self._fail(error)
            return
        with contextlib.suppress(InvalidStateError):
            self._body.set_result(body)
        del body
        while (await self._receive())["type"] != _DISCONNECT:
            pass
        self.cancel()

    async def _read(self) -> bytes:
        pieces: list[bytes] = []
        size, more = 0, True
        while more:
            try:
                message = await asyncio.wait_for(self._receive(), HTTP_SILENCE_S)
            except TimeoutError:
                raise BadRequest(
                    "BAD_SEQUENCE", f"the body paused for more than {HTTP_SILENCE_S:.0f} s: send it again"
                ) from None
            if message["type"] == _DISCONNECT:
                self.cancel()
                break
            pieces.append(message["body"])
            size, more = size + len(pieces[-1]), message["more_body"]
            if size > MESSAGE_BYTES_MAX:
                raise BodyTooLong
        return b"".join(pieces)

    def expire_after(self, seconds: float) -> asyncio.TimerHandle:
        """End the call when its caller no longer waits for it."""
        return self._loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        self.expired = True
        self.cancel()

    def _fail(self, error: BaseException) -> None:
        with contextlib.suppress(InvalidStateError):
            self._body.set_exception(error)
