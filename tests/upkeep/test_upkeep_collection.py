"""Garbage collection removes what no backup needs any more, and nothing else."""

from __future__ import annotations

import grpc
import pytest
from blake3 import blake3
from garbage_left import Garbage
from sql import sql
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base.types import Role
from staddle_server.store.pack import PackReader, parse_pack_name
from staddle_server.tenancy.chunk_reader import ChunkReader
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.integrity.copies import copy_new
from staddle_server.upkeep.integrity.parity import make_all
from thin import Source, back_up, backups, noise, reason, restore

FILES = {"a": noise(400_000, 1), "b": noise(300_000, 2)}
OTHERS = {"c": noise(500_000, 3)}


@pytest.fixture
def garbage(running):
    return Garbage(running)


# ------------------------------------------------------------------ what is removed, and when


def test_a_deleted_backup_is_collected_after_its_grace_and_a_day_and_the_others_restore(garbage):
    stub = garbage.running.stub()
    back_up(stub, "gone", FILES)
    back_up(stub, "kept", OTHERS)
    garbage.delete("gone")
    assert len(garbage.objects()) == 2
    assert garbage.collect().sum_of("backups_purged") == 0, "its grace is not over"
    garbage.later(7)
    report = garbage.collect()
    assert report.sum_of("backups_purged") == 1
    assert (report.sum_of("packs_condemned"), report.sum_of("bytes_freed")) == (1, 0)
    assert report.sum_of("bytes_waiting") > 700_000
    assert len(garbage.objects()) == 2
    garbage.reap_grace()
    assert garbage.collect().sum_of("bytes_freed") > 700_000
    assert len(garbage.objects()) == 1
    garbage.assert_restores("kept", OTHERS)


def test_parity_is_removed_with_its_pack_and_a_copy_with_its_record(garbage):
    running = garbage.running
    back_up(running.stub(), "gone", FILES)
    back_up(running.stub(), "kept", OTHERS)
    tenants = Tenants(running.blobs, running.catalog, running.keys)
    make_all(tenants, running.catalog, 10)
    copy_new(tenants, running.catalog, running.keys)
    assert len(garbage.objects("parity")) == 2
    assert [name.removeprefix("copies/") for name in garbage.objects("copies/records")] == garbage.objects(
        "records"
    )
    garbage.delete("gone")
    garbage.collect_all()
    (pack,) = garbage.objects()
    assert garbage.objects("parity") == [pack.replace("packs/", "parity/")]
    garbage.later(2)
    garbage.collect_all()
    assert {name.removeprefix("copies/") for name in garbage.objects("copies/records")} <= {
        *garbage.objects("records")
    }
    garbage.assert_restores("kept", OTHERS)


def test_shared_chunks_stay_when_one_of_two_backups_is_removed(garbage):
    stub = garbage.running.stub()
    back_up(stub, "one", FILES | OTHERS)
    back_up(stub, "two", OTHERS)
    garbage.delete("one")
    garbage.collect_all()
    garbage.assert_restores("two", OTHERS)
    garbage.delete("two")
    garbage.collect_all()
    assert garbage.objects() == []
    assert garbage.count("chunks") == garbage.count("packs") == garbage.count("claims") == 0


def test_deleting_a_base_damages_no_backup_that_started_from_it(garbage):
    stub = garbage.running.stub()
    first = back_up(stub, "www", FILES)
    source = Source(stub, "www", scope=pb.UPLOAD_SCOPE_CHANGES)
    source.put_file("c", OTHERS["c"])
    source.commit()
    garbage.delete("www", first.id)
    garbage.collect_all()
    garbage.assert_restores("www", FILES | OTHERS)


# ------------------------------------------------------------------ during uploads


@pytest.mark.parametrize("when", ["before it claims", "between claim and entries", "before its commit"])
def test_a_backup_reuses_chunks_of_an_older_one_that_is_deleted_purged_and_collected_while_it_runs(
    garbage, when
):
    stub = garbage.running.stub()
    old = back_up(stub, "old", FILES)

    def vanish(now):
        if now == when:
            garbage.delete("old", old.id)
            garbage.collect_all()
            garbage.reap_grace()
            garbage.collect_all()

    source = Source(stub, "new")
    vanish("before it claims")
    for path, data in FILES.items():
        chunks = source.cut(data)
        missing = source.missing(chunks)
        assert bool(missing) == (when == "before it claims"), "what is gone must be sent again"
        vanish("between claim and entries")
        source.put_chunks(missing)
        source.put_entries(source.entry(path, data))
        when = "" if when == "between claim and entries" else when
    vanish("before its commit")
    source.commit()
    for _ in range(3):
        garbage.collect_all()
        garbage.assert_restores("new", FILES)


@pytest.mark.parametrize("kind", [pb.BACKUP_KIND_INCREMENTAL, pb.BACKUP_KIND_FULL])
def test_an_upload_carries_over_from_a_base_that_is_deleted_purged_and_collected_while_it_runs(garbage, kind):
    stub = garbage.running.stub()
    base = back_up(stub, "www", FILES)
    named = {"base_backup_id": base.id} if kind == pb.BACKUP_KIND_FULL else {}
    source = Source(stub, "www", kind=kind, scope=pb.UPLOAD_SCOPE_CHANGES, **named)
    garbage.delete("www", base.id)
    for _ in range(2):
        garbage.collect_all()
        garbage.reap_grace()
    got = stub.GetUpload(sv.GetUploadRequest(upload_id=source.upload.id))
    assert got.upload.base_backup_id == base.id
    assert list(got.damaged_base_entries) == []
    source.put_file("c", OTHERS["c"])
    source.commit()
    for _ in range(2):
        garbage.collect_all()
        garbage.reap_grace()
        garbage.assert_restores("www", FILES | OTHERS)
    assert garbage.count("backups") == 1, "the base's row is removed once no upload needs it"
    again = stub.GetUpload(sv.GetUploadRequest(upload_id=source.upload.id))
    assert again.upload.state == pb.UPLOAD_STATE_COMMITTED


def test_an_upload_resumed_after_a_collection_still_has_its_durable_data(garbage):
    stub = garbage.running.stub()
    source = Source(stub, "www")
    source.put_file("a", FILES["a"])
    stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    garbage.running.restart()
    garbage.collect_all()
    stub = source.stub = garbage.running.stub()
    source.upload = stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id)).upload
    source.put_file("b", FILES["b"])
    source.commit()
    garbage.collect_all()
    garbage.assert_restores("www", FILES)


def test_the_data_of_an_expired_upload_is_garbage(garbage):
    stub = garbage.running.stub()
    source = Source(stub, "www")
    source.put_file("a", FILES["a"])
    stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    assert garbage.collect_all().sum_of("packs_condemned") == 0
    stub.AbortUpload(sv.AbortUploadRequest(**source.id))
    assert garbage.collect_all().sum_of("packs_condemned") == 1
    assert garbage.objects() == []


def test_replaying_the_commit_of_a_purged_backup_reports_it_as_gone(garbage):
    stub = garbage.running.stub()
    source = Source(stub, "www")
    source.put_file("a", FILES["a"])
    source.commit()
    garbage.delete("www")
    for _ in range(2):
        garbage.collect_all()
        garbage.reap_grace()
    assert garbage.count("backups") == 0
    with pytest.raises(grpc.RpcError) as gone:
        source.commit()
    assert reason(gone.value) == "BACKUP_NOT_FOUND"


# ------------------------------------------------------------------ purging


def test_the_grace_of_the_tenant_also_applies_to_backups_already_deleted(garbage):
    running = garbage.running
    back_up(running.stub(), "www", FILES)
    garbage.delete("www")
    garbage.later(2)
    assert garbage.collect().sum_of("backups_purged") == 0
    with running.catalog.database.write() as connection:
        sql(connection, "UPDATE tenants SET grace_s = 86400")
    assert garbage.collect().sum_of("backups_purged") == 1


@pytest.mark.parametrize(
    "protection",
    [
        "UPDATE backups SET hold_ns = 1",
        "UPDATE datasets SET hold_ns = 1",
        f"UPDATE backups SET retain_until_ns = {2**62}",
    ],
)
def test_a_hold_or_a_retention_time_protects_a_deleted_backup_even_from_grace_0(garbage, protection):
    running = garbage.running
    base = back_up(running.stub(), "www", FILES)
    garbage.delete("www")
    with running.catalog.database.write() as connection:
        sql(connection, protection)
    garbage.later(30)
    assert garbage.collect_all().sum_of("backups_purged") == 0
    running.stub().UndeleteBackup(sv.UndeleteBackupRequest(dataset="www", backup=base.id))
    garbage.assert_restores("www", FILES)


# ------------------------------------------------------------------ compaction


def _small_backups(stub, count):
    files = {}
    for number in range(count):
        files[f"f{number}"] = noise(50_000, number)
        back_up(stub, "www", files)
    return files


def test_small_packs_are_merged_and_everything_restores(garbage):
    stub = garbage.running.stub()
    files = _small_backups(stub, 9)
    assert len(garbage.objects()) == 9
    report = garbage.collect_all()
    assert (report.sum_of("packs_compacted"), report.sum_of("packs_written")) == (9, 1)
    assert len(garbage.objects()) == 1
    for number in range(9):
        wanted = dict(list(files.items())[: number + 1])
        backup = backups(stub, "www")[8 - number]
        garbage.assert_restores("www", wanted, backup.id)
    assert garbage.collect_all().sum_of("packs_compacted") == 0, "what is compact stays"


def test_compaction_keeps_only_the_live_chunks_of_a_mostly_dead_pack(garbage):
    stub = garbage.running.stub()
    data = {f"f{number}": noise(60_000, number) for number in range(20)}
    back_up(stub, "all", data)
    back_up(stub, "few", {"f3": data["f3"]})
    garbage.delete("all")
    report = garbage.collect_all()
    assert report.sum_of("packs_compacted") >= 1
    assert report.sum_of("bytes_written") < 200_000
    assert sum(size for _, size in garbage.running.blobs.list("packs")) < 200_000
    garbage.assert_restores("few", {"f3": data["f3"]})


def test_a_collection_that_finds_a_damaged_footer_reads_the_pack_and_marks_all_its_damage(garbage):
    stub = garbage.running.stub()
    files = _small_backups(stub, 9)
    running = garbage.running
    packs = PackReader(running.blobs, running.keys.load(running.tenant))
    for name in garbage.objects():
        _, pack = parse_pack_name(name)
        path = running.root / "store" / name
        data = bytearray(path.read_bytes())
        for segment in {chunk.place.segment for chunk in packs.footer(pack).chunks}:
            if packs.segment(segment).role is Role.DATA:
                data[segment.offset + segment.length - 20] ^= 1
        data[-100] ^= 1
        path.write_bytes(data)
    assert garbage.collect_all().sum_of("packs_compacted") == 0
    source = Source(stub, "other")
    chunks = [chunk for data in files.values() for chunk in source.cut(data)]
    assert source.missing(chunks) == chunks
    back_up(stub, "www", files, kind=pb.BACKUP_KIND_FULL)
    garbage.assert_restores("www", files)


def test_packs_that_an_open_upload_claims_are_not_compacted(garbage):
    stub = garbage.running.stub()
    files = _small_backups(stub, 9)
    source = Source(stub, "other")
    assert source.missing(source.cut(files["f4"])) == []
    report = garbage.collect_all()
    assert report.sum_of("packs_compacted") == 8
    source.put_entries(source.entry("f4", files["f4"]))
    source.commit()
    garbage.assert_restores("other", {"f4": files["f4"]})


def test_a_claim_during_the_copy_of_a_pack_discards_the_copy_and_loses_nothing(garbage, monkeypatch):
    stub = garbage.running.stub()
    files = _small_backups(stub, 9)
    source = Source(stub, "other")
    condemn = garbage.running.catalog.marks.condemn
    refused = []

    def claimed_just_before(*arguments, **more):
        source.missing(source.cut(files["f4"]))
        done = condemn(*arguments, **more)
        refused.append(not done)
        return done

    monkeypatch.setattr(garbage.running.catalog.marks, "condemn", claimed_just_before)
    report = garbage.collect_all()
    assert refused == [True]
    assert report.sum_of("packs_compacted") == 0
    assert len(garbage.objects()) == 9, "the copy is removed again"
    assert garbage.count("packs") == 9
    garbage.assert_restores("www", files)


def test_a_damaged_pack_is_left_to_repair_and_sound_packs_are_compacted(garbage):
    stub = garbage.running.stub()
    files = _small_backups(stub, 10)
    damaged = garbage.running.root / "store" / garbage.objects()[0]
    data = bytearray(damaged.read_bytes())
    data[200] ^= 1
    damaged.write_bytes(data)
    report = garbage.collect_all()
    assert report.sum_of("packs_compacted") == 9
    assert damaged.exists()
    found = restore(stub, "www")
    assert len(found.damages) <= 1
    assert len(found.files) >= len(files) - 1


def test_a_restore_finds_the_new_places_of_chunks_from_a_removed_pack(garbage):
    stub = garbage.running.stub()
    files = _small_backups(stub, 9)
    tenants = Tenants(garbage.running.blobs, garbage.running.catalog, garbage.running.keys)
    tenant = tenants.get(garbage.running.tenant)
    digests = [blake3(data).digest() for data in files.values()]
    reader = ChunkReader(tenant, garbage.running.catalog)
    places = reader.locate(Role.DATA, digests)
    assert len(places) == 9
    assert garbage.collect_all().sum_of("packs_reaped") == 9
    for digest, data in zip(digests, files.values(), strict=True):
        assert bytes(reader.chunk(Role.DATA, digest, places[digest])) == data
