"""Idle callers count against a limit, are disconnected, and delay no other caller."""

import threading
from contextlib import ExitStack, contextmanager, suppress

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from staddle.v1 import service_pb2 as sv
from staddle_server.api.grpc.health import ASKED_MAX, ASKED_S
from staddle_server.api.slots import ARRIVING_S
from staddle_server.base.limits import CALLS_TENANT_MAX, CALLS_TOKEN_MAX
from thin import Held, back_up, datasets, reason, restore, wait_until

SERVICE = "/staddle.v1.StaddleService/"
HEALTH = "/grpc.health.v1.Health/"


@contextmanager
def silent(running, method, count, token=None):
    """Start calls of a method without sending their message."""
    end = threading.Event()

    def nothing():
        end.wait(60)
        yield from ()

    metadata = [("authorization", f"Bearer {token}")] if token else None
    channel = grpc.insecure_channel(running.address, options=[("grpc.use_local_subchannel_pool", 1)])
    try:
        begin = channel.stream_unary(method).future
        yield [begin(nothing(), metadata=metadata) for _ in range(count)]
    finally:
        end.set()
        channel.close()


def waiting(running) -> int:
    return len(running.service._gate.calls._slots)


def test_an_idle_caller_without_a_token_keeps_no_thread(running):
    with silent(running, SERVICE + "GetServerInfo", 400) as calls:
        codes = {call.exception(timeout=60).code() for call in calls}
        assert grpc.StatusCode.UNAUTHENTICATED in codes
        # Calls beyond the server's queue are refused before their token is checked.
        assert codes <= {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert datasets(running.stub()) == []


@pytest.mark.parametrize("method", ["PutChunks", pytest.param("Restore", marks=pytest.mark.slow)])
def test_idle_calls_of_one_token_affect_no_other(running, method):
    mine = running.token("writer", name="mine")
    with silent(running, SERVICE + method, CALLS_TOKEN_MAX, mine) as calls:
        wait_until(lambda: waiting(running) == CALLS_TOKEN_MAX)
        with pytest.raises(grpc.RpcError) as refused:
            datasets(running.stub_with(mine))
        assert reason(refused.value) == "TOO_MANY"
        assert "of one token" in refused.value.details()
        retry = error_details_pb2.RetryInfo()
        assert rpc_status.from_call(refused.value).details[1].Unpack(retry)
        other = running.stub("writer", name="other")
        back_up(other, "www", {"a": b"1"})
        assert restore(other, "www").files == {"a": b"1"}
        assert not any(call.done() for call in calls)
    wait_until(lambda: waiting(running) == 0)
    assert datasets(running.stub_with(mine)) == ["www"]


def test_idle_calls_of_many_tokens_of_a_tenant_leave_slots_for_others(running):
    tokens = [running.token("reader", name=f"r{at}") for at in range(CALLS_TENANT_MAX // CALLS_TOKEN_MAX)]
    with ExitStack() as stack:
        method = SERVICE + "ListDatasets"
        calls = [stack.enter_context(silent(running, method, CALLS_TOKEN_MAX, token)) for token in tokens]
        wait_until(lambda: waiting(running) == CALLS_TENANT_MAX)
        channel = grpc.insecure_channel(running.address)
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
        channel.close()
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as refused:
            datasets(running.stub())
        assert reason(refused.value) == "TOO_MANY"
        assert "of one tenant" in refused.value.details()
        back_up(running.stub(), "www", {"a": b"1"})  # streams have separate slots
        other = running.stub(tenant=running.make_tenant("other"))
        back_up(other, "theirs", {"a": b"1"})
        assert datasets(other) == ["theirs"]
        assert len(calls) == len(tokens)
    wait_until(lambda: waiting(running) == 0)
    assert datasets(running.stub()) == ["www"]


def test_a_call_without_its_message_is_ended(running, monkeypatch):
    running.only_by_hand(monkeypatch)
    with silent(running, SERVICE + "CommitUpload", 3, running.token()) as calls:
        wait_until(lambda: waiting(running) == 3)
        arriving = running.service._gate.calls
        assert arriving.end_idle() == 0
        running.clock.ahead_s = ARRIVING_S + 1
        assert arriving.end_idle() == 3
        assert {call.exception(timeout=60).code() for call in calls} == {grpc.StatusCode.CANCELLED}
        wait_until(lambda: waiting(running) == 0)


def test_a_working_call_is_never_ended_as_idle(running, monkeypatch):
    slow = Held(running.catalog.datasets.list_page)
    monkeypatch.setattr(running.catalog.datasets, "list_page", slow)
    call = running.stub().ListDatasets.future(sv.ListDatasetsRequest())
    assert slow.reached.wait(60)
    running.clock.ahead_s = ARRIVING_S * 10
    assert running.service._gate.calls.end_idle() == 0
    slow.go.set()
    assert list(call.result(timeout=60).datasets) == []


def test_a_call_that_ends_without_a_message_gets_the_reason(running):
    channel = grpc.insecure_channel(running.address)
    call = channel.stream_unary(SERVICE + "GetServerInfo")
    with pytest.raises(grpc.RpcError) as refused:
        call(iter([]), metadata=[("authorization", f"Bearer {running.token()}")])
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert reason(refused.value) == "BAD_SEQUENCE"
    channel.close()


# ---------------------------------------------------------------------- health


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_health_answers_despite_many_idle_callers(running, method):
    health = running.service._wire._health
    with silent(running, HEALTH + method, 3 * ASKED_MAX) as calls:
        channel = grpc.insecure_channel(running.address)
        stub = health_pb2_grpc.HealthStub(channel)
        wait_until(lambda: sum(call.done() for call in calls) >= 2 * ASKED_MAX)
        for _ in range(3):
            assert stub.Check(health_pb2.HealthCheckRequest(), timeout=60).status == 1
            assert next(stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)).status == 1
        assert len(health.asked._slots) <= ASKED_MAX
        back_up(running.stub(), "www", {"a": b"1"})
        channel.close()


def test_an_idle_caller_of_health_is_ended_soon(running, monkeypatch):
    running.only_by_hand(monkeypatch)
    health = running.service._wire._health
    monkeypatch.setattr(health.asked, "_now_s", running.clock.monotonic_s)
    with silent(running, HEALTH + "Check", 2) as calls:
        wait_until(lambda: len(health.asked._slots) == 2)
        assert health.asked.end_idle() == 0
        running.clock.ahead_s = ASKED_S + 1
        assert health.asked.end_idle() == 2
        assert {call.exception(timeout=60).code() for call in calls} == {grpc.StatusCode.CANCELLED}


def test_watchers_that_leave_during_a_notification_block_no_other(running):
    """The health service of the library held its lock while sending, and leaving watchers needed that lock on the sending thread."""
    health = running.service._wire._health
    channel = grpc.insecure_channel(running.address)
    stub = health_pb2_grpc.HealthStub(channel)
    reported = []
    steady = stub.Watch(health_pb2.HealthCheckRequest())
    reader = threading.Thread(
        target=lambda: reported.extend(answer.status for answer in _until_cancelled(steady))
    )
    reader.start()
    for turn in range(60):
        watching = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(8)]
        for each in watching[:4]:
            next(each)
        for each in watching:
            each.cancel()
        health.say(1 + turn % 2, "")
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=60).status == 1 + turn % 2
    health.say(1, "")
    wait_until(lambda: reported[-1:] == [1])
    steady.cancel()
    reader.join(60)
    wait_until(lambda: health._watches.idle)
    assert datasets(running.stub()) == []
    channel.close()


def _until_cancelled(call):
    with suppress(grpc.RpcError):
        yield from call
    assert call.code() == grpc.StatusCode.CANCELLED


def test_health_does_not_know_an_unknown_service_name(running):
    channel = grpc.insecure_channel(running.address)
    stub = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(grpc.RpcError) as unknown:
        stub.Check(health_pb2.HealthCheckRequest(service="nothing"))
    assert unknown.value.code() == grpc.StatusCode.NOT_FOUND
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="nothing"))
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()
    channel.close()
