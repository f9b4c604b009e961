"""Promise 7, the store alone is enough: a lost catalog is rebuilt with the same content."""

from __future__ import annotations

import os
import random
import threading
import time

import grpc
import pytest
from extent import extent
from postgres_server import on_both_databases_in_test_all
from rebuilt import NOW_NS, delete, facts_of, files_of, link_store, rebuild_in_place, rebuilt
from sql import sql
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.catalog.retention import Retentions
from staddle_server.store.records import (
    DeletedRecord,
    ExpectedRecord,
    HeldRecord,
    PolicyRecord,
    PurgedRecord,
    RetainedRecord,
    TenantSettingsRecord,
)
from staddle_server.tenancy.records import as_pending, finish_missing
from staddle_server.tenancy.tenant import Tenants
from thin import Source, back_up, backups, datasets, noise, reason, restore, wait_until

MOMENTS = int(os.environ.get("STADDLE_REBUILD_MOMENTS", extent("3", "6")))
"""How often the catalog of a busy store is lost; more for a long run."""


def undelete(stub, dataset, backup):
    stub.UndeleteBackup(sv.UndeleteBackupRequest(dataset=dataset, backup=backup))


def restore_one(stub, dataset, backup):
    return restore(stub, dataset, backup=pb.BackupSelector(backup=backup)).files


# ------------------------------------------------------------------ everything comes back


class Client:
    """A client that keeps a store busy; it remembers what was acknowledged, and the content of its backups."""

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


def test_the_catalog_of_a_busy_store_is_rebuilt_and_every_backup_restores(running, tmp_path):
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


@on_both_databases_in_test_all
def test_a_catalog_lost_at_any_moment_is_rebuilt_with_everything_acknowledged(running, tmp_path):
    """Only a copy of the store is left, made at some moment during the calls."""
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


def test_rebuilding_again_gives_the_same_catalog(running, tmp_path):
    busy(running, [Client(running, 5, running.tenant)], 8)
    running.stop()
    with rebuilt(running.root / "store", tmp_path / "one.db") as (one, _):
        first = facts_of(one)
    with rebuilt(running.root / "store", tmp_path / "two.db", NOW_NS + 1) as (two, _):
        assert facts_of(two) == first
    rebuild_in_place(running)
    running.restart()
    assert facts_of(running.catalog) == first


@on_both_databases_in_test_all
def test_decisions_about_tenants_datasets_and_backups_are_rebuilt(running, tmp_path):
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
        ExpectedRecord("www", 86_400, 7_200, 125, 0, 130),
    ):
        catalog.tenants.keep_records(running.tenant, [as_pending(running.tenant, record)])
    finish_missing(Tenants(running.blobs, catalog, running.keys).get(running.tenant), catalog)
    report, _ = rebuild_in_place(running)
    assert (report.backups, report.deleted, report.purged, report.problems) == (2, 0, 1, [])
    found = facts_of(running.catalog)
    assert found["tenants"][(running.tenant,)][-1] == 3_600
    assert found["datasets"][(running.tenant, "www")][3:8] == (
        3,
        86_400,
        90,
        "all",
        '{"keep_last":3}',
    )
    success_ns = three.commit_time.seconds * 10**9 + three.commit_time.nanos
    expected = (success_ns, 86_400, 7_200, 125, 0)
    assert found["datasets"][(running.tenant, "www")][8:] == expected, "a purged backup was a success"
    assert found["datasets"][(running.tenant, "later")] == (
        110,
        "",
        "",
        0,
        0,
        None,
        "",
        '{"keep_daily":7}',
        *(0, 0, 0, 0, 0),
    )
    assert found["backups"][(ids[0],)][-2:] == (50, "case 12")
    assert found["backups"][(ids[1],)][-3] == NOW_NS
    stub = running.stub()
    assert back_up(stub, "www", {"b": b"1"}).number == 4, "the number of a purged backup is not reused"
    with pytest.raises(grpc.RpcError) as refused:
        back_up(stub, "www", {"b": b"1"}, host="elsewhere", root="/r")
    assert reason(refused.value) == "ROOT_DIFFERS"


def test_an_undeletion_under_a_clock_that_was_set_back_survives_a_rebuild(running):
    stub = running.stub()
    backup = back_up(stub, "www", {"a": b"1"})
    running.clock.ahead_s = 86_400
    delete(stub, "www", backup.id)
    running.clock.ahead_s = 0
    undelete(stub, "www", backup.id)
    _, lost = rebuild_in_place(running)
    assert facts_of(running.catalog)["backups"] == lost["backups"]
    assert restore(running.stub(), "www").files == {"a": b"1"}


def test_the_last_decision_counts_whatever_its_clock_said(running):
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
    for _ in range(2):  # decisions of a rebuilt catalog are later than all earlier ones
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


def test_concurrent_decisions_have_their_times_in_order(running, monkeypatch):
    """The hold that was placed last must be the one that a rebuild finds, even if its call began first."""
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
    assert begun.wait(60)
    stub.ReleaseHold(sv.ReleaseHoldRequest(dataset="www"))
    released.set()
    holding.result()
    _, lost = rebuild_in_place(running)
    reasons = [
        catalog["datasets"][(running.tenant, "www")][6] for catalog in (lost, facts_of(running.catalog))
    ]
    assert reasons[0] == reasons[1]


def test_no_time_of_a_rebuilt_catalog_is_in_the_future(running):
    stub = running.stub()
    back_up(stub, "www", {"a": b"1"})
    running.clock.ahead_s = 30 * 86_400
    stub.SetHold(sv.SetHoldRequest(dataset="www", reason="case 12"))
    running.clock.ahead_s = 0
    stub.SetRetention(sv.SetRetentionRequest(dataset="www", policy=pb.RetentionPolicy(keep_last=9)))
    rebuild_in_place(running)
    found = facts_of(running.catalog)["datasets"][(running.tenant, "www")]
    assert all(not isinstance(value, int) or value < time.time_ns() + 10**9 for value in found), found


def test_after_a_rebuild_garbage_collection_waits_and_graces_start_again(running):
    stub = running.stub()
    backup = back_up(stub, "www", {"a": b"1"})
    back_up(stub, "www", {"a": b"1"})
    delete(stub, "www", backup.id)
    before_ns = time.time_ns()
    rebuild_in_place(running)
    with running.catalog.database.read() as connection:
        rows = sql(connection, "SELECT gc_waits FROM tenants").all()
        assert [tuple(row) for row in rows] == [(1,)]
    assert running.catalog.backups.get(running.tenant, bytes.fromhex(backup.id)).deleted_ns >= before_ns
    undelete(running.stub(), "www", backup.id)


@on_both_databases_in_test_all
def test_a_rebuild_drops_open_uploads_and_their_stored_chunks_are_not_sent_again(running):
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


def test_a_rebuild_keeps_two_tenants_apart(running):
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
