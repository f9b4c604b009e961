"""Parity beside a server: when it is made, and how damaged packs are made whole with it."""

import errno
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from blake3 import blake3
from staddle.v1 import service_pb2 as sv
from staddle_server.base.errors import Damaged, Unavailable
from staddle_server.catalog import FOOTER, WHOLE_PACK
from staddle_server.store import reedsolomon
from staddle_server.store.backends.directory import DirectoryBlobs
from staddle_server.store.blobs import BlobMissing
from staddle_server.store.files import Files
from staddle_server.store.pack import PackDamaged, pack_name
from staddle_server.store.parity import PackRange, Parity, parity_name, remove_parity
from staddle_server.store.reedsolomon import ParityLibraryMissing
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.integrity.parity import (
    Outcome,
    ParityReport,
    forget_lost,
    make_all,
    make_parity,
    parity_task,
    remove_orphans,
    repair_pack,
)
from thin import Source, back_up, noise, restore, wait_until

NOW_NS = 1_900_000_000 * 10**9
GO_ON = bool


@dataclass
class Packs:
    """The packs of a running service, in the order in which they were begun."""

    running: object

    def __post_init__(self):
        self.catalog = self.running.catalog
        self.tenants = Tenants(self.running.blobs, self.catalog, self.running.keys)
        self.tenant = self.tenants.get(self.running.tenant)

    def all(self):
        rows = self.catalog.packs.without_parity(0, 1000) + self.catalog.packs.with_parity(0, 1000)
        return [each.pack for each in sorted(rows)]

    def having_parity(self):
        return [each.pack for each in self.catalog.packs.with_parity(0, 1000)]

    def path(self, pack, name=pack_name):
        return self.running.root / "store" / name(self.running.tenant, pack)

    def parity_path(self, pack):
        return self.path(pack, parity_name)

    def make(self, percent=10):
        return make_all(self.tenants, self.catalog, percent)

    def forget_lost(self, **how):
        return forget_lost(self.tenants, self.catalog, self.running.blobs, **how)

    def repair(self, pack):
        return repair_pack(self.tenant, self.catalog, pack, NOW_NS)

    def verified_ns(self, pack):
        query = "SELECT verified_ns FROM packs WHERE id = ?"
        with self.catalog.database.read() as connection:
            return connection.exec_driver_sql(query, (pack,)).scalar_one()

    def damaged_at(self, pack):
        query = "SELECT segment_offset FROM pack_damage d JOIN packs p ON d.pack = p.row WHERE p.id = ?"
        with self.catalog.database.read() as connection:
            return set(connection.exec_driver_sql(query, (pack,)).scalars())

    def set_state(self, pack, state):
        with self.catalog.database.write() as connection:
            connection.exec_driver_sql("UPDATE packs SET state = ? WHERE id = ?", (state, pack))


@pytest.fixture
def packs(running):
    return Packs(running)


def hurt(path: Path, at: int, length: int = 1):
    data = bytearray(path.read_bytes())
    data[at : at + length] = bytes(byte ^ 0xFF for byte in data[at : at + length])
    path.write_bytes(data)


FILES = {"a": noise(3_000_000, 1), "b": noise(200, 2)}


def test_all_packs_that_have_none_get_parity_once(running, packs):
    stub = running.stub()
    back_up(stub, "www", FILES)
    back_up(running.stub(tenant=running.make_tenant("other")), "www", FILES)
    before = packs.all()
    told = []
    report = make_all(
        packs.tenants, packs.catalog, 10, tick=lambda pack, made: told.append((pack.pack, made))
    )
    assert [pack for pack, _ in told] == before
    assert packs.having_parity() == before
    assert report == ParityReport(
        len(before), packs.catalog.packs.parity_totals().pack_bytes, sum(made for _, made in told)
    )
    assert 0.1 < report.parity_bytes / report.pack_bytes < 0.115
    assert packs.make() == ParityReport()


def test_a_damaged_pack_is_repaired_in_place_and_all_restores_again(running, packs):
    stub = running.stub()
    back_up(stub, "www", FILES)
    packs.make()
    pack = max(packs.all(), key=lambda each: packs.path(each).stat().st_size)
    whole = packs.path(pack).read_bytes()
    hurt(packs.path(pack), 1_000_000, 200_000)
    assert [each.path for each in restore(stub, "www").damages] == ["a"]
    source = Source(stub, "www")
    digests = [blake3(chunk).digest() for chunk in source.cut(FILES["a"])]
    ask = sv.FindMissingChunksRequest(**source.id, digests=digests)
    assert stub.FindMissingChunks(ask).missing
    hurt(packs.path(pack), 0)
    hurt(packs.path(pack), len(whole) - 40, 40)

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


def test_a_small_pack_whose_object_is_gone_comes_back(running, packs):
    stub = running.stub()
    back_up(stub, "www", {"b": FILES["b"]})
    packs.make()
    for pack in packs.all():
        packs.path(pack).unlink()
        report = packs.repair(pack)
        assert (report.outcome, report.found_bytes) == (Outcome.REPAIRED, None)
        assert "is missing" in report.found
    assert restore(stub, "www").files == {"b": FILES["b"]}


def test_a_pack_that_is_sound_loses_its_mark_and_is_not_touched(running, packs):
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


def test_what_cannot_be_repaired_stays_as_it_is_and_the_report_says_why(running, packs):
    back_up(running.stub(), "www", FILES)
    pack = max(packs.all(), key=lambda each: packs.path(each).stat().st_size)
    packs.catalog.packs.mark_damaged(running.tenant, pack, 48)
    size = packs.path(pack).stat().st_size

    hurt(packs.path(pack), 1000, size // 3)
    lost = packs.path(pack).read_bytes()
    report = packs.repair(pack)
    assert report.outcome is Outcome.NO_PARITY
    assert f"pack {pack.hex()} is damaged at" in report.found
    hurt(packs.path(pack), 1000, size // 3)

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


def test_repairs_of_one_pack_at_the_same_time_beside_its_readers_leave_it_whole(running, packs):
    stub = running.stub()
    back_up(stub, "www", FILES)
    packs.make()
    pack = max(packs.all(), key=lambda each: packs.path(each).stat().st_size)
    whole = packs.path(pack).read_bytes()
    hurt(packs.path(pack), 500_000, 100_000)
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


# --- making it


def test_parity_is_made_of_what_is_begun_from_when_it_was_switched_on_also_over_restarts(running, packs):
    stub = running.stub()
    task = lambda percent: parity_task(packs.tenants, packs.catalog, running.clock, percent)  # noqa: E731

    def backed_up(name):
        before = set(packs.all())
        back_up(stub, name, {"x": name.encode()})
        running.clock.ahead_s += 1
        return set(packs.all()) - before

    assert task(0).every_s == 0
    backed_up("older")
    on = task(10)
    assert on.every_s > 0
    wanted = backed_up("first")
    assert on.run(GO_ON).startswith(f"parity was made for {len(wanted)} pack")
    assert set(packs.having_parity()) == wanted
    assert on.run(GO_ON) == ""

    wanted |= backed_up("before a restart")
    task(20).run(GO_ON)
    assert set(packs.having_parity()) == wanted

    task(0)
    backed_up("while it is off")
    again = task(10)
    wanted |= backed_up("when it is on again")
    again.run(GO_ON)
    assert set(packs.having_parity()) == wanted


def test_a_server_makes_parity_by_itself_and_repairs_with_it(running, monkeypatch):
    monkeypatch.setattr("staddle_server.upkeep.schedule.LOOK_S", 0.02)
    monkeypatch.setattr("staddle_server.upkeep.integrity.parity.EVERY_S", 0.02)
    monkeypatch.setattr("staddle_server.upkeep.integrity.copies.EVERY_S", 0.02)
    running.stop()
    running.parity_percent = 10
    running.start()
    stub = running.stub()
    back_up(stub, "www", FILES)
    packs = Packs(running)
    wait_until(lambda: packs.having_parity() == packs.all())
    small = {name for prefix in ("keys", "records") for name, _ in running.blobs.list(prefix)}
    wait_until(
        lambda: {name for name, _ in running.blobs.list("copies")} == {f"copies/{name}" for name in small}
    )
    for pack in packs.all():
        hurt(packs.path(pack), 100)
    assert restore(stub, "www").damages
    assert {packs.repair(pack).outcome for pack in packs.all()} == {Outcome.REPAIRED}
    assert restore(stub, "www").files == FILES


def test_a_run_that_is_stopped_or_killed_goes_on_where_it_was(running, packs):
    stub = running.stub()
    for number in range(3):
        back_up(stub, f"set{number}", {"x": noise(5000, number)})
    count = len(packs.all())
    stops = iter([False, True])
    report = make_all(packs.tenants, packs.catalog, 10, stopping=lambda: next(stops))
    assert (report.packs, report.finished) == (1, False)
    # Killed between the parity's being durable and the catalog's knowing of it.
    second = packs.all()[1]
    Parity(running.blobs, packs.tenant.keys).make(second, 50)
    assert packs.make().packs == count - 1
    assert packs.having_parity() == packs.all()
    assert len(list(running.blobs.list("parity"))) == count
    assert packs.forget_lost() == 0


def test_a_pack_that_is_condemned_meanwhile_keeps_no_parity(running, packs, monkeypatch):
    back_up(running.stub(), "www", FILES)
    pack = packs.all()[0]
    make = Parity.make

    def condemned(self, pack, percent):
        packs.set_state(pack, 3)
        return make(self, pack, percent)

    monkeypatch.setattr(Parity, "make", condemned)
    assert make_parity(packs.tenant, packs.catalog, pack, 10) == 0
    assert list(running.blobs.list("parity")) == []


def test_all_that_is_damaged_in_a_pack_is_marked_where_its_parity_cannot_be_made(running, packs):
    back_up(running.stub(), "www", {"a": FILES["a"]})
    (pack,) = packs.all()
    offsets = {chunk.place.segment.offset for chunk in packs.tenant.packs.footer(pack).chunks}
    path = packs.path(pack)
    path.write_bytes(bytes(path.stat().st_size))
    assert packs.make().damaged
    assert packs.damaged_at(pack) - {1} == offsets | {FOOTER}
    source = Source(running.stub(), "more")
    chunks = source.cut(FILES["a"])
    assert source.missing(chunks) == chunks


def test_a_damaged_pack_gets_no_parity_is_marked_and_keeps_no_other_from_getting_it(running, packs):
    stub = running.stub()
    for number in range(5):
        back_up(stub, f"set{number}", {"x": noise(5000, number)})
    segment, footer, gone, header, *rest = packs.all()
    hurt(packs.path(segment), 100)
    hurt(packs.path(header), 20)
    hurt(packs.path(footer), packs.path(footer).stat().st_size - 60)
    packs.path(gone).unlink()
    report = packs.make()
    assert [each[:2] for each in report.damaged] == [
        (running.tenant, pack) for pack in (segment, footer, gone, header)
    ]
    assert "its seal does not open" in report.damaged[0][2]
    assert report.packs == len(rest)
    assert packs.having_parity() == rest
    assert packs.catalog.packs.damaged(running.tenant) == [segment, footer, gone, header]
    assert packs.make() == ParityReport()
    # Damage of a header or a footer alone hurts no chunk.
    assert packs.damaged_at(header) == {1, FOOTER}
    source = Source(stub, "more")
    lost = [number for number in range(5) if source.missing([noise(5000, number)])]
    assert len(lost) == 2, "those of the damaged segment and of the pack that is gone"
    assert FOOTER in packs.damaged_at(footer)
    begins = max(packs.damaged_at(footer))
    assert packs.path(footer).stat().st_size - 200 < begins < packs.path(footer).stat().st_size
    assert packs.damaged_at(segment) == {48}
    assert packs.damaged_at(gone) == {WHOLE_PACK}
    with pytest.raises(PackDamaged):
        make_parity(packs.tenant, packs.catalog, segment, 10)
    with pytest.raises(BlobMissing):
        make_parity(packs.tenant, packs.catalog, gone, 10)


def test_a_tenant_whose_keys_are_damaged_keeps_no_other_from_getting_parity(running, packs):
    other = running.make_tenant("other")
    back_up(running.stub(tenant=other), "www", {"a": b"1"})
    back_up(running.stub(), "www", {"a": b"1"})
    (had,) = [each for each in packs.catalog.packs.without_parity(0, 1) if each.tenant == other]
    make_parity(packs.tenants.get(other), packs.catalog, had.pack, 10)
    back_up(running.stub(tenant=other), "www", {"a": b"2"})
    packs.tenants = Tenants(running.blobs, packs.catalog, running.keys)
    (key,) = (running.root / "store" / "keys" / other.hex()).iterdir()
    hurt(key, 50)
    report = packs.make()
    assert {tenant for tenant, _, _ in report.damaged} == {other}
    assert packs.catalog.packs.damaged(other) == []
    parities = packs.catalog.packs.with_parity(0, 100)
    assert {each.pack for each in parities if each.tenant == other} == {had.pack}
    assert {each.tenant for each in parities} == {running.tenant, other}
    assert packs.forget_lost(read=True) == 0


def test_parity_that_is_gone_or_cut_off_is_noticed_and_made_again(running, packs):
    back_up(running.stub(), "www", FILES)
    back_up(running.stub(), "other", {"x": b"x"})
    packs.make()
    gone, cut, *_ = packs.all()
    packs.parity_path(gone).unlink()
    packs.parity_path(cut).write_bytes(b"")
    assert packs.forget_lost() == 2
    assert packs.make().packs == 2
    assert packs.forget_lost() == 0


def test_damage_of_a_pack_or_its_parity_that_nobody_met_is_found_by_reading_both(running, packs):
    stub = running.stub()
    for number in range(5):
        back_up(stub, f"set{number}", {"x": noise(50_000, number)})
    packs.make()
    assert packs.forget_lost(read=True) == 0
    head, parity, check, pack, *rest = packs.all()
    hurt(packs.parity_path(head), 20)
    hurt(packs.parity_path(parity), 5000)
    hurt(packs.parity_path(check), packs.parity_path(check).stat().st_size - 120)
    hurt(packs.path(pack), 5000)
    hurt(packs.parity_path(rest[0]), packs.parity_path(rest[0]).stat().st_size - 10)
    assert packs.forget_lost() == 0
    assert packs.forget_lost(read=True) == 5
    report = packs.make()
    assert report.packs == 4
    assert [each[1] for each in report.damaged] == [pack]
    assert packs.repair(pack).outcome is Outcome.REPAIRED
    assert packs.make().packs == 1
    assert packs.forget_lost(read=True) == 0
    assert packs.having_parity() == packs.all()


def test_sectors_that_the_disk_cannot_read_are_lost_like_others(running, packs):
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

    hurt(packs.path(pack), 2_000_000)
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


def test_a_task_that_has_much_to_do_leaves_the_others_their_turn(running, packs):
    stub = running.stub()
    task = parity_task(packs.tenants, packs.catalog, running.clock, 10)
    for number in range(3):
        back_up(stub, f"set{number}", {"x": noise(5000, number)})
    count = len(packs.all())

    def slow():
        running.clock.ahead_s += 40
        return False

    said = task.run(slow)
    assert said.startswith("parity was made for 1 pack, ")
    assert said.endswith("; there are more")
    while len(packs.having_parity()) < count:
        assert task.run(slow).startswith("parity was made for 1 pack, ")
    assert task.run(lambda: True) == ""


def test_parity_of_a_pack_that_is_gone_is_removed_and_no_other(running, packs):
    stub = running.stub()
    for number in range(3):
        back_up(stub, f"set{number}", {"x": noise(5000, number)})
    packs.make()
    orphan, unknown, *rest = packs.all()
    stray = packs.parity_path(rest[0]).with_name("stray")
    stray.write_bytes(b"somebody else's")
    with packs.catalog.database.write() as connection:
        for pack in (orphan, unknown):
            connection.exec_driver_sql(
                "DELETE FROM claims WHERE pack = (SELECT row FROM packs WHERE id = ?)", (pack,)
            )
            connection.exec_driver_sql("DELETE FROM packs WHERE id = ?", (pack,))
    packs.path(orphan).unlink()
    packs.path(rest[0]).unlink()
    assert remove_orphans(running.blobs, packs.catalog, running.tenant) == 1
    assert not packs.parity_path(orphan).exists()
    assert packs.parity_path(unknown).exists(), "a pack that an older catalog does not know is still there"
    assert packs.parity_path(rest[0]).exists(), "a pack that is lost is to be repaired"
    assert stray.exists()


# --- without the library


@pytest.fixture
def without_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyeclib.ec_iface", None)
    reedsolomon.code.cache_clear()
    yield
    reedsolomon.code.cache_clear()


def test_without_the_library_whatever_needs_it_says_what_to_install_and_all_else_works(
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


def test_an_old_library_that_cannot_do_it_is_as_good_as_none(running, packs, monkeypatch):
    import pyeclib.ec_iface as library

    def refuses(**_):
        raise library.ECInvalidParameter("at most 32 blocks")

    monkeypatch.setattr(library, "ECDriver", refuses)
    reedsolomon.code.cache_clear()
    with pytest.raises(ParityLibraryMissing, match=r"1.8 or newer"):
        parity_task(packs.tenants, packs.catalog, running.clock, 10)


def test_a_damaged_pack_that_only_the_library_could_repair_says_what_to_install(running, packs, monkeypatch):
    back_up(running.stub(), "www", FILES)
    packs.make()
    pack = packs.all()[0]
    hurt(packs.path(pack), 100)
    lost = packs.path(pack).read_bytes()
    monkeypatch.setitem(sys.modules, "pyeclib.ec_iface", None)
    reedsolomon.code.cache_clear()
    with pytest.raises(ParityLibraryMissing):
        packs.repair(pack)
    assert packs.path(pack).read_bytes() == lost
    assert not issubclass(ParityLibraryMissing, Damaged), "else it would count as damage of the pack"
