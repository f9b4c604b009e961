"""Promises 1 to 4, on the wire: acknowledged backups are stored completely or not at all, and restore unchanged."""

import random
import threading

import grpc
import pytest
from blake3 import blake3
from sample_files import FILES
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
    reason,
    restore,
    small,
    wait_until,
)


def test_a_thin_backup_of_many_files_in_one_stream_comes_back_byte_for_byte(running):
    stub = running.stub("writer")
    backup = back_up(stub, "www", FILES)
    found = restore(stub, "www")
    assert found.files == FILES
    assert found.backup.id == backup.id
    assert backup.number == 1
    assert backup.kind == pb.BACKUP_KIND_FULL
    assert backup.data_bytes == sum(map(len, FILES.values()))
    assert found.end.data_bytes == backup.data_bytes


def test_missing_parents_are_implied_and_only_the_path_is_required(running):
    stub = running.stub()
    back_up(stub, "www", {"z/y/x": b"deep"})
    found = restore(stub, "www")
    assert [(e.path, e.implied) for e in found.entries.values()] == [
        ("z", True),
        ("z/y", True),
        ("z/y/x", False),
    ]
    assert not found.entries["z/y/x"].HasField("mode")


def test_a_stream_of_one_byte_messages_makes_the_same_manifest_as_one_of_large_messages(running):
    stub = running.stub()
    data = noise(200_000)
    whole = back_up(stub, "one", {"f": data})

    def parts():
        yield begin("two")
        yield Part(entry=pb.Entry(path="f"))
        for start in range(0, len(data), 997):
            yield Part(data=sv.Data(data=data[start : start + 997]))
        yield Part(entry_end=sv.EntryEnd())
        yield finish(1, len(data))

    assert stub.Backup(messages(parts())).backup.manifest_digest == whole.manifest_digest


def test_both_paths_make_the_same_manifest_and_the_second_stores_nothing(running):
    stub = running.stub()
    thin = back_up(stub, "www", FILES)
    source = Source(stub, "copy")
    for path, data in FILES.items():
        source.put_file(path, data)
    backup = source.commit()
    assert backup.manifest_digest == thin.manifest_digest
    assert backup.stored_bytes == 0
    assert restore(stub, "copy").files == FILES


def test_both_paths_may_be_mixed_in_one_upload(running):
    stub = running.stub()
    source = Source(stub, "mixed")
    source.put_file("a/by-source", noise(2_000_000, 5))
    durable = stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id)).durable
    data = noise(1_500_000, 6)

    def parts():
        yield Part(continue_upload=sv.ContinueUpload(**source.id, position=durable.position))
        yield from large("b/by-stream", data)
        yield Part(checkpoint=sv.Checkpoint())

    answer = stub.Backup(messages(parts()))
    assert not answer.HasField("backup")
    assert answer.upload.durable.entry_count == 2
    source.entries, source.bytes = 2, 2_000_000 + len(data)
    source.put_entries(source.entry("c", b""))
    source.commit()
    assert restore(stub, "mixed").files == {
        "a/by-source": noise(2_000_000, 5),
        "b/by-stream": data,
        "c": b"",
    }


def test_a_replayed_commit_gets_the_first_answer(running):
    stub = running.stub()
    source = Source(stub, "www", request_id="r")
    source.put_file("a", b"1")
    first = source.commit()
    assert source.commit() == first
    running.restart()
    source.stub = running.stub()
    assert source.commit() == first
    begun = source.stub.BeginUpload(sv.BeginUploadRequest(dataset="www", request_id="r")).upload
    assert (begun.state, begun.backup_id) == (pb.UPLOAD_STATE_COMMITTED, first.id)
    with pytest.raises(grpc.RpcError) as reused:
        source.stub.BeginUpload(sv.BeginUploadRequest(dataset="other", request_id="r"))
    assert reused.value.code() == grpc.StatusCode.ALREADY_EXISTS


@pytest.mark.parametrize("counts", [(0, 1), (1, 0), (2, 1), (1, 2)])
def test_a_finish_with_other_counts_makes_no_backup_and_leaves_the_upload_open(running, counts):
    stub = running.stub()
    with pytest.raises(grpc.RpcError) as failed:
        stub.Backup(messages([begin("www", request_id="r"), small("a", b"1"), finish(*counts)]))
    assert failed.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert dict(info(failed.value).metadata) == {"entry_count": "1", "data_bytes": "1"}
    assert backups(stub, "www") == []
    upload = stub.GetUpload(sv.GetUploadRequest(request_id="r")).upload
    assert upload.state == pb.UPLOAD_STATE_OPEN
    right = sv.CommitUploadRequest(upload_id=upload.id, epoch=upload.epoch, entry_count=1, data_bytes=1)
    assert stub.CommitUpload(right).backup.number == 1


def test_an_aborted_upload_is_over_and_a_replay_changes_nothing(running):
    stub = running.stub()
    source = Source(stub, "www")
    source.put_file("a", b"1")
    for _ in range(2):
        upload = stub.AbortUpload(sv.AbortUploadRequest(**source.id)).upload
        assert upload.state == pb.UPLOAD_STATE_ABORTED
    with pytest.raises(grpc.RpcError) as closed:
        source.commit()
    assert reason(closed.value) == "UPLOAD_CLOSED"


def test_chunks_that_are_missing_at_commit_are_listed_and_the_upload_stays_open(running):
    stub = running.stub()
    source = Source(stub, "www")
    files = {f"f{index}": noise(70_000, index) for index in range(5)}
    answer = source.put_entries(*[source.entry(path, data) for path, data in files.items()])
    assert list(answer.incomplete) == [0, 1, 2, 3, 4]
    source.put_chunks(source.cut(files["f0"]))
    with pytest.raises(grpc.RpcError) as missing:
        source.commit()
    assert reason(missing.value) == "MISSING_CHUNKS"
    assert info(missing.value).metadata["count"] == str(
        sum(len(source.cut(files[f"f{i}"])) for i in range(1, 5))
    )
    wanted, token = [], ""
    while True:
        page = stub.GetUpload(sv.GetUploadRequest(upload_id=source.upload.id, page_size=2, page_token=token))
        wanted += page.missing_digests
        token = page.next_page_token
        if not token:
            break
    running.restart()
    source.stub = stub = running.stub()
    source.upload = stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id)).upload
    chunks = [chunk for data in files.values() for chunk in source.cut(data)]
    lacking = source.missing(chunks)
    assert len(wanted) == len(set(wanted)) == len(lacking)
    source.put_chunks(lacking)
    source.commit()
    assert restore(stub, "www").files == files


def test_put_entries_is_numbered_and_a_replay_changes_nothing(running):
    stub = running.stub()
    source = Source(stub, "www")
    source.put_entries(pb.Entry(path="a", data=b"1"))
    source.put_entries(pb.Entry(path="b", data=b"2"))
    source.put_entries(pb.Entry(path="a", data=b"1"), number=1)
    source.put_entries(pb.Entry(path="b", data=b"2"), number=2)
    with pytest.raises(grpc.RpcError) as skipped:
        source.put_entries(pb.Entry(path="c"), number=4)
    assert reason(skipped.value) == "ENTRIES_OUT_OF_ORDER"
    assert info(skipped.value).metadata["expected"] == "3"
    source.entries, source.bytes = 2, 2
    source.commit()
    assert restore(stub, "www").files == {"a": b"1", "b": b"2"}


def test_a_put_entries_call_with_one_bad_entry_changes_nothing(running):
    stub = running.stub()
    source = Source(stub, "www")
    with pytest.raises(grpc.RpcError) as bad:
        source.put_entries(pb.Entry(path="a", data=b"1"), pb.Entry(path="../b", data=b"2"))
    assert bad.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    source.put_entries(pb.Entry(path="a", data=b"1"), number=1)
    source.entries, source.bytes = 1, 1
    source.commit()


def test_a_long_chunk_list_is_sent_in_parts(running):
    stub = running.stub()
    source = Source(stub, "www")
    data = noise(12_000_000)
    chunks = source.cut(data)
    source.put_chunks(source.missing(chunks))
    refs = list(source.entry("big", data).content.chunks)
    offset = 0
    for index, start in enumerate(range(0, len(refs), 7)):
        part = refs[start : start + 7]
        entry = pb.Entry(path="big", content=pb.Content(chunks=part), mode=0o600)
        if index:
            entry.continue_at_bytes = offset
        offset += sum(ref.length_bytes for ref in part)
        change = sv.EntryChange(entry=entry, more=start + 7 < len(refs))
        stub.PutEntries(sv.PutEntriesRequest(**source.id, number=index + 1, changes=[change]))
        if index == 2:
            stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
            source.upload = stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id)).upload
            assert source.upload.durable.open_offset_bytes == offset
    backup = source.commit()
    found = restore(stub, "www")
    assert found.files == {"big": data}
    assert found.entries["big"].mode == 0o600
    thin = stub.Backup(
        messages([begin("thin"), *large("big", data, mode=0o600), finish(1, len(data))])
    ).backup
    assert thin.manifest_digest == backup.manifest_digest


def test_only_one_stream_writes_an_upload_at_a_time(running):
    stub = running.stub()
    source = Source(stub, "www")
    reached, go = threading.Event(), threading.Event()

    def requests():
        yield sv.BackupRequest(
            parts=[Part(continue_upload=sv.ContinueUpload(**source.id, position=0)), small("a", b"")]
        )
        reached.set()
        go.wait(60)
        yield sv.BackupRequest(parts=[finish(1, 0)])

    first = stub.Backup.future(requests())
    assert reached.wait(60)
    writer = running.service._uploads._writers[bytes.fromhex(source.upload.id)]
    wait_until(lambda: writer.position == 1)
    with pytest.raises(grpc.RpcError) as failed:
        stub.Backup(messages([Part(continue_upload=sv.ContinueUpload(**source.id, position=9))]))
    assert reason(failed.value) == "UPLOAD_BUSY"
    go.set()
    assert first.result(timeout=60).backup.number == 1


def test_a_stream_replayed_after_its_commit_gets_the_first_answer(running):
    stub = running.stub()
    parts = [begin("www", request_id="r"), small("a", b"1"), finish(1, 1)]
    first = stub.Backup(messages(parts))
    assert stub.GetUpload(sv.GetUploadRequest(upload_id=first.upload.id)).upload == first.upload
    again = stub.Backup(messages(parts))
    assert again.backup == first.backup
    assert again.upload.state == pb.UPLOAD_STATE_COMMITTED
    assert len(backups(stub, "www")) == 1


@pytest.mark.parametrize("fields", [{"request_id": "r"}, {"take_over": True}])
def test_a_stream_that_starts_again_never_adds_to_an_earlier_one(running, fields):
    stub = running.stub()
    parts = [begin("www", **fields), small("a", b"1"), small("b", b"2")]
    with pytest.raises(grpc.RpcError):
        stub.Backup(messages(parts))
    with pytest.raises(grpc.RpcError) as refused:
        stub.Backup(messages([*parts, finish(2, 2)]))
    assert refused.value.code() == grpc.StatusCode.ABORTED
    assert reason(refused.value) == "RESUME_REQUIRED"
    upload = stub.ResumeUpload(
        sv.ResumeUploadRequest(upload_id=info(refused.value).metadata["upload"])
    ).upload
    continued = sv.ContinueUpload(upload_id=upload.id, epoch=upload.epoch, position=upload.durable.position)
    stub.Backup(messages([Part(continue_upload=continued), finish(2, 2)]))
    assert restore(stub, "www").files == {"a": b"1", "b": b"2"}


def test_no_part_may_follow_finish(running):
    stub = running.stub()
    with pytest.raises(grpc.RpcError) as failed:
        stub.Backup(messages([begin("www"), finish(0, 0), small("late", b"")]))
    assert reason(failed.value) == "BAD_SEQUENCE"
    assert backups(stub, "www") == []


def test_a_crash_between_a_commits_packs_and_its_transaction_loses_nothing(running):
    """The durable point must not be ahead of the runs, or a resumed upload would commit too little."""
    stub = running.stub()
    source = Source(stub, "www")
    source.put_file("a", b"1")
    stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    source.put_file("b", b"2")
    uploads = running.catalog.uploads
    commit = uploads.commit

    def crash(*_, **__):
        raise RuntimeError("the process ends here")

    uploads.commit = crash
    with pytest.raises(grpc.RpcError):
        source.commit()
    uploads.commit = commit
    running.restart()
    source.stub = stub = running.stub()
    source.upload = stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id)).upload
    assert source.upload.durable.entry_count == 1
    source.entries, source.bytes, source.number = 1, 1, 1
    source.put_file("b", b"2")
    source.commit()
    assert restore(stub, "www").files == {"a": b"1", "b": b"2"}


def test_bytes_and_zeros_of_any_size_stay_in_order(running):
    stub = running.stub()
    chance = random.Random(5)
    for number in range(6):
        parts, expected = [], []
        for _ in range(12):
            size = chance.choice([1, 5_000, 130_000, 700_000, 1 << 20])
            if chance.random() < 0.4:
                parts.append(Part(data=sv.Data(zero_bytes=size)))
                expected.append(bytes(size))
            else:
                expected.append(chance.randbytes(size))
                parts.append(Part(data=sv.Data(data=expected[-1])))
        data = b"".join(expected)
        digest = pb.FileDigest(blake3=blake3(data).digest())
        entry = Part(entry=pb.Entry(path="f", file_digest=digest))
        ended = Part(entry_end=sv.EntryEnd(size_bytes=len(data)))
        stub.Backup(messages([begin(f"n{number}"), entry, *parts, ended, finish(1, len(data))]))
        assert restore(stub, f"n{number}").files == {"f": data}
