"""The HTTP door of a service in this process, and a plain client for it."""

from __future__ import annotations

import base64
import http.client
import json
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from google.protobuf import json_format
from google.rpc import error_details_pb2
from servers import Running
from staddle.v1 import service_pb2 as sv
from staddle_server.api.http.connect import STATUSES
from staddle_server.api.http.metrics import Metrics
from staddle_server.api.http.server import Opening
from staddle_server.api.messages import SERVICE

JSON = "application/json"
PROTO = "application/proto"


def open_http(running: Running) -> int:
    """Serve HTTP too, on a free port of loopback. `running.observer` counts, if it is Metrics."""
    observer = running.observer
    metrics = observer if isinstance(observer, Metrics) else Metrics()
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    port: int = listening.getsockname()[1]
    running.service.start_http(Opening(listening, None, metrics, None))
    return port


class Answer(NamedTuple):
    """A response."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def said(self) -> dict[str, Any]:
        """The body, which is JSON."""
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def info(self) -> error_details_pb2.ErrorInfo:
        """The details of an error."""
        value = self.said["details"][0]["value"]
        return error_details_pb2.ErrorInfo.FromString(base64.b64decode(value + "=="))


def ask(
    port: int, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None, verb: str = ""
) -> Answer:
    """One request over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(verb or ("GET" if body is None else "POST"), path, body, dict(headers or {}))
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def path_of(method: str) -> str:
    return f"/{SERVICE.full_name}/{method}"


def call(
    port: int, method: str, token: str | None, body: bytes = b"{}", kind: str = JSON, **more: str
) -> Answer:
    """One call in Connect's form. `more` are further headers, with _ for -."""
    headers = {"content-type": kind, **{name.replace("_", "-"): value for name, value in more.items()}}
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    return ask(port, path_of(method), body, headers)


class HttpError(Exception):
    """The end of a call with an error."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"{answer.status} {answer.body[:300]!r}")
        assert answer.status == STATUSES[answer.said["code"]]
        self.code = "CANCELLED" if answer.said["code"] == "canceled" else answer.said["code"].upper()
        self.reason = answer.info.reason


class HttpStub:
    """Calls unary methods as the generated client does."""

    def __init__(self, port: int, token: str | None, kind: str) -> None:
        self._port, self._token, self._kind = port, token, kind

    def __getattr__(self, name: str) -> Callable[[Any], Any]:
        answer_type = getattr(sv, SERVICE.methods_by_name[name].output_type.name)

        def called(request: Any) -> Any:
            as_json = self._kind == JSON
            body = json_format.MessageToJson(request).encode() if as_json else request.SerializeToString()
            found = call(self._port, name, self._token, body, self._kind)
            if found.status != 200:
                raise HttpError(found)
            assert found.headers["content-type"] == self._kind
            if as_json:
                return json_format.Parse(found.body, answer_type())
            return answer_type.FromString(found.body)

        return called


@contextmanager
def raw(port: int) -> Iterator[socket.socket]:
    """A connection for whatever bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        yield connection


def rest_of(connection: socket.socket) -> bytes:
    """What arrives until the server closes."""
    found = b""
    try:
        while piece := connection.recv(65536):
            found += piece
    except ConnectionResetError:
        pass
    return found


def answer_of(connection: socket.socket) -> Answer:
    """The next response on a connection."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return Answer(response.status, response.headers, response.read())
