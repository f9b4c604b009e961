"""Lost packs, and damage found while an upload runs: the server acknowledges nothing that relies on either."""

import os

import grpc
import pytest
from blake3 import blake3
from lost_packs import lose_packs, mark, packs
from staddle import Client
from staddle._backup.run import backup_directory
from staddle._protocol.restore_reader import DamageEvent, read_restore
from staddle._types.backups import BackupKind
from staddle._types.options import BackupOptions
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base.types import Role
from thin import Source, back_up, noise, reason, restore

DATA, OTHER = noise(1_500_000, 1), noise(1_500_000, 2)
LONG = noise(9_000_000, 3)


def cut_packs_in_half(running):
    for path in packs(running):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def refused(commit):
    with pytest.raises(grpc.RpcError) as failed:
        commit()
    assert failed.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert reason(failed.value) == "MISSING_CHUNKS"
    return failed.value.details()


def listed(stub, source):
    return set(stub.GetUpload(sv.GetUploadRequest(upload_id=source.upload.id)).missing_digests)


@pytest.mark.parametrize("thin", [False, True], ids=["source", "thin"])
def test_a_full_backup_stores_the_chunks_of_lost_packs_again(running, tmp_path, thin):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_bytes(DATA)
    (folder / "long").write_bytes(LONG)

    def run(kind):
        with Client(running.address, token=running.token()) as client:
            options = BackupOptions(dataset="www", kind=kind, thin=thin)
            return backup_directory(client._calls, os.fsencode(folder), options, lambda: 2**62)

    run(BackupKind.AUTO)
    lose_packs(running)  # while the server runs, which has just seen them
    report = run(BackupKind.FULL)
    assert report.problems == ()
    assert report.sent_bytes >= len(DATA) + len(LONG)
    found = restore(running.stub(), "www")
    assert found.damages == []
    assert (found.files["a"], found.files["long"]) == (DATA, LONG)


@pytest.mark.parametrize("lose", [lose_packs, cut_packs_in_half])
def test_a_stream_stores_data_that_only_a_lost_pack_had(running, lose):
    stub = running.stub()
    back_up(stub, "www", {"a": DATA, "b": b"small"})
    lose(running)
    back_up(stub, "www", {"a": DATA, "b": b"small"}, kind=pb.BACKUP_KIND_FULL)
    assert restore(stub, "www").files == {"a": DATA, "b": b"small"}


def test_any_upload_looks_for_a_pack_that_was_not_seen_for_minutes(running):
    stub = running.stub()
    back_up(stub, "www", {"a": DATA})
    lose_packs(running)
    running.clock.ahead_s += 400
    source = Source(stub, "other")
    assert source.missing(source.cut(DATA)) == source.cut(DATA)
    source.put_file("a", DATA)
    source.commit()
    assert restore(stub, "other").files == {"a": DATA}


def test_packs_lost_after_the_question_are_missed_at_the_commit(running):
    stub = running.stub()
    back_up(stub, "www", {"a": DATA})
    source = Source(stub, "www", kind=pb.BACKUP_KIND_FULL)
    source.put_file(
        "b", DATA
    )  # a new page of the manifest, so that no chunk of the old pack is requested again
    lose_packs(running)
    running.clock.ahead_s += 400
    refused(source.commit)
    assert listed(stub, source) == {blake3(chunk).digest().hex() for chunk in source.cut(DATA)}
    source.put_chunks(source.missing(source.cut(DATA)))
    source.commit()
    assert restore(stub, "www").files == {"b": DATA}
    assert listed(stub, source) == set()


def test_a_chunk_found_damaged_after_it_was_present_is_requested_at_the_commit(running):
    stub = running.stub()
    back_up(stub, "www", {"a": DATA, "b": OTHER})
    source = Source(stub, "www", kind=pb.BACKUP_KIND_FULL)
    source.put_file("a", DATA)
    source.put_file("b", OTHER)
    damaged = source.cut(DATA)[1]
    mark(running, Role.DATA, blake3(damaged).digest())
    refused(source.commit)
    missing = listed(stub, source)
    assert blake3(damaged).digest().hex() in missing
    source.put_chunks(source.missing(source.cut(DATA) + source.cut(OTHER)))
    backup = source.commit()
    found = restore(stub, "www", backup=pb.BackupSelector(backup=backup.id))
    assert found.files == {"a": DATA, "b": OTHER}


def test_a_chunk_found_damaged_just_before_the_commit_is_requested(running, monkeypatch):
    stub = running.stub()
    back_up(stub, "www", {"a": DATA})
    source = Source(stub, "www", kind=pb.BACKUP_KIND_FULL)
    source.put_file("b", DATA)
    damaged = blake3(source.cut(DATA)[1]).digest()
    commit = running.catalog.uploads.commit

    def after_a_find(*arguments, **others):
        monkeypatch.undo()
        mark(running, Role.DATA, damaged)
        return commit(*arguments, **others)

    monkeypatch.setattr(running.catalog.uploads, "commit", after_a_find)
    refused(source.commit)
    assert damaged.hex() in listed(stub, source)
    source.put_chunks(source.missing(source.cut(DATA)))
    backup = source.commit()
    assert restore(stub, "www", backup=pb.BackupSelector(backup=backup.id)).files == {"b": DATA}


def test_a_chunk_reported_as_present_is_missing_once_it_is_found_damaged(running):
    stub = running.stub()
    back_up(stub, "www", {"a": DATA})
    source = Source(stub, "www", kind=pb.BACKUP_KIND_FULL)
    chunks = source.cut(DATA)
    assert source.missing(chunks) == []
    mark(running, Role.DATA, blake3(chunks[0]).digest())
    assert blake3(chunks[0]).hexdigest() in {blake3(each).hexdigest() for each in source.missing(chunks)}
    source.put_file("a", DATA)
    source.commit()
    assert restore(stub, "www").files == {"a": DATA}


def test_a_resumed_upload_learns_of_damage_found_while_it_was_idle(running):
    stub = running.stub()
    back_up(stub, "www", {"a": DATA})
    source = Source(stub, "www", kind=pb.BACKUP_KIND_FULL)
    source.put_file("a", DATA)
    stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    running.restart()
    mark(running, Role.DATA, blake3(source.cut(DATA)[0]).digest())
    stub = source.stub = running.stub()
    source.upload = stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id)).upload
    refused(source.commit)
    source.put_chunks(source.missing(source.cut(DATA)))
    source.commit()
    assert restore(stub, "www").files == {"a": DATA}


def test_lost_chunks_of_a_replaced_entry_do_not_block_the_commit(running):
    stub = running.stub()
    back_up(stub, "www", {"a": DATA})
    source = Source(stub, "www", kind=pb.BACKUP_KIND_FULL)
    source.put_file("a", DATA)
    mark(running, Role.DATA, blake3(source.cut(DATA)[0]).digest())
    refused(source.commit)
    source.put_file("a", OTHER)
    source.commit()
    assert restore(stub, "www").files == {"a": OTHER}


def test_a_damaged_chunk_list_is_rewritten_when_its_entry_comes_again(running):
    stub = running.stub()
    first = back_up(stub, "www", {"long": LONG})
    source = Source(stub, "www", kind=pb.BACKUP_KIND_FULL)
    source.put_file("long", LONG, mode=0o600)  # its page differs from the first backup's
    stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    for digest in manifest_chunks(running, first) - {bytes.fromhex(first.manifest_digest)}:
        mark(running, Role.MANIFEST, digest)
    assert "send these entries again" in refused(source.commit)
    source.put_entries(source.entry("long", LONG, mode=0o600))
    source.commit()
    assert restore(stub, "www").files == {"long": LONG}


def test_damaged_attributes_are_rewritten_when_their_entry_comes_again(running):
    stub = running.stub()
    xattrs = [pb.Xattr(name=f"user.{number}", value=b"value") for number in range(100)]
    source = Source(stub, "www")
    source.put_file("a", b"small", xattrs=xattrs)
    first = source.commit()
    source = Source(stub, "www", kind=pb.BACKUP_KIND_FULL)
    source.put_file("a", b"small", xattrs=xattrs, mode=0o600)
    stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    for digest in manifest_chunks(running, first) - {bytes.fromhex(first.manifest_digest)}:
        mark(running, Role.MANIFEST, digest)
    assert "send these entries again" in refused(source.commit)
    source.put_entries(source.entry("a", b"small", xattrs=xattrs, mode=0o600))
    source.commit()
    assert len(restore(stub, "www").entries["a"].xattrs) == 100


def test_a_file_with_damaged_attributes_and_chunk_list_is_named_once(running):
    stub = running.stub()
    source = Source(stub, "www")
    xattrs = [pb.Xattr(name=f"user.{number}", value=b"value") for number in range(100)]
    for name in ("a", "b", "c"):
        source.put_file(name, LONG, xattrs=xattrs)
    stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    source.put_file("d", b"small")  # so that the page differs, in a separate segment
    first = source.commit()
    for digest in manifest_chunks(running, first) - {bytes.fromhex(first.manifest_digest)}:
        mark(running, Role.MANIFEST, digest)
    for view in (sv.ENTRY_VIEW_DATA, sv.ENTRY_VIEW_REFERENCES):
        events = read_restore(stub.Restore(sv.RestoreRequest(dataset="www", view=view)), view=view)
        named = [event.path for event in events if isinstance(event, DamageEvent)]
        assert named == [b"a", b"b", b"c"]


def test_changes_over_a_newly_damaged_base_request_its_lost_data(running):
    stub = running.stub()
    back_up(stub, "www", {"a": DATA, "b": OTHER})
    source = Source(stub, "www", kind=pb.BACKUP_KIND_INCREMENTAL, scope=pb.UPLOAD_SCOPE_CHANGES)
    source.put_file("c", b"new")
    mark(running, Role.DATA, blake3(source.cut(DATA)[0]).digest())
    refused(source.commit)
    answer = stub.GetUpload(sv.GetUploadRequest(upload_id=source.upload.id))
    assert "a" in {entry.path for entry in answer.damaged_base_entries}
    source.put_chunks(source.missing(source.cut(DATA) + source.cut(OTHER)))
    source.commit()
    assert restore(stub, "www").files == {"a": DATA, "b": OTHER, "c": b"new"}


def test_changes_over_a_damaged_base_do_not_count_as_complete(running):
    stub = running.stub()
    back_up(stub, "www", {"a": DATA})
    source = Source(stub, "www")
    mark(running, Role.DATA, blake3(source.cut(DATA)[0]).digest())
    stub.AbortUpload(sv.AbortUploadRequest(**source.id))
    source = Source(stub, "www", kind=pb.BACKUP_KIND_INCREMENTAL, scope=pb.UPLOAD_SCOPE_CHANGES)
    assert [entry.path for entry in source.begun.damaged_base_entries] == ["a"]
    source.put_file("c", b"new")
    refused(source.commit)
    source.put_file("a", DATA)
    source.commit()
    assert restore(stub, "www").files == {"a": DATA, "c": b"new"}


def test_content_from_a_base_found_damaged_later_is_requested_at_the_commit(running):
    stub = running.stub()
    back_up(stub, "www", {"a": DATA})
    source = Source(stub, "www")
    source.put_entries(pb.Entry(path="a", content_from_base=True))
    source.entries, source.bytes = 1, len(DATA)
    mark(running, Role.DATA, blake3(source.cut(DATA)[0]).digest())
    refused(source.commit)
    source.put_chunks(source.missing(source.cut(DATA)))
    source.commit()
    assert restore(stub, "www").files == {"a": DATA}


def manifest_chunks(running, backup):
    from staddle_server.manifest.references import references
    from staddle_server.tenancy.chunk_reader import ChunkReader
    from staddle_server.tenancy.tenant import Tenants

    tenant = Tenants(running.blobs, running.catalog, running.keys).get(running.tenant)
    (kept,) = running.catalog.verification.backups(running.tenant)
    assert kept.id.hex() == backup.id
    found = references(kept.root, ChunkReader(tenant, running.catalog))
    return {digest for each in found for digest in each.manifest}
