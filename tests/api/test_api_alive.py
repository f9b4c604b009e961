"""Work ends with its caller: calls whose token has expired or was revoked, and calls whose client is gone."""

import queue
import threading
import time
from contextlib import contextmanager

import grpc
import pytest
from extent import extent
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.api.grpc.reads import ReadCalls
from staddle_server.base.types import TokenRole
from staddle_server.tenancy.chunk_reader import ChunkReader
from staddle_server.upload.stream import BackupStream
from thin import (
    Part,
    Source,
    back_up,
    backups,
    begin,
    finish,
    messages,
    noise,
    open_upload,
    reason,
    restore,
    small,
    wait_until,
)


class Slow:
    """A Backup stream that sends its parts one by one, on request."""

    def __init__(self, stub, *parts: Part) -> None:
        self._next = threading.Event()
        self._parts = list(parts)
        self.call = stub.Backup.future(self._messages())

    def _messages(self):
        yield sv.BackupRequest(parts=[begin("www", request_id="r"), small("a", b"1")])
        self._next.wait(60)
        for part in self._parts:
            yield sv.BackupRequest(parts=[part])
        self.end = threading.Event()
        self.end.wait(60)

    def go_on(self) -> None:
        self._next.set()


@pytest.fixture
def leaving(running):
    """A stub whose token expires or is revoked."""
    return running.stub("writer", name="leaving")


def received(running):
    """The upload of a Slow stream, as soon as its first entry was taken."""
    stub = running.stub("writer", name="other")
    upload = open_upload(stub, "r")
    writers = running.service._uploads._writers
    # The catalog has it before it has a writer.
    wait_until(lambda: (writer := writers.get(bytes.fromhex(upload.id))) and writer.position == 1)
    return lambda: stub.GetUpload(sv.GetUploadRequest(request_id="r")).upload


def revoke(running):
    running.catalog.tokens.revoke(running.tenant, "leaving", time.time_ns())


def test_a_stream_of_a_revoked_token_ends_at_a_checkpoint_and_makes_no_backup(running, leaving, monkeypatch):
    running.only_by_hand(monkeypatch)
    slow = Slow(leaving, small("b", b"2"), finish(2, 2))
    upload = received(running)
    revoke(running)
    assert running.service._gate.end_invalid() == 1
    slow.go_on()
    assert slow.call.exception(timeout=60).code() == grpc.StatusCode.UNAUTHENTICATED
    assert upload().state == pb.UPLOAD_STATE_OPEN
    assert upload().durable.entry_count == 1
    assert "token" in upload().last_failure
    assert backups(running.stub(), "www") == []


def test_the_server_cuts_off_an_idle_stream_of_a_revoked_token(running, leaving):
    slow = Slow(leaving)
    upload = received(running)
    revoke(running)
    assert slow.call.exception(timeout=60).code() == grpc.StatusCode.CANCELLED
    wait_until(lambda: upload().durable.entry_count == 1)
    assert upload().state == pb.UPLOAD_STATE_OPEN


def test_a_commit_checks_its_token_again(running, leaving):
    """The transaction that makes the backup checks again, whatever was checked before."""
    commit = running.catalog.uploads.commit

    def revoked_meanwhile(*arguments, **more):
        revoke(running)
        return commit(*arguments, **more)

    source = Source(leaving, "www", request_id="r")
    source.put_file("a", b"1")
    running.catalog.uploads.commit = revoked_meanwhile
    with pytest.raises(grpc.RpcError) as refused:
        source.commit()
    assert reason(refused.value) == "UNAUTHENTICATED"
    assert backups(running.stub(), "www") == []
    upload = running.stub().GetUpload(sv.GetUploadRequest(request_id="r")).upload
    assert upload.state == pb.UPLOAD_STATE_OPEN


def test_an_expired_token_ends_a_stream_like_a_revoked_one(running, monkeypatch):
    running.only_by_hand(monkeypatch)
    token = running.catalog.tokens.create(
        running.tenant, "short", TokenRole.WRITER, time.time_ns(), time.time_ns() + 3600 * 10**9
    )
    slow = Slow(running.stub_with(token), small("b", b"2"), finish(2, 2))
    upload = received(running)
    assert running.service._gate.end_invalid() == 0
    running.clock.ahead_s = 3601
    running.service._gate.end_invalid()
    slow.go_on()
    assert slow.call.exception(timeout=60).code() == grpc.StatusCode.UNAUTHENTICATED
    assert upload().state == pb.UPLOAD_STATE_OPEN
    assert upload().durable.entry_count == 1, "nothing more is taken"


def test_a_restore_of_a_revoked_token_ends(running, leaving):
    files = {"big": noise(24 << 20)}
    back_up(running.stub(), "www", files)
    stream = leaving.Restore(sv.RestoreRequest(dataset="www"))
    next(stream)
    revoke(running)
    running.service._gate.end_invalid()
    with pytest.raises(grpc.RpcError) as ended:
        list(stream)
    assert ended.value.code() in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.CANCELLED}
    assert restore(running.stub(), "www").files == files


@contextmanager
def reflecting(running, token):
    """A reflection stream: a function that sends a question and returns the answer, and the call."""
    asked = queue.SimpleQueue()
    with grpc.insecure_channel(running.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(
            iter(asked.get, None), metadata=[("authorization", f"Bearer {token}")]
        )

        def ask():
            asked.put(reflection_pb2.ServerReflectionRequest(list_services=""))
            return next(call).list_services_response

        yield ask, call
        asked.put(None)


def test_a_reflection_stream_ends_with_its_token_and_frees_its_slot(running, monkeypatch):
    running.only_by_hand(monkeypatch)
    streams = running.service._gate.streams
    with reflecting(running, running.token("reader", name="leaving")) as (ask, _):
        assert ask().service
        revoke(running)
        assert running.service._gate.end_invalid() == 1
        with pytest.raises(grpc.RpcError) as ended:
            ask()
        assert reason(ended.value) == "UNAUTHENTICATED"
    wait_until(lambda: streams.idle and gone(running))


def test_an_idle_reflection_stream_with_an_expired_token_is_cut_off(running):
    token = running.catalog.tokens.create(
        running.tenant, "short", TokenRole.READER, time.time_ns(), time.time_ns() + 3600 * 10**9
    )
    with reflecting(running, token) as (ask, call):
        assert ask().service
        running.clock.ahead_s = 3601
        running.service._gate.end_invalid()
        running.service._gate.end_invalid()
        with pytest.raises(grpc.RpcError):
            next(call)
        assert call.code() == grpc.StatusCode.CANCELLED
    wait_until(lambda: running.service._gate.streams.idle and gone(running))


# ---------------------------------------------------------------------- disconnected callers


def gone(running) -> bool:
    return not running.service._gate._calls


def test_zeros_of_a_disconnected_caller_are_not_processed(running, monkeypatch):
    """Each part of a few bytes describes a gibibyte."""
    taken, at_work = [], threading.Event()
    zeros = BackupStream.zeros

    def noted(self, count):
        taken.append(count)
        at_work.set()
        wait_until(lambda: gone(running))
        zeros(self, count)

    monkeypatch.setattr(BackupStream, "zeros", noted)
    stub = running.stub()
    many = [Part(data=sv.Data(zero_bytes=1 << 30))] * 1000
    parts = [begin("www", request_id="r"), Part(entry=pb.Entry(path="zeros")), *many]
    call = stub.Backup.future(iter([sv.BackupRequest(parts=parts)]))
    assert at_work.wait(60)
    call.cancel()
    wait_until(lambda: open_upload(stub, "r").last_failure)
    assert len(taken) == 1
    assert open_upload(stub, "r").durable.open_offset_bytes == 1 << 30


@pytest.fixture
def long_lists(running):
    """Two entirely different backups of many pages."""
    for dataset, mode in (("www", 0o600), ("www", 0o644)):
        entries = [small(f"f{n:05}", b"", mode=mode) for n in range(6000)]
        running.stub().Backup(messages([begin(dataset), *entries, finish(6000, 0)]))


CALLS = {
    "list_entries": (
        "ListEntries",
        lambda _: sv.ListEntriesRequest(dataset="www", recursive=True, page_size=10_000),
    ),
    "list_changes": (
        "ListChanges",
        lambda ids: sv.ListChangesRequest(
            dataset="www",
            to_backup=pb.BackupSelector(backup=ids[0]),
            page_size=10_000,
            from_backup=pb.BackupSelector(backup=ids[1]),
        ),
    ),
    "restore": (
        "Restore",
        lambda _: sv.RestoreRequest(dataset="www", paths=[f"f{n:05}" for n in range(0, 6000, 7)]),
    ),
}


@pytest.mark.parametrize("handler", extent(["restore"], [*CALLS]))
def test_no_more_data_is_read_for_a_disconnected_caller(running, long_lists, monkeypatch, handler):
    method, request = CALLS[handler]
    read, at_work, ended = [], threading.Event(), threading.Event()
    chunk, answer = ChunkReader.chunk, getattr(ReadCalls, handler)

    def noted(self, *arguments):
        read.append(arguments)
        at_work.set()
        wait_until(lambda: gone(running))
        return chunk(self, *arguments)

    def watched(self, asked, call):
        try:
            return answer(self, asked, call)
        finally:
            ended.set()

    def watched_stream(self, asked, call):
        try:
            yield from answer(self, asked, call)
        finally:
            ended.set()

    monkeypatch.setattr(ReadCalls, handler, watched_stream if handler == "restore" else watched)
    running.restart()
    stub = running.stub()
    ids = [backup.id for backup in backups(stub, "www")]
    monkeypatch.setattr(ChunkReader, "chunk", noted)
    call = getattr(stub, method)
    started = call(request(ids)) if method == "Restore" else call.future(request(ids))
    assert at_work.wait(60)
    started.cancel()
    assert ended.wait(60)
    assert len(read) <= 1
