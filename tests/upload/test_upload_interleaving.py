"""Concurrent calls of one upload: in any order, nothing is lost, mixed up or counted twice."""

import threading

import grpc
import pytest
from blake3 import blake3
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.catalog.chunks import Chunks
from staddle_server.upload import intake, received
from thin import (
    Held,
    Part,
    Source,
    back_up,
    backups,
    begin,
    finish,
    info,
    large,
    noise,
    open_upload,
    reason,
    restore,
    wait_until,
)


def ref_of(data, length=None):
    return pb.ChunkRef(digest=blake3(data).digest(), length_bytes=length or len(data))


def resume(stub, source):
    source.upload = stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id)).upload
    source.stub = stub
    return source.upload.durable


# ------------------------------------------------------------------ PutEntries


def test_put_entries_during_a_stream_is_refused_and_the_streamed_file_is_unchanged(running):
    stub = running.stub()
    source = Source(stub, "www")
    data = noise(3_000_000)
    other = b"something else"
    source.put_chunks([other])
    half, go = threading.Event(), threading.Event()

    def requests():
        parts = list(large("a", data))
        start = Part(continue_upload=sv.ContinueUpload(**source.id, position=0))
        yield sv.BackupRequest(parts=[start, *parts[:-2]])
        half.set()
        go.wait(60)
        yield sv.BackupRequest(parts=[parts[-2], Part(entry_end=sv.EntryEnd())])
        yield sv.BackupRequest(parts=[finish(1, len(data))])

    call = stub.Backup.future(requests())
    assert half.wait(60)
    writer = running.service._uploads._writers[bytes.fromhex(source.upload.id)]
    wait_until(lambda: writer.open_size)
    change = sv.EntryChange(entry=pb.Entry(path="b", content=pb.Content(chunks=[ref_of(other)])), more=True)
    with pytest.raises(grpc.RpcError) as refused:
        stub.PutEntries(sv.PutEntriesRequest(**source.id, number=1, changes=[change]))
    go.set()
    assert refused.value.code() == grpc.StatusCode.ABORTED
    assert reason(refused.value) == "UPLOAD_BUSY"
    assert call.result(timeout=60).backup.number == 1
    assert restore(stub, "www").files == {"a": data}


def test_no_checkpoint_splits_a_put_entries_call(running, monkeypatch):
    """The durable point must be between two calls: a call that is sent again after a resume is applied completely."""
    monkeypatch.setattr(received, "CHECKPOINT_ENTRIES", 3)
    stub = running.stub()
    source = Source(stub, "www")
    first, second = b"1" * 1000, b"2" * 1000
    source.put_chunks([first, second])
    begun = sv.EntryChange(entry=pb.Entry(path="f", content=pb.Content(chunks=[ref_of(first)])), more=True)
    stub.PutEntries(sv.PutEntriesRequest(**source.id, number=1, changes=[begun]))
    rest = sv.EntryChange(
        entry=pb.Entry(path="f", content=pb.Content(chunks=[ref_of(second)]), continue_at_bytes=1000)
    )
    others = [sv.EntryChange(entry=pb.Entry(path=f"g{i}", data=b"x")) for i in range(5)]
    bad = sv.EntryChange(entry=pb.Entry(path="h", content_from_base=True))
    call = sv.PutEntriesRequest(**source.id, number=2, changes=[rest, *others])

    taken = intake.Intake._take
    count = 0

    def crash_at_the_end(self, prepared, absent):
        nonlocal count
        count += 1
        if count == 6:
            raise RuntimeError("the process ends here")
        taken(self, prepared, absent)

    monkeypatch.setattr(intake.Intake, "_take", crash_at_the_end)
    with pytest.raises(grpc.RpcError):
        stub.PutEntries(call)
    monkeypatch.setattr(intake.Intake, "_take", taken)
    del bad
    running.restart()
    durable = resume(running.stub(), source)
    assert durable.put_entries_number in {0, 1}
    assert durable.entry_count == 0, "no part of the second call is durable"
    if durable.put_entries_number == 0:
        source.put_chunks([first, second])
        source.stub.PutEntries(sv.PutEntriesRequest(**source.id, number=1, changes=[begun]))
    source.stub.PutEntries(sv.PutEntriesRequest(**source.id, number=2, changes=[rest, *others]))
    source.entries, source.bytes = 6, 2005
    source.commit()
    assert restore(source.stub, "www").files == {"f": first + second} | {f"g{i}": b"x" for i in range(5)}


def test_a_call_with_too_many_missing_chunks_changes_nothing(running, monkeypatch):
    from staddle_server.upload import missing

    monkeypatch.setattr(missing, "MISSING_CHUNKS_MAX", 2)
    stub = running.stub()
    source = Source(stub, "www")
    data = [bytes([i]) * 100 for i in range(4)]
    entries = [source.entry(f"f{i}", chunk) for i, chunk in enumerate(data)]
    with pytest.raises(grpc.RpcError) as refused:
        source.put_entries(*entries)
    assert reason(refused.value) == "BAD_FIELD"
    source.put_chunks(data)
    source.put_entries(*entries, number=1)
    source.commit()
    assert restore(stub, "www").files == {f"f{i}": chunk for i, chunk in enumerate(data)}


def test_a_hole_beyond_the_end_of_a_file_sent_in_parts_refuses_the_call(running):
    stub = running.stub()
    source = Source(stub, "www")
    one, two = b"1" * 100, b"2" * 100
    source.put_chunks([one, two])
    hole = pb.Hole(offset_bytes=150, length_bytes=100)
    begun = sv.EntryChange(
        entry=pb.Entry(path="f", content=pb.Content(chunks=[ref_of(one)]), holes=[hole]), more=True
    )
    before = sv.EntryChange(entry=pb.Entry(path="e", data=b"x"))
    rest = sv.EntryChange(
        entry=pb.Entry(path="f", content=pb.Content(chunks=[ref_of(two)]), continue_at_bytes=100)
    )
    stub.PutEntries(sv.PutEntriesRequest(**source.id, number=1, changes=[begun]))
    with pytest.raises(grpc.RpcError) as refused:
        stub.PutEntries(sv.PutEntriesRequest(**source.id, number=2, changes=[before, rest]))
    assert info(refused.value).metadata["field"] == "holes"
    stub.PutEntries(sv.PutEntriesRequest(**source.id, number=2, changes=[before]))
    stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    assert source.state().durable.entry_count == 1


def test_two_entries_with_different_lengths_of_a_missing_chunk_never_become_a_backup(running):
    """A later chunk can have only one length: the other entry would be a file that cannot be restored."""
    stub = running.stub()
    source = Source(stub, "www")
    data = noise(200)
    source.put_entries(pb.Entry(path="a", content=pb.Content(chunks=[ref_of(data, 100)])))
    with pytest.raises(grpc.RpcError) as refused:
        source.put_entries(pb.Entry(path="b", content=pb.Content(chunks=[ref_of(data, 200)])))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert reason(refused.value) == "BAD_FIELD"
    with pytest.raises(grpc.RpcError) as refused:
        source.put_entries(
            pb.Entry(path="c", content=pb.Content(chunks=[ref_of(data[:50], 50)])),
            pb.Entry(path="d", content=pb.Content(chunks=[ref_of(data[:50], 49)])),
            number=2,
        )
    assert reason(refused.value) == "BAD_FIELD"
    source.entries, source.bytes = 1, 100
    with pytest.raises(grpc.RpcError) as failed:
        source.commit()
    assert reason(failed.value) == "MISSING_CHUNKS"
    assert backups(stub, "www") == []


def test_put_chunks_and_put_entries_in_any_order_make_one_complete_backup(running, monkeypatch):
    monkeypatch.setattr(received, "CHECKPOINT_ENTRIES", 7)
    monkeypatch.setattr("staddle_server.upload.accepted.CHECKPOINT_S", 0.0)
    stub = running.stub()
    source = Source(stub, "www")
    files = {f"f{i}": noise(90_000 + i, i % 23) for i in range(60)}
    failures = []

    def send(part):
        try:
            for path in list(files)[part::4]:
                source.put_chunks(source.cut(files[path]))
        except Exception as e:
            failures.append(e)

    threads = [threading.Thread(target=send, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for start in range(0, 60, 5):
        source.put_entries(*(source.entry(path, files[path]) for path in list(files)[start : start + 5]))
        stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    for thread in threads:
        thread.join()
    assert failures == []
    source.commit()
    assert restore(stub, "www").files == files


# ------------------------------------------------------------------ taking over


def test_of_two_concurrent_take_overs_the_later_one_writes(running, monkeypatch):
    stub = running.stub()
    source = Source(stub, "www")
    uploads = running.service._uploads
    open_writer = uploads._open_writer
    first_waits, go = threading.Event(), threading.Event()

    def slow_for_the_first(tenant, upload):
        if upload.epoch == source.upload.epoch + 1:
            first_waits.set()
            go.wait(60)
        open_writer(tenant, upload)

    monkeypatch.setattr(uploads, "_open_writer", slow_for_the_first)
    request = sv.ResumeUploadRequest(upload_id=source.upload.id)
    loser = stub.ResumeUpload.future(request)
    assert first_waits.wait(60)
    winner = stub.ResumeUpload(request).upload
    go.set()
    with pytest.raises(grpc.RpcError) as lost:
        loser.result(timeout=60)
    assert reason(lost.value) == "STALE_EPOCH"
    source.upload = winner
    source.put_file("a", b"1")
    assert source.commit().entry_count == 1
    assert running.service._uploads._writers == {}


# ------------------------------------------------------------------ commit


def test_a_commit_repeated_while_the_first_runs_gets_the_same_answer(running, monkeypatch):
    stub = running.stub()
    source = Source(stub, "www")
    source.put_file("a", b"1")
    slow = Held(running.catalog.uploads.commit)
    monkeypatch.setattr(running.catalog.uploads, "commit", slow)
    request = sv.CommitUploadRequest(**source.id, entry_count=1, data_bytes=1)
    first = stub.CommitUpload.future(request)
    assert slow.reached.wait(60)
    again = [stub.CommitUpload.future(request) for _ in range(3)]
    threading.Event().wait(0.3)
    slow.go.set()
    backup = first.result(timeout=60).backup
    assert [call.result(timeout=60).backup for call in again] == [backup] * 3
    assert len(backups(stub, "www")) == 1


def test_of_a_concurrent_commit_and_abort_exactly_one_succeeds(running, monkeypatch):
    stub = running.stub()
    source = Source(stub, "www")
    source.put_file("a", b"1")
    commit = running.catalog.uploads.commit

    def after_an_abort(*arguments, **fields):
        upload = bytes.fromhex(source.upload.id)
        running.catalog.uploads.abort(running.tenant, upload, source.upload.epoch, running.clock.now_ns())
        return commit(*arguments, **fields)

    monkeypatch.setattr(running.catalog.uploads, "commit", after_an_abort)
    with pytest.raises(grpc.RpcError) as failed:
        source.commit()
    assert failed.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert reason(failed.value) == "UPLOAD_CLOSED"
    assert backups(stub, "www") == []
    assert running.service._uploads._writers == {}


# ------------------------------------------------------------------ the durable point


def test_a_large_file_that_is_already_stored_advances_the_durable_point_and_the_lease(running):
    stub = running.stub()
    data = noise(6_000_000)
    back_up(stub, "www", {"a": data})
    half, go = threading.Event(), threading.Event()

    def requests():
        parts = list(large("a", data))
        yield sv.BackupRequest(parts=[begin("www", request_id="r", kind=pb.BACKUP_KIND_FULL), *parts[:3]])
        yield sv.BackupRequest(parts=[parts[3]])
        half.set()
        go.wait(60)
        yield sv.BackupRequest(parts=parts[4:])
        yield sv.BackupRequest(parts=[finish(1, len(data))])

    call = stub.Backup.future(requests())
    assert half.wait(60)
    lease = open_upload(stub, "r").lease_expire_time.ToNanoseconds()
    running.clock.ahead_s = 6
    wait_until(lambda: open_upload(stub, "r").durable.open_offset_bytes)
    upload = open_upload(stub, "r")
    go.set()
    assert upload.durable.open_offset_bytes > 1_000_000
    assert upload.lease_expire_time.ToNanoseconds() > lease
    assert call.result(timeout=60).backup.number == 2


def test_a_begin_replayed_after_a_restart_asks_for_a_resume(running):
    stub = running.stub()
    source = Source(stub, "www", request_id="r")
    source.put_file("a", b"1")
    stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    again = Source(stub, "www", request_id="r")
    assert again.upload.id == source.upload.id
    assert again.upload.epoch == source.upload.epoch
    again.number, again.entries, again.bytes = 1, 1, 1
    again.put_file("b", b"2")
    running.restart()
    stub = running.stub()
    after = Source(stub, "www", request_id="r")
    assert after.upload.id == source.upload.id
    with pytest.raises(grpc.RpcError) as failed:
        after.put_file("b", b"2")
    assert reason(failed.value) == "RESUME_REQUIRED"
    durable = resume(stub, after)
    assert durable.put_entries_number == 2, "draining makes durable what was received"
    after.entries, after.bytes = 2, 2
    after.commit()
    assert restore(stub, "www").files == {"a": b"1", "b": b"2"}


def test_repeated_chunks_and_calls_after_a_resume_count_once(running):
    stub = running.stub()
    source = Source(stub, "www")
    data = noise(300_000)
    source.put_file("a", data)
    stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    entries, size = source.entries, source.bytes
    resume(stub, source)
    assert source.put_chunks(source.cut(data)) == 0
    source.put_entries(source.entry("a", data), number=1)
    source.entries, source.bytes = entries, size
    source.commit()
    assert restore(stub, "www").files == {"a": data}


# ------------------------------------------------------------------ chunks


def test_a_requested_chunk_is_not_looked_up_again_when_it_arrives(running, monkeypatch):
    asked = []
    claim = Chunks.claim

    def noted(self, tenant, upload, epoch, chunk_ids):
        ids = list(chunk_ids)
        asked.append(len(ids))
        return claim(self, tenant, upload, epoch, ids)

    monkeypatch.setattr(Chunks, "claim", noted)
    source = Source(running.stub(), "www")
    chunks = [noise(70_000, n) for n in range(3)]
    assert source.missing(chunks[:2]) == chunks[:2]
    assert asked == [2]
    assert source.put_chunks(chunks) == 3
    assert asked == [2, 1]
    assert source.put_chunks(chunks) == 0
    assert source.missing([noise(5, 9)])
    source.put_entries(pb.Entry(path="inline", data=noise(5, 9)))
    assert source.put_chunks([noise(5, 9)]) == 0, "it came meanwhile"
    source.entries, source.bytes = 1, 5
    source.put_entries(*(source.entry(f"f{n}", chunk) for n, chunk in enumerate(chunks)))
    source.commit()
    files = {f"f{n}": chunk for n, chunk in enumerate(chunks)} | {"inline": noise(5, 9)}
    assert restore(running.stub(), "www").files == files


def test_two_uploads_that_both_send_a_chunk_both_restore(running):
    stub = running.stub()
    data = noise(70_000)
    first, second = Source(stub, "first"), Source(stub, "second")
    for source in (first, second):
        assert source.missing([data]) == [data]
    for source in (first, second):
        assert source.put_chunks([data]) == 1
        source.put_entries(source.entry("f", data))
        source.commit()
    stub.DeleteBackup(sv.DeleteBackupRequest(dataset="first", backup=backups(stub, "first")[0].id))
    assert restore(stub, "second").files == {"f": data}
