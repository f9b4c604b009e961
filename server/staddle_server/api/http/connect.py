"""Unary calls in the form of the Connect protocol: POST /staddle.v1.StaddleService/METHOD.

Source: https://connectrpc.com/docs/protocol, "Unary-Request" and "Unary-Response".
"""

from __future__ import annotations

import asyncio
import base64
import http
import logging
import math
import re
import zlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Final, NamedTuple

from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import code_pb2
from staddle.v1 import service_pb2 as sv
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from staddle_server.api.answering import Answering, Method
from staddle_server.api.call_line import CallLine, free_frames, refusal_of
from staddle_server.api.error_table import code_of
from staddle_server.api.gate import Call, CallerGone, Gate
from staddle_server.api.http.exchange import BodyTooLong, Exchange
from staddle_server.api.http.json_messages import compact_json, json_reading_of, message_json
from staddle_server.api.messages import SERVICE, reading_of
from staddle_server.api.status import status_of
from staddle_server.base.call_ids import CALL_KEY
from staddle_server.base.errors import BadRequest, StaddleError, Unauthenticated
from staddle_server.base.limits import MESSAGE_BYTES_MAX, MIB
from staddle_server.base.observer import TRACE_KEYS

BEARER: Final = "bearer "
JSON: Final = "application/json"
PROTO: Final = "application/proto"
STREAM: Final = "application/connect+"
END_OF_STREAM: Final = 2
"""The flag of a stream's last envelope."""
TIMEOUT_MS: Final = re.compile(r"[0-9]{1,10}")

# https://connectrpc.com/docs/protocol#error-codes
STATUSES: Final = {
    "canceled": 499,
    "unknown": 500,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 400,
    "aborted": 409,
    "out_of_range": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "data_loss": 500,
    "unauthenticated": 401,
}


class Refusal(NamedTuple):
    """The end of a call that no error of the service describes: by its caller, or by the protocol."""

    code: str
    message: str


CANCELED: Final = Refusal("canceled", "the call was ended before its answer")
TOO_LONG: Final = Refusal(
    "resource_exhausted",
    f"the body is longer than {MESSAGE_BYTES_MAX // MIB} MiB, the limit of a message: send less at once",
)
EXPIRED: Final = Refusal("deadline_exceeded", "the call took longer than its Connect-Timeout-Ms")


def token_in(request: Request) -> str:
    """Return the text of the token that a request carries.

    Raises:
        Unauthenticated: It carries none.

    """
    value = request.headers.get("authorization", "")
    if value[: len(BEARER)].lower() != BEARER:
        raise Unauthenticated(
            "UNAUTHENTICATED", 'the call has no token: send the header "Authorization: Bearer TOKEN"'
        )
    return value[len(BEARER) :].strip()


def peer_of(request: Request) -> str:
    """Return the caller's address, as gRPC writes it."""
    if request.client is None:
        return ""
    host, port = request.client
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


def routes(gate: Gate, table: dict[str, Method], threads: Executor) -> list[Route]:
    """Return the routes of all methods; methods with streams answer that they need gRPC."""
    made = []
    for described in SERVICE.methods:
        name = described.name
        unary = not (described.client_streaming or described.server_streaming)
        endpoint = _UnaryMethod(gate, name, table[name], threads).respond if unary else _needs_grpc
        made.append(Route(f"/{SERVICE.full_name}/{name}", endpoint, methods=["POST"]))
    return made


async def _needs_grpc(request: Request) -> Response:
    """Answer a call of a method with streams: as a stream that ends with an error, if its caller speaks Connect."""
    name = request.url.path.rpartition("/")[2]
    why = Refusal("unimplemented", f"{name} is a stream: call it over gRPC, at the server's --listen")
    kind = request.headers.get("content-type", "")
    if not kind.startswith(STREAM):
        return refused(why)
    end = compact_json({"error": why._asdict()})
    return Response(bytes([END_OF_STREAM]) + len(end).to_bytes(4, "big") + end, media_type=kind)


class _UnaryMethod:
    """Answers the calls of one method."""

    def __init__(self, gate: Gate, name: str, method: Method, threads: Executor) -> None:
        self._gate = gate
        self._name = name
        self._method = method
        self._threads = threads
        self._level = logging.DEBUG if method.one_of_many else logging.INFO
        self._answers = {
            JSON: Answering(gate, method, json_reading_of(name)),
            PROTO: Answering(gate, method, reading_of(name)),
        }
        self._type: type[Message] = getattr(sv, SERVICE.methods_by_name[name].output_type.name)

    async def respond(self, request: Request) -> Response:
        """Answer one request. The thread that works for it waits for the body, as for a message of gRPC."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in self._answers:
            return Response(
                f"send the request as {JSON} or {PROTO}\n",
                http.HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                {"accept-post": f"{JSON}, {PROTO}"},
                "text/plain",
            )
        loop = asyncio.get_running_loop()
        exchange = Exchange(loop, request.receive)
        following = loop.create_task(exchange.follow())
        timer = None
        try:
            # A timeout that is not valid is refused where the call's line is written.
            if TIMEOUT_MS.fullmatch(timeout := request.headers.get("connect-timeout-ms", "")):
                timer = exchange.expire_after(int(timeout) / 1000)
            return await loop.run_in_executor(self._threads, self._answer, request, exchange, kind)
        finally:
            if timer is not None:
                timer.cancel()
            following.cancel()
            exchange.cancel()

    def _answer(self, request: Request, exchange: Exchange, kind: str) -> Response:
        line = CallLine(
            self._name,
            lambda: peer_of(request),
            self._level,
            self._gate.observer,
            given_id=request.headers.get(CALL_KEY, ""),
        )
        try:
            with self._gate.observer.call_span(self._name, line.id, trace_of(request)):
                response = self._ended(request, exchange, kind, line)
        finally:
            line.leave()
        response.headers[CALL_KEY] = line.id
        return response

    def _ended(self, request: Request, exchange: Exchange, kind: str, line: CallLine) -> Response:
        def answer() -> Response:
            call = line.call = self._gate.admit(
                self._name, self._method.role, token_in(request), exchange, stream=False
            )
            response = self._encoded(self._called(request, exchange, kind, call), kind)
            self._gate.observer.sent(len(response.body))
            return response

        return ended(answer, self._name, exchange, line)

    def _called(self, request: Request, exchange: Exchange, kind: str, call: Call) -> Any:
        _check_headers(request)
        messages = exchange.messages()
        if request.headers.get("content-encoding", "identity") == "gzip":
            messages = map(inflated, messages)
        return self._answers[kind].unary(map(self._received, messages), call)

    def _received(self, message: bytes) -> bytes:
        self._gate.observer.received(len(message))
        return message

    def _encoded(self, answer: Message | bytes, kind: str) -> Response:
        if kind == PROTO:
            data = answer if isinstance(answer, bytes) else answer.SerializeToString()
            return Response(data, media_type=PROTO)
        message = self._type.FromString(answer) if isinstance(answer, bytes) else answer
        return Response(message_json(message), media_type=JSON)


def trace_of(request: Request) -> dict[str, str]:
    """Return W3C's trace context in a request's headers."""
    return {key: request.headers[key] for key in TRACE_KEYS if key in request.headers}


def _check_headers(request: Request) -> None:
    """Check what Connect says about a request besides its body. Raises BadRequest."""
    version = request.headers.get("connect-protocol-version", "1")
    if version != "1":
        raise _bad_header("Connect-Protocol-Version", f"{version!r} is not supported; send 1")
    timeout = request.headers.get("connect-timeout-ms")
    if timeout is not None and not TIMEOUT_MS.fullmatch(timeout):
        raise _bad_header("Connect-Timeout-Ms", "expected milliseconds, in at most 10 digits")
    encoding = request.headers.get("content-encoding", "identity")
    if encoding not in {"identity", "gzip"}:
        raise _bad_header("Content-Encoding", f"{encoding!r} is not supported; send gzip or identity")


def _bad_header(name: str, why: str) -> BadRequest:
    return BadRequest("BAD_FIELD", f"{name}: {why}", field=name)


def inflated(data: bytes) -> bytes:
    """Return what a gzip body holds, never more than a message may have.

    Raises:
        BadRequest: It is not gzip, or cut short.
        BodyTooLong: It holds more.

    """
    reader = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        found = reader.decompress(data, MESSAGE_BYTES_MAX + 1)
    except zlib.error as error:
        raise BadRequest(
            "BAD_FIELD", "the body is not gzip, as its Content-Encoding says", field="message"
        ) from error
    if len(found) > MESSAGE_BYTES_MAX:
        raise BodyTooLong
    if not reader.eof or reader.unused_data:
        raise BadRequest("BAD_FIELD", "the gzip body is cut short, or more follows it", field="message")
    return found


# ---------------------------------------------------------------------- errors


def failed(error: StaddleError) -> Response:
    """Return the response for an error of the service."""
    status = status_of(error)
    code = "canceled" if status.code == code_pb2.CANCELLED else code_pb2.Code.Name(status.code).lower()
    body = {"code": code, "message": status.message, "details": list(map(_detail, status.details))}
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if code == "unauthenticated":
        headers["www-authenticate"] = "Bearer"
    return Response(compact_json(body), STATUSES[code], headers, JSON)


def refused(refusal: Refusal) -> Response:
    """Return the response for the end of a call that is not an error of the service."""
    return Response(compact_json(refusal._asdict()), STATUSES[refusal.code], media_type=JSON)


def ended(
    answer: Callable[[], Response],
    name: str,
    exchange: Exchange,
    line: CallLine,
    *,
    of_error: Callable[[StaddleError], Response] = failed,
    of_refusal: Callable[[Refusal], Response] = refused,
) -> Response:
    """End a call with its answer, or with the response for what that raised; write its line."""
    try:
        response = answer()
    except CallerGone:
        line.end("DEADLINE_EXCEEDED" if exchange.expired else "CANCELLED")
        return of_refusal(EXPIRED if exchange.expired else CANCELED)
    except BodyTooLong:
        line.end("RESOURCE_EXHAUSTED")
        return of_refusal(TOO_LONG)
    except Exception as e:  # noqa: BLE001 - nothing but a response leaves a handler
        refusal = refusal_of(e, name)
        line.end(code_of(refusal).name, refusal)
        response = of_error(refusal)
        free_frames(refusal)
        return response
    line.end("OK")
    return response


def _detail(packed: Any) -> dict[str, Any]:
    name = packed.TypeName()
    debug = json_format.MessageToDict(packed)
    debug.pop("@type", None)
    value = base64.b64encode(packed.value).decode().rstrip("=")
    return {"type": name, "value": value, "debug": debug}
