"""When a collection refuses to collect, and its reasons; who may collect; what it leaves alone."""

from __future__ import annotations

import shutil
from contextlib import suppress

import pytest
from garbage_left import Garbage
from harm import flip
from postgres_server import only_in_a_file
from sql import sql
from staddle.v1 import service_pb2 as sv
from staddle_server.base.errors import Conflict, Exhausted, Unavailable
from staddle_server.store.pack import pack_name
from staddle_server.store.records import ForgottenRecord, PurgedRecord, TenantRecord
from staddle_server.tenancy import records as recording
from staddle_server.upkeep.gc import collector as collecting
from staddle_server.upkeep.gc import sweep
from thin import Source, back_up, backups, noise

FILES = {"a": noise(200_000, 1)}
OTHERS = {"b": noise(200_000, 2)}


@pytest.fixture
def garbage(running):
    return Garbage(running)


def _sql(garbage, statement):
    with garbage.running.catalog.database.write() as connection:
        sql(connection, statement)


def _failure(garbage, **how):
    """Why the only tenant is not collected."""
    report = garbage.collector().collect(**how)
    assert len(report.failed) == 1
    assert garbage.running.catalog.tenants.get(garbage.running.tenant).gc_failure in {
        report.failed[0].failure[:1000],
        "",
    }
    return report.failed[0].failure


# ------------------------------------------------------------------ dry runs


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(garbage):
    stub = garbage.running.stub()
    back_up(stub, "gone", FILES)
    back_up(stub, "kept", OTHERS)
    garbage.delete("gone")
    before = garbage.tables(), garbage.objects(""), garbage.running.blobs.sweep()
    ahead = garbage.collector().look_ahead(grace_s=0)
    assert garbage.collector().look_ahead().sum_of("backups_purged") == 0
    assert (garbage.tables(), garbage.objects(""), 0) == before
    done = garbage.collect_all()
    for name in ("backups_purged", "packs_condemned", "bytes_condemned", "bytes_freed", "packs_reaped"):
        assert ahead.sum_of(name) == done.sum_of(name) > 0, name


def test_a_dry_run_says_when_bytes_come_free(garbage):
    back_up(garbage.running.stub(), "gone", FILES)
    garbage.delete("gone")
    garbage.later(8)
    ahead = garbage.collector().look_ahead().tenants[0]
    done = garbage.collect().tenants[0]
    assert (ahead.bytes_freed, ahead.bytes_waiting) == (0, done.bytes_waiting)
    assert done.bytes_waiting > 200_000
    assert abs(ahead.free_by_ns - done.free_by_ns) < 60e9
    assert abs(done.free_by_ns - garbage.running.clock.now_ns() - 86_400e9) < 60e9


# ------------------------------------------------------------------ untrusted states


@only_in_a_file
def test_a_catalog_that_is_older_than_the_store_is_refused(garbage):
    running = garbage.running
    back_up(running.stub(), "www", FILES)
    running.stop()
    copy = running.root / "copy.db"
    shutil.copy(running.root / "catalog.db", copy)
    running.start()
    back_up(running.stub(), "www", OTHERS)
    running.stop()
    for name in running.root.glob("catalog.db*"):
        name.unlink()
    shutil.copy(copy, running.root / "catalog.db")
    running.tokens.clear()
    running.start()
    objects = garbage.objects("")
    for _ in range(3):
        assert "the catalog is older than the store: it does not know 1 backup with" in _failure(
            garbage, grace_s=0
        )
        garbage.reap_grace()
    assert garbage.objects("") == objects


def test_a_catalog_that_still_has_a_purged_backup_is_refused(garbage):
    back_up(garbage.running.stub(), "www", FILES)
    garbage.delete("www")
    garbage.collect(grace_s=8 * 86_400)
    garbage.later(8)
    garbage.collect()
    _sql(garbage, "UPDATE backups SET purged_ns = NULL, deleted_ns = NULL")
    assert "has as not purged" in _failure(garbage)


def test_an_empty_list_of_the_store_is_not_trusted(garbage):
    back_up(garbage.running.stub(), "www", FILES)
    garbage.delete("www")
    packs = garbage.running.root / "store" / "packs"
    packs.rename(packs.with_name("away"))
    before = garbage.tables()
    assert "lists none of the packs that the catalog has (1)" in _failure(garbage, grace_s=0)
    after = garbage.tables()
    for name in ("backups", "packs", "chunks", "claims", "orphans"):
        assert after[name] == before[name], name
    packs.with_name("away").rename(packs)
    garbage.collect_all()
    assert garbage.objects() == []


def test_a_record_that_cannot_be_read_stops_the_tenant_and_is_named(garbage):
    back_up(garbage.running.stub(), "www", FILES)
    garbage.delete("www")
    name = garbage.objects("records")[-1]
    flip(garbage.running.root / "store" / name, -1)
    assert name in _failure(garbage, grace_s=0)


def test_an_unreadable_manifest_stops_its_tenant_only_until_its_backup_is_given_up(garbage):
    running = garbage.running
    other = running.make_tenant("other")
    for tenant in (None, other):
        stub = running.stub(tenant=tenant)
        for dataset, files in (("gone", OTHERS), ("www", FILES)):
            backup = back_up(stub, dataset, files)
            if dataset == "gone":
                stub.DeleteBackup(sv.DeleteBackupRequest(dataset="gone", backup=backup.id))
    mine = [name for name in garbage.objects() if running.tenant.hex() in name]
    kept = backups(running.stub(), "www")[0]
    with running.catalog.database.read() as connection:
        pack = sql(
            connection,
            "SELECT packs.id FROM packs JOIN backups ON backups.upload = packs.upload WHERE backups.id = ?",
            (bytes.fromhex(kept.id),),
        ).scalar_one()
    damaged = running.root / "store" / pack_name(running.tenant, pack)
    damaged.write_bytes(bytes(damaged.stat().st_size))
    report = garbage.collector().collect(grace_s=0)
    assert [tenant.tenant for tenant in report.failed] == ["default"]
    assert f"the manifest of backup {kept.id} is unreadable" in report.failed[0].failure
    assert f"the manifest of backup {kept.id}" in running.catalog.tenants.get(running.tenant).gc_failure
    assert [name for name in garbage.objects() if running.tenant.hex() in name] == mine
    assert [tenant.packs_reaped for tenant in report.tenants] == [0, 1], "the other tenant was collected"
    garbage.delete("www")
    garbage.collect_all()
    assert [name for name in garbage.objects() if running.tenant.hex() in name] == []
    assert running.catalog.tenants.get(running.tenant).gc_failure == ""


def test_after_a_rebuild_a_tenant_is_collected_only_once_the_operator_says_so(garbage):
    running = garbage.running
    back_up(running.stub(), "www", FILES)
    garbage.delete("www")
    running.catalog.tenants.set_gc_waits(running.tenant, waits=True)
    assert "--after-rebuild" in _failure(garbage, grace_s=0)
    assert len(garbage.objects()) == 1
    garbage.collect(grace_s=0, after_rebuild=True)
    assert garbage.objects() == []
    garbage.collect()


# ------------------------------------------------------------------ one collector


@only_in_a_file
def test_one_collector_works_at_a_time_and_the_other_learns_which(garbage):
    running = garbage.running
    running.catalog.gc_lease.acquire("another one", running.clock.now_ns(), 120)
    with pytest.raises(Conflict, match="another one") as refused:
        garbage.collector().collect()
    assert refused.value.reason == "LEASE_HELD"
    running.clock.ahead_s += 121
    garbage.collect()


@only_in_a_file
def test_a_lease_from_before_a_clock_setback_does_not_block(garbage):
    running = garbage.running
    running.clock.ahead_s = 86_400
    running.catalog.gc_lease.acquire("another one", running.clock.now_ns(), 120)
    running.clock.ahead_s = 0
    garbage.collect()


@only_in_a_file
@pytest.mark.parametrize(
    "step", ["walk_mark", "condemn_unreached", "compact", "reap", "sweep_orphans", "forget"]
)
def test_an_overtaken_collector_changes_nothing_more(garbage, monkeypatch, step):
    running = garbage.running
    back_up(running.stub(), "gone", FILES)
    back_up(running.stub(), "kept", OTHERS)
    garbage.delete("gone")
    garbage.collect(grace_s=86_400)
    original = getattr(collecting, step)
    seen = {}

    def overtaken_first(turn, *more):
        running.clock.ahead_s += 121
        running.catalog.gc_lease.acquire("the next one", running.clock.now_ns(), 120)
        seen["before"] = garbage.tables()
        original(turn, *more)

    monkeypatch.setattr(collecting, step, overtaken_first)
    garbage.later(2)
    with suppress(Conflict):  # some steps have nothing to write, and notice later or never
        garbage.collector().collect(grace_s=0)
    after = garbage.tables()
    for name in ("backups", "packs", "chunks", "claims", "mark_roots", "tasks"):
        assert after[name] == seen["before"][name], name


def test_the_lease_is_renewed_during_a_collection_and_released_at_its_end(garbage, monkeypatch):
    running = garbage.running
    back_up(running.stub(), "www", FILES)
    original = collecting.walk_mark

    def long(turn):
        for _ in range(10):
            running.clock.ahead_s += 30
            turn.tick()
        assert running.catalog.gc_lease.holder(running.clock.now_ns()) == "a test"
        return original(turn)

    monkeypatch.setattr(collecting, "walk_mark", long)
    garbage.collect()
    assert running.catalog.gc_lease.holder(running.clock.now_ns()) == ""


def test_a_collection_stops_on_request_and_the_next_one_resumes(garbage):
    back_up(garbage.running.stub(), "gone", FILES)
    garbage.delete("gone")
    for after in range(40):
        asked = iter(range(after))
        report = garbage.collector().collect(lambda asked=asked: next(asked, None) is None, grace_s=0)
        if not report.stopped:
            break
    assert after > 3
    garbage.collect_all()
    assert garbage.objects() == []


# ------------------------------------------------------------------ left-overs and orphans


def test_unfinished_packs_of_dead_uploads_are_removed_and_those_of_live_ones_stay(garbage):
    running = garbage.running
    stub = running.stub()
    dead, living = Source(stub, "dead"), Source(stub, "living")
    for source in (dead, living):
        source.put_chunks([noise(1_000_000, 5 + n) for n in range(3)], raw=True)
    assert garbage.count("packs") == 2
    stub.AbortUpload(sv.AbortUploadRequest(**dead.id))
    assert garbage.collect().sum_of("packs_left_over") == 1
    assert garbage.count("packs") == 1
    living.put_file("a", FILES["a"])
    living.commit()
    garbage.assert_restores("living", FILES)


@only_in_a_file
def test_an_unfinished_pack_is_left_over_only_if_its_collector_is_dead(garbage):
    running = garbage.running
    collection, pack = running.catalog.marks, bytes(16)
    fence = running.catalog.gc_lease.acquire("dies", running.clock.now_ns(), 120)
    collection.begin_pack(running.tenant, fence, pack, running.clock.now_ns())
    assert running.catalog.packs.writing_left_over(running.tenant) == []
    running.clock.ahead_s += 121
    assert garbage.collect().sum_of("packs_left_over") == 1
    assert garbage.count("packs") == 0


def test_an_orphan_is_removed_once_it_was_seen_twice_a_day_apart(garbage):
    back_up(garbage.running.stub(), "www", FILES)
    name = pack_name(garbage.running.tenant, bytes(range(16)))
    garbage.running.blobs.put(name, b"?" * 100)
    for _ in range(2):
        report = garbage.collect_all()
        assert (report.sum_of("orphans"), report.sum_of("bytes_orphaned")) == (1, 100)
    garbage.reap_grace()
    assert garbage.collect().sum_of("bytes_freed") == 100
    assert name not in garbage.objects()
    assert garbage.count("orphans") == 0
    garbage.assert_restores("www", FILES)


def test_no_orphan_is_removed_while_a_pack_of_the_catalog_is_absent(garbage):
    stub = garbage.running.stub()
    source = Source(stub, "www")
    source.put_chunks(source.cut(FILES["a"]))
    stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    (pack,) = garbage.objects()  # with data only, so every manifest can be read
    source.put_file("a", FILES["a"])
    source.commit()
    away = garbage.running.root / "away"
    (garbage.running.root / "store" / pack).rename(away)
    garbage.running.blobs.put(pack_name(garbage.running.tenant, bytes(range(16))), b"?")
    for _ in range(3):
        assert garbage.collect().sum_of("packs_absent") == 1
        garbage.reap_grace()
    assert len(garbage.objects()) == 2
    away.rename(garbage.running.root / "store" / pack)
    assert garbage.collect().sum_of("packs_absent") == 0
    assert len(garbage.objects()) == 2, "orphans are removed now that no pack is absent"
    garbage.assert_restores("www", FILES)


# ------------------------------------------------------------------ records


def test_the_records_of_a_purged_backup_are_removed_a_day_later_that_of_the_purge_last(garbage, monkeypatch):
    running = garbage.running
    back_up(running.stub(), "gone", FILES)
    garbage.delete("gone")
    running.stub().UndeleteBackup(
        sv.UndeleteBackupRequest(
            dataset="gone", backup=backups(running.stub(), "gone", show_deleted=True)[0].id
        )
    )
    garbage.delete("gone")
    before = set(garbage.objects("records"))
    garbage.later(8)
    garbage.collect()
    (purged,) = set(garbage.objects("records")) - before
    garbage.collect()
    assert garbage.count("backups") == 1
    assert before <= set(garbage.objects("records"))
    went = []
    delete = running.blobs.delete
    monkeypatch.setattr(running.blobs, "delete", lambda name: (went.append(name), delete(name)))
    garbage.reap_grace()
    assert garbage.collect().sum_of("backups_forgotten") == 1
    records = [name for name in went if name.startswith("records/")]
    assert len(records) == 5
    assert records[-1] == purged
    assert garbage.count("backups") == 0


def _with_room_for(running, patch, objects):
    """Let the disk take that many more objects, and be full then."""
    create, left = running.blobs.create, iter(range(objects))

    def limited():
        if next(left, None) is None:
            raise Exhausted("STORE_FULL", "the disk is full")
        return create()

    patch.setattr(running.blobs, "create", limited)


def test_garbage_is_removed_even_if_the_disk_is_too_full_to_compact(garbage, monkeypatch):
    running = garbage.running
    for number in range(9):
        back_up(running.stub(), f"kept{number}", {"a": noise(10_000, 10 + number)})
    kept = set(garbage.objects())
    back_up(running.stub(), "gone", FILES)
    garbage.delete("gone")
    with monkeypatch.context() as patch:
        _with_room_for(running, patch, 2)  # the record of the purge, and the head
        (tenant,) = garbage.collector().collect(grace_s=0).tenants
    assert "compaction needs more space, and all else was done" in tenant.failure
    assert (tenant.packs_compacted, tenant.packs_reaped) == (0, 1)
    assert set(garbage.objects()) == kept
    assert garbage.collect_all().sum_of("packs_compacted") == 9
    garbage.assert_restores("kept8", {"a": noise(10_000, 18)})


def test_on_a_nearly_full_disk_purges_with_a_written_record_free_their_space(garbage, monkeypatch):
    running = garbage.running
    monkeypatch.setattr(recording, "STEP_RECORDS", 1)
    for name in ("first", "second", "third"):
        back_up(running.stub(), name, {"a": noise(200_000, len(name))} if name != "third" else OTHERS)
        garbage.delete(name)
    before = len(garbage.objects())
    with monkeypatch.context() as patch:
        _with_room_for(running, patch, 2)
        (tenant,) = garbage.collector().collect(grace_s=0).tenants
    assert "purging needs more space, and all else was done" in tenant.failure
    assert (tenant.backups_purged, tenant.backups_walked, tenant.packs_reaped) == (3, 2, 1)
    assert len(garbage.objects()) == before - 1
    garbage.collect_all()
    assert garbage.objects() == []


def test_a_purged_backup_counts_as_live_until_its_record_is_durable(garbage, monkeypatch):
    running = garbage.running
    back_up(running.stub(), "gone", FILES)
    garbage.delete("gone")

    def unwritten(tenant, catalog):
        raise Unavailable("STORE_UNAVAILABLE", "the disk does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "finish_missing", unwritten)
        assert _failure(garbage, grace_s=0) == "the disk does not answer"
        patch.setattr(sweep, "finish_missing", lambda tenant, catalog: 0)
        report = garbage.collect_all()
        assert (report.sum_of("backups_walked"), report.sum_of("packs_condemned")) == (1, 0)
    report = garbage.collect_all()
    assert (report.sum_of("backups_walked"), report.sum_of("packs_condemned")) == (0, 1)
    records = garbage.collector()._tenants.get(running.tenant).records
    assert PurgedRecord in [type(records.read(name)) for name in records.list()]
    garbage.collect_all()
    assert [type(records.read(name)) for name in records.list()] == [TenantRecord, ForgottenRecord]
    assert garbage.count("backups") == 0
