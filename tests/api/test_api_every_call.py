"""Every RPC of the service, in one table: its answer to a token that ends, and its behaviour once the caller is gone.

A new method without a row fails here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from call_log import each_call
from cut import Line
from direct import Failed, Stub, WideDoor, open_door
from every_call import (
    ROWS,
    WORKS,
    Place,
    Stepping,
    named,
    thin_backup,
)
from extent import extent
from servers import Running
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle.v1 import service_pb2_grpc
from staddle_server.api.grpc.server import SERVICE
from staddle_server.base.types import TokenRole
from thin import info, wait_until


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Place]:
    """One service for all rows: no call in this file may change its state."""
    with open_door(WideDoor):
        running = Running(tmp_path_factory.mktemp("every"), wrap=Stepping, lease_s=1e6)
        made = Place(running)
        running.blobs.place = made
        yield made
        running.stop()


STEPS_AFTER_MAX = 16
"""Transactions, and reads and writes of the store, that a call may still make once its caller is gone."""


def outcome(stub: Stub, method: str, request: Any, each: Callable[[], None] = lambda: None) -> str:
    """How a call ends: OK, or its reason, or its code."""

    def asked() -> Iterator[Any]:
        for message in request:
            each()
            yield message

    try:
        getattr(stub, method)(asked() if isinstance(request, list) else request)
    except Failed as failed:
        try:
            return info(failed).reason
        except (AssertionError, LookupError, AttributeError):
            return failed.code().name
    return "OK"


def test_every_method_has_a_row_with_the_role_it_needs(place):
    assert set(ROWS) == {method.name for method in SERVICE.methods}
    before = place.state()
    for method, row in ROWS.items():
        request = row.request(place, Stub(place.token()))
        lower = [role for role in TokenRole if role < row.role]
        for role in lower:
            assert outcome(Stub(place.token(role.name)), method, request) == "PERMISSION_DENIED", method
    assert before["backups"] == place.decided()


@pytest.mark.parametrize("method", ROWS)
def test_the_next_call_refuses_an_ended_token(place, method):
    revoked = Stub(place.token())
    request = ROWS[method].request(place, revoked)
    place.revoke()
    before = place.state()
    assert outcome(revoked, method, request) == "UNAUTHENTICATED"
    expired = Stub(place.token())
    with place.time():
        place.expire()
        assert outcome(expired, method, request) == "UNAUTHENTICATED"
    assert place.state() == before
    place.assert_nothing_held()


@pytest.mark.parametrize("method", ROWS)
def test_a_message_after_the_end_of_its_token_does_nothing(place, method):
    request = ROWS[method].request(place, Stub(place.token()))
    stub = Stub(place.token(), before_message=place.revoke)
    before = place.state()
    assert outcome(stub, method, request) == "UNAUTHENTICATED"
    assert place.state() == before
    place.assert_nothing_held()


SOME_STEPS = extent((1, 4, 25, 150), (1, 2, 4, 9, 25, 60, 150))


def at_steps(place: Place, method: str, action: Callable[[Stub], None]) -> Iterator[tuple[str, int, bool]]:
    """Repeat the call while an event happens ever later in it, until it ends before the event.

    Each time: the outcome, the steps after the event, and whether the state changed.
    """
    for at in SOME_STEPS:
        stub = Stub(place.token())
        request = ROWS[method].request(place, stub)
        before = place.decided()
        with place.time():
            with place.acting(at, lambda caller=stub: action(caller)):
                found = outcome(stub, method, request, place.step)
            steps = place.steps
        decided = place.decided() != before
        if method == "ApplyRetention" and decided:
            place.keeper.UndeleteBackup(sv.UndeleteBackupRequest(dataset="www", backup=place.older))
        place.assert_nothing_held()
        if steps < at:
            assert found == "OK"
            return
        yield found, steps - at, decided


@pytest.mark.parametrize("method", WORKS)
def test_work_ends_with_its_token_and_commits_nothing(place, method):
    ends = list(at_steps(place, method, lambda _: place.expire()))
    assert "UNAUTHENTICATED" in {found for found, *_ in ends}
    for found, steps_after, decided in ends:
        assert steps_after <= STEPS_AFTER_MAX or ROWS[method].outlives_caller, ends
        if found != "OK":
            assert (found, decided) == ("UNAUTHENTICATED", False)


@pytest.mark.parametrize("method", [name for name in WORKS if not ROWS[name].outlives_caller])
def test_work_ends_when_its_caller_disconnects(place, method):
    ends = list(at_steps(place, method, lambda stub: stub.context.end()))
    assert "CANCELLED" in {found for found, *_ in ends}
    for found, steps_after, decided in ends:
        assert steps_after <= STEPS_AFTER_MAX, ends
        if found != "OK":
            assert (found, decided) == ("CANCELLED", False)


# ---------------------------------------------------------------------- over gRPC: deadlines and connections


@pytest.fixture
def outcomes() -> Iterator[dict[str, str]]:
    """How calls ended according to the server, by method."""
    found: dict[str, str] = {}
    with each_call(lambda fields: found.update({fields["method"]: fields["outcome"]})):
        yield found


def has_gone(place: Place) -> bool:
    """Whether the server knows that its caller has gone."""
    return not place.running.service._gate._calls


def wait_until_done(place: Place) -> None:
    """Wait until no thread works for a call, and the library has reported the end of all."""
    service = place.running.service
    wait_until(lambda: has_gone(place) and service._gate.streams.idle and not service._wire._threads._load)


def end_far(
    place: Place, line: Line, token: str, method: str, request: Any, *, timeout_s: float | None
) -> str:
    """Make a call over a new connection; return how it ended for the client, once the server is also done."""
    metadata = [("authorization", f"Bearer {token}")]
    with grpc.insecure_channel(line.address, options=[("grpc.enable_retries", 0)]) as channel:
        call = getattr(service_pb2_grpc.StaddleServiceStub(channel), method)
        try:
            answer = call(
                iter(request) if isinstance(request, list) else request, timeout=timeout_s, metadata=metadata
            )
            if method == "Restore":
                list(answer)
        except grpc.RpcError as error:
            code = error.code().name
        else:
            code = "OK"
    wait_until_done(place)
    return code


def leave_at(
    place: Place, method: str, at: int, outcomes: dict[str, str], *, cut: bool
) -> tuple[str, int, bool]:
    """Let the deadline of a call pass, or cut its connection, before one of its steps.

    Returns how it ended for the server, the later steps, and whether the state changed.
    """
    timeout_s = None if cut else 0.2
    while True:
        token = place.token()
        request = ROWS[method].request(place, Stub(token))
        before, outcomes[method] = place.decided(), ""
        left = []
        with Line(place.running.port) as line:

            def leave(line: Line = line, left: list[int] = left) -> None:
                if has_gone(place):  # the caller is not known yet
                    place._at += 1
                    return
                if cut:
                    line.cut()
                wait_until(lambda: has_gone(place))
                left.append(place.steps)

            with place.acting(at, leave):
                code = end_far(place, line, token, method, request, timeout_s=timeout_s)
                steps = place.steps
        found, decided = outcomes[method], place.decided() != before
        restore_rows(place, method)
        place.assert_nothing_held()
        if left:
            assert code == ("UNAVAILABLE" if cut else "DEADLINE_EXCEEDED")
            return found, steps - left[0], decided
        if code == "OK":
            return "OK", 0, decided
        assert code == "DEADLINE_EXCEEDED"
        timeout_s = 2 * (timeout_s or 0.0)  # it passed before the step: the machine is busy


def restore_rows(place: Place, method: str) -> None:
    """Undo what one small call may have decided."""
    undone = {
        "DeleteBackup": named(sv.UndeleteBackupRequest),
        "SetHold": named(sv.ReleaseHoldRequest),
        "SetRetention": lambda *_: sv.SetRetentionRequest(
            dataset="www", policy=pb.RetentionPolicy(keep_last=1)
        ),
        "SetExpectation": lambda *_: sv.DeleteExpectationRequest(dataset="www"),
        "ApplyRetention": lambda *_: sv.UndeleteBackupRequest(dataset="www", backup=place.older),
    }
    if method in undone:
        request = undone[method](place, place.keeper)
        outcome(place.keeper, type(request).__name__.removesuffix("Request"), request)


BOTH_ENDS = pytest.mark.parametrize("cut", [False, True], ids=["deadline", "connection"])


def check_left(
    place: Place, method: str, steps: tuple[int, ...], outcomes: dict[str, str], *, cut: bool
) -> None:
    row, ends = ROWS[method], []
    for at in steps:
        found, after, decided = leave_at(place, method, at, outcomes, cut=cut)
        ends.append(found)
        if row.works and not row.outlives_caller:
            assert after <= 2 * STEPS_AFTER_MAX, (at, after)  # gRPC notices a moment later
            assert found == "OK" or not decided, (at, found)
    if row.works and not row.outlives_caller:
        assert "CANCELLED" in ends, ends
    assert {*ends} <= {"OK", "CANCELLED"}, ends


@BOTH_ENDS
@pytest.mark.parametrize("method", extent([*ROWS][::2], [*ROWS]))
def test_a_passed_deadline_or_broken_connection_leaves_no_resource_held(place, outcomes, method, *, cut):
    steps = extent((1,), SOME_STEPS) if ROWS[method].works else (1,)
    check_left(place, method, steps, outcomes, cut=cut)


def test_a_stream_with_a_broken_connection_commits_nothing(place, outcomes):
    request = thin_backup(place, place.keeper)
    before = place.decided()
    with Line(place.running.port) as line:

        def half() -> Iterator[sv.BackupRequest]:
            yield from request[: len(request) // 2]
            wait_until(lambda: not has_gone(place))
            line.cut()
            wait_until(lambda: has_gone(place))
            yield from request[len(request) // 2 :]

        metadata = [("authorization", f"Bearer {place.token()}")]
        with grpc.insecure_channel(line.address) as channel, pytest.raises(grpc.RpcError) as broken:
            service_pb2_grpc.StaddleServiceStub(channel).Backup(half(), metadata=metadata)
    assert broken.value.code() == grpc.StatusCode.UNAVAILABLE
    wait_until_done(place)
    wait_until(lambda: "Backup" in outcomes)
    assert outcomes["Backup"] == "CANCELLED"
    assert place.decided() == before
    place.assert_nothing_held()
