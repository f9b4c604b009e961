"""Large answers, distant times, stale callers and a server that is shutting down."""

import threading

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.upload import uploads as session_uploads
from thin import (
    Held,
    Source,
    back_up,
    backups,
    begin,
    finish,
    messages,
    noise,
    reason,
    restore,
    small,
    wait_until,
)

TAGS = {f"{i:03}" + "k" * 120: "v" * 1024 for i in range(64)}


@pytest.mark.slow
def test_backups_and_datasets_with_many_tags_are_listed_in_pages_that_fit_a_message(running):
    stub = running.stub()
    for index in range(66):
        back_up(stub, f"set{index:02}", {}, tags=TAGS)
        back_up(stub, "www", {}, tags=TAGS)
    names, numbers, token = [], [], ""
    while True:
        page = stub.ListDatasets(sv.ListDatasetsRequest(page_token=token, page_size=1000))
        names += [dataset.name for dataset in page.datasets]
        token = page.next_page_token
        if not token:
            break
    assert names == sorted([*(f"set{index:02}" for index in range(66)), "www"])
    while True:
        page = stub.ListBackups(sv.ListBackupsRequest(dataset="www", page_token=token, page_size=1000))
        numbers += [backup.number for backup in page.backups]
        token = page.next_page_token
        if not token:
            break
    assert numbers == list(range(66, 0, -1))


def test_damaged_entries_with_long_paths_are_listed_in_pages_that_fit_a_message(running):
    stub = running.stub()
    parent = "/".join("p" * 1000 for _ in range(15))
    source = Source(stub, "www")
    data = noise(300_000)
    source.put_chunks(source.cut(data))
    paths = sorted(f"{parent}/{i:04}" for i in range(400))
    for start in range(0, 400, 100):
        source.put_entries(*(source.entry(path, data) for path in paths[start : start + 100]))
    source.commit()
    for pack in (running.root / "store" / "packs").rglob("*/*/*"):
        content = bytearray(pack.read_bytes())
        if len(content) > 300_000:
            content[200_000] ^= 1
            pack.write_bytes(content)
    assert restore(stub, "www", paths=[paths[0]]).damages
    after = Source(stub, "www")
    assert after.begun.more_damaged_base_entries
    missing = [noise(70_000, 5), noise(70_000, 6)]
    for chunk in missing:
        after.put_entries(after.entry(f"m{len(chunk)}{chunk[:1].hex()}", chunk))
    stub.CheckpointUpload(sv.CheckpointUploadRequest(**after.id))
    found, digests, token = [], [], ""
    while True:
        request = sv.GetUploadRequest(upload_id=after.upload.id, page_token=token, page_size=1)
        if token:
            request.page_size = 4096
        page = stub.GetUpload(request)
        found += [entry.path for entry in page.damaged_base_entries]
        digests += page.missing_digests
        token = page.next_page_token
        if not token:
            break
    assert found == paths
    assert len(digests) == len(set(digests)) == sum(len(after.cut(chunk)) for chunk in missing)


@pytest.mark.parametrize(
    "selector",
    [
        pb.BackupSelector(at=Timestamp(seconds=253_402_300_799)),
        pb.BackupSelector(at=Timestamp(seconds=-62_135_596_800)),
        pb.BackupSelector(ago=Duration(seconds=250_000_000_000)),
        pb.BackupSelector(ago=Duration(seconds=0)),
    ],
)
def test_any_distant_time_selects_a_backup_or_reports_that_none_exists(running, selector):
    stub = running.stub()
    back_up(stub, "www", {"a": b"1"})
    request = sv.GetBackupRequest(dataset="www", backup=selector)
    if selector.at.seconds > 0 or selector == pb.BackupSelector(ago=Duration(seconds=0)):
        assert stub.GetBackup(request).backup.number == 1
        return
    with pytest.raises(grpc.RpcError) as failed:
        stub.GetBackup(request)
    assert failed.value.code() == grpc.StatusCode.NOT_FOUND
    assert reason(failed.value) == "BACKUP_NOT_FOUND"


def test_a_clock_that_goes_back_affects_no_upload_and_no_backup(running):
    stub = running.stub()
    back_up(stub, "www", {"a": b"1"})
    source = Source(stub, "www")
    source.put_file("a", b"2")
    running.clock.ahead_s = -3600.0
    stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    source.put_file("b", b"3")
    source.commit()
    assert restore(stub, "www").files == {"a": b"2", "b": b"3"}
    running.restart()
    assert restore(running.stub(), "www").files == {"a": b"2", "b": b"3"}
    back_up(running.stub(), "www", {"c": b"4"})
    assert [backup.number for backup in backups(running.stub(), "www")] == [3, 2, 1]


def test_a_stale_writer_never_gets_the_commit_of_another_as_its_own(running):
    stub = running.stub()
    stale = Source(stub, "www")
    stale.put_file("a", b"mine, and durable nowhere")
    other = Source(stub, "www")
    other.upload = stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=stale.upload.id)).upload
    other.put_file("b", b"2")
    other.commit()
    with pytest.raises(grpc.RpcError) as refused:
        stale.commit()
    assert refused.value.code() == grpc.StatusCode.ABORTED
    assert reason(refused.value) == "STALE_EPOCH"


def test_an_upload_with_a_writer_can_be_resumed_when_all_slots_are_taken(running, monkeypatch):
    monkeypatch.setattr(session_uploads, "UPLOADS_OPEN_MAX", 1)
    stub = running.stub()
    source = Source(stub, "www")
    with pytest.raises(grpc.RpcError) as refused:
        Source(stub, "other")
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason(refused.value) == "TOO_MANY"
    source.upload = stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id)).upload
    source.put_file("a", b"1")
    source.commit()
    Source(stub, "other")


def test_a_stream_that_begins_during_shutdown_is_refused_and_leaves_no_writer(running):
    stub = running.stub()
    admitted, go = threading.Event(), threading.Event()

    def requests():
        admitted.set()
        go.wait(60)
        yield from messages([begin("www", request_id="r"), small("a", b"1"), finish(1, 1)])

    call = stub.Backup.future(requests())
    assert admitted.wait(60)
    gate = running.service._gate
    wait_until(lambda: not gate.streams.idle)
    running.service._uploads.close()
    go.set()
    with pytest.raises(grpc.RpcError) as refused:
        call.result(timeout=60)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert reason(refused.value) == "DRAINING"
    assert running.service._uploads._writers == {}


def test_housekeeping_survives_an_error(running, monkeypatch):
    stub = running.stub()
    source = Source(stub, "www")
    source.put_file("a", b"1")
    met = threading.Event()

    def fault(*_):
        met.set()
        raise RuntimeError("a fault")

    with monkeypatch.context() as patched:
        patched.setattr(running.service._uploads, "_all", fault)
        assert met.wait(60)
    running.clock.ahead_s = 6
    wait_until(lambda: source.state().durable.entry_count)
    assert source.state().durable.entry_count == 1


def test_a_long_commit_does_not_delay_other_uploads(running, monkeypatch):
    stub = running.stub()
    source, other = Source(stub, "www"), Source(stub, "other")
    source.put_file("a", b"1")
    slow = Held(running.catalog.uploads.commit)
    monkeypatch.setattr(running.catalog.uploads, "commit", slow)
    call = stub.CommitUpload.future(sv.CommitUploadRequest(**source.id, entry_count=1, data_bytes=1))
    assert slow.reached.wait(60)
    running.clock.ahead_s = running.lease_s + 10
    wait_until(lambda: len(running.service._uploads._writers) == 1)
    assert set(running.service._uploads._writers) == {bytes.fromhex(source.upload.id)}, (
        "the idle one is suspended"
    )
    slow.go.set()
    assert call.result(timeout=60).backup.number == 1
    assert other.upload.id


def test_one_tenant_cannot_take_all_upload_slots(running, monkeypatch):
    monkeypatch.setattr(session_uploads, "UPLOADS_OPEN_TENANT_MAX", 2)
    stub = running.stub()
    sources = [Source(stub, f"set-{n}") for n in range(2)]
    with pytest.raises(grpc.RpcError) as refused:
        Source(stub, "one-more")
    assert reason(refused.value) == "TOO_MANY"
    Source(running.stub(tenant=running.make_tenant("other")), "theirs")
    sources[0].commit()
    Source(stub, "one-more")
