"""Answering calls, whatever the transport: slots and memory, decoding, and the handler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from staddle_server.api.gate import Call, Gate
from staddle_server.api.slots import Slot, first
from staddle_server.base.memory_budget import Held
from staddle_server.base.types import TokenRole

_SMALL_BYTES: Final = 4096


class Method(NamedTuple):
    """A method of the service: who may call it, and its handler.

    Attributes:
        role: The least role that a token needs.
        handler: Takes the decoded request, or an iterator of them, and the call.
        one_of_many: Whether an upload makes thousands of these calls, so that successes are not worth a log
            line.

    """

    role: TokenRole
    handler: Callable[[Any, Call], Any]
    one_of_many: bool = False


class Reading(NamedTuple):
    """How a method's messages are read.

    Attributes:
        decode: Creates what the handler gets.
        weigh: An upper bound of its memory; the call holds it to its end. Incoming streams count part by
            part.

    """

    decode: Callable[[bytes], Any]
    weigh: Callable[[bytes], int]


class Answering:
    """Answers the calls of one method, which the gate has admitted. `messages` are the client's, not decoded.

    No local name keeps a message: a handler that has read what it needs can free it.
    """

    def __init__(self, gate: Gate, method: Method, reading: Reading) -> None:
        self._gate = gate
        self._handler = method.handler
        self._decode, self._weigh = reading

    def unary(self, messages: Iterator[bytes], call: Call) -> Any:
        """Return the answer to a call's single message."""
        gate, principal = self._gate, call.principal
        # Its slot is its working thread, so it is kept until the answer.
        slot = gate.calls.enter(call, principal.token, principal.tenant, until_left=True)
        held = gate.decoded.held(principal.tenant, call.check)
        try:
            return self._handler(
                self._decode(_counted(held, self._weigh, _arrived(call, slot, messages))), call
            )
        finally:
            held.close()
            gate.calls.leave(slot)

    def upstream(self, messages: Iterator[bytes], call: Call) -> Any:
        """Return the answer to a stream of messages."""
        streams = self._gate.streams
        slot = streams.enter(call, call.principal.tenant, until_left=True)
        try:
            return self._handler(map(self._decode, call.passing(slot.moving(messages))), call)
        finally:
            streams.leave(slot)

    def downstream(self, messages: Iterator[bytes], call: Call, gone: Callable[[], None]) -> Iterator[Any]:
        """Yield the answers to a call's single message.

        `gone` is called when the call ends, in whatever way.
        """
        gate, principal = self._gate, call.principal
        slot = gate.streams.enter(call, principal.tenant)
        call.add_callback(gone)
        held = gate.decoded.held(principal.tenant, call.check)
        message = gate.calls.only(messages, call, principal.token, principal.tenant)
        call.check()
        request = self._decode(_counted(held, self._weigh, message))
        del message
        slot.moved()  # the request is all that the client sends
        yield from call.passing(slot.moving(self._handler(request, call)))
        held.close()


def _arrived(call: Call, slot: Slot, messages: Iterator[bytes]) -> bytes:
    """Return a call's single message. Checks the token again, which may have ended meanwhile."""
    message = first(messages)
    call.check()
    slot.at_work()
    return message


def _counted(held: Held, weigh: Callable[[bytes], int], message: bytes) -> bytes:
    """Return the message once there is room for its decoded form.

    Small ones are not weighed: every call has room for those.
    """
    if len(message) > _SMALL_BYTES:
        held.change(weigh(message))
    return message
