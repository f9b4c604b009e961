"""Promise 2 on the wire: an interrupted upload leaves no backup, and can be resumed or taken over."""

import threading

import grpc
import pytest
from sample_files import FILES
from staddle import Client
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from thin import (
    Part,
    Source,
    back_up,
    backups,
    begin,
    finish,
    info,
    large,
    messages,
    noise,
    open_upload,
    pieces,
    reason,
    restore,
    small,
)


def test_a_stream_that_ends_without_finish_leaves_no_backup_and_says_how_to_resume(running):
    stub = running.stub()
    data = noise(5_000_000)
    cut = [begin("www"), small("a", b"1"), Part(entry=pb.Entry(path="b")), *list(pieces(data))[:4]]
    with pytest.raises(grpc.RpcError) as failed:
        stub.Backup(messages(cut))
    assert failed.value.code() == grpc.StatusCode.CANCELLED
    assert reason(failed.value) == "UNFINISHED_STREAM"
    upload_id = info(failed.value).metadata["upload"]
    assert upload_id in failed.value.details()
    assert "1 entry with 1 byte durable" in failed.value.details()
    with pytest.raises(grpc.RpcError) as none:
        restore(stub, "www")
    assert reason(none.value) == "BACKUP_NOT_FOUND"

    upload = stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=upload_id)).upload
    assert upload.epoch == 2
    assert upload.last_failure == "the stream ended without finish"
    durable = upload.durable
    assert durable.last_entry.path == "a"
    assert durable.open_entry.path == "b"
    offset = durable.open_offset_bytes
    assert 2_000_000 < offset <= 4 << 20

    def rest():
        yield Part(
            continue_upload=sv.ContinueUpload(
                upload_id=upload.id, epoch=upload.epoch, position=durable.position
            )
        )
        yield Part(entry=pb.Entry(path="b", continue_at_bytes=offset))
        yield from pieces(data[offset:])
        yield Part(entry_end=sv.EntryEnd(size_bytes=len(data)))
        yield finish(2, 1 + len(data))

    resumed = stub.Backup(messages(rest())).backup
    assert restore(stub, "www").files == {"a": b"1", "b": data}
    assert resumed.manifest_digest == back_up(stub, "other", {"a": b"1", "b": data}).manifest_digest


@pytest.mark.parametrize("end", ["cancel", "deadline", "exception", "disconnect"])
def test_a_client_that_disconnects_leaves_no_backup_and_damages_none(running, end):
    stub = running.stub()
    before = back_up(stub, "www", FILES)
    leaving = running.stub(name="leaving")
    reached, go = threading.Event(), threading.Event()

    def requests():
        yield from messages(
            [begin("www", request_id="the-one"), small("new", b"x"), *large("n", noise(3 << 20))]
        )
        reached.set()
        go.wait(60)
        if end == "exception":
            raise RuntimeError("the client broke")
        if end != "disconnect":
            yield sv.BackupRequest(parts=[small("late", b"y")])

    call = leaving.Backup.future(requests(), timeout=3.0 if end == "deadline" else 60)
    assert reached.wait(60)
    open_upload(stub, "the-one")
    if end == "cancel":
        call.cancel()
    elif end == "disconnect":
        running._channels[-1].close()
    go.set() if end != "deadline" else None
    with pytest.raises((grpc.RpcError, grpc.FutureCancelledError, ValueError)):
        call.result(timeout=60)
    go.set()
    assert [b.id for b in backups(stub, "www")] == [before.id]
    assert restore(stub, "www").files == FILES
    assert open_upload(stub, "the-one").state == pb.UPLOAD_STATE_OPEN


def test_durable_data_is_not_sent_again_after_a_server_restart(running):
    stub = running.stub()
    source = Source(stub, "www")
    data = noise(4_000_000)
    chunks = source.cut(data)
    source.put_chunks(chunks)
    source.put_entries(source.entry("f", data))
    stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    running.restart()
    source.stub = stub = running.stub()
    with pytest.raises(grpc.RpcError) as failed:
        source.put_entries(pb.Entry(path="g", data=b""))
    assert reason(failed.value) == "RESUME_REQUIRED"
    source.upload = stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id)).upload
    assert source.missing(chunks) == []
    durable = source.upload.durable
    assert (durable.entry_count, durable.data_bytes, durable.put_entries_number) == (1, len(data), 1)
    source.number = 1
    source.put_entries(
        source.entry(
            "g",
            b"later",
        )
    )
    source.put_chunks([b"later"])
    source.commit()
    assert restore(stub, "www").files == {"f": data, "g": b"later"}


def test_a_take_over_ends_the_old_writer_and_its_stream(running):
    stub = running.stub()
    reached, go = threading.Event(), threading.Event()

    def requests():
        yield from messages([begin("www", request_id="r"), small("a", b"1")])
        reached.set()
        go.wait(60)

    old = stub.Backup.future(requests())
    assert reached.wait(60)
    upload = open_upload(stub, "r")
    taken = stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=upload.id)).upload
    assert taken.epoch == upload.epoch + 1
    with pytest.raises((grpc.RpcError, grpc.FutureCancelledError)):
        old.result(timeout=60)
    go.set()
    for call in (
        lambda: stub.CheckpointUpload(sv.CheckpointUploadRequest(upload_id=upload.id, epoch=upload.epoch)),
        lambda: stub.CommitUpload(sv.CommitUploadRequest(upload_id=upload.id, epoch=upload.epoch)),
        lambda: stub.PutEntries(sv.PutEntriesRequest(upload_id=upload.id, epoch=upload.epoch, number=1)),
    ):
        with pytest.raises(grpc.RpcError) as stale:
            call()
        assert stale.value.code() == grpc.StatusCode.ABORTED
        assert reason(stale.value) == "STALE_EPOCH"


def test_repeating_a_backup_takes_its_open_upload_over_for_the_same_principal_only(running):
    stub = running.stub()
    asked = {"take_over": True, "host": "h", "root": "/srv", "fingerprint": "options"}
    first = Source(stub, "www", **asked)
    first.put_file("a", b"1")
    stub.CheckpointUpload(sv.CheckpointUploadRequest(**first.id))
    again = stub.BeginUpload(sv.BeginUploadRequest(dataset="www", **asked))
    assert again.taken_over
    assert again.upload.id == first.upload.id
    assert again.upload.epoch == 2
    assert again.upload.durable.entry_count == 1
    other = running.stub("writer", name="somebody-else").BeginUpload(
        sv.BeginUploadRequest(dataset="www", **asked)
    )
    assert not other.taken_over
    different = stub.BeginUpload(sv.BeginUploadRequest(dataset="www", **{**asked, "fingerprint": "others"}))
    assert not different.taken_over


def test_an_upload_that_was_taken_over_is_found_by_both_request_ids(running):
    with Client(running.address, token=running.token()) as client:
        begun, taken = (
            client.call("BeginUpload", sv.BeginUploadRequest(dataset="www", request_id=name, take_over=True))
            for name in ("first", "second")
        )
        assert (taken.taken_over, taken.upload.id) == (True, begun.upload.id)
        for name in ("first", "second"):
            found = client.call("GetUpload", sv.GetUploadRequest(request_id=name)).upload
            assert (found.id, found.request_id, found.epoch) == (begun.upload.id, "first", 2)
        by_id = sv.GetUploadRequest(upload_id=begun.upload.id.upper())  # which the server accepts, too
        assert client.call("GetUpload", by_id).upload == found


def test_another_principal_takes_over_only_when_the_lease_has_ended(running):
    source = Source(running.stub("writer", name="first"), "www")
    second = running.stub("writer", name="second")
    with pytest.raises(grpc.RpcError) as held:
        second.ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id))
    assert held.value.code() == grpc.StatusCode.ABORTED
    assert reason(held.value) == "LEASE_HELD"
    running.clock.ahead_s = running.lease_s + 1
    upload = second.ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id)).upload
    assert upload.epoch == 2


def test_an_upload_interrupted_overnight_resumes_and_an_expired_one_does_not(running):
    stub = running.stub()
    source = Source(stub, "www")
    source.put_file("a", b"1")
    stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    running.clock.ahead_s = 12 * 3600
    source.upload = stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id)).upload
    source.commit()
    late = Source(stub, "www")
    running.clock.ahead_s += running.upload_life_s + 1
    with pytest.raises(grpc.RpcError) as closed:
        stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=late.upload.id))
    assert reason(closed.value) == "UPLOAD_CLOSED"


@pytest.mark.parametrize("instead", ["an entry", "a removal", "the same file anew"])
def test_an_open_file_that_is_not_resumed_is_dropped(running, instead):
    stub = running.stub()
    with pytest.raises(grpc.RpcError) as failed:
        stub.Backup(messages([begin("www"), Part(entry=pb.Entry(path="gone")), *pieces(noise(3_000_000))]))
    upload_id = info(failed.value).metadata["upload"]
    upload = stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=upload_id)).upload
    assert upload.durable.open_entry.path == "gone"
    continued = sv.ContinueUpload(upload_id=upload.id, epoch=upload.epoch, position=upload.durable.position)
    parts, files = {
        "an entry": ([small("a", b"1"), finish(1, 1)], {"a": b"1"}),
        "a removal": ([Part(remove=pb.Remove(path="x")), finish(0, 0)], {}),
        "the same file anew": ([small("gone", b"12"), finish(1, 2)], {"gone": b"12"}),
    }[instead]
    stub.Backup(messages([Part(continue_upload=continued), *parts]))
    assert restore(stub, "www").files == files


def in_pieces(data, size):
    return [Part(data=sv.Data(data=data[at : at + size])) for at in range(0, len(data), size)]


def certain_bytes(stub, data):
    """The number of its first bytes in chunks that do not depend on what follows."""
    source = Source(stub, "cut")
    lengths = [len(chunk) for chunk in source.cut(data)]
    return len(data) - (lengths[-1] if lengths[-1] < source.upload.chunker.max_bytes else 0)


@pytest.mark.parametrize("end", ["checkpoint", "nothing", "nonsense"])
def test_all_received_data_of_an_open_file_is_durable_however_its_stream_ended(running, end):
    stub = running.stub()
    data = noise(4 << 20, 11)
    parts = [begin("www", request_id="open"), Part(entry=pb.Entry(path="f")), *in_pieces(data, 1 << 20)]
    parts += {"checkpoint": [Part(checkpoint=sv.Checkpoint())], "nothing": [], "nonsense": [Part()]}[end]
    if end == "checkpoint":
        durable = stub.Backup(messages(parts)).upload.durable
    else:
        with pytest.raises(grpc.RpcError):
            stub.Backup(messages(parts))
        durable = open_upload(stub, "open").durable
    assert durable.open_entry.path == "f"
    assert durable.open_offset_bytes == certain_bytes(stub, data) > 3 << 20
