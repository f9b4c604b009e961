"""One call: who makes it, what it is about, and how it ends. Everything around the handlers."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final, NamedTuple, NoReturn, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_status import rpc_status

from staddle_server.api.error_table import code_of, status_of
from staddle_server.api.slots import ARRIVING_S, RETRY_S, Slot, Slots, first
from staddle_server.base.errors import (
    Fault,
    PermissionDenied,
    StaddleError,
    Unauthenticated,
    Unavailable,
)
from staddle_server.base.limits import (
    CALLS_MAX,
    CALLS_TENANT_MAX,
    CALLS_TOKEN_MAX,
    CALLS_WAITING_MAX,
    CALLS_WAITING_TENANT_MAX,
)
from staddle_server.base.logs import CALLS
from staddle_server.base.memory_budget import DecodedBytes, Held
from staddle_server.base.threads import shortage
from staddle_server.base.types import TokenRole
from staddle_server.catalog import Principal

log = logging.getLogger(CALLS)
BEARER: Final = "bearer "
T = TypeVar("T")
FACT_CHARS_MAX: Final = 256
BUSY_S: Final = 2.0
"""So long after a call began the server counts as busy, and as long as there are streams."""


class CallerGone(grpc.RpcError):
    """The call has ended from outside: cancelled, timed out, or cut off."""


class Call:
    """A call under way.

    Attributes:
        principal: Who calls.
        tenant: The name of the principal's tenant.
        facts: What the log line will say beside the method and its outcome; handlers add to it.

    """

    def __init__(self, principal: Principal, tenant: str, context: grpc.ServicerContext) -> None:
        self.principal = principal
        self.tenant = tenant
        self.facts: dict[str, object] = {}
        self._context = context
        self._gone = False
        self._refusal: StaddleError | None = None
        if not context.add_callback(self._end):
            self._end()

    def _end(self) -> None:
        self._gone = True

    def check(self) -> None:
        """Whether to work on for this call. Every loop over a caller's work asks.

        Raises:
            CallerGone: the caller has gone.
            Unauthenticated: the token was revoked, or has expired, since the call began.

        """
        if self._refusal is not None:
            raise self._refusal.with_traceback(None)
        if self._gone:
            raise CallerGone

    def passing(self, messages: Iterator[T]) -> Iterator[T]:
        """Passes a stream's messages on for as long as `check` lets it."""
        return map(self._pass, messages)

    def _pass(self, message: T) -> T:
        self.check()
        return message

    def refuse(self, error: StaddleError) -> None:
        """The next `check` raises this."""
        self._refusal = error

    @property
    def refused(self) -> bool:
        """Whether the call may not go on; it ends itself where it looks next."""
        return self._refusal is not None

    def on_end(self, callback: Callable[[], None]) -> bool:
        """Calls back when the call has ended, however; False: it has already."""
        return self._context.add_callback(callback)

    def cancel(self) -> None:
        """Ends the call from outside: the client sees CANCELLED, and asks GetUpload."""
        self._context.cancel()


class Method(NamedTuple):
    """A method of the service: who may call it, and what answers.

    Attributes:
        role: The least that a token needs.
        handler: Takes the decoded request, or an iterator of such, and the call.
        one_of_many: Whether an upload makes thousands of these calls, so that those that succeed are no news.

    """

    role: TokenRole
    handler: Callable[[Any, Call], Any]
    one_of_many: bool = False


class Reading(NamedTuple):
    """How the messages of a method are read.

    Attributes:
        decode: Makes what the handler gets.
        weigh: What that takes in memory, from above; the call holds it to its end. Streams that come in count part by part.

    """

    decode: Callable[[bytes], Any]
    weigh: Callable[[bytes], int]


class Gate:
    """Lets calls in: knows the tokens and the slots, and closes when the server drains.

    Attributes:
        streams: The slots for Backup and Restore streams; a tenant owns its own.
        calls: The slots for other calls, from before their message comes until they are answered.
        decoded: The memory for what calls hold decoded.
        check_threads: Whether a call may keep its thread; raises Exhausted. The server sets it, since it has the threads.

    """

    def __init__(
        self,
        authenticate: Callable[[str], Principal],
        tenant_name: Callable[[bytes], str],
        streams: Slots,
        now_s: Callable[[], float],
        valid: Callable[[Collection[bytes]], set[bytes]],
        *,
        decoded: DecodedBytes,
    ) -> None:
        """`valid`: those of these tokens, named by their ids, that may still call."""
        self._authenticate = authenticate
        self._valid = valid
        self._lock = threading.Lock()
        self._calls: dict[Call, None] = {}
        """What is under way."""
        self.tenant_name = tenant_name
        self.streams = streams
        self.decoded = decoded
        self._now_s = now_s
        self._admitted_s = -BUSY_S
        self.check_threads: Callable[..., None] = lambda *, stream: None  # noqa: ARG005
        self.draining = False
        """Whether calls get UNAVAILABLE because the server is shutting down."""
        self.calls = Slots(
            CALLS_MAX,
            now_s,
            what="calls without a stream",
            first_s=ARRIVING_S,
            owner_max=CALLS_TOKEN_MAX,
            group_max=CALLS_TENANT_MAX,
            waiting_max=CALLS_WAITING_MAX,
            waiting_group_max=CALLS_WAITING_TENANT_MAX,
        )

    def principal(self, context: grpc.ServicerContext) -> Principal:
        """Who calls.

        Raises:
            Unauthenticated: no token, or none that is known.

        """
        for key, value in context.invocation_metadata() or ():
            if key == "authorization" and isinstance(value, str) and value[: len(BEARER)].lower() == BEARER:
                return self._authenticate(value[len(BEARER) :].strip())
        raise Unauthenticated(
            "UNAUTHENTICATED", 'the call has no token: send the metadata "authorization: Bearer TOKEN"'
        )

    def admit(self, name: str, role: TokenRole, context: grpc.ServicerContext, *, stream: bool) -> Call:
        """Lets a call in whose token has at least this role. From now until its end the token is looked at again and again.

        Raises:
            Unauthenticated, PermissionDenied, Unavailable (DRAINING), Exhausted (TOO_MANY).

        """
        principal = self.principal(context)
        self._check(name, role, principal)
        self.check_threads(stream=stream)
        call = Call(principal, self.tenant_name(principal.tenant), context)
        self._enter(call)
        return call

    def _check(self, name: str, role: TokenRole, principal: Principal) -> None:
        """Whether the call may go on.

        Raises:
            PermissionDenied, Unavailable (DRAINING).

        """
        if principal.role < role:
            raise PermissionDenied(
                "PERMISSION_DENIED",
                f"{name} needs a token of the role {role.name.lower()}, this one is a {principal.role.name.lower()}",
                role=role.name.lower(),
            )
        if self.draining:
            raise Unavailable("DRAINING", "the server is shutting down; try again", retry_after_s=RETRY_S)

        self._admitted_s = self._now_s()

    def _enter(self, call: Call) -> None:
        with self._lock:
            self._calls[call] = None
        try:
            lives = call.on_end(lambda: self._leave(call))
        except BaseException:
            self._leave(call)
            raise
        if not lives:
            self._leave(call)

    def _leave(self, call: Call) -> None:
        with self._lock:
            self._calls.pop(call, None)

    def end_invalid(self) -> int:
        """Ends the calls whose token was revoked or has expired; their number.

        Each is told so where it works, so that it ends at a checkpoint and says why. One that waits for its caller is cut off the
        next time.
        """
        with self._lock:
            calls = list(self._calls)
        for call in calls:
            if call.refused:
                call.cancel()
        valid = self._valid({call.principal.token for call in calls}) if calls else set()
        ended = [call for call in calls if not call.refused and call.principal.token not in valid]
        for call in ended:
            call.refuse(
                Unauthenticated("UNAUTHENTICATED", "This token was revoked, or has expired: get a new one")
            )
        return len(ended)

    def is_busy(self) -> bool:
        """Whether clients are at work: what can wait should."""
        return not self.streams.idle or self._now_s() - self._admitted_s < BUSY_S

    def close(self) -> None:
        """Refuses calls from now on: the server is shutting down."""
        self.draining = True


def handle(
    gate: Gate, name: str, method: Method, kind: str, reading: Reading
) -> Callable[[Iterator[bytes], grpc.ServicerContext], Any]:
    """The function that gRPC calls for a method. `kind` is "unary", "upstream" or "downstream".

    For gRPC every method streams its requests, which is the same on the wire: so who calls is known before anything that was
    sent is looked at, and a caller that sends nothing waits here, where it is counted and ended.
    """
    handler = _Handler(gate, name, method, kind, reading)
    return handler.answers if kind == "downstream" else handler.answer


class _Handler:
    """Handles the calls of one method."""

    def __init__(self, gate: Gate, name: str, method: Method, kind: str, reading: Reading) -> None:
        self._gate = gate
        self._name = name
        self._method = method
        self._kind = kind
        self._decode, self._weigh = reading

    def answer(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Message:
        """The one answer of a call. Aborts the call with the status of whatever is raised."""
        level = logging.DEBUG if self._method.one_of_many else logging.INFO
        line = _Line(self._name, context, level)
        try:
            call = line.call = self._gate.admit(
                self._name, self._method.role, context, stream=self._kind != "unary"
            )
            response = (self._upstream if self._kind == "upstream" else self._unary)(requests, call, context)
        except Exception as e:  # noqa: BLE001 - nothing but a status leaves a handler
            line.fail(e)
        line.end("OK")
        return response

    def answers(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Message]:
        """The answers of a call to one message. Aborts the call with the status of whatever is raised."""
        line = _Line(self._name, context)
        try:
            call = line.call = self._gate.admit(self._name, self._method.role, context, stream=True)
            yield from self._downstream(requests, call, context, line)
        except Exception as e:  # noqa: BLE001 - nothing but a status leaves a handler
            line.fail(e)
        line.end("OK")

    # No name here holds what came: a handler that has taken what it needs can let go of the message.

    def _unary(self, requests: Iterator[bytes], call: Call, context: grpc.ServicerContext) -> Message:
        gate, principal = self._gate, call.principal
        # Its slot is the thread that works for it, so it is kept until the answer.
        slot = gate.calls.enter(context, principal.token, principal.tenant, until_left=True)
        held = gate.decoded.held(principal.tenant, call.check)
        try:
            response: Message = self._method.handler(
                self._decode(_counted(held, self._weigh, _come(call, slot, requests))), call
            )
            return response
        finally:
            held.close()
            gate.calls.leave(slot)

    def _upstream(self, requests: Iterator[bytes], call: Call, context: grpc.ServicerContext) -> Message:
        streams = self._gate.streams
        slot = streams.enter(context, call.principal.tenant, until_left=True)
        try:
            moving = map(self._decode, call.passing(slot.moving(requests)))
            response: Message = self._method.handler(moving, call)
            return response
        finally:
            streams.leave(slot)

    def _downstream(
        self, requests: Iterator[bytes], call: Call, context: grpc.ServicerContext, line: _Line
    ) -> Iterator[Message]:
        gate, principal = self._gate, call.principal
        slot = gate.streams.enter(context, principal.tenant)
        context.add_callback(line.gone)
        held = gate.decoded.held(principal.tenant, call.check)
        message = gate.calls.only(requests, context, principal.token, principal.tenant)
        call.check()
        request = self._decode(_counted(held, self._weigh, message))
        del message
        slot.moved()  # the request is all that the client sends
        yield from call.passing(slot.moving(self._method.handler(request, call)))
        held.close()


def _come(call: Call, slot: Slot, requests: Iterator[bytes]) -> bytes:
    """The message of a call, after which its caller has nothing more to say. Its token may have ended while it was awaited."""
    message = first(requests)
    call.check()
    slot.at_work()
    return message


def _counted(held: Held, weigh: Callable[[bytes], int], message: bytes) -> bytes:
    """The message, once there is room for what it becomes. Small ones are not looked at: no call has room only for those."""
    if len(message) > _SMALL_BYTES:
        held.change(weigh(message))
    return message


_SMALL_BYTES: Final = 4096


class _Line:
    """The log line of a call, written once: at `level` if it succeeds, else at INFO."""

    def __init__(self, name: str, context: grpc.ServicerContext, level: int = logging.INFO) -> None:
        self.call: Call | None = None
        self._level = level
        self._name = name
        self._context = context
        self._start = time.monotonic()
        self._lock = threading.Lock()
        self._written = False

    def fail(self, error: Exception) -> NoReturn:
        """Ends the call with the error's status."""
        if isinstance(error, grpc.RpcError):  # what the library raises where the client's stream broke off
            self.end("CANCELLED")
            self._context.abort(grpc.StatusCode.CANCELLED, "the client's stream broke off")
        if not isinstance(error, StaddleError):
            scarce = shortage(error)
            log.error("a fault in %s", self._name, exc_info=error)
            error = scarce or Fault("INTERNAL", f"a fault of the server in {self._name}; its log has more")
        self.end(code_of(error).name, error)
        status = rpc_status.to_status(status_of(error))
        _free_frames(error)
        self._context.abort_with_status(status)
        raise AssertionError("abort_with_status raises")

    def gone(self) -> None:
        """The call has ended; if the handler did not say how, the client went away."""
        self.end("CANCELLED")

    def end(self, outcome: str, error: StaddleError | None = None) -> None:
        """Writes the line."""
        with self._lock:
            if self._written:
                return
            self._written = True
        level = self._level if outcome == "OK" else logging.INFO
        if not log.isEnabledFor(level):
            return
        call = self.call
        fields: dict[str, object] = {
            "method": self._name,
            "tenant": call.tenant if call else None,
            "principal": call.principal.name if call else None,
            "peer": self._context.peer(),
            **(_short(call.facts) if call else {}),
            "seconds": round(time.monotonic() - self._start, 4),
            "outcome": outcome,
        }
        if error is not None:
            fields["reason"] = error.reason
            fields["detail"] = error.message
        log.log(level, "call", extra={"fields": fields})


def _free_frames(error: BaseException | None) -> None:
    """Frees what the frames that an error went through hold: messages, packs. In Python 3.13 such frames may be part of a cycle.

    A frame that was cleared still keeps its function, and what that encloses, so the traceback goes as well: a refusal stays with its call.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _short(facts: dict[str, object]) -> dict[str, object]:
    """What a caller said may be long, and is not checked yet when it is noted."""
    return {key: value[:FACT_CHARS_MAX] if isinstance(value, str) else value for key, value in facts.items()}
