"""Headers that every answer has unless its handler sets them: nothing is cached, framed, or guessed."""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

DEFAULTS: Final = {
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
}
ONLY_TLS: Final = {**DEFAULTS, b"strict-transport-security": b"max-age=2592000"}
"""Over TLS, browsers are asked never to use this host without it, for 30 days from the last answer."""


class Guarded:
    """An application whose answers have these headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        defaults = ONLY_TLS if scope.get("scheme") == "https" else DEFAULTS

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = message.setdefault("headers", [])
                names = {name.lower() for name, _ in given}
                message["headers"] = [
                    *given,
                    *((name, value) for name, value in defaults.items() if name not in names),
                ]
            await send(message)

        await self._app(scope, receive, guarded)
