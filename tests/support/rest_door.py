"""A plain client for the REST addresses of a service in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from google.protobuf import json_format
from google.protobuf.message import Message
from http_door import JSON, Answer, HttpError, ask
from servers import Running
from staddle.v1 import service_pb2 as sv
from staddle_server.api.answering import Method
from staddle_server.api.http.rest import kinds
from staddle_server.api.http.rest.calls import Calls
from staddle_server.api.http.rest.operations import PATH, Operation
from staddle_server.api.http.rest.table import RestParts, operations
from staddle_server.api.messages import SERVICE
from staddle_server.base.types import TokenRole

TABLE = operations(
    Calls({each.name: Method(TokenRole.READER, lambda *_: None) for each in SERVICE.methods}),
    RestParts(None, None, None, None),  # type: ignore[arg-type] # nothing is called
)
"""The table, without what answers."""


class RestDoor(NamedTuple):
    """The addresses of one server."""

    running: Running
    port: int

    def headers(self, role: str) -> dict[str, str]:
        """The header with a token of a role."""
        return {"Authorization": f"Bearer {self.running.token(role)}"}

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


# ---------------------------------------------------------------------- calls of the service


class NoAddressError(Exception):
    """No address is for this request of an RPC."""


def address_of(method: str, request: Message) -> tuple[Operation, str, bytes | None]:
    """The address that does what a request of an RPC asks for, with its body. Raises NoAddressError."""
    wanted = json_format.MessageToDict(request)
    for row in (each for each in TABLE if each.name == method):
        found = _at(row, dict(wanted))
        if found is not None:
            return found
    raise NoAddressError


def _at(row: Operation, left: dict[str, Any]) -> tuple[Operation, str, bytes | None] | None:
    path, query = row.path, []
    for one in row.parameters:
        value = left.pop(one.field or one.name, None)
        if isinstance(value, dict):
            value = value["backup"] if "backup" in value else f"at={value['at']}"
        if one.where == PATH:
            if not value and one.kind is not kinds.SELECTOR:
                return None
            path = path.replace(f"{{{one.name}}}", name_of(value or "latest"))
        elif value is not None:
            query += [(one.name, _text(each)) for each in (value if isinstance(value, list) else [value])]
    if (left and row.body is None) or set(left) & set(row.body.without if row.body else ()):
        return None
    body = None if row.body is None else json.dumps(left).encode()
    return row, path + ("?" + urlencode(query) if query else ""), body


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class RestStub:
    """Calls methods at their addresses, as the generated client does."""

    def __init__(self, port: int, token: str) -> None:
        self._port, self._token = port, token

    def __getattr__(self, name: str) -> Callable[[Message], Any]:
        answer_type = getattr(sv, SERVICE.methods_by_name[name].output_type.name)

        def called(request: Message) -> Any:
            row, path, body = address_of(name, request)
            headers = {"authorization": f"Bearer {self._token}"} | ({"content-type": JSON} if body else {})
            found = ask(self._port, path, body, headers, row.verb)
            if found.status != 200:
                raise HttpError(found)
            return json_format.Parse(found.body, answer_type())

        return called
