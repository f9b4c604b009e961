"""Kinds (full, incremental, differential), scopes (whole, changes) and deletion, as the design promises."""

import grpc
import pytest
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from thin import Part, Source, back_up, backups, begin, finish, info, messages, noise, reason, restore, small

FULL, INCREMENTAL, DIFFERENTIAL = 1, 2, 3
CHANGES = pb.UPLOAD_SCOPE_CHANGES


def _changes(stub, dataset, kind, *parts, counts, **fields):
    request = messages([begin(dataset, kind=kind, scope=CHANGES, **fields), *parts, finish(*counts)])
    return stub.Backup(request).backup


def test_auto_is_full_first_and_incremental_later(running):
    stub = running.stub()
    first = back_up(stub, "www", {"a": b"1"})
    second = back_up(stub, "www", {"a": b"1"})
    assert (first.kind, first.base_backup_id) == (FULL, "")
    assert (second.kind, second.base_backup_id) == (INCREMENTAL, first.id)
    assert second.number == 2


@pytest.mark.parametrize("kind", [INCREMENTAL, DIFFERENTIAL])
def test_a_kind_that_needs_a_base_is_refused_without_one(running, kind):
    with pytest.raises(grpc.RpcError) as failed:
        back_up(running.stub(), "www", {"a": b"1"}, kind=kind)
    assert failed.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert reason(failed.value) == "NO_BASE"


def test_a_full_backup_of_changes_is_refused(running):
    with pytest.raises(grpc.RpcError) as failed:
        running.stub().BeginUpload(sv.BeginUploadRequest(dataset="www", kind=FULL, scope=CHANGES))
    assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_changes_keep_paths_that_are_not_sent_unless_removed(running):
    stub = running.stub()
    files = {f"d{i}/f{j}": noise(100, i * 10 + j) for i in range(5) for j in range(5)}
    back_up(stub, "www", files)
    backup = _changes(
        stub,
        "www",
        INCREMENTAL,
        small("d1/f1", b"changed"),
        small("d9/new", b"new"),
        Part(remove=pb.Remove(path="d2")),
        counts=(2, 10),
    )
    expected = {path: data for path, data in files.items() if not path.startswith("d2/")}
    expected |= {"d1/f1": b"changed", "d9/new": b"new"}
    assert restore(stub, "www").files == expected
    counts = backup.changes
    assert (counts.added, counts.content_changed, counts.removed) == (2, 1, 6)
    full = back_up(stub, "again", expected)
    assert full.data_bytes == backup.data_bytes


def test_a_whole_backup_omits_paths_that_are_not_sent(running):
    stub = running.stub()
    back_up(stub, "www", {"a": b"1", "b": b"2"})
    second = back_up(stub, "www", {"b": b"2"})
    assert restore(stub, "www").files == {"b": b"2"}
    assert second.changes.removed == 1


def test_a_metadata_change_counts_in_an_incremental_and_needs_no_data(running):
    stub = running.stub()
    data = noise(3_000_000)
    messages_ = [begin("www"), Part(entry=pb.Entry(path="f", mode=0o644))]
    messages_ += [Part(data=sv.Data(data=data[s : s + (1 << 20)])) for s in range(0, len(data), 1 << 20)]
    stub.Backup(messages([*messages_, Part(entry_end=sv.EntryEnd()), finish(1, len(data))]))
    entry = pb.Entry(path="f", mode=0o600, content_from_base=True)
    backup = _changes(stub, "www", INCREMENTAL, Part(entry=entry), counts=(1, len(data)))
    assert backup.changes.metadata_changed == 1
    assert backup.changes.content_changed == 0
    assert backup.stored_bytes < 5_000
    found = restore(stub, "www")
    assert found.entries["f"].mode == 0o600
    assert found.files["f"] == data
    with pytest.raises(grpc.RpcError) as failed:
        _changes(
            stub, "www", INCREMENTAL, Part(entry=pb.Entry(path="g", content_from_base=True)), counts=(1, 0)
        )
    assert reason(failed.value) == "NOT_IN_BASE"


@pytest.mark.parametrize("scope", [pb.UPLOAD_SCOPE_WHOLE, CHANGES])
def test_a_differential_starts_from_the_newest_full_and_keeps_its_metadata(running, scope):
    stub = running.stub()
    full = stub.Backup(
        messages(
            [
                begin("www", kind=FULL),
                small("a", b"1", mode=0o644),
                small("b", b"2", mode=0o644),
                finish(2, 2),
            ]
        )
    ).backup
    back_up(stub, "www", {"a": b"other", "b": b"2"}, kind=INCREMENTAL)
    parts = [
        begin("www", kind=DIFFERENTIAL, scope=scope),
        small("a", b"1", mode=0o600),
        small("b", b"new", mode=0o600),
        finish(2, 4),
    ]
    backup = stub.Backup(messages(parts)).backup
    assert backup.base_backup_id == full.id
    assert backup.changes.metadata_kept == 1
    assert backup.changes.content_changed == 1
    found = restore(stub, "www")
    assert found.files == {"a": b"1", "b": b"new"}
    assert found.entries["a"].mode == 0o644
    assert found.entries["b"].mode == 0o600


def test_a_file_that_replaces_a_directory_removes_the_paths_below_it(running):
    stub = running.stub()
    back_up(stub, "www", {"d/x": b"1", "d/y": b"2", "e": b"3"})
    _changes(stub, "www", INCREMENTAL, small("d", b"file"), counts=(1, 4))
    assert restore(stub, "www").files == {"d": b"file", "e": b"3"}


def test_a_path_below_a_file_is_a_conflict_and_the_upload_stays_open(running):
    stub = running.stub()
    source = Source(stub, "www")
    source.put_file("a", b"1")
    source.put_file("a/b", b"2")
    with pytest.raises(grpc.RpcError) as failed:
        source.commit()
    assert reason(failed.value) == "PATH_CONFLICT"
    source.put_entries(pb.Remove(path="a"))
    source.put_file("a/b", b"2")
    source.commit()
    assert restore(stub, "www").files == {"a/b": b"2"}


def test_every_backup_restores_after_the_previous_one_is_deleted(running):
    stub = running.stub()
    states, made = [], []
    files = {f"f{i}": noise(200_000, i) for i in range(4)}
    for step in range(4):
        files = {**files, f"f{step}": noise(200_000, 100 + step)}
        states.append(files)
        kind = FULL if step == 0 else DIFFERENTIAL if step == 3 else INCREMENTAL
        made.append(back_up(stub, "www", files, kind=kind))
    for backup in made[:3]:
        stub.DeleteBackup(sv.DeleteBackupRequest(dataset="www", backup=backup.id))
    assert restore(stub, "www").files == states[3]
    assert [b.id for b in backups(stub, "www")] == [made[3].id]


def test_a_deleted_backup_is_hidden_and_never_a_base_until_it_is_undeleted(running):
    stub = running.stub()
    first = back_up(stub, "www", {"a": b"1"})
    second = back_up(stub, "www", {"a": b"2"})
    gone = stub.DeleteBackup(sv.DeleteBackupRequest(dataset="www", backup=second.id[:8])).backup
    assert gone.HasField("delete_time")
    assert stub.DeleteBackup(sv.DeleteBackupRequest(dataset="www", backup=second.id)).backup == gone
    assert [b.id for b in backups(stub, "www")] == [first.id]
    assert [b.id for b in backups(stub, "www", show_deleted=True)] == [second.id, first.id]
    assert restore(stub, "www").files == {"a": b"1"}
    at = pb.BackupSelector(at=second.begin_time)
    assert restore(stub, "www", backup=at).backup.id == first.id
    with pytest.raises(grpc.RpcError) as hidden:
        restore(stub, "www", backup=pb.BackupSelector(backup=second.id))
    assert hidden.value.code() == grpc.StatusCode.NOT_FOUND
    begun = stub.BeginUpload(sv.BeginUploadRequest(dataset="www"))
    assert begun.upload.base_backup_id == first.id
    stub.UndeleteBackup(sv.UndeleteBackupRequest(dataset="www", backup=second.id))
    assert restore(stub, "www").files == {"a": b"2"}
    names = [name for name, _ in running.blobs.list(f"records/{running.tenant.hex()}")]
    assert len(names) == 5  # the tenant, two backups, the deletion, the undeletion


def test_deleting_the_only_full_backup_leaves_a_differential_without_a_base(running):
    stub = running.stub()
    full = back_up(stub, "www", {"a": b"1"})
    back_up(stub, "www", {"a": b"2"})
    stub.DeleteBackup(sv.DeleteBackupRequest(dataset="www", backup=full.id))
    with pytest.raises(grpc.RpcError) as failed:
        back_up(stub, "www", {"a": b"3"}, kind=DIFFERENTIAL)
    assert reason(failed.value) == "NO_BASE"


def test_another_root_is_refused_until_it_is_meant(running):
    stub = running.stub()
    back_up(stub, "www", {"a": b"1"}, host="h1", root="/srv/a")
    with pytest.raises(grpc.RpcError) as failed:
        back_up(stub, "www", {"a": b"1"}, host="h1", root="/srv/b")
    assert reason(failed.value) == "ROOT_DIFFERS"
    assert dict(info(failed.value).metadata) == {"dataset": "www", "host": "h1", "root": "/srv/a"}
    moved = back_up(stub, "www", {"a": b"1"}, host="h1", root="/srv/b", new_root=True)
    assert moved.kind == FULL
    assert back_up(stub, "www", {"a": b"1"}, host="h1", root="/srv/b").kind == INCREMENTAL


def test_a_time_picks_the_newest_capture_that_began_by_then(running):
    stub = running.stub()
    made = []
    for step in range(3):
        made.append(back_up(stub, "www", {"a": bytes([step])}))
        running.clock.ahead_s += 3600
    for step, backup in enumerate(made):
        at = pb.BackupSelector(at=backup.begin_time)
        assert restore(stub, "www", backup=at).files == {"a": bytes([step])}
    ago = pb.BackupSelector()
    ago.ago.FromSeconds(5400)
    assert restore(stub, "www", backup=ago).files == {"a": b"\x01"}
    early = pb.BackupSelector(at=made[0].begin_time)
    early.at.seconds -= 1
    with pytest.raises(grpc.RpcError) as failed:
        restore(stub, "www", backup=early)
    assert reason(failed.value) == "BACKUP_NOT_FOUND"
    assert info(failed.value).metadata["earliest"]


def test_a_capture_is_found_by_its_begin_time(running):
    stub = running.stub()
    slow = Source(stub, "www")
    slow.put_file("a", b"slow")
    running.clock.ahead_s += 60
    back_up(stub, "www", {"a": b"quick"})
    running.clock.ahead_s += 60
    slow.commit()
    assert restore(stub, "www").files == {"a": b"slow"}  # the highest number
    ago = pb.BackupSelector()
    ago.ago.FromSeconds(1)
    assert restore(stub, "www", backup=ago).files == {"a": b"quick"}  # the newest capture
