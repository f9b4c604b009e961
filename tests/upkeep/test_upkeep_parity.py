"""Parity on a running server: when it is made, and how it repairs damaged packs."""

import errno
import os
import sys
import threading
from pathlib import Path

import pytest
from blake3 import blake3
from parity_packs import FILES, NOW_NS, Packs, damage
from staddle.v1 import service_pb2 as sv
from staddle_server.base.errors import Damaged, Unavailable
from staddle_server.store import reedsolomon
from staddle_server.store.backends.directory import DirectoryBlobs
from staddle_server.store.files import Files
from staddle_server.store.parity import PackRange, Parity, remove_parity
from staddle_server.store.reedsolomon import ParityLibraryMissing
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.integrity.parity import (
    Outcome,
    ParityReport,
    make_all,
    make_parity,
    parity_task,
    repair_pack,
)
from thin import Source, back_up, restore


@pytest.fixture
def packs(running):
    return Packs(running)


def test_every_pack_without_parity_gets_it_once(running, packs):
    stub = running.stub()
    back_up(stub, "www", FILES)
    back_up(running.stub(tenant=running.make_tenant("other")), "www", FILES)
    before = packs.all()
    reported = []
    report = make_all(
        packs.tenants, packs.catalog, 10, tick=lambda pack, made: reported.append((pack.pack, made))
    )
    assert [pack for pack, _ in reported] == before
    assert packs.having_parity() == before
    assert report == ParityReport(
        len(before), packs.catalog.packs.parity_totals().pack_bytes, sum(made for _, made in reported)
    )
    assert 0.1 < report.parity_bytes / report.pack_bytes < 0.115
    assert packs.make() == ParityReport()


def test_a_damaged_pack_is_repaired_in_place_and_all_restores_again(running, packs):
    stub = running.stub()
    back_up(stub, "www", FILES)
    packs.make()
    pack = max(packs.all(), key=lambda each: packs.path(each).stat().st_size)
    whole = packs.path(pack).read_bytes()
    damage(packs.path(pack), 1_000_000, 200_000)
    assert [each.path for each in restore(stub, "www").damages] == ["a"]
    source = Source(stub, "www")
    digests = [blake3(chunk).digest() for chunk in source.cut(FILES["a"])]
    ask = sv.FindMissingChunksRequest(**source.id, digests=digests)
    assert stub.FindMissingChunks(ask).missing
    damage(packs.path(pack), 0)
    damage(packs.path(pack), len(whole) - 40, 40)

    report = packs.repair(pack)
    assert report.outcome is Outcome.REPAIRED
    assert report.ranges == (
        PackRange(0, 4096),
        PackRange(999_424, 200_704),
        PackRange(len(whole) - len(whole) % 4096, len(whole) % 4096),
    )
    assert (report.found_bytes, report.pack_bytes) == (len(whole), len(whole))
    assert "damaged at 0" in report.found
    assert packs.path(pack).read_bytes() == whole
    assert packs.catalog.packs.damaged(running.tenant) == []
    assert packs.verified_ns(pack) == NOW_NS
    found = restore(stub, "www")
    assert (found.files, found.damages) == (FILES, [])
    assert not stub.FindMissingChunks(ask).missing


def test_a_small_pack_whose_object_is_gone_is_restored(running, packs):
    stub = running.stub()
    back_up(stub, "www", {"b": FILES["b"]})
    packs.make()
    for pack in packs.all():
        packs.path(pack).unlink()
        report = packs.repair(pack)
        assert (report.outcome, report.found_bytes) == (Outcome.REPAIRED, None)
        assert "is missing" in report.found
    assert restore(stub, "www").files == {"b": FILES["b"]}


def test_a_sound_pack_loses_its_damage_mark_and_is_not_rewritten(running, packs):
    back_up(running.stub(), "www", FILES)
    pack = packs.all()[0]
    packs.catalog.packs.mark_damaged(running.tenant, pack, 48)
    before = packs.path(pack).stat()
    report = packs.repair(pack)
    assert (report.outcome, report.found, report.ranges) == (Outcome.SOUND, "", ())
    after = packs.path(pack).stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_size) == (
        before.st_ino,
        before.st_mtime_ns,
        before.st_size,
    )
    assert packs.catalog.packs.damaged(running.tenant) == []
    assert packs.verified_ns(pack) == NOW_NS


def test_an_irreparable_pack_stays_unchanged_and_the_report_says_why(running, packs):
    back_up(running.stub(), "www", FILES)
    pack = max(packs.all(), key=lambda each: packs.path(each).stat().st_size)
    packs.catalog.packs.mark_damaged(running.tenant, pack, 48)
    size = packs.path(pack).stat().st_size

    damage(packs.path(pack), 1000, size // 3)
    lost = packs.path(pack).read_bytes()
    report = packs.repair(pack)
    assert report.outcome is Outcome.NO_PARITY
    assert f"pack {pack.hex()} is damaged at" in report.found
    damage(packs.path(pack), 1000, size // 3)

    Parity(running.blobs, packs.tenant.keys).make(pack, 10)
    packs.path(pack).write_bytes(lost)
    report = packs.repair(pack)
    assert report.outcome is Outcome.BEYOND
    assert "nothing was changed" in report.found

    packs.path(pack).write_bytes(lost[: size // 2])
    packs.parity_path(pack).write_bytes(b"no parity")
    report = packs.repair(pack)
    assert report.outcome is Outcome.BEYOND
    assert "is damaged and cannot help" in report.found
    assert packs.path(pack).read_bytes() == lost[: size // 2]
    assert packs.catalog.packs.damaged(running.tenant) == [pack]


def test_concurrent_repairs_and_reads_of_a_pack_leave_it_intact(running, packs):
    stub = running.stub()
    back_up(stub, "www", FILES)
    packs.make()
    pack = max(packs.all(), key=lambda each: packs.path(each).stat().st_size)
    whole = packs.path(pack).read_bytes()
    damage(packs.path(pack), 500_000, 100_000)
    outcomes, start = [], threading.Barrier(5)

    def repair():
        start.wait()
        outcomes.append(packs.repair(pack).outcome)

    def read():
        start.wait()
        for path, data in restore(stub, "www").files.items():
            assert data == FILES[path]

    threads = [threading.Thread(target=work) for work in (repair, repair, repair, read, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 3
    assert set(outcomes) <= {Outcome.REPAIRED, Outcome.SOUND}
    assert packs.path(pack).read_bytes() == whole
    assert list((running.root / "store" / "tmp").iterdir()) == []


def test_unreadable_sectors_are_repaired_like_other_damage(running, packs):
    stub = running.stub()
    back_up(stub, "www", FILES)
    packs.make()
    pack = max(packs.all(), key=lambda each: packs.path(each).stat().st_size)
    whole = packs.path(pack).read_bytes()
    bad = FailingSectors(packs.path(pack), 1_000_000, 1_100_000)
    tenants = Tenants(DirectoryBlobs(str(running.root / "store"), bad), packs.catalog, running.keys)
    tenant = tenants.get(running.tenant)
    report = repair_pack(tenant, packs.catalog, pack, NOW_NS)
    assert (report.outcome, "EIO" in report.found) == (Outcome.REPAIRED, True)
    assert report.ranges == (PackRange(999_424, 102_400),)
    assert packs.path(pack).read_bytes() == whole

    damage(packs.path(pack), 2_000_000)
    bad.inode, bad.start, bad.end = packs.parity_path(pack).stat().st_ino, 0, 10_000
    assert repair_pack(tenant, packs.catalog, pack, NOW_NS).outcome is Outcome.REPAIRED
    assert packs.path(pack).read_bytes() == whole

    bad.inode, bad.start, bad.end = packs.path(pack).stat().st_ino, 1_000_000, len(whole)
    with pytest.raises(Unavailable, match="EIO"):
        repair_pack(tenant, packs.catalog, pack, NOW_NS)
    remove_parity(running.blobs, running.tenant, pack)
    bad.end = 1_100_000
    with pytest.raises(Unavailable, match="EIO"):
        repair_pack(tenant, packs.catalog, pack, NOW_NS)
    assert packs.path(pack).read_bytes() == whole


class FailingSectors(Files):
    """A disk that cannot read a range of one file."""

    def __init__(self, path: Path, start: int, end: int) -> None:
        self.inode, self.start, self.end = path.stat().st_ino, start, end

    def read(self, descriptor, length, offset):
        hits = offset < self.end and self.start < offset + length
        if hits and os.fstat(descriptor).st_ino == self.inode:
            raise OSError(errno.EIO, "input/output error")
        return super().read(descriptor, length, offset)


# --- without the parity library


@pytest.fixture
def without_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyeclib.ec_iface", None)
    reedsolomon.code.cache_clear()
    yield
    reedsolomon.code.cache_clear()


def test_without_the_parity_library_its_users_name_what_to_install_and_all_else_works(
    running, packs, without_library
):
    stub = running.stub()
    back_up(stub, "www", FILES)
    assert restore(stub, "www").files == FILES
    pack = packs.all()[0]
    for needs in (
        lambda: parity_task(packs.tenants, packs.catalog, running.clock, 10),
        lambda: make_parity(packs.tenant, packs.catalog, pack, 10),
        packs.make,
    ):
        with pytest.raises(ParityLibraryMissing, match=r"1.8 or newer.*pip install 'staddle\[parity\]'"):
            needs()
    assert packs.repair(pack).outcome is Outcome.SOUND
    assert parity_task(packs.tenants, packs.catalog, running.clock, 0).every_s == 0
    assert packs.catalog.packs.damaged(running.tenant) == []


def test_an_outdated_parity_library_counts_as_missing(running, packs, monkeypatch):
    import pyeclib.ec_iface as library

    def refuses(**_):
        raise library.ECInvalidParameter("at most 32 blocks")

    monkeypatch.setattr(library, "ECDriver", refuses)
    reedsolomon.code.cache_clear()
    with pytest.raises(ParityLibraryMissing, match=r"1.8 or newer"):
        parity_task(packs.tenants, packs.catalog, running.clock, 10)


def test_a_damaged_pack_that_needs_the_parity_library_names_what_to_install(running, packs, monkeypatch):
    back_up(running.stub(), "www", FILES)
    packs.make()
    pack = packs.all()[0]
    damage(packs.path(pack), 100)
    lost = packs.path(pack).read_bytes()
    monkeypatch.setitem(sys.modules, "pyeclib.ec_iface", None)
    reedsolomon.code.cache_clear()
    with pytest.raises(ParityLibraryMissing):
        packs.repair(pack)
    assert packs.path(pack).read_bytes() == lost
    assert not issubclass(ParityLibraryMissing, Damaged), "otherwise it would count as damage of the pack"
