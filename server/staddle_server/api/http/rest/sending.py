"""An answer that a thread sends while it makes it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from typing import Any

Send = Callable[[Any], Awaitable[None]]


class Sender:
    """Sends an answer from a thread, at most one piece ahead of what its reader's connection takes.

    Attributes:
        has_begun: Whether the head was sent, so that no other answer can be.
        has_ended: Whether all of it was sent, or is being sent.

    """

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Send, cut: Callable[[], None]) -> None:
        """`cut` breaks the connection off; it is called on the event loop."""
        self.has_begun = self.has_ended = False
        self._loop = loop
        self._send = send
        self._cut = cut
        self._last: Future[None] | None = None

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the head."""
        self.has_begun = True
        head = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        self._put({"type": "http.response.start", "status": status, "headers": head})

    def piece(self, data: bytes) -> None:
        """Send the next bytes."""
        self._put({"type": "http.response.body", "body": data, "more_body": True})

    def end(self) -> None:
        """Send the end, and wait until everything is on its way."""
        self._put({"type": "http.response.body", "body": b"", "more_body": False})
        self._wait()

    def break_off(self) -> None:
        """Break the connection off, unless the answer is complete: its reader must not take it for whole."""
        self._loop.call_soon_threadsafe(self._cut_unless_ended)

    def _cut_unless_ended(self) -> None:
        if not self.has_ended:
            self._cut()

    def _put(self, message: dict[str, Any]) -> None:
        self._wait()
        self._last = asyncio.run_coroutine_threadsafe(self._sent(message), self._loop)

    async def _sent(self, message: dict[str, Any]) -> None:
        # Known before the end leaves, on the event loop: with it the request ends, and so does its call.
        self.has_ended = message.get("more_body") is False
        await self._send(message)
        # On the event loop, before anything on it can learn that the answer is complete.
        self.has_ended = not message.get("more_body", True)

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()
