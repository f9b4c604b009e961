"""The gate without gRPC: another transport provides token, messages and the end of a call, and gets all that gRPC gets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from staddle_server.api.answering import Answering, Method, Reading
from staddle_server.api.gate import Call, CallerGone, Gate
from staddle_server.api.slots import Slots
from staddle_server.base.errors import Exhausted, PermissionDenied, Unauthenticated, Unavailable
from staddle_server.base.memory_budget import DecodedBytes
from staddle_server.base.types import TokenRole
from staddle_server.catalog import Principal

TENANT = bytes(16)
TOKENS = {
    "of a reader": Principal(tenant=TENANT, name="r", role=TokenRole.READER, token=b"r" * 16),
    "of a writer": Principal(tenant=TENANT, name="w", role=TokenRole.WRITER, token=b"w" * 16),
}


class Line:
    """The transport's side of a call."""

    def __init__(self) -> None:
        self.is_open = True
        self._callbacks: list[Callable[[], None]] = []

    def add_callback(self, callback: Callable[[], None]) -> bool:
        if self.is_open:
            self._callbacks.append(callback)
        return self.is_open

    def cancel(self) -> None:
        self.is_open = False
        for callback in self._callbacks:
            callback()


class Door:
    """A gate with these tokens, some of them revoked, and two stream slots."""

    def __init__(self) -> None:
        self.revoked: set[bytes] = set()
        self.decoded = DecodedBytes()
        self.gate = Gate(
            self._authenticate,
            lambda _: "default",
            Slots(2, time.monotonic),
            time.monotonic,
            lambda tokens: set(tokens) - self.revoked,
            decoded=self.decoded,
            check_threads=lambda _: None,
        )

    def _authenticate(self, text: str) -> Principal:
        if text not in TOKENS:
            raise Unauthenticated("UNAUTHENTICATED", "the token is not known")
        return TOKENS[text]

    def admit(self, line: Line, *, token: str = "of a writer", stream: bool = False) -> Call:
        return self.gate.admit("Write", TokenRole.WRITER, token, line, stream=stream)

    def answering(self, handler: Callable[..., object]) -> Answering:
        return Answering(self.gate, Method(TokenRole.WRITER, handler), Reading(bytes.decode, len))


@pytest.fixture
def door() -> Door:
    return Door()


def test_a_message_is_decoded_and_answered_and_the_call_holds_nothing_afterwards(door: Door) -> None:
    held: list[int] = []

    def handler(text: str, call: Call) -> str:
        held.append(door.decoded.used(TENANT))
        assert not door.gate.calls.idle
        return f"{call.tenant} {call.principal.name} {len(text)}"

    call = door.admit(Line())
    assert door.answering(handler).unary(iter([b"x" * 5000]), call) == "default w 5000"
    assert held == [5000]
    assert (door.decoded.used(TENANT), door.gate.calls.idle) == (0, True)


def test_a_stream_up_and_a_stream_down_hold_a_slot_until_their_end(door: Door) -> None:
    streams, line = door.gate.streams, Line()

    def joined(texts: Iterator[str], _: Call) -> str:
        found = "".join(texts)
        assert not streams.idle
        return found

    assert door.answering(joined).upstream(iter([b"a", b"b"]), door.admit(Line(), stream=True)) == "ab"
    assert streams.idle
    gone: list[bool] = []
    answers = door.answering(lambda text, _: iter(text)).downstream(
        iter([b"cd"]), door.admit(line, stream=True), lambda: gone.append(True)
    )
    assert list(answers) == ["c", "d"]
    assert not streams.idle
    line.cancel()
    assert (streams.idle, gone) == (True, [True])


@pytest.mark.parametrize(
    ("token", "error"), [("nobody's", Unauthenticated), ("of a reader", PermissionDenied)]
)
def test_an_unknown_token_or_one_with_too_few_rights_is_refused(
    door: Door, token: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        door.admit(Line(), token=token)


def test_a_server_that_drains_refuses_calls(door: Door) -> None:
    door.gate.close()
    with pytest.raises(Unavailable):
        door.admit(Line())


def test_a_disconnect_ends_the_work_and_frees_the_slot(door: Door) -> None:
    line = Line()
    call = door.admit(line, stream=True)
    door.gate.streams.enter(call, TENANT)
    line.cancel()
    with pytest.raises(CallerGone):
        call.check()
    assert door.gate.streams.idle


def test_revoking_a_token_ends_its_running_calls_and_cuts_off_waiting_ones(
    door: Door,
) -> None:
    line = Line()
    call = door.admit(line)
    door.revoked.add(TOKENS["of a writer"].token)
    assert door.gate.end_invalid() == 1
    with pytest.raises(Unauthenticated):
        call.check()
    assert line.is_open
    assert door.gate.end_invalid() == 0
    assert not line.is_open


def test_streams_beyond_the_slots_are_refused(door: Door) -> None:
    for _ in range(2):
        door.gate.streams.enter(door.admit(Line(), stream=True))
    with pytest.raises(Exhausted):
        door.gate.streams.enter(door.admit(Line(), stream=True))
