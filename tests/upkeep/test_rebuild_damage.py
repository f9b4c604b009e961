"""A rebuild of a damaged store names the unusable objects and restores everything else."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from rebuilt import NOW_NS, delete, facts_of, open_store, rebuild_in_place
from staddle.v1 import resources_pb2 as pb
from staddle_server.base.errors import Unavailable
from staddle_server.base.types import NO_LINK, Place
from staddle_server.catalog import open_catalog
from staddle_server.store.backends.directory import DirectoryBlobs
from staddle_server.store.keys import KeyStore, keys_name
from staddle_server.store.records import (
    PolicyRecord,
    Records,
    encode_record,
)
from staddle_server.store.wrapped import WrappedBlobs
from staddle_server.upkeep.rebuild.run import NothingOpens, Rebuilding
from thin import Source, back_up, backups, noise, reason, restore


def flip(path: Path, offset: int, length: int = 1) -> None:
    data = bytearray(path.read_bytes())
    for at in range(offset, offset + length):
        data[at] ^= 0xFF
    path.unlink()
    path.write_bytes(data)


def objects(running, kind: str) -> list[Path]:
    return sorted(path for path in (running.root / "store" / kind).rglob("*") if path.is_file())


# ------------------------------------------------------------------ unusable objects are named


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


def test_lost_chunks_of_a_pack_are_named_and_sent_again_by_the_next_backup(running):
    stub = running.stub()
    files = {f"f{i}": noise(1_500_000, i) for i in range(4)}
    back_up(stub, "www", files)
    (pack,) = objects(running, "packs")
    flip(pack, 2_000_000, 1000)
    flip(pack, pack.stat().st_size - 40, 30)
    report, _ = rebuild_in_place(running)
    assert [Path(each.what).name for each in report.problems] == [pack.name, running.tenant.hex()]
    assert report.problems[1].message.startswith("No readable pack holds 4 chunks")
    stub = running.stub()
    damaged = [damage.path for damage in restore(stub, "www").damages]
    assert 1 <= len(damaged) <= 2
    begun = Source(stub, "www").begun
    assert [entry.path for entry in begun.damaged_base_entries] == damaged, (
        "the next upload learns what to send"
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


def test_a_missing_pack_is_reported_for_the_backups_whose_manifest_it_held(running):
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


def test_chunks_of_a_missing_pack_are_sent_again_and_not_taken_from_the_base(running):
    """Only manifests name a pack that is gone, and no upload may rely on what they name."""
    stub = running.stub()
    files = {"a": noise(300_000, 1), "b": noise(300_000, 2)}
    back_up(stub, "www", {"a": files["a"]})
    (pack,) = objects(running, "packs")
    back_up(stub, "www", files)
    pack.unlink()
    report, _ = rebuild_in_place(running)
    assert any("No readable pack holds" in each.message for each in report.problems)
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


def test_a_damaged_record_loses_its_own_decision_only(running):
    stub = running.stub()
    one = back_up(stub, "www", {"a": b"1"})
    two = back_up(stub, "www", {"a": b"2"})
    delete(stub, "www", one.id)
    (record,) = (path for path in objects(running, "records") if path.name.endswith(one.id))
    flip(record, 100)
    report, _ = rebuild_in_place(running)
    assert [each.what for each in report.problems] == [f"records/{running.tenant.hex()}/{record.name}"]
    assert [each.id for each in backups(running.stub(), "www", show_deleted=True)] == [two.id]


def test_a_lost_record_is_noticed_if_another_record_names_its_backup(running):
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


def test_another_master_key_rebuilds_nothing(running, tmp_path):
    running.stop()
    blobs, keys = open_store(running.root / "store", bytes(32))
    catalog = open_catalog(str(tmp_path / "new.db"))
    with pytest.raises(NothingOpens, match="master key"):
        Rebuilding(blobs, keys, catalog, NOW_NS).run()
    catalog.close()
    running.start()


def test_foreign_objects_in_the_store_are_named_and_skipped(running):
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


def test_a_pack_that_was_moved_from_another_tenant_reveals_nothing(running):
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


def test_an_unfinished_tenant_is_skipped_and_occupies_no_name(running, tmp_path):
    """Its keys were written, and then the process ended: the next attempt made other keys."""
    back_up(running.stub(), "www", {"a": b"1"})
    KeyStore(running.blobs, bytes(range(32))).create("default", 1)
    report, _ = rebuild_in_place(running)
    assert (report.tenants, report.problems) == (1, [])
    assert "its creation was never completed" in report.notes[0]
    assert running.catalog.tenants.get_by_name("default").id == running.tenant
    assert restore(running.stub(), "www").files == {"a": b"1"}


def test_two_tenants_of_one_name_are_both_rebuilt(running):
    """A catalog that was restored from a copy does not know the tenant, so another one is made."""
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
    """A disk that fails on objects with this in their name."""

    damaged = ""
    listing = False

    def read(self, name, offset, length):
        if self.damaged and self.damaged in name:
            raise Unavailable("STORE_UNAVAILABLE", f"could not read {name}: the store does not answer (EIO)")
        return super().read(name, offset, length)

    def list(self, prefix):
        if self.listing and prefix.startswith("packs"):
            raise Unavailable("STORE_UNAVAILABLE", "could not list the store (EIO)")
        return super().list(prefix)


def test_an_unreadable_object_costs_that_object_and_an_unlistable_store_costs_all(running, tmp_path):
    back_up(running.stub(), "www", {"a": b"1"})
    running.stop()
    blobs = Broken(DirectoryBlobs(str(running.root / "store")))
    for number, damaged in enumerate(("packs/", "records/")):
        blobs.damaged = damaged
        catalog = open_catalog(str(tmp_path / f"{number}.db"))
        report = Rebuilding(blobs, KeyStore(blobs, bytes(range(32))), catalog, NOW_NS).run()
        assert report.problem_count >= 1
        assert all(damaged in each.what or "backup" in each.what for each in report.problems)
        assert len(facts_of(catalog)["packs"]) == 1, (
            "every pack has a row; without one it would count as an orphan"
        )
        catalog.close()
    blobs.damaged, blobs.listing = "", True
    catalog = open_catalog(str(tmp_path / "none.db"))
    with pytest.raises(Unavailable):
        Rebuilding(blobs, KeyStore(blobs, bytes(range(32))), catalog, NOW_NS).run()
    catalog.close()
    with suppress(FileNotFoundError):
        running.start()
