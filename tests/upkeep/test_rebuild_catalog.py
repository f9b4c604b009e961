"""Promise 7, the store alone is enough: a catalog that was lost is made anew, and says what the lost one said."""

from __future__ import annotations

import os
import random
import threading
import time
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from extent import extent
from rebuilt import NOW_NS, facts_of, files_of, link_store, open_store, rebuild_in_place, rebuilt
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base.errors import Unavailable
from staddle_server.base.types import NO_LINK, Place
from staddle_server.catalog import open_catalog
from staddle_server.catalog.retention import Retentions
from staddle_server.store.backends.directory import DirectoryBlobs
from staddle_server.store.keys import KeyStore, keys_name
from staddle_server.store.records import (
    DeletedRecord,
    HeldRecord,
    PolicyRecord,
    PurgedRecord,
    Records,
    RetainedRecord,
    TenantSettingsRecord,
    encode_record,
)
from staddle_server.store.wrapped import WrappedBlobs
from staddle_server.tenancy.records import as_pending, finish_missing
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.rebuild.run import NothingOpens, Rebuilding
from thin import Source, back_up, backups, datasets, noise, reason, restore, wait_until

MOMENTS = int(os.environ.get("STADDLE_REBUILD_MOMENTS", extent("3", "6")))
"""How often the catalog of a busy store is lost; more for a long run."""


def delete(stub, dataset, backup):
    stub.DeleteBackup(sv.DeleteBackupRequest(dataset=dataset, backup=backup))


def undelete(stub, dataset, backup):
    stub.UndeleteBackup(sv.UndeleteBackupRequest(dataset=dataset, backup=backup))


def restore_one(stub, dataset, backup):
    return restore(stub, dataset, backup=pb.BackupSelector(backup=backup)).files


def flip(path: Path, offset: int, length: int = 1) -> None:
    data = bytearray(path.read_bytes())
    for at in range(offset, offset + length):
        data[at] ^= 0xFF
    path.unlink()
    path.write_bytes(data)


def objects(running, kind: str) -> list[Path]:
    return sorted(path for path in (running.root / "store" / kind).rglob("*") if path.is_file())


def records_of(running) -> Records:
    return Records(running.blobs, running.keys.load(running.tenant))


# ------------------------------------------------------------------ everything comes back


class Client:
    """One of several that keep a store busy: it remembers what was acknowledged, and what the backups hold."""

    def __init__(self, running, seed: int, tenant: bytes) -> None:
        self.random = random.Random(seed)
        self.tenant = tenant
        self.stub = running.stub(tenant=tenant, name=f"client-{seed}")
        self.dataset = f"set-{seed}"
        self.files = {f"f{i}": noise(self.random.randrange(1, 90_000), seed * 100 + i) for i in range(6)}
        self.contents: dict[str, dict[str, bytes]] = {}
        """Of every backup that was acknowledged, by its id."""
        self.deleted: set[str] = set()

    def step(self) -> None:
        """A backup, thin or cut at the source, or a deletion, or an undeletion."""
        what = self.random.random()
        shown = sorted(self.contents.keys() - self.deleted)
        if what < 0.2 and len(shown) > 1:
            backup = self.random.choice(shown)
            delete(self.stub, self.dataset, backup)
            self.deleted.add(backup)
        elif what < 0.3 and self.deleted:
            backup = self.random.choice(sorted(self.deleted))
            undelete(self.stub, self.dataset, backup)
            self.deleted.discard(backup)
        else:
            path = f"f{self.random.randrange(8)}"
            self.files[path] = noise(self.random.randrange(1, 90_000), self.random.randrange(10**6))
            self._back_up()

    def _back_up(self) -> None:
        said = {"tags": {"n": str(len(self.contents))}, "host": "h", "root": f"/{self.dataset}"}
        if self.random.random() < 0.5:
            made = back_up(self.stub, self.dataset, self.files, **said)
        else:
            source = Source(self.stub, self.dataset, **said)
            for path, data in self.files.items():
                source.put_file(path, data)
            made = source.commit()
        self.contents[made.id] = dict(self.files)


def busy(running, clients: list[Client], steps: int) -> None:
    failures = []

    def work(client: Client) -> None:
        try:
            for _ in range(steps):
                client.step()
        except Exception as e:
            failures.append(e)

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_busy_stores_catalog_is_rebuilt_as_it_was_and_every_backup_restores(running, tmp_path):
    other = running.make_tenant("other")
    clients = [Client(running, seed, tenant) for seed, tenant in enumerate([running.tenant] * 3 + [other])]
    for _ in range(2):
        busy(running, clients, 6)
        report, lost = rebuild_in_place(running)
        assert report.problems == []
        assert report.notes == []
        found = facts_of(running.catalog)
        assert found["backups"] == lost["backups"]
        assert found["datasets"] == lost["datasets"]
        assert found["tenants"] == lost["tenants"]
        assert found["packs"] == lost["packs"]
        assert found["chunks"] == lost["chunks"]
        assert (report.backups, report.tenants) == (len(found["backups"]), 2)
        assert report.deleted == sum(len(client.deleted) for client in clients)
        for client in clients:
            client.stub = running.stub(tenant=client.tenant, name=client.dataset)
            for backup, files in client.contents.items():
                if backup not in client.deleted:
                    assert restore_one(client.stub, client.dataset, backup) == files
            listed = {each.id for each in backups(client.stub, client.dataset)}
            assert listed == client.contents.keys() - client.deleted
    for client in clients:
        for backup in sorted(client.deleted):
            undelete(client.stub, client.dataset, backup)
            assert restore_one(client.stub, client.dataset, backup) == client.contents[backup]


def test_whenever_the_catalog_of_a_busy_store_is_lost_all_that_was_acknowledged_is_rebuilt(running, tmp_path):
    """A copy of the store, made at some moment beside the calls, is all that is left."""
    clients = [Client(running, seed, running.tenant) for seed in range(3)]
    stopped = threading.Event()
    failures = []

    def work(client: Client) -> None:
        try:
            while not stopped.is_set():
                client.step()
        except Exception as e:
            failures.append(e)

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    seen = []
    moments = random.Random(11)
    made = 0
    for moment in range(MOMENTS):
        made += moments.randrange(1, 6)
        wait_until(lambda: sum(len(client.contents) for client in clients) >= made)  # noqa: B023 - asked at once
        acknowledged = [dict(client.contents) for client in clients]
        link_store(running.root / "store", tmp_path / f"copy-{moment}")
        seen.append(acknowledged)
    stopped.set()
    for thread in threads:
        thread.join()
    assert failures == []
    whole = {backup: files for client in clients for backup, files in client.contents.items()}
    for moment, acknowledged in enumerate(seen):
        store = tmp_path / f"copy-{moment}"
        with rebuilt(store, tmp_path / f"{moment}.db") as (catalog, report):
            assert report.problems == []
            found = {key[0].hex() for key in facts_of(catalog)["backups"]}
            assert found >= {backup for contents in acknowledged for backup in contents}
            for backup in found:
                files = files_of(catalog, store, running.tenant, bytes.fromhex(backup))
                assert files == whole[backup]


def test_rebuilding_twice_gives_the_same_and_rebuilding_a_rebuilt_store_too(running, tmp_path):
    busy(running, [Client(running, 5, running.tenant)], 8)
    running.stop()
    with rebuilt(running.root / "store", tmp_path / "one.db") as (one, _):
        first = facts_of(one)
    with rebuilt(running.root / "store", tmp_path / "two.db", NOW_NS + 1) as (two, _):
        assert facts_of(two) == first
    rebuild_in_place(running)
    running.restart()
    assert facts_of(running.catalog) == first


def test_what_was_decided_about_tenants_datasets_and_backups_is_rebuilt(running, tmp_path):
    stub = running.stub()
    one, two, three = (
        back_up(stub, "www", {"a": noise(1000, seed)}, host="h", root="/r") for seed in (1, 2, 3)
    )
    ids = [bytes.fromhex(each.id) for each in (one, two, three)]
    catalog = running.catalog
    for record in (
        HeldRecord(ids[0], "www", "case 12", 50),
        RetainedRecord(ids[1], NOW_NS, 60),
        DeletedRecord(ids[2], 70),
        PurgedRecord(ids[2], 80),
        HeldRecord(b"", "www", "all", 90),
        PolicyRecord("www", '{"keep_last":3}', 86_400, 100),
        PolicyRecord("later", '{"keep_daily":7}', 0, 110),
        TenantSettingsRecord(3_600, 120),
    ):
        catalog.tenants.keep_records(running.tenant, [as_pending(running.tenant, record)])
    finish_missing(Tenants(running.blobs, catalog, running.keys).get(running.tenant), catalog)
    report, _ = rebuild_in_place(running)
    assert (report.backups, report.deleted, report.purged, report.problems) == (2, 0, 1, [])
    found = facts_of(running.catalog)
    assert found["tenants"][(running.tenant,)][-1] == 3_600
    assert found["datasets"][(running.tenant, "www")][3:] == (
        3,
        86_400,
        90,
        "all",
        '{"keep_last":3}',
    )
    assert found["datasets"][(running.tenant, "later")] == (
        110,
        "",
        "",
        0,
        0,
        None,
        "",
        '{"keep_daily":7}',
    )
    assert found["backups"][(ids[0],)][-2:] == (50, "case 12")
    assert found["backups"][(ids[1],)][-3] == NOW_NS
    stub = running.stub()
    assert back_up(stub, "www", {"b": b"1"}).number == 4, "the number of a purged backup is not given again"
    with pytest.raises(grpc.RpcError) as refused:
        back_up(stub, "www", {"b": b"1"}, host="elsewhere", root="/r")
    assert reason(refused.value) == "ROOT_DIFFERS"


def test_a_backup_that_was_taken_back_under_a_clock_that_had_been_set_back_stays_taken_back(running):
    stub = running.stub()
    backup = back_up(stub, "www", {"a": b"1"})
    running.clock.ahead_s = 86_400
    delete(stub, "www", backup.id)
    running.clock.ahead_s = 0
    undelete(stub, "www", backup.id)
    _, lost = rebuild_in_place(running)
    assert facts_of(running.catalog)["backups"] == lost["backups"]
    assert restore(running.stub(), "www").files == {"a": b"1"}


def test_the_last_decision_counts_whatever_the_clock_said_when_it_was_made(running):
    """A rebuild must not end a hold, nor bring a deleted backup back, because a clock was ahead when the opposite was decided."""
    stub = running.stub()
    held, gone = back_up(stub, "www", {"a": b"1"}), back_up(stub, "www", {"a": b"2"})
    running.clock.ahead_s = 86_400
    for backup in (held.id, ""):
        stub.SetHold(sv.SetHoldRequest(dataset="www", backup=backup, reason="for a while"))
        stub.ReleaseHold(sv.ReleaseHoldRequest(dataset="www", backup=backup))
    stub.SetRetention(sv.SetRetentionRequest(dataset="www", policy=pb.RetentionPolicy(keep_last=1)))
    delete(stub, "www", gone.id)
    undelete(stub, "www", gone.id)
    running.clock.ahead_s = 0
    delete(stub, "www", gone.id)
    stub.SetHold(sv.SetHoldRequest(dataset="www", backup=held.id, reason="case 12"))
    stub.SetHold(sv.SetHoldRequest(dataset="www", reason="case 13"))
    stub.SetRetention(sv.SetRetentionRequest(dataset="www", policy=pb.RetentionPolicy(keep_last=9)))
    for _ in range(2):  # what a rebuilt catalog decides is later than all that was decided before
        rebuild_in_place(running)
        found = [
            running.catalog.backups.get(running.tenant, bytes.fromhex(backup.id)) for backup in (held, gone)
        ]
        assert found[1].deleted_ns is not None
        assert (found[0].hold.reason, found[0].dataset_hold.reason) == ("case 12", "case 13")
        state = running.catalog.retention.state(running.tenant, "www")
        assert '"keep_last":9' in state.retention.policy
        stub = running.stub()
        stub.ReleaseHold(sv.ReleaseHoldRequest(dataset="www", backup=held.id))
        stub.SetHold(sv.SetHoldRequest(dataset="www", backup=held.id, reason="case 12"))


def test_decisions_that_meet_have_their_times_in_the_order_in_which_they_were_made(running, monkeypatch):
    """A hold that was placed last must be the one that a rebuild finds, also if its call began first."""
    stub = running.stub()
    back_up(stub, "www", {"a": b"1"})
    stub.SetHold(sv.SetHoldRequest(dataset="www", reason="first"))
    begun, released = threading.Event(), threading.Event()
    hold = Retentions.hold_dataset

    def slow(self, *arguments):
        begun.set()
        released.wait(1)
        return hold(self, *arguments)

    monkeypatch.setattr(Retentions, "hold_dataset", slow)
    holding = stub.SetHold.future(sv.SetHoldRequest(dataset="www", reason="case 13"))
    assert begun.wait(10)
    stub.ReleaseHold(sv.ReleaseHoldRequest(dataset="www"))
    released.set()
    holding.result()
    _, lost = rebuild_in_place(running)
    reasons = [
        catalog["datasets"][(running.tenant, "www")][6] for catalog in (lost, facts_of(running.catalog))
    ]
    assert reasons[0] == reasons[1]


def test_no_time_of_a_rebuilt_catalog_lies_ahead_of_the_clock(running):
    stub = running.stub()
    back_up(stub, "www", {"a": b"1"})
    running.clock.ahead_s = 30 * 86_400
    stub.SetHold(sv.SetHoldRequest(dataset="www", reason="case 12"))
    running.clock.ahead_s = 0
    stub.SetRetention(sv.SetRetentionRequest(dataset="www", policy=pb.RetentionPolicy(keep_last=9)))
    rebuild_in_place(running)
    found = facts_of(running.catalog)["datasets"][(running.tenant, "www")]
    assert all(not isinstance(value, int) or value < time.time_ns() + 10**9 for value in found), found


def test_garbage_collection_waits_and_graces_begin_anew(running):
    stub = running.stub()
    backup = back_up(stub, "www", {"a": b"1"})
    back_up(stub, "www", {"a": b"1"})
    delete(stub, "www", backup.id)
    before_ns = time.time_ns()
    rebuild_in_place(running)
    with running.catalog.database.read() as connection:
        rows = connection.exec_driver_sql("SELECT gc_waits FROM tenants").all()
        assert [tuple(row) for row in rows] == [(1,)]
    assert running.catalog.backups.get(running.tenant, bytes.fromhex(backup.id)).deleted_ns >= before_ns
    undelete(running.stub(), "www", backup.id)


def test_an_open_upload_is_gone_and_what_it_stored_is_not_sent_again(running):
    stub = running.stub()
    back_up(stub, "www", {"a": b"1"})
    data = noise(500_000, 7)
    source = Source(stub, "www")
    source.put_file("b", data)
    stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    rebuild_in_place(running)
    stub = running.stub()
    with pytest.raises(grpc.RpcError) as gone:
        stub.GetUpload(sv.GetUploadRequest(upload_id=source.upload.id))
    assert reason(gone.value) == "UPLOAD_NOT_FOUND"
    again = Source(stub, "www")
    assert again.missing(again.cut(data)) == []
    again.put_file("b", data)
    again.commit()
    assert restore(stub, "www").files == {"b": data}


def test_two_tenants_stay_apart(running):
    other = running.make_tenant("other")
    data = noise(200_000)
    back_up(running.stub(), "www", {"a": data})
    back_up(running.stub(tenant=other), "www", {"a": data})
    back_up(running.stub(tenant=other), "theirs", {"b": data})
    running.restart()
    report, _ = rebuild_in_place(running)
    assert (report.tenants, report.backups, report.problems) == (2, 3, [])
    assert datasets(running.stub()) == ["www"]
    assert datasets(running.stub(tenant=other)) == ["theirs", "www"]
    owners = {key[0]: row[0] for key, row in facts_of(running.catalog)["chunks"].items()}
    assert set(owners.values()) == {running.tenant, other}
    assert len(owners) == len(facts_of(running.catalog)["chunks"]), (
        "no chunk has an id that two tenants share"
    )
    for stub in (running.stub(), running.stub(tenant=other)):
        assert restore(stub, "www").files == {"a": data}


# ------------------------------------------------------------------ what cannot be used is named


def test_a_pack_without_its_footer_is_searched_and_everything_restores(running):
    stub = running.stub()
    files = {f"f{i}": noise(700_000, i) for i in range(5)}
    back_up(stub, "www", files)
    (pack,) = objects(running, "packs")
    flip(pack, pack.stat().st_size - 40, 30)
    report, _ = rebuild_in_place(running)
    assert [
        (Path(each.what).name, "a search of the whole pack" in each.message) for each in report.problems
    ] == [(pack.name, True)]
    assert restore(running.stub(), "www").files == files


def test_what_is_lost_of_a_pack_is_named_and_sent_again_by_the_next_backup(running):
    stub = running.stub()
    files = {f"f{i}": noise(1_500_000, i) for i in range(4)}
    back_up(stub, "www", files)
    (pack,) = objects(running, "packs")
    flip(pack, 2_000_000, 1000)
    flip(pack, pack.stat().st_size - 40, 30)
    report, _ = rebuild_in_place(running)
    assert [Path(each.what).name for each in report.problems] == [pack.name, running.tenant.hex()]
    assert report.problems[1].message.startswith("No pack that can be read holds 4 chunks")
    stub = running.stub()
    hurt = [damage.path for damage in restore(stub, "www").damages]
    assert 1 <= len(hurt) <= 2
    begun = Source(stub, "www").begun
    assert [entry.path for entry in begun.damaged_base_entries] == hurt, (
        "the next upload is told what to send"
    )
    back_up(stub, "www", files)
    assert restore(stub, "www").files == files


def test_a_pack_with_a_damaged_header_is_named_and_its_backup_restores(running):
    stub = running.stub()
    back_up(stub, "www", {"a": noise(300_000, 1)})
    (pack,) = objects(running, "packs")
    flip(pack, 0, 48)
    report, _ = rebuild_in_place(running)
    assert [each.what for each in report.problems] == [
        f"packs/{running.tenant.hex()}/{pack.parent.name}/{pack.name}"
    ]
    found = restore(running.stub(), "www")
    assert (found.files, found.damages) == ({"a": noise(300_000, 1)}, [])
    source = Source(running.stub(), "more")
    assert source.missing(source.cut(noise(300_000, 1))) == []


@pytest.mark.parametrize("part", ["all", "cut", "empty"])
def test_a_pack_that_cannot_be_read_keeps_its_row_and_its_backup_is_named(running, part):
    stub = running.stub()
    lost = back_up(stub, "www", {"a": noise(300_000, 1)})
    back_up(stub, "other", {"b": noise(300_000, 2)})
    packs = {path: path.stat().st_mtime_ns for path in objects(running, "packs")}
    pack = min(packs, key=packs.__getitem__)
    if part == "all":
        flip(pack, 0, pack.stat().st_size)
    else:
        data = pack.read_bytes()
        pack.unlink()
        pack.write_bytes(data[:1000] if part == "cut" else b"")
    report, _ = rebuild_in_place(running)
    named = {each.what for each in report.problems}
    assert f"packs/{running.tenant.hex()}/{pack.parent.name}/{pack.name}" in named
    assert f"backup {lost.id}" in named
    found = facts_of(running.catalog)
    assert found["packs"][(running.tenant, bytes.fromhex(pack.name))][-1] == 1
    stub = running.stub()
    assert restore(stub, "www").damages
    assert restore(stub, "other").files == {"b": noise(300_000, 2)}
    back_up(stub, "www", {"a": noise(300_000, 1)}, kind=pb.BACKUP_KIND_FULL)
    assert restore(stub, "www").files == {"a": noise(300_000, 1)}


def test_a_missing_pack_is_named_by_the_backups_whose_manifest_it_had(running):
    stub = running.stub()
    lost = back_up(stub, "www", {"a": b"1"})
    (pack,) = objects(running, "packs")
    back_up(stub, "other", {"b": b"2"})
    pack.unlink()
    report, _ = rebuild_in_place(running)
    assert [each.what for each in report.problems] == [f"backup {lost.id}"]
    assert "number 1 of dataset 'www'" in report.problems[0].message
    stub = running.stub()
    assert [each.id for each in backups(stub, "www")] == [lost.id], "it still exists"
    assert restore(stub, "www").damages
    assert restore(stub, "other").files == {"b": b"2"}


def test_chunks_of_a_missing_pack_are_sent_again_and_not_carried_over_from_a_base_that_lost_them(running):
    """Nothing in the store tells of a pack that is gone: only manifests do, and no upload may rely on what they name."""
    stub = running.stub()
    files = {"a": noise(300_000, 1), "b": noise(300_000, 2)}
    back_up(stub, "www", {"a": files["a"]})
    (pack,) = objects(running, "packs")
    back_up(stub, "www", files)
    pack.unlink()
    report, _ = rebuild_in_place(running)
    assert any("No pack that can be read holds" in each.message for each in report.problems)
    stub = running.stub()
    source = Source(stub, "www", scope=pb.UPLOAD_SCOPE_CHANGES)
    assert [entry.path for entry in source.begun.damaged_base_entries] == ["a"]
    with pytest.raises(grpc.RpcError) as refused:
        source.put_entries(pb.Entry(path="a", content_from_base=True))
    assert reason(refused.value) == "NOT_IN_BASE"
    source.number = 0
    source.put_file("a", files["a"])
    source.commit()
    assert restore(stub, "www").files == files


def test_a_damaged_record_costs_what_it_said_and_nothing_else(running):
    stub = running.stub()
    one = back_up(stub, "www", {"a": b"1"})
    two = back_up(stub, "www", {"a": b"2"})
    delete(stub, "www", one.id)
    (record,) = (path for path in objects(running, "records") if path.name.endswith(one.id))
    flip(record, 100)
    report, _ = rebuild_in_place(running)
    assert [each.what for each in report.problems] == [f"records/{running.tenant.hex()}/{record.name}"]
    assert [each.id for each in backups(running.stub(), "www", show_deleted=True)] == [two.id]


def test_a_lost_record_is_noticed_where_another_one_speaks_of_its_backup(running):
    stub = running.stub()
    one = back_up(stub, "www", {"a": b"1"})
    delete(stub, "www", one.id)
    (record,) = (path for path in objects(running, "records") if path.name.endswith(one.id))
    record.unlink()
    report, _ = rebuild_in_place(running)
    assert [each.what for each in report.problems] == [f"records/{running.tenant.hex()}", f"backup {one.id}"]
    assert "record 2 of tenant default is missing" in report.problems[0].message


def test_a_tenant_whose_keys_are_damaged_is_named_and_the_others_are_rebuilt(running):
    other = running.make_tenant("other")
    back_up(running.stub(), "www", {"a": b"1"})
    back_up(running.stub(tenant=other), "www", {"a": b"1"})
    running.restart()
    flip(running.root / "store" / keys_name(other, 1), 60)
    report, _ = rebuild_in_place(running)
    assert sorted(each.what for each in report.problems) == [
        f"heads/{other.hex()}",
        f"keys/{other.hex()}",
        f"packs/{other.hex()}",
        f"records/{other.hex()}",
    ]
    assert (report.tenants, report.backups) == (1, 1)
    assert restore(running.stub(), "www").files == {"a": b"1"}


def test_with_another_master_key_nothing_is_rebuilt(running, tmp_path):
    running.stop()
    blobs, keys = open_store(running.root / "store", bytes(32))
    catalog = open_catalog(str(tmp_path / "new.db"))
    with pytest.raises(NothingOpens, match="master key"):
        Rebuilding(blobs, keys, catalog, NOW_NS).run()
    catalog.close()
    running.start()


def test_strangers_in_the_store_are_named_and_passed_over(running):
    back_up(running.stub(), "www", {"a": b"1"})
    tenant = running.tenant.hex()
    names = ["readme.txt", f"keys/{tenant}.bak", f"packs/{tenant}/00/11", "packs/x"]
    names += [f"records/{tenant}/1-2", f"old/packs/{tenant}/a"]
    for name in names:
        path = running.root / "store" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not ours")
    report, _ = rebuild_in_place(running)
    assert sorted(each.what for each in report.problems) == sorted(names)
    assert restore(running.stub(), "www").files == {"a": b"1"}


def test_a_pack_of_another_tenant_that_was_moved_gives_nothing_away(running):
    other = running.make_tenant("other")
    back_up(running.stub(), "www", {"a": noise(100_000)})
    running.restart()
    (pack,) = objects(running, "packs")
    name = pack.relative_to(running.root / "store" / "packs" / running.tenant.hex())
    planted = running.root / "store" / "packs" / other.hex() / name
    planted.parent.mkdir(parents=True)
    os.link(pack, planted)
    report, _ = rebuild_in_place(running)
    assert [each.what for each in report.problems] == [f"packs/{other.hex()}/{name}"]
    assert {row[0] for row in facts_of(running.catalog)["chunks"].values()} == {running.tenant}


def test_a_tenant_that_was_never_made_to_the_end_is_left_out_and_takes_no_name(running, tmp_path):
    """Its keys came first, and then the process ended: the next attempt made other ones."""
    back_up(running.stub(), "www", {"a": b"1"})
    KeyStore(running.blobs, bytes(range(32))).create("default", 1)
    report, _ = rebuild_in_place(running)
    assert (report.tenants, report.problems) == (1, [])
    assert "never made to the end" in report.notes[0]
    assert running.catalog.tenants.get_by_name("default").id == running.tenant
    assert restore(running.stub(), "www").files == {"a": b"1"}


def test_two_tenants_of_one_name_are_both_rebuilt(running):
    """A catalog that was put back from a copy does not know the tenant, and another one is made."""
    back_up(running.stub(), "www", {"a": b"1"})
    keys = KeyStore(running.blobs, bytes(range(32))).create("default", NOW_NS)
    records = Records(running.blobs, keys)
    records.put(encode_record(PolicyRecord("x", "", 0, 1)), Place(1, NO_LINK), bytes(16))
    records.head.write(1)
    report, _ = rebuild_in_place(running)
    assert (report.tenants, report.problems) == (2, [])
    names = {each.id: each.name for each in running.catalog.tenants.list_all()}
    assert names == {running.tenant: "default", keys.tenant: f"default.{keys.tenant.hex()[:8]}"}


class Broken(WrappedBlobs):
    """A disk that fails on what has this in its name."""

    hurt = ""
    listing = False

    def read(self, name, offset, length):
        if self.hurt and self.hurt in name:
            raise Unavailable("STORE_UNAVAILABLE", f"could not read {name}: the store does not answer (EIO)")
        return super().read(name, offset, length)

    def list(self, prefix):
        if self.listing and prefix.startswith("packs"):
            raise Unavailable("STORE_UNAVAILABLE", "could not list the store (EIO)")
        return super().list(prefix)


def test_a_disk_that_fails_on_one_object_costs_that_object_and_one_that_cannot_be_listed_costs_all(
    running, tmp_path
):
    back_up(running.stub(), "www", {"a": b"1"})
    running.stop()
    blobs = Broken(DirectoryBlobs(str(running.root / "store")))
    for number, hurt in enumerate(("packs/", "records/")):
        blobs.hurt = hurt
        catalog = open_catalog(str(tmp_path / f"{number}.db"))
        report = Rebuilding(blobs, KeyStore(blobs, bytes(range(32))), catalog, NOW_NS).run()
        assert report.problem_count >= 1
        assert all(hurt in each.what or "backup" in each.what for each in report.problems)
        assert len(facts_of(catalog)["packs"]) == 1, "no pack is without a row, or it would count as nobody's"
        catalog.close()
    blobs.hurt, blobs.listing = "", True
    catalog = open_catalog(str(tmp_path / "none.db"))
    with pytest.raises(Unavailable):
        Rebuilding(blobs, KeyStore(blobs, bytes(range(32))), catalog, NOW_NS).run()
    catalog.close()
    with suppress(FileNotFoundError):
        running.start()
