"""One caller's share: many calls of one token or tenant wait or are refused, and the others are served meanwhile."""

import threading

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.limits import CALLS_TOKEN_MAX, CALLS_WAITING_TENANT_MAX
from staddle_server.wire.messages import PutEntries
from thin import Source, back_up, datasets, reason, restore, wait_until


@pytest.fixture
def slow(running, monkeypatch):
    """Lists of the first tenant's datasets wait until this is set."""
    go = threading.Event()
    list_page = running.catalog.datasets.list_page

    def waits(tenant, *arguments):
        if tenant == running.tenant:
            go.wait(60)
        return list_page(tenant, *arguments)

    monkeypatch.setattr(running.catalog.datasets, "list_page", waits)
    yield go
    go.set()


def at_work(running) -> int:
    return len(running.service._gate.calls._places)


def waiting(running) -> int:
    return running.service._gate.calls._waiting.total()


def lists(stub, count):
    return [stub.ListDatasets.future(sv.ListDatasetsRequest()) for _ in range(count)]


def test_64_plain_calls_of_one_token_are_all_answered_on_a_busy_server(running, slow):
    calls = lists(running.stub(), 64)
    wait_until(lambda: at_work(running) + waiting(running) == 64)
    assert at_work(running) == CALLS_TOKEN_MAX
    slow.set()
    assert [call.code() for call in calls] == [grpc.StatusCode.OK] * 64
    wait_until(lambda: at_work(running) == waiting(running) == 0)


def test_400_calls_of_one_token_at_work_leave_another_tenant_served(running, slow):
    theirs = running.stub(tenant=running.make_tenant("theirs"))
    calls = lists(running.stub(), 400)
    kept = CALLS_TOKEN_MAX + CALLS_WAITING_TENANT_MAX
    wait_until(lambda: sum(call.done() for call in calls) >= 400 - kept)
    assert at_work(running) == CALLS_TOKEN_MAX
    assert waiting(running) <= CALLS_WAITING_TENANT_MAX
    files = {"a": b"1" * 100_000, "b": b"2"}
    back_up(theirs, "www", files)
    assert restore(theirs, "www").files == files
    assert datasets(theirs) == ["www"]
    refused = next(call for call in calls if call.done())
    assert refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason(refused.exception()) == "TOO_MANY"
    assert rpc_status.from_call(refused.exception()).details[1].Unpack(error_details_pb2.RetryInfo())
    slow.set()


def test_a_call_keeps_its_place_until_its_thread_is_free(running, slow):
    (call,) = lists(running.stub(), 1)
    wait_until(lambda: at_work(running) == 1)
    call.cancel()
    wait_until(lambda: not running.service._gate._calls)
    assert at_work(running) == 1
    slow.set()
    wait_until(lambda: at_work(running) == 0)


def test_entries_that_wait_for_one_writer_are_not_decoded_and_hold_up_no_other_upload(running, monkeypatch):
    """Replays of one valid call used to hold all places for decoding, each with thousands of objects."""
    decoded = []
    read = PutEntries.read

    def noted(self):
        decoded.append(self.head.upload_id)
        return read(self)

    monkeypatch.setattr(PutEntries, "read", noted)
    source = Source(running.stub("writer", name="many"), "www")
    changes = [sv.EntryChange(entry=pb.Entry(path=f"{n}", data=b"1")) for n in range(1000)]
    request = sv.PutEntriesRequest(**source.id, number=1, changes=changes)
    writer = running.service._uploads._writers[bytes.fromhex(source.upload.id)]
    with writer.together():
        calls = [source.stub.PutEntries.future(request) for _ in range(20)]
        wait_until(lambda: at_work(running) == 20)
        other = Source(running.stub(tenant=running.make_tenant("theirs")), "www")
        other.put_file("a", b"1")
        other.commit()
        assert set(decoded) == {other.upload.id}
    assert [call.result(timeout=20).incomplete for call in calls] == [[]] * 20
    assert writer.position == 1000


def test_the_head_of_put_entries_may_stand_anywhere_before_or_behind_its_changes(running):
    source = Source(running.stub(), "www")
    channel = grpc.insecure_channel(running.address)
    call = channel.unary_unary("/staddle.v1.StaddleService/PutEntries")
    change = sv.PutEntriesRequest(
        changes=[sv.EntryChange(entry=pb.Entry(path="a", data=b"1"))]
    ).SerializeToString()
    head = sv.PutEntriesRequest(**source.id, number=1).SerializeToString()
    call(change + head, metadata=[("authorization", f"Bearer {running.token()}")])
    channel.close()
    source.entries = source.bytes = 1
    source.commit()
    assert restore(source.stub, "www").files == {"a": b"1"}
