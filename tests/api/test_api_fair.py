"""Fair shares: many calls of one token or tenant wait or are refused, while others are served."""

import gc
import math
import threading

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.api import slots
from staddle_server.api.messages import PutEntries
from staddle_server.base import memory_budget
from staddle_server.base.limits import CALLS_TOKEN_MAX, CALLS_WAITING_TENANT_MAX
from thin import Part, Source, back_up, begin, datasets, finish, messages, noise, reason, restore, wait_until


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
    return len(running.service._gate.calls._slots)


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


def test_400_calls_of_one_token_at_work_leave_another_tenant_served(running, slow, monkeypatch):
    monkeypatch.setattr(slots, "WAIT_S", 600.0)  # waiting calls stay; the others are refused immediately
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


def test_the_number_of_waiting_calls_is_limited_across_tenants(running, slow, monkeypatch):
    monkeypatch.setattr(slots, "WAIT_S", 600.0)
    running.service._gate.calls._waiting_max = 5
    calls = lists(running.stub(), CALLS_TOKEN_MAX + 10)
    wait_until(lambda: sum(call.done() for call in calls) == 5)
    assert (at_work(running), waiting(running)) == (CALLS_TOKEN_MAX, 5)
    slow.set()
    wait_until(lambda: at_work(running) == waiting(running) == 0)


def test_a_call_keeps_its_slot_until_its_thread_is_free(running, slow):
    (call,) = lists(running.stub(), 1)
    # Its message has arrived, and the handler is at work.
    wait_until(lambda: [each._limit_s for each in running.service._gate.calls._slots] == [math.inf])
    call.cancel()
    wait_until(lambda: not running.service._gate._calls)
    assert at_work(running) == 1
    slow.set()
    wait_until(lambda: at_work(running) == 0)


def test_entries_that_wait_for_a_writer_are_not_decoded_and_delay_no_other_upload(running, monkeypatch):
    """Replays of one valid call used to take all decoding slots, each with thousands of objects."""
    memory_budget = []
    read = PutEntries.read

    def noted(self):
        memory_budget.append(self.head.upload_id)
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
        assert set(memory_budget) == {other.upload.id}
        held = running.service._gate.decoded.used(running.tenant)
        assert held < 40 * request.ByteSize(), "each holds its message, and no decoded objects"
    assert [call.result(timeout=60).incomplete for call in calls] == [[]] * 20
    assert writer.position == 1000


def test_the_head_of_put_entries_may_come_before_or_after_its_changes(running):
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


# ---------------------------------------------------------------------- memory for decoded messages


@pytest.fixture
def share(running, monkeypatch):
    """Other calls hold the full share of the first tenant until this is closed."""
    monkeypatch.setattr(memory_budget, "WAIT_S", 0.3)
    memory = running.service._gate.decoded
    held = memory.held(running.tenant, lambda: None)
    held.change(memory.tenant_max)
    yield held
    held.close()


LARGE = pb.Entry(path="d", holes=[pb.Hole(offset_bytes=n * 2, length_bytes=1) for n in range(16_384)])
FILES = {f"d{n % 7}/{n}": b"%d" % n for n in range(3000)}


def _large_entries(stub):
    source = Source(stub, "large")
    try:
        source.put_entries(*(pb.Entry(path=f"{n}", data=b"1") for n in range(2000)))
    finally:
        stub.AbortUpload(sv.AbortUploadRequest(**source.id))


def _large_stream(stub):
    zeros = Part(data=sv.Data(zero_bytes=2 * 16_384))
    parts = [begin("stream"), Part(entry=LARGE), zeros, Part(entry_end=sv.EntryEnd()), finish(1, 2 * 16_384)]
    stub.Backup(messages(parts))


def _many_paths(stub):
    list(stub.Restore(sv.RestoreRequest(dataset="www", paths=["d1/1"] * 20_000)))


WAYS = {"PutEntries": _large_entries, "Backup": _large_stream, "Restore": _many_paths}


@pytest.mark.parametrize("way", WAYS)
def test_decoded_messages_count_for_their_tenant_only(running, share, way):
    stub, theirs = running.stub(), running.stub(tenant=running.make_tenant("theirs"))
    for each in (stub, theirs):
        back_up(each, "www", {"d1/1": b"1"})
    with pytest.raises(grpc.RpcError) as refused:
        WAYS[way](stub)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason(refused.value) == "TOO_MANY"
    assert rpc_status.from_call(refused.value).details[1].Unpack(error_details_pb2.RetryInfo())
    WAYS[way](theirs)
    share.close()
    WAYS[way](stub)


def test_restores_and_lists_work_when_the_share_of_the_tenant_is_used_up(running, share):
    """Windows are shorter then; a call that needs only its minimum is not refused."""
    stub = running.stub()
    back_up(stub, "www", FILES)
    assert restore(stub, "www").files == FILES
    assert len(listed(stub)) == len(FILES) + 7


def listed(stub):
    request = sv.ListEntriesRequest(dataset="www", recursive=True, page_size=10_000)
    return stub.ListEntries(request).entries


def test_a_stalled_reader_holds_its_pages_only_until_it_disconnects(running):
    stub, memory = running.stub(), running.service._gate.decoded
    back_up(stub, "www", FILES)
    back_up(stub, "www", {**FILES, **{f"{n}": noise(300_000, n) for n in range(40)}})
    call = stub.Restore(sv.RestoreRequest(dataset="www"))
    next(call)
    wait_until(lambda: memory.used(running.tenant) > 0)
    call.cancel()
    call = None

    def is_free() -> bool:
        gc.collect()
        return not memory.used(running.tenant)

    wait_until(is_free)
    listed(stub)
    stub.ListChanges(
        sv.ListChangesRequest(
            dataset="www", from_backup=pb.BackupSelector(backup="latest"), to_backup=pb.BackupSelector()
        )
    )
    with pytest.raises(grpc.RpcError):
        stub.ReadRange(sv.ReadRangeRequest(dataset="www", path="no", length_bytes=1))
    _large_stream(stub)
    _large_entries(stub)
    wait_until(is_free)
