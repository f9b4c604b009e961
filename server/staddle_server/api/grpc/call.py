"""gRPC calls: the token in their metadata, their messages, and their final status."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn

import grpc

from staddle_server.api.answering import Answering, Method, Reading
from staddle_server.api.call_line import CallLine, refusal_of
from staddle_server.api.error_table import code_of
from staddle_server.api.gate import CallerGone, Gate
from staddle_server.api.grpc.status import abort_with
from staddle_server.base.call_ids import CALL_KEY
from staddle_server.base.errors import Unauthenticated
from staddle_server.base.observer import TRACE_KEYS, Observer

BEARER: Final = "bearer "


def token_in(context: grpc.ServicerContext) -> str:
    """Return the text of the token that a call carries.

    Raises:
        Unauthenticated: It carries none.

    """
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str) and value[: len(BEARER)].lower() == BEARER:
            return value[len(BEARER) :].strip()
    raise Unauthenticated(
        "UNAUTHENTICATED", 'the call has no token: send the metadata "authorization: Bearer TOKEN"'
    )


def _given(context: grpc.ServicerContext, key: str) -> str:
    """Return a value of the caller's metadata; empty if there is none."""
    for name, value in context.invocation_metadata() or ():
        if name == key and isinstance(value, str):
            return value
    return ""


def _trace_of(context: grpc.ServicerContext) -> dict[str, str]:
    """Return W3C's trace context in the caller's metadata."""
    found = {key: _given(context, key) for key in TRACE_KEYS}
    return {key: value for key, value in found.items() if value}


class _Requests(Iterator[bytes]):
    """A client's messages; CallerGone if the library reports a broken stream. Holds no message."""

    def __init__(self, requests: Iterator[bytes], observer: Observer) -> None:
        self._requests = requests
        self._observer = observer

    def __next__(self) -> bytes:
        try:
            message = next(self._requests)
        except grpc.RpcError as e:
            raise CallerGone from e
        self._observer.received(len(message))
        return message


def handle(
    gate: Gate, name: str, method: Method, kind: str, reading: Reading
) -> Callable[[Iterator[bytes], grpc.ServicerContext], Any]:
    """Return the function that gRPC calls for a method. `kind` is "unary", "upstream" or "downstream".

    For gRPC every method streams its requests, which is the same on the wire. So the caller is known before
    any sent data is read, and a silent caller waits here, where it counts against a limit and is
    disconnected.
    """
    handler = _Handler(gate, name, method, kind, reading)
    return handler.answers if kind == "downstream" else handler.answer


class _Handler:
    """Handles the calls of one method."""

    def __init__(self, gate: Gate, name: str, method: Method, kind: str, reading: Reading) -> None:
        self._gate = gate
        self._name = name
        self._method = method
        self._is_stream = kind != "unary"
        self._answering = Answering(gate, method, reading)
        self._answer = self._answering.upstream if kind == "upstream" else self._answering.unary

    def answer(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Any:
        """Return the only answer of a call. Aborts the call with the status of whatever is raised."""
        level = logging.DEBUG if self._method.one_of_many else logging.INFO
        line = CallLine(
            self._name, context.peer, level, self._gate.observer, given_id=_given(context, CALL_KEY)
        )
        with self._gate.observer.call_span(self._name, line.id, _trace_of(context)):
            try:
                call = line.call = self._gate.admit(
                    self._name, self._method.role, token_in(context), context, stream=self._is_stream
                )
                response = self._answer(_Requests(requests, self._gate.observer), call)
            except Exception as e:  # noqa: BLE001 - nothing but a status leaves a handler
                self._fail(e, line, context)
            finally:
                line.leave()
            line.end("OK")
        return response

    def answers(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
        """Yield the answers of a call with one message.

        Aborts the call with the status of whatever is raised.
        """
        line = CallLine(
            self._name, context.peer, observer=self._gate.observer, given_id=_given(context, CALL_KEY)
        )
        with self._gate.observer.call_span(self._name, line.id, _trace_of(context)):
            try:
                call = line.call = self._gate.admit(
                    self._name, self._method.role, token_in(context), context, stream=True
                )
                messages = _Requests(requests, self._gate.observer)
                yield from self._answering.downstream(messages, call, line.gone)
            except Exception as e:  # noqa: BLE001 - nothing but a status leaves a handler
                self._fail(e, line, context)
            finally:
                line.leave()
            line.end("OK")

    def _fail(self, error: Exception, line: CallLine, context: grpc.ServicerContext) -> NoReturn:
        """End the call with the error's status."""
        if isinstance(error, CallerGone):
            line.end("CANCELLED")
            context.abort(grpc.StatusCode.CANCELLED, "the client's stream broke off")
        refusal = refusal_of(error, self._name)
        line.end(code_of(refusal).name, refusal)
        abort_with(context, refusal, line.id)
