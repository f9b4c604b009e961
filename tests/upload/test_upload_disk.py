"""A disk that is full or fails at each step: the error says so, no durable data is lost, and the upload can resume."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.store.backends.directory import DirectoryBlobs
from staddle_server.store.files import Files
from staddle_server.store.records import CommittedRecord, DeletedRecord
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
    pieces,
    restore,
    wait_until,
)


class FailingFiles(Files):
    """The system calls of a disk that is full or broken where a test says so."""

    def __init__(self) -> None:
        self.full = False
        """Nothing can be written any more."""
        self.refused: str | None = None
        """No object whose path has this in it gets its name: the disk is full just then."""
        self.syncs_fail = False

    def write(self, descriptor: int, data: bytes | bytearray | memoryview) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "no space")
        return super().write(descriptor, data)

    def link(self, source: str, target: str) -> None:
        if self.refused is not None and self.refused in target:
            raise OSError(errno.ENOSPC, "no space")
        super().link(source, target)

    def sync(self, descriptor: int) -> None:
        if self.syncs_fail:
            raise OSError(errno.EIO, "input/output error")
        super().sync(descriptor)

    def mend(self) -> None:
        """Give the disk room again, and let syncs work."""
        self.full, self.refused, self.syncs_fail = False, None, False


@pytest.fixture
def disk(running) -> Iterator[FailingFiles]:
    """The disk below `running`."""
    files = FailingFiles()
    running.stop()
    running.wrap = lambda _: DirectoryBlobs(str(running.root / "store"), files)
    running.start()
    yield files
    files.mend()


def full(error):
    """Assert that this is the documented error of a full store."""
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert info(error).reason == "STORE_FULL"
    assert dict(info(error).metadata) == {}
    return True


def resume(stub, source):
    source.upload = stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id)).upload
    durable = source.upload.durable
    source.number, source.entries, source.bytes = (
        durable.put_entries_number,
        durable.entry_count,
        durable.data_bytes,
    )
    return durable


def records(running, kind):
    from staddle_server.store.records import Records

    kept = Records(running.blobs, running.keys.load(running.tenant))
    return [record for record in map(kept.read, kept.list()) if isinstance(record, kind)]


def test_a_disk_that_fills_up_during_a_stream_is_reported_and_the_upload_resumes_with_room(running, disk):
    stub = running.stub()
    data, second = noise(2_500_000), noise(5_000_000, 2)
    with pytest.raises(grpc.RpcError):
        stub.Backup(messages([begin("www", request_id="r"), *large("a", data)]))
    upload = stub.GetUpload(sv.GetUploadRequest(request_id="r")).upload
    upload = stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=upload.id)).upload
    outlives_caller = Part(
        continue_upload=sv.ContinueUpload(
            upload_id=upload.id, epoch=upload.epoch, position=upload.durable.position
        )
    )
    disk.full = True
    with pytest.raises(grpc.RpcError) as failed:
        stub.Backup(messages([outlives_caller, *large("b", second), finish(2, 7_500_000)]))
    assert full(failed.value)
    found = stub.GetUpload(sv.GetUploadRequest(upload_id=upload.id)).upload
    assert found.state == pb.UPLOAD_STATE_OPEN
    assert "no space left" in found.last_failure
    assert found.durable.entry_count == 1
    disk.mend()
    upload = stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=upload.id)).upload
    outlives_caller.continue_upload.epoch = upload.epoch
    stub.Backup(messages([outlives_caller, *large("b", second), finish(2, 7_500_000)]))
    assert restore(stub, "www").files == {"a": data, "b": second}


def test_a_disk_that_is_full_at_put_chunks_is_reported_and_the_upload_resumes_with_room(running, disk):
    stub = running.stub()
    source = Source(stub, "www")
    source.put_file("a", b"1")
    stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    disk.full = True
    with pytest.raises(grpc.RpcError) as failed:
        source.put_file("b", noise(300_000))
    assert full(failed.value)
    with pytest.raises(grpc.RpcError) as after:
        source.put_chunks([b"2"])
    assert after.value.code() == grpc.StatusCode.ABORTED
    assert info(after.value).reason == "RESUME_REQUIRED"
    disk.mend()
    assert resume(stub, source).entry_count == 1
    source.put_file("b", noise(300_000))
    source.commit()
    assert restore(stub, "www").files == {"a": b"1", "b": noise(300_000)}


def test_a_disk_that_is_full_at_a_checkpoint_is_reported_and_the_durable_point_stays(running, disk):
    stub = running.stub()
    source = Source(stub, "www")
    source.put_file("a", b"1")
    stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    source.put_file("b", b"2")
    disk.refused = "/packs/"
    with pytest.raises(grpc.RpcError) as failed:
        stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    assert full(failed.value)
    assert resume(stub, source).entry_count == 1
    disk.mend()
    source.put_file("b", b"2")
    source.commit()
    assert restore(stub, "www").files == {"a": b"1", "b": b"2"}


def test_a_checkpoint_that_fails_in_the_background_is_reported_to_the_next_call(running, disk):
    """Housekeeping publishes on its own: a failure there must not pass for durable."""
    stub = running.stub()
    source = Source(stub, "www")
    source.put_file("a", b"1")
    disk.refused = "/packs/"
    running.clock.ahead_s = 6
    writer = running.service._uploads._writers[bytes.fromhex(source.upload.id)]
    wait_until(lambda: writer.closed is not None)
    with pytest.raises(grpc.RpcError) as failed:
        source.put_file("b", b"2")
    assert info(failed.value).reason == "RESUME_REQUIRED"

    wait_until(lambda: "no space left" in source.state().last_failure)
    assert source.state().durable.entry_count == 0
    disk.mend()
    assert resume(stub, source).entry_count == 0
    source.put_file("a", b"1")
    source.commit()
    assert restore(stub, "www").files == {"a": b"1"}


def test_a_disk_that_is_full_at_commit_is_reported_and_makes_no_backup(running, disk):
    stub = running.stub()
    source = Source(stub, "www")
    for path in ("a", "b"):  # two runs, so that they need merging
        source.put_file(path, b"1")
        stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    disk.full = True
    with pytest.raises(grpc.RpcError) as failed:
        source.commit()
    assert full(failed.value)
    assert backups(stub, "www") == []
    disk.mend()
    assert resume(stub, source).entry_count == 2
    source.commit()
    assert restore(stub, "www").files == {"a": b"1", "b": b"1"}


def test_a_commit_whose_record_has_no_room_is_finished_by_its_replay(running, disk):
    stub = running.stub()
    source = Source(stub, "www")
    source.put_file("a", b"1")
    disk.refused = "/records/"
    with pytest.raises(grpc.RpcError) as failed:
        source.commit()
    assert full(failed.value)
    assert records(running, CommittedRecord) == []
    with pytest.raises(grpc.RpcError) as failed:
        source.commit()
    assert full(failed.value), "nothing is acknowledged before its record is durable"
    disk.mend()
    backup = source.commit()
    assert [record.backup.hex() for record in records(running, CommittedRecord)] == [backup.id]
    assert source.commit() == backup
    assert len(records(running, CommittedRecord)) == 1


def test_a_stream_whose_record_has_no_room_is_finished_by_its_replay(running, disk):
    stub = running.stub()
    parts = [begin("www", request_id="r"), *pieces(b""), finish(0, 0)]
    disk.refused = "/records/"
    with pytest.raises(grpc.RpcError) as failed:
        stub.Backup(messages(parts))
    assert full(failed.value)
    disk.mend()
    backup = stub.Backup(messages(parts)).backup
    assert [record.backup.hex() for record in records(running, CommittedRecord)] == [backup.id]


def test_a_commit_whose_record_has_no_room_is_finished_by_a_restart(running, disk):
    stub = running.stub()
    source = Source(stub, "www")
    source.put_file("a", b"1")
    disk.refused = "/records/"
    with pytest.raises(grpc.RpcError):
        source.commit()
    running.restart()
    assert running.service.finished_records == 0
    stub = running.stub()
    assert restore(stub, "www").files == {"a": b"1"}, "a full disk does not stop restores"
    disk.mend()
    running.restart()
    (backup,) = backups(running.stub(), "www")
    assert [record.backup.hex() for record in records(running, CommittedRecord)] == [backup.id]
    assert running.service.finished_records >= 1


def test_the_next_start_completes_a_commit_whose_record_was_lost_in_a_crash(running, disk, monkeypatch):
    stub = running.stub()
    source = Source(stub, "www")
    source.put_file("a", b"1")

    def crash(*_):
        raise RuntimeError("the process ends here")

    with monkeypatch.context() as patched:
        patched.setattr("staddle_server.upload.writer.finish_record", crash)
        with pytest.raises(grpc.RpcError):
            source.commit()
    assert records(running, CommittedRecord) == []
    running.restart()
    (backup,) = backups(running.stub(), "www")
    assert [record.backup.hex() for record in records(running, CommittedRecord)] == [backup.id]
    source.stub = running.stub()
    assert source.commit() == backup


def test_a_deletion_whose_record_has_no_room_is_finished_by_its_replay(running, disk):
    stub = running.stub()
    backup = back_up(stub, "www", {"a": b"1"})
    request = sv.DeleteBackupRequest(dataset="www", backup=backup.id)
    disk.refused = "/records/"
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as failed:
            stub.DeleteBackup(request)
        assert full(failed.value), "nothing is acknowledged before its record is durable"
    disk.mend()
    stub.DeleteBackup(request)
    assert [record.backup.hex() for record in records(running, DeletedRecord)] == [backup.id]
    stub.DeleteBackup(request)
    assert len(records(running, DeletedRecord)) == 1


def test_after_a_failed_sync_the_store_is_read_only_and_says_why(running, disk):
    stub = running.stub()
    back_up(stub, "www", {"a": b"1"})
    source = Source(stub, "www")
    source.put_file("b", b"2")
    disk.syncs_fail = True
    with pytest.raises(grpc.RpcError) as failed:
        stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    assert failed.value.code() == grpc.StatusCode.UNAVAILABLE
    assert info(failed.value).reason == "STORE_UNAVAILABLE"
    disk.mend()
    resume(stub, source)
    with pytest.raises(grpc.RpcError) as failed:
        back_up(stub, "www", {"b": b"2"})
    assert failed.value.code() == grpc.StatusCode.UNAVAILABLE
    assert info(failed.value).reason == "STORE_UNAVAILABLE"
    assert "restart the server" in failed.value.details()
    retry = error_details_pb2.RetryInfo()
    assert rpc_status.from_call(failed.value).details[1].Unpack(retry)
    assert retry.retry_delay.seconds > 0
    assert restore(stub, "www").files == {"a": b"1"}
    running.restart()
    source.stub = stub = running.stub()
    resume(stub, source)
    source.put_file("b", b"2")
    source.commit()
    assert restore(stub, "www").files == {"b": b"2"}


def test_uploads_that_fail_end_or_are_taken_over_leave_nothing_behind(running, disk):
    """Temporary files, threads and descriptors are released with their writer."""
    stub = running.stub()
    back_up(stub, "www", {"a": b"1"})
    for how in ("abort", "resume", "fail"):
        for index in range(5):
            source = Source(stub, "www")
            source.put_file(f"{how}{index}", noise(200_000, index))
            if how == "fail":
                disk.refused = "/packs/"
                with pytest.raises(grpc.RpcError):
                    stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
                disk.mend()
            if how == "resume":
                resume(stub, source)
            stub.AbortUpload(sv.AbortUploadRequest(**source.id))
    assert running.service._uploads._writers == {}
    assert list((running.root / "store" / "tmp").iterdir()) == []
    for _ in range(100):
        left = [thread for thread in threading.enumerate() if thread.name.startswith("publish")]
        if not left:
            break
        threading.Event().wait(0.05)
    assert left == []
