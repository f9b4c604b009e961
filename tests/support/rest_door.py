"""A plain client for the REST addresses of a service in this process."""

from __future__ import annotations

import json
from typing import Any, NamedTuple
from urllib.parse import quote

from http_door import JSON, Answer, ask
from servers import Running


class RestDoor(NamedTuple):
    """The addresses of one server."""

    running: Running
    port: int

    def headers(self, role: str) -> dict[str, str]:
        """The header with a token of a role."""
        return {"authorization": f"Bearer {self.running.token(role)}"}

    def get(self, path: str, role: str | None = "reader", verb: str = "GET", **headers: str) -> Answer:
        """A request without a body. `headers` have _ for -."""
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        return ask(self.port, path, None, more | (self.headers(role) if role else {}), verb)

    def send(self, verb: str, path: str, body: Any = None, role: str = "admin") -> Answer:
        """A request with a body in JSON, if there is one."""
        data = None if body is None else json.dumps(body).encode()
        return ask(self.port, path, data, self.headers(role) | {"content-type": JSON}, verb)


def name_of(text: str | bytes) -> str:
    """A name as one segment of an address."""
    return quote(text, safe="")
