"""A FULL backup of changes: its client read everything, and sends only what is not as in a backup that it names."""

import os

import grpc
import pytest
from blake3 import blake3
from lost_packs import lose_packs, mark, packs
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base.types import Role
from test_upload_lost_packs import listed, refused
from thin import Part, Source, back_up, backups, begin, finish, messages, noise, reason, restore, small

FULL, INCREMENTAL, DIFFERENTIAL = 1, 2, 3
CHANGES = pb.UPLOAD_SCOPE_CHANGES
FILES = {"a": noise(1_500_000, 1), "d/b": noise(40_000, 2), "d/c": b"small", "e/f": b"another"}


def full_of_changes(stub, base, dataset="www", **fields):
    return Source(stub, dataset, kind=FULL, scope=CHANGES, base_backup_id=base.id, **fields)


def test_it_takes_over_what_is_not_sent_and_is_a_full_backup_of_everything(running):
    stub = running.stub()
    base = back_up(stub, "www", FILES)
    source = full_of_changes(stub, base)
    assert (source.upload.kind, source.upload.base_backup_id) == (FULL, base.id)
    source.put_file("d/c", b"changed")
    source.put_entries(pb.Remove(path="e"))
    backup = source.commit()
    expected = {"a": FILES["a"], "d/b": FILES["d/b"], "d/c": b"changed"}
    assert restore(stub, "www").files == expected
    assert (backup.kind, backup.scope, backup.base_backup_id) == (FULL, pb.UPLOAD_SCOPE_WHOLE, "")
    same = back_up(stub, "other", expected)
    assert (backup.entry_count, backup.data_bytes, backup.changes) == (
        same.entry_count,
        same.data_bytes,
        same.changes,
    )


def test_it_may_send_nothing_and_then_has_the_manifest_of_its_base(running):
    stub = running.stub()
    base = back_up(stub, "www", FILES)
    backup = full_of_changes(stub, base).commit()
    assert (backup.manifest_digest, backup.number) == (base.manifest_digest, 2)
    assert (backup.kind, backup.changes.added) == (FULL, base.entry_count)
    assert restore(stub, "www").files == FILES


def test_a_differential_starts_from_it(running):
    stub = running.stub()
    back_up(stub, "www", FILES)
    newest = back_up(stub, "www", FILES | {"g": b"1"})
    backup = full_of_changes(stub, newest).commit()
    assert back_up(stub, "www", FILES, kind=DIFFERENTIAL).base_backup_id == backup.id


def test_a_stream_may_begin_it(running):
    stub = running.stub()
    base = back_up(stub, "www", FILES)
    first = begin("www", kind=FULL, scope=CHANGES, base_backup_id=base.id)
    backup = stub.Backup(
        messages([first, small("new", b"1"), Part(remove=pb.Remove(path="a")), finish(1, 1)])
    ).backup
    assert backup.kind == FULL
    assert restore(stub, "www").files == {path: data for path, data in FILES.items() if path != "a"} | {
        "new": b"1"
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": FULL},
        {"kind": INCREMENTAL, "scope": CHANGES},
        {"kind": DIFFERENTIAL, "scope": CHANGES},
        {"scope": CHANGES},
        {"kind": FULL, "scope": CHANGES, "new_root": True},
        {"kind": FULL, "scope": CHANGES, "base_backup_id": "12"},
    ],
)
def test_no_other_upload_names_its_base(running, fields):
    stub = running.stub()
    base = back_up(stub, "www", FILES)
    with pytest.raises(grpc.RpcError) as failed:
        stub.BeginUpload(sv.BeginUploadRequest(dataset="www", **{"base_backup_id": base.id} | fields))
    assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert reason(failed.value) == "BAD_FIELD"


@pytest.mark.parametrize("what", ["unknown", "deleted", "of another dataset"])
def test_only_a_backup_of_the_dataset_is_its_base(running, what):
    stub = running.stub()
    base = back_up(stub, "other" if what == "of another dataset" else "www", FILES)
    back_up(stub, "www", FILES)
    if what == "deleted":
        stub.DeleteBackup(sv.DeleteBackupRequest(dataset="www", backup=base.id))
    with pytest.raises(grpc.RpcError) as failed:
        stub.BeginUpload(
            sv.BeginUploadRequest(
                dataset="www",
                kind=FULL,
                scope=CHANGES,
                base_backup_id="ab" * 16 if what == "unknown" else base.id,
            )
        )
    assert failed.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert reason(failed.value) == "NO_BASE"


@pytest.mark.parametrize("lose", [os.unlink, lambda path: os.truncate(path, path.stat().st_size // 2)])
def test_its_commit_notices_lost_packs_of_what_it_takes_over(running, lose):
    stub = running.stub()
    back_up(stub, "first", {"a": FILES["a"]})
    (data,) = packs(running)
    base = back_up(stub, "www", {"a": FILES["a"], "same": FILES["a"]})
    source = full_of_changes(stub, base)
    source.put_file("b", b"new")
    lose(data)  # the server has just seen it
    refused(source.commit)
    assert listed(stub, source) == {blake3(chunk).digest().hex() for chunk in source.cut(FILES["a"])}
    source.put_chunks(source.missing(source.cut(FILES["a"])))
    source.commit()
    found = restore(stub, "www")
    assert (found.damages, found.files) == ([], {"a": FILES["a"], "same": FILES["a"], "b": b"new"})


def test_a_pack_that_is_known_to_be_lost_is_not_looked_for_again(running, caplog):
    stub = running.stub()
    back_up(stub, "first", {"a": FILES["a"]})
    (data,) = packs(running)
    data.unlink()
    back_up(stub, "first", {"a": FILES["a"]}, kind=FULL)
    base = back_up(stub, "www", FILES)
    assert _said_to_be_missing(caplog)
    caplog.clear()
    full_of_changes(stub, base).commit()
    assert not _said_to_be_missing(caplog)
    assert restore(stub, "www").files == FILES


def _said_to_be_missing(caplog):
    return [record for record in caplog.records if record.name == "staddle_server.tenancy.pack_presence"]


def test_a_lost_page_of_its_base_is_damage_and_no_backup(running):
    stub = running.stub()
    base = back_up(stub, "www", FILES)
    source = full_of_changes(stub, base)
    source.put_file("b", b"new")
    lose_packs(running)
    with pytest.raises(grpc.RpcError) as failed:
        source.commit()
    assert failed.value.code() == grpc.StatusCode.DATA_LOSS
    assert [backup.id for backup in backups(stub, "www")] == [base.id]


def test_its_base_has_damage_that_is_named_and_that_its_commit_refuses_to_take_over(running):
    stub = running.stub()
    base = back_up(stub, "www", FILES)
    mark(running, Role.DATA, blake3(FILES["d/b"]).digest())
    source = full_of_changes(stub, base)
    named = {entry.path for entry in source.begun.damaged_base_entries}
    assert "d/b" in named
    refused(source.commit)
    for path in named:
        source.put_file(path, FILES[path])
    source.commit()
    found = restore(stub, "www")
    assert (found.damages, found.files) == ([], FILES)


def test_damage_found_while_it_runs_is_heeded(running):
    stub = running.stub()
    base = back_up(stub, "www", FILES)
    source = full_of_changes(stub, base)
    assert not source.begun.damaged_base_entries
    mark(running, Role.DATA, blake3(FILES["d/b"]).digest())
    refused(source.commit)


def test_an_upload_with_another_base_is_not_taken_over(running):
    stub = running.stub()
    first = back_up(stub, "www", FILES)
    full_of_changes(stub, first, take_over=True)
    second = back_up(stub, "www", {"x": b"meanwhile"})
    begun = full_of_changes(stub, second, take_over=True)
    assert (begun.begun.taken_over, begun.upload.base_backup_id) == (False, second.id)
    assert full_of_changes(stub, first, take_over=True).begun.taken_over


def test_it_is_resumed_with_its_base_after_a_restart(running):
    stub = running.stub()
    base = back_up(stub, "www", FILES)
    source = full_of_changes(stub, base, take_over=True)
    source.put_file("new", b"1")
    stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    back_up(stub, "www", {"x": b"meanwhile"})
    running.restart()
    stub = running.stub()
    again = full_of_changes(stub, base, take_over=True)
    assert (again.begun.taken_over, again.upload.base_backup_id) == (True, base.id)
    again.number, again.entries, again.bytes = 1, 1, 1
    again.put_file("newer", b"22")
    assert again.commit().kind == FULL
    assert restore(stub, "www").files == FILES | {"new": b"1", "newer": b"22"}
