"""Requests to the table's addresses: admitted by the gate, checked, answered by their operation's handler."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from typing import Any, Final

from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from staddle_server.api.answering import Answering, Method, Reading
from staddle_server.api.call_line import CallLine
from staddle_server.api.gate import Call, Gate
from staddle_server.api.http.connect import (
    JSON,
    ended,
    peer_of,
    token_in,
    trace_of,
)
from staddle_server.api.http.exchange import DISCONNECT, Exchange
from staddle_server.api.http.json_messages import compact_json, message_json, weigh_json
from staddle_server.api.http.rest.addresses import Addresses, AddressFound, given
from staddle_server.api.http.rest.operations import Operation, RestRequest, Streamed
from staddle_server.api.http.rest.sending import Sender
from staddle_server.base.call_ids import CALL_KEY
from staddle_server.base.errors import BadRequest
from staddle_server.catalog import Principal

PREFIX: Final = b"/v1/"
_UNKNOWN: Final = {"code": "not_found", "message": "no such address: /openapi.json lists them"}


class RestRoute(BaseRoute):
    """All addresses of a table, as one route: names in them may contain "/", encoded."""

    def __init__(
        self,
        gate: Gate,
        table: Iterable[Operation],
        threads: Executor,
        *,
        principal_of: Callable[[Request], Principal] | None = None,
        prefix: bytes = PREFIX,
    ) -> None:
        """`principal_of` says whose request it is: of its token, unless given. `prefix` is what its addresses begin
        with.
        """
        self._gate = gate
        self._threads = threads
        self._principal_of = principal_of or (lambda request: gate.principal_of(token_in(request)))
        self._prefix = prefix
        self._addresses = Addresses(table)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Return whether a request is for this route."""
        ours = scope["type"] == "http" and scope["raw_path"].startswith(self._prefix)
        return (Match.FULL if ours else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. A thread works for it, waits for its body, and sends a stream itself."""
        request = Request(scope, receive)
        found = self._addresses.find(scope["raw_path"])
        operation = found and found.operations.get("GET" if request.method == "HEAD" else request.method)
        if found is None or operation is None:
            await _no_operation(found)(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        exchange = Exchange(loop, receive)
        sender = Sender(loop, send, scope["state"]["cut"])
        following = loop.create_task(exchange.follow())
        task = _RestAnswering(
            self._gate, operation, request, exchange, sender, principal_of=self._principal_of
        )
        try:
            response = await loop.run_in_executor(self._threads, task.answer, found.segments)
        finally:
            following.cancel()
            exchange.cancel()
        if response is not None:
            await response(scope, receive, send)
        elif not sender.has_ended:
            with contextlib.suppress(asyncio.CancelledError):
                await following
            while (await receive())["type"] != DISCONNECT:
                pass


def _no_operation(found: AddressFound | None) -> Response:
    if found is None:
        return Response(compact_json(_UNKNOWN), 404, media_type=JSON)
    verbs = sorted({*found.operations, *(["HEAD"] if "GET" in found.operations else [])})
    allowed = ", ".join(verbs)
    body = {"code": "unimplemented", "message": f"this address takes {allowed}"}
    return Response(compact_json(body), 405, {"allow": allowed}, JSON)


class _RestAnswering:
    """One request, as a thread answers it."""

    def __init__(
        self,
        gate: Gate,
        operation: Operation,
        request: Request,
        exchange: Exchange,
        sender: Sender,
        *,
        principal_of: Callable[[Request], Principal],
    ) -> None:
        self._gate = gate
        self._operation = operation
        self._request = request
        self._exchange = exchange
        self._sender = sender
        self._principal_of = principal_of

    def answer(self, segments: Mapping[str, bytes]) -> Response | None:
        """Return the response; None if a stream was sent, or broken off."""
        name, request = self._operation.name, self._request
        line = CallLine(
            name,
            lambda: peer_of(request),
            logging.INFO,
            self._gate.observer,
            given_id=request.headers.get(CALL_KEY, ""),
        )
        try:
            with self._gate.observer.call_span(name, line.id, trace_of(request)):
                response = self._ended(segments, line)
        finally:
            line.leave()
        if self._sender.has_begun:
            self._sender.break_off()
            return None
        response.headers[CALL_KEY] = line.id
        return response

    def _ended(self, segments: Mapping[str, bytes], line: CallLine) -> Response:
        operation = self._operation

        def answer() -> Response:
            call = line.call = self._gate.admit_as(
                operation.name,
                operation.role,
                self._principal_of(self._request),
                self._exchange,
                stream=operation.is_stream,
            )
            values = given(operation, segments, self._request.scope["query_string"])
            return self._streamed(values, call, line) if operation.is_stream else self._unary(values, call)

        return ended(answer, operation.name, self._exchange, line)

    # ------------------------------------------------------------------ one message

    def _unary(self, values: Mapping[str, Any], call: Call) -> Response:
        def decode(body: bytes) -> RestRequest:
            self._gate.observer.received(len(body))
            self._check_body(body)
            return RestRequest(call, values, self._request, body, self._exchange)

        method = Method(self._operation.role, lambda asked, _: self._operation.handler(asked))
        answering = Answering(self._gate, method, Reading(decode, weigh_json))
        return self._json(answering.unary(self._exchange.messages(), call))

    def _check_body(self, body: bytes) -> None:
        """Check that a body is of a type that the operation takes. Raises BadRequest."""
        takes = self._operation.body
        if takes is None:
            if body:
                raise BadRequest("BAD_FIELD", "this address takes no body", field="body")
            return
        kind = self._request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if not kind and takes.message is None:
            return  # as `curl -T` sends bytes
        if kind not in takes.media_types:
            raise BadRequest(
                "BAD_FIELD",
                f"Content-Type: send {' or '.join(takes.media_types)}, not {kind[:80] or 'nothing'!r}",
                field="Content-Type",
            )
        encoding = self._request.headers.get("content-encoding", "identity")
        if takes.message is not None and encoding != "identity":
            raise BadRequest(
                "BAD_FIELD",
                f"Content-Encoding: send the body as it is, not {encoding[:80]!r}",
                field="Content-Encoding",
            )

    def _json(self, answer: Message | bytes | Streamed) -> Response:
        message = self._operation.answers[0].message
        if message is None or isinstance(answer, Streamed):
            raise AssertionError("an operation without a stream answers with a message")
        if isinstance(answer, bytes):
            answer = message.FromString(answer)
        response = Response(message_json(answer), self._operation.answers[0].status, media_type=JSON)
        self._gate.observer.sent(len(response.body))
        return response

    # ------------------------------------------------------------------ streams

    def _streamed(self, values: Mapping[str, Any], call: Call, line: CallLine) -> Response:
        streams = self._gate.streams
        # Its thread may still be at work when its caller has left.
        slot = streams.enter(call, call.principal.tenant, until_left=True)
        try:
            if self._operation.body is None:
                for body in self._exchange.messages():
                    self._check_body(body)
            else:
                self._check_body(b"")
            slot.moved()
            pieces = map(self._received, call.passing(slot.moving(self._exchange.pieces())))
            asked = RestRequest(call, values, self._request, b"", self._exchange, pieces)
            answer = self._operation.handler(asked)
            if not isinstance(answer, Streamed):
                return self._json(answer)
            self._send(answer, call.passing(slot.moving(answer.pieces)), line)
            return Response()
        finally:
            streams.leave(slot)

    def _received(self, piece: bytes) -> bytes:
        self._gate.observer.received(len(piece))
        return piece

    def _send(self, answer: Streamed, pieces: Iterator[bytes], line: CallLine) -> None:
        """Send a stream. Its reader must not wait for ever: the end of the call ends its connection."""
        sender, observer = self._sender, self._gate.observer
        self._exchange.add_callback(sender.break_off)
        try:
            sender.begin(answer.status, {**answer.headers, CALL_KEY: line.id})
            if self._request.method != "HEAD":
                for piece in pieces:
                    observer.sent(len(piece))
                    sender.piece(piece)
            sender.end()
        finally:
            close = getattr(answer.pieces, "close", None)
            if close is not None:
                close()
