"""Repair restores from the side that still has the data, saves what is readable, removes nothing, and reports losses."""

import os
import threading
import time

import pytest
from blake3 import blake3
from extent import extent
from harm import check, damage, damage_chunk, flip, kept, objects, paths, places, repair
from postgres_server import only_in_a_file
from sql import sql
from sqlalchemy import inspect
from staddle import Client
from staddle._backup.run import backup_directory
from staddle._types.options import BackupOptions
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.app.bootstrap import Rooms, create_tenant
from staddle_server.base.errors import Conflict
from staddle_server.base.types import Role
from staddle_server.manifest.pages import decode_index
from staddle_server.manifest.read import Manifest
from staddle_server.tenancy.chunk_reader import ChunkReader
from thin import Source, back_up, noise, restore

A, B = noise(1_500_000, 1), noise(1_500_000, 2)
TEXT = b"the same words again and again " * 60_000
FILES = {"a": A, "b": B, "text": TEXT, "small": b"few bytes"} | {f"d/{n}": b"%d" % n for n in range(300)}


def selected(backup):
    return pb.BackupSelector(backup=backup)


def first_digest(source, data):
    return blake3(source.cut(data)[0]).digest()


def snapshot(running):
    """Every byte of the store and of the catalog."""
    with running.catalog.database.read() as connection:
        tables = inspect(connection).get_table_names()
        rows = {name: sorted(map(repr, sql(connection, f"SELECT * FROM {name}").all())) for name in tables}
    return rows, {
        path: path.read_bytes() for kind in ("packs", "records", "keys") for path in objects(running, kind)
    }


@pytest.mark.parametrize("at", extent([30, -100], [0, 30, -1, -100]))  # magic, id, trailer, footer
def test_repair_saves_a_pack_without_header_or_footer_and_everything_restores(running, at):
    stub = running.stub()
    back_up(stub, "www", FILES)
    (path,) = objects(running)
    flip(path, at)
    before = path.read_bytes()
    assert damage(check(running)[0])
    found, done = repair(running)
    assert damage(found) == []
    assert (done.damage, done.packs) == (0, 1)
    assert done.chunks > 300
    assert path.read_bytes() == before, "the damaged pack stays"
    found, summary = check(running, read=True)
    assert damage(found) == []
    assert (summary.packs, summary.healed >= 1) == (2, True)
    running.restart()
    restored = restore(running.stub(), "www")
    assert (restored.files, restored.damages) == (FILES, [])
    assert repair(running)[1].packs == 0, "a second repair has nothing to save"
    path.unlink()
    running.restart()
    assert restore(running.stub(), "www").files == FILES, "no backup needs the damaged pack any more"


def test_repair_saves_the_complete_part_of_a_truncated_pack_and_names_the_rest(running):
    stub = running.stub()
    backup = back_up(stub, "www", {"a": A, "b": B})
    (path,) = objects(running)
    with path.open("r+b") as file:
        file.truncate(1_700_000)
    flip(path, 3)
    found, done = repair(running)
    assert done.chunks > 0
    lost = {each.kind for each in damage(found)}
    assert {"footer", "segment"} <= lost
    assert {each.backup for each in damage(found) if each.backup} == {backup.id}
    source = Source(stub, "www")
    missing = source.missing(source.cut(A) + source.cut(B))
    assert 0 < len(missing) < len(source.cut(A) + source.cut(B)), "what was saved need not be sent"
    stub.AbortUpload(sv.AbortUploadRequest(**source.id))
    back_up(stub, "www", {"a": A, "b": B}, kind=pb.BACKUP_KIND_FULL)
    found, _ = check(running, read=True)
    assert damage(found) == []
    healed = restore(stub, "www", backup=selected(backup.id))
    assert healed.files == {"a": A, "b": B}, "also the backup that was damaged"


def test_a_dry_run_of_repair_reports_the_same_and_changes_nothing(running):
    stub = running.stub()
    back_up(stub, "www", FILES)
    (path,) = objects(running)
    flip(path, -1)
    flip(path, 1000)
    objects(running, "records")[-1].unlink()
    before = snapshot(running)
    would, planned = repair(running, dry_run=True)
    assert snapshot(running) == before
    did, done = repair(running)
    assert (planned.chunks, planned.bytes, planned.records) == (done.chunks, done.bytes, done.records)
    assert done.records == 1
    assert {each.kind for each in would} >= {"record", "record-missing", "footer"}
    assert snapshot(running) != before
    assert {each.kind for each in damage(did)} == {"path", "segment", "footer"}


def test_index_rows_come_back_from_the_footer_and_wrong_ones_go(running):
    stub = running.stub()
    back_up(stub, "www", FILES)
    before = snapshot(running)[0]["chunks"]
    with running.catalog.database.write() as connection:
        sql(connection, "DELETE FROM chunks WHERE id_tail IN (SELECT id_tail FROM chunks LIMIT 100)")
        sql(
            connection,
            'UPDATE chunks SET "offset" = 7 WHERE id_tail IN (SELECT id_tail FROM chunks LIMIT 9)',
        )
        sql(
            connection,
            "INSERT INTO chunks SELECT 0, 0, pack, 48, 100, 0, 1 FROM chunks LIMIT 1",
        )
    found, done = repair(running)
    assert (done.index_packs, done.packs) == (1, 0)
    assert damage(found) == []
    assert snapshot(running)[0]["chunks"] == before
    assert restore(stub, "www").files == FILES


def test_index_rows_come_back_from_a_search_where_the_footer_is_gone_too(running):
    stub = running.stub()
    back_up(stub, "www", FILES)
    (path,) = objects(running)
    flip(path, -1)
    with running.catalog.database.write() as connection:
        sql(connection, "DELETE FROM chunks")
    found, done = repair(running)
    assert done.index_packs == 1
    assert damage(found) == []
    path.unlink()
    running.restart()
    assert restore(running.stub(), "www").files == FILES


def test_repair_rewrites_records_with_the_same_content(running):
    stub = running.stub()
    first = back_up(stub, "www", {"a": b"1"})
    second = back_up(stub, "www", {"a": b"2"})
    stub.DeleteBackup(sv.DeleteBackupRequest(dataset="www", backup=first.id))
    stub.DeleteBackup(sv.DeleteBackupRequest(dataset="www", backup=second.id))
    stub.UndeleteBackup(sv.UndeleteBackupRequest(dataset="www", backup=second.id))
    records = objects(running, "records")
    for record in records[:-1]:
        record.unlink()
    flip(records[-1], 90)
    found, done = repair(running)
    assert done.records == 4, "the tenant, two commits, one deletion; the other one was undone"
    assert damage(found) == []
    found, _ = check(running)
    assert [(each.kind, each.severity) for each in found] == [("record", "healed")]


def test_repair_restores_keys_from_the_catalog(running):
    rooms = Rooms(running.blobs, running.keys, running.catalog)
    made = create_tenant(rooms, "acme", 1_800_000_000 * 10**9)
    stub = running.stub(tenant=made.id)
    back_up(stub, "www", {"a": A})
    (key,) = objects(running, f"keys/{made.id.hex()}")
    before = key.read_bytes()
    flip(key, 100)
    found, _ = check(running)
    assert [each.kind for each in found] == ["keys"]
    assert "nothing of tenant acme can be read or backed up" in found[0].message
    assert "`staddle-server repair` writes the keys again from the catalog" in found[0].message
    found, done = repair(running)
    assert (done.keys, damage(found)) == (1, [])
    assert key.read_bytes() == before
    key.unlink()
    assert repair(running)[1].keys == 1
    assert key.read_bytes() == before
    running.restart()
    assert restore(running.stub(tenant=made.id), "www").files == {"a": A}


def test_keys_that_the_catalog_does_not_have_stay_unchanged(running):
    other = running.make_tenant("other")  # the catalog has no copy of this version
    (key,) = objects(running, f"keys/{other.hex()}")
    flip(key, 100)
    before = key.read_bytes()
    found, done = repair(running)
    assert [each.kind for each in damage(found)] == ["keys"]
    assert done.keys == 0
    assert key.read_bytes() == before
    assert f"keys/{other.hex()} from a copy of the store" in damage(found)[0].message
    key.unlink()
    (lost,) = damage(check(running)[0])
    assert f"restore keys/{other.hex()} from a copy of the store, as the catalog has no copy" in lost.message
    assert "repair" not in lost.message


# --- concurrency


def test_an_upload_that_claimed_a_pack_also_claims_the_chunks_saved_from_it(running):
    """Its chunks must outlive a collection that does not know the upload's manifest yet."""
    stub = running.stub()
    back_up(stub, "www", {"a": A})
    source = Source(stub, "other")
    assert source.missing(source.cut(A)) == []
    (path,) = objects(running)
    flip(path, 3)
    _, done = repair(running)
    assert done.packs == 1
    new = next(pack.id for pack in running.catalog.verification.live_packs(running.tenant) if not pack.marks)
    with running.catalog.database.read() as connection:
        claimed = sql(
            connection,
            "SELECT p.id FROM claims c JOIN packs p ON p.row = c.pack WHERE c.upload = ?",
            (bytes.fromhex(source.upload.id),),
        ).all()
    assert (new,) in claimed
    source.put_entries(source.entry("a", A))
    source.commit()
    path.unlink()
    running.restart()
    assert restore(running.stub(), "other").files == {"a": A}


@only_in_a_file
def test_repair_and_collection_take_turns(running):
    back_up(running.stub(), "www", {"a": A})
    (path,) = objects(running)
    flip(path, 3)
    collectors = running.catalog.gc_lease
    fence = collectors.acquire("a collection", running.clock.now_ns(), 60)
    before = len(objects(running))
    with pytest.raises(Conflict, match="a collection is collecting or repairing"):
        repair(running)
    assert len(objects(running)) == before
    running.clock.ahead_s += 61  # an expired lease blocks no other
    assert collectors.acquire("repair", running.clock.now_ns(), 60) == fence + 1
    with pytest.raises(Conflict, match="Another process is collecting"):
        running.catalog.marks.begin_pack(running.tenant, fence, bytes(16), running.clock.now_ns())
    collectors.release(fence)
    with pytest.raises(Conflict):
        repair(running)
    collectors.release(fence + 1)
    assert repair(running)[1].packs == 1


def test_repair_during_backups_and_restores_loses_nothing(running):
    stub = running.stub()
    back_up(stub, "www", FILES)
    (path,) = objects(running)
    flip(path, -1)
    done = threading.Event()
    failures = []

    def busy(number):
        mine = running.stub(name=f"busy-{number}")
        try:
            while True:
                files = {"a": A, "mine": noise(200_000, number)}
                back_up(mine, f"busy-{number}", files)
                assert restore(mine, f"busy-{number}").files == files
                if done.is_set():
                    return
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=busy, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        found, _ = repair(running)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert damage(found) == []
    assert damage(check(running, read=True)[0]) == []


# --- healing, and second copies


def test_a_restore_uses_the_second_copy_if_the_first_is_damaged(running):
    stub = running.stub()
    back_up(stub, "www", {"a": A})
    digest = first_digest(Source(stub, "scratch"), A)
    first, segment = places(running, Role.DATA, digest)[0]
    flip(first, segment.offset + segment.length - 20)
    check(running, read=True)
    back_up(stub, "www", {"a": A})
    flip(first, segment.offset + segment.length - 20)
    check(running, read=True)
    found = places(running, Role.DATA, digest)
    assert len(found) == 2, "two copies, neither known to be damaged"
    for path, ref in found:
        flip(path, ref.offset + ref.length - 20)
        running.restart()
        assert restore(running.stub(), "www").files == {"a": A}
        flip(path, ref.offset + ref.length - 20)
        check(running)


def test_one_damaged_file_does_not_stop_the_others_from_restoring(running):
    stub = running.stub()
    files = {"a": A, "b": noise(5_000_000, 3), "c": B}
    back_up(stub, "www", files)
    damage_chunk(running, Role.DATA, blake3(Source(stub, "scratch").cut(files["b"])[8]).digest())
    found, _ = check(running, read=True)
    assert {path for _, path in paths(found)} == {"b"}
    restored = restore(stub, "www")
    assert [each.path for each in restored.damages] == ["b"]
    assert restored.files == {"a": A, "c": B}
    repair(running)
    assert restore(stub, "www").files == {"a": A, "c": B}


def test_the_next_thin_backup_heals_every_backup(running):
    stub = running.stub()
    first = back_up(stub, "www", FILES)
    damage_chunk(running, Role.DATA, first_digest(Source(stub, "scratch"), A))
    assert damage(check(running, read=True)[0])
    back_up(stub, "www", FILES)
    assert damage(check(running, read=True)[0]) == []
    assert restore(stub, "www", backup=selected(first.id)).files == FILES


def test_the_next_incremental_upload_learns_the_damaged_paths_and_heals_every_backup(running):
    stub = running.stub()
    first = back_up(stub, "www", FILES)
    damage_chunk(running, Role.DATA, first_digest(Source(stub, "scratch"), A))
    check(running, read=True)
    source = Source(stub, "www", kind=pb.BACKUP_KIND_INCREMENTAL, scope=pb.UPLOAD_SCOPE_CHANGES)
    damaged = {entry.path for entry in source.begun.damaged_base_entries}
    assert "a" in damaged
    assert damaged < set(FILES)
    for path in damaged:
        source.put_file(path, FILES[path])
    source.commit()
    assert damage(check(running, read=True)[0]) == []
    for backup in (first.id, "latest"):
        assert restore(stub, "www", backup=selected(backup)).files == FILES


@pytest.mark.parametrize("scope", [pb.UPLOAD_SCOPE_WHOLE, pb.UPLOAD_SCOPE_CHANGES])
def test_large_damaged_attributes_are_reported_and_healed_too(running, scope):
    stub = running.stub()
    entries = [
        pb.Entry(path=f"f{n}", data=b"x", xattrs=[pb.Xattr(name=b"user.big", value=noise(60_000, n))])
        for n in range(4)
    ]
    first = attributed(stub, entries, kind=pb.BACKUP_KIND_FULL).commit()
    _, segment = damage_chunk(running, Role.MANIFEST, attributes_digest(running, b"f0"))
    found, _ = check(running, read=True)
    assert (first.id, "f0") in paths(found)
    assert {each.kind for each in found} == {"path", "segment"}
    assert (segment.pack.hex(), segment.offset) in {(each.pack, each.segment) for each in found}
    source = attributed(stub, [], kind=pb.BACKUP_KIND_INCREMENTAL, scope=scope)
    damaged = {entry.path for entry in source.begun.damaged_base_entries}
    assert damaged == {path for _, path in paths(found)}
    if scope == pb.UPLOAD_SCOPE_CHANGES:
        entries = [entry for entry in entries if entry.path in damaged]
    source.put_entries(*entries)
    source.entries = source.bytes = len(entries)
    source.commit()
    assert damage(check(running, read=True)[0]) == []
    restored = restore(stub, "www", backup=selected(first.id))
    assert {path: entry.xattrs[0].value for path, entry in restored.entries.items()} == {
        f"f{n}": noise(60_000, n) for n in range(4)
    }


def attributed(stub, entries, **fields):
    source = Source(stub, "www", **fields)
    if entries:
        source.put_entries(*entries)
        source.entries = source.bytes = len(entries)
    return source


def attributes_digest(running, path):
    tenant = kept(running).tenants.get(running.tenant)
    backup = running.catalog.backups.resolve(running.tenant, "www")
    entry = Manifest(backup.root, ChunkReader(tenant, running.catalog)).find(path)
    return entry.attributes_ref.digest


@pytest.mark.parametrize("kind", ["data", "manifest"])
def test_a_client_with_a_cached_base_heals_it_as_well(kind, running, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(600):
        (source / f"f{number:03}").write_bytes(noise(2_000, number))
    options = BackupOptions(dataset="www", cache_dir=str(tmp_path / "cache"))
    with Client(running.address, running.token()) as client:

        def back_up_source():
            settled_ns = time.time_ns() + 10**10  # no file is too recent to be trusted
            return backup_directory(client._calls, os.fsencode(source), options, lambda: settled_ns)

        first = back_up_source().backup
        if kind == "data":
            damage_chunk(running, Role.DATA, blake3(noise(2_000, 300)).digest())
        else:
            damage_chunk(running, Role.MANIFEST, a_leaf(running, bytes.fromhex(first.manifest_digest)))
        assert damage(check(running, read=True)[0])
        second = back_up_source().backup
        assert str(second.kind) == ("incremental" if kind == "data" else "full")
        assert damage(check(running, read=True)[0]) == []
        third = back_up_source()
        assert third.entries_unchanged == first.entry_count
        client.restore("www", tmp_path / "out")
        assert (tmp_path / "out" / "f300").read_bytes() == noise(2_000, 300)


def a_leaf(running, root: bytes) -> bytes:
    """The digest of a page of entries in the middle of a manifest."""
    tenant = kept(running).tenants.get(running.tenant)
    level, children = decode_index(ChunkReader(tenant, running.catalog).read(root))
    assert level == 1
    return children[len(children) // 2].digest
