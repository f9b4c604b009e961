"""The holder of an upload: no other token writes, ends or renews it, and no different call passes for a replay."""

import copy

import grpc
import pytest
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base.limits import UPLOAD_WRITERS_MAX
from staddle_server.store.records import CommittedRecord
from staddle_server.tenancy.tenant import Tenants
from thin import Part, Source, back_up, backups, begin, finish, info, messages, noise, reason, restore, small

CALLS = {
    "FindMissingChunks": lambda id_: sv.FindMissingChunksRequest(**id_, digests=[b"d" * 32]),
    "PutChunks": lambda id_: sv.PutChunksRequest(
        **id_, data=b"x", raw=True, chunks=[pb.ChunkRef(digest=b"d" * 32, length_bytes=1)]
    ),
    "PutEntries": lambda id_: sv.PutEntriesRequest(
        **id_, number=2, changes=[sv.EntryChange(entry=pb.Entry(path="theirs", data=b"2"))]
    ),
    "CheckpointUpload": lambda id_: sv.CheckpointUploadRequest(**id_),
    "RenewUpload": lambda id_: sv.RenewUploadRequest(**id_),
    "CommitUpload": lambda id_: sv.CommitUploadRequest(**id_, entry_count=1, data_bytes=1),
    "AbortUpload": lambda id_: sv.AbortUploadRequest(**id_),
    "Backup": lambda id_: messages(
        [Part(continue_upload=sv.ContinueUpload(**id_, position=1)), finish(1, 1)]
    ),
}


@pytest.fixture
def first(running):
    """An upload of one token with one entry; another token of the tenant calls GetUpload."""
    source = Source(running.stub("writer", name="first"), "www", request_id="r")
    source.put_entries(pb.Entry(path="a", data=b"1"))
    source.entries = source.bytes = 1
    return source


def learned(stub) -> dict[str, object]:
    upload = stub.GetUpload(sv.GetUploadRequest(request_id="r")).upload
    return {"upload_id": upload.id, "epoch": upload.epoch}


# An administrator's AbortUpload is the exception: it gives an upload up (test_api_open_uploads.py).
@pytest.mark.parametrize(
    ("method", "role"),
    [
        (method, role)
        for method in CALLS
        for role in ("writer", "admin")
        if (method, role) != ("AbortUpload", "admin")
    ],
)
def test_another_token_that_knows_id_and_epoch_cannot_touch_an_upload(running, first, method, role):
    second = running.stub(role, name="second")
    with pytest.raises(grpc.RpcError) as refused:
        getattr(second, method)(CALLS[method](learned(second)))
    assert refused.value.code() == grpc.StatusCode.ABORTED
    assert reason(refused.value) == "LEASE_HELD"
    assert info(refused.value).metadata["upload"] == first.upload.id
    assert "'first'" in refused.value.details()
    assert first.commit().principal == "first"
    assert restore(second, "www").files == {"a": b"1"}


@pytest.mark.parametrize("method", CALLS)
def test_once_the_lease_has_ended_only_resume_upload_takes_an_upload_over(running, first, method):
    second = running.stub("writer", name="second")
    first.stub.CheckpointUpload(sv.CheckpointUploadRequest(**first.id))
    id_ = learned(second)
    running.clock.ahead_s = running.lease_s + 1
    with pytest.raises(grpc.RpcError) as refused:
        getattr(second, method)(CALLS[method](id_))
    assert reason(refused.value) == "RESUME_REQUIRED"
    upload = second.ResumeUpload(sv.ResumeUploadRequest(upload_id=first.upload.id)).upload
    assert upload.epoch == first.upload.epoch + 1
    with pytest.raises(grpc.RpcError) as stale:
        first.commit()
    assert reason(stale.value) == "STALE_EPOCH"
    backup = second.CommitUpload(
        sv.CommitUploadRequest(upload_id=upload.id, epoch=upload.epoch, entry_count=1, data_bytes=1)
    ).backup
    assert backup.principal == "second"


@pytest.mark.parametrize("method", ["CommitUpload", "AbortUpload"])
def test_the_end_of_an_upload_is_replayed_for_its_holder_only(running, first, method):
    second = running.stub("writer", name="second")
    getattr(first.stub, method)(CALLS[method](first.id))
    with pytest.raises(grpc.RpcError) as refused:
        getattr(second, method)(CALLS[method](learned(second)))
    assert reason(refused.value) == "UPLOAD_CLOSED"
    getattr(first.stub, method)(CALLS[method](first.id))


# ---------------------------------------------------------------------- principals of an upload


def _resumed(running, source, name):
    """The upload of `source`, taken over by another token after its lease ended."""
    running.clock.ahead_s += running.lease_s + 1
    other = copy.copy(source)
    other.stub = running.stub("writer", name=name)
    other.upload = other.stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id)).upload
    return other


def test_a_former_holder_cannot_abort_the_upload(first):
    by_id = sv.GetUploadRequest(upload_id=first.upload.id)
    first.stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=first.upload.id))
    with pytest.raises(grpc.RpcError) as refused:
        first.stub.AbortUpload(sv.AbortUploadRequest(**first.id))
    assert reason(refused.value) == "STALE_EPOCH"
    assert first.stub.GetUpload(by_id).upload.state == pb.UPLOAD_STATE_OPEN


def _authors(backup):
    return backup.begun_by, list(backup.written_by), backup.principal


def test_a_backup_names_the_tokens_that_began_wrote_and_committed_it(running, first):
    first.stub.CheckpointUpload(sv.CheckpointUploadRequest(**first.id))
    second = _resumed(running, first, "second")
    second.put_entries(pb.Entry(path="b", data=b"2"))
    second.entries, second.bytes = 2, 2
    second.stub.CheckpointUpload(sv.CheckpointUploadRequest(**second.id))
    backup = _resumed(running, second, "third").commit()
    assert _authors(backup) == ("first", ["first", "second"], "third")
    assert not backup.more_writers
    assert _authors(backups(running.stub("reader"), "www")[0]) == _authors(backup)


def test_a_token_that_sent_no_data_is_not_a_writer(running):
    second = _resumed(running, Source(running.stub("writer", name="first"), "www"), "second")
    assert _authors(second.commit()) == ("first", [], "second")


def test_of_many_writers_the_first_are_named_with_a_note_of_more(running, first):
    for number in range(UPLOAD_WRITERS_MAX + 1):
        if number:
            first = _resumed(running, first, f"w{number}")
            first.put_entries(pb.Entry(path=f"{number}", data=b"1"))
            first.entries = first.bytes = number + 1
        first.stub.CheckpointUpload(sv.CheckpointUploadRequest(**first.id))
    backup = first.commit()
    names = ["first", *(f"w{number}" for number in range(1, UPLOAD_WRITERS_MAX))]
    assert (list(backup.written_by), backup.more_writers) == (names, True)
    assert backup.principal == f"w{UPLOAD_WRITERS_MAX}"
    tenant = Tenants(running.blobs, running.catalog, running.keys).get(running.tenant)
    records = [tenant.records.read(name) for name in tenant.records.list()]
    (kept,) = [record for record in records if isinstance(record, CommittedRecord)]
    assert (kept.begun_by, list(kept.written_by), kept.more_writers) == ("first", names, True)


# ---------------------------------------------------------------------- replays


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize(("counts", "field"), [((1, 2), "data_bytes"), ((2, 1), "entry_count")])
def test_a_commit_with_other_counts_is_not_a_replay(running, first, counts, field, restarted):
    backup = first.commit()
    if restarted:
        running.restart()
        first.stub = running.stub("writer", name="first")
    entries, data_bytes = counts
    with pytest.raises(grpc.RpcError) as reused:
        first.stub.CommitUpload(
            sv.CommitUploadRequest(**first.id, entry_count=entries, data_bytes=data_bytes)
        )
    assert reused.value.code() == grpc.StatusCode.ALREADY_EXISTS
    assert reason(reused.value) == "REQUEST_ID_REUSED"
    assert info(reused.value).metadata["field"] == field
    assert first.commit() == backup


def test_a_stream_with_other_counts_is_not_a_replay(running):
    stub = running.stub()
    backup = back_up(stub, "www", {"a": b"1"}, request_id="r")
    other = [begin("www", request_id="r"), small("a", b"1"), small("b", b"2"), finish(2, 2)]
    with pytest.raises(grpc.RpcError) as reused:
        stub.Backup(messages(other))
    assert reason(reused.value) == "REQUEST_ID_REUSED"
    assert [each.id for each in backups(stub, "www")] == [backup.id]
    assert back_up(stub, "www", {"a": b"1"}, request_id="r") == backup


def test_a_replayed_stream_without_finish_is_not_a_success(running):
    stub = running.stub()
    back_up(stub, "www", {"a": b"1"}, request_id="r")
    with pytest.raises(grpc.RpcError) as cut_short:
        stub.Backup(messages([begin("www", request_id="r"), small("a", b"1")]))
    assert reason(cut_short.value) == "UNFINISHED_STREAM"


@pytest.mark.parametrize(
    "changed",
    [
        {"dataset": "other"},
        {"kind": pb.BACKUP_KIND_FULL},
        {"scope": pb.UPLOAD_SCOPE_CHANGES},
        {"host": "h2"},
        {"root": "/other"},
        {"tags": {"a": "2"}},
        {"new_root": True},
        {"fingerprint": "f2"},
        {"take_over": True},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_begin_with_any_other_field_is_not_a_replay(running, changed):
    stub = running.stub()
    asked = {"dataset": "www", "host": "h", "root": "/r", "tags": {"a": "1"}, "request_id": "r"}
    stub.BeginUpload(sv.BeginUploadRequest(**asked))
    with pytest.raises(grpc.RpcError) as reused:
        stub.BeginUpload(sv.BeginUploadRequest(**{**asked, **changed}))
    assert reason(reused.value) == "REQUEST_ID_REUSED"


@pytest.mark.parametrize("number", [1, 2])
def test_put_entries_with_an_accepted_number_and_other_changes_is_not_a_replay(running, number):
    source = Source(running.stub(), "www")
    calls = {1: pb.Entry(path="a", data=b"1"), 2: pb.Entry(path="b", data=b"2")}
    for at, entry in calls.items():
        source.put_entries(entry, number=at)
    with pytest.raises(grpc.RpcError) as reused:
        source.put_entries(pb.Entry(path="a", data=b"9"), number=number)
    assert reason(reused.value) == "REQUEST_ID_REUSED"
    source.put_entries(calls[number], number=number)
    source.entries = source.bytes = 2
    source.commit()
    assert restore(source.stub, "www").files == {"a": b"1", "b": b"2"}


def test_the_last_put_entries_call_is_known_after_a_restart_too(running):
    source = Source(running.stub(), "www")
    entry = source.entry("a", noise(70_000))
    source.put_entries(entry, number=1)
    source.stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    running.restart()
    source.stub = running.stub()
    source.upload = source.stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id)).upload
    with pytest.raises(grpc.RpcError) as reused:
        source.put_entries(pb.Entry(path="a", data=b"9"), number=1)
    assert reason(reused.value) == "REQUEST_ID_REUSED"
    assert list(source.put_entries(entry, number=1).incomplete) == [0]


def test_a_replayed_stream_is_answered_even_after_a_resume_by_its_sender(running):
    stub = running.stub()
    parts = [begin("www", request_id="r"), small("a", b"1"), finish(1, 1)]
    with pytest.raises(grpc.RpcError):
        stub.Backup(messages(parts[:2]))
    upload = stub.GetUpload(sv.GetUploadRequest(request_id="r")).upload
    resumed = stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=upload.id)).upload
    going = sv.ContinueUpload(upload_id=resumed.id, epoch=resumed.epoch, position=resumed.durable.position)
    made = stub.Backup(messages([Part(continue_upload=going), parts[2]])).backup
    assert stub.Backup(messages(parts)).backup.id == made.id
    assert [backup.id for backup in backups(stub, "www")] == [made.id]
    with pytest.raises(grpc.RpcError) as refused:
        running.stub("writer").Backup(messages(parts))
    assert reason(refused.value) == "REQUEST_ID_REUSED", "another token learns nothing from it"
