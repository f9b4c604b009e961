"""When the parity of packs is made, renewed, and removed."""

import pytest
from parity_packs import FILES, Packs, damage
from sql import sql
from staddle_server.catalog import FOOTER, WHOLE_PACK
from staddle_server.store.blobs import BlobMissing
from staddle_server.store.pack import PackDamaged
from staddle_server.store.parity import Parity
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.integrity.parity import (
    Outcome,
    ParityReport,
    make_all,
    make_parity,
    parity_task,
    remove_orphans,
)
from thin import Source, back_up, noise, restore, wait_until


@pytest.fixture
def packs(running):
    return Packs(running)


GO_ON = bool


# --- making it


def test_parity_is_made_for_packs_begun_since_it_was_enabled_even_after_restarts(running, packs):
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


def test_a_server_makes_parity_and_repairs_with_it(running, monkeypatch):
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
        damage(packs.path(pack), 100)
    assert restore(stub, "www").damages
    assert {packs.repair(pack).outcome for pack in packs.all()} == {Outcome.REPAIRED}
    assert restore(stub, "www").files == FILES


def test_a_stopped_or_killed_run_of_parity_resumes_where_it_was(running, packs):
    stub = running.stub()
    for number in range(3):
        back_up(stub, f"set{number}", {"x": noise(5000, number)})
    count = len(packs.all())
    stops = iter([False, True])
    report = make_all(packs.tenants, packs.catalog, 10, stopping=lambda: next(stops))
    assert (report.packs, report.finished) == (1, False)
    # Killed after the parity became durable, before the catalog recorded it.
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


def test_when_parity_cannot_be_made_all_damage_of_the_pack_is_marked(running, packs):
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


def test_a_damaged_pack_is_marked_without_parity_and_the_others_get_theirs(running, packs):
    stub = running.stub()
    for number in range(5):
        back_up(stub, f"set{number}", {"x": noise(5000, number)})
    segment, footer, gone, header, *rest = packs.all()
    damage(packs.path(segment), 100)
    damage(packs.path(header), 20)
    damage(packs.path(footer), packs.path(footer).stat().st_size - 60)
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
    # Damage of a header or a footer alone damages no chunk.
    assert packs.damaged_at(header) == {1, FOOTER}
    source = Source(stub, "more")
    lost = [number for number in range(5) if source.missing([noise(5000, number)])]
    assert len(lost) == 2, "the chunks of the damaged segment and of the pack that is gone"
    assert FOOTER in packs.damaged_at(footer)
    begins = max(packs.damaged_at(footer))
    assert packs.path(footer).stat().st_size - 200 < begins < packs.path(footer).stat().st_size
    assert packs.damaged_at(segment) == {48}
    assert packs.damaged_at(gone) == {WHOLE_PACK}
    with pytest.raises(PackDamaged):
        make_parity(packs.tenant, packs.catalog, segment, 10)
    with pytest.raises(BlobMissing):
        make_parity(packs.tenant, packs.catalog, gone, 10)


def test_a_tenant_with_damaged_keys_does_not_stop_parity_for_others(running, packs):
    other = running.make_tenant("other")
    back_up(running.stub(tenant=other), "www", {"a": b"1"})
    back_up(running.stub(), "www", {"a": b"1"})
    (had,) = [each for each in packs.catalog.packs.without_parity(0, 1) if each.tenant == other]
    make_parity(packs.tenants.get(other), packs.catalog, had.pack, 10)
    back_up(running.stub(tenant=other), "www", {"a": b"2"})
    packs.tenants = Tenants(running.blobs, packs.catalog, running.keys)
    (key,) = (running.root / "store" / "keys" / other.hex()).iterdir()
    damage(key, 50)
    report = packs.make()
    assert {tenant for tenant, _, _ in report.damaged} == {other}
    assert packs.catalog.packs.damaged(other) == []
    parities = packs.catalog.packs.with_parity(0, 100)
    assert {each.pack for each in parities if each.tenant == other} == {had.pack}
    assert {each.tenant for each in parities} == {running.tenant, other}
    assert packs.forget_lost(read=True) == 0


def test_missing_or_truncated_parity_is_noticed_and_made_again(running, packs):
    back_up(running.stub(), "www", FILES)
    back_up(running.stub(), "other", {"x": b"x"})
    packs.make()
    gone, cut, *_ = packs.all()
    packs.parity_path(gone).unlink()
    packs.parity_path(cut).write_bytes(b"")
    assert packs.forget_lost() == 2
    assert packs.make().packs == 2
    assert packs.forget_lost() == 0


def test_undetected_damage_of_a_pack_or_its_parity_is_found_by_reading_both(running, packs):
    stub = running.stub()
    for number in range(5):
        back_up(stub, f"set{number}", {"x": noise(50_000, number)})
    packs.make()
    assert packs.forget_lost(read=True) == 0
    head, parity, check, pack, *rest = packs.all()
    damage(packs.parity_path(head), 20)
    damage(packs.parity_path(parity), 5000)
    damage(packs.parity_path(check), packs.parity_path(check).stat().st_size - 120)
    damage(packs.path(pack), 5000)
    damage(packs.parity_path(rest[0]), packs.parity_path(rest[0]).stat().st_size - 10)
    assert packs.forget_lost() == 0
    assert packs.forget_lost(read=True) == 5
    report = packs.make()
    assert report.packs == 4
    assert [each[1] for each in report.damaged] == [pack]
    assert packs.repair(pack).outcome is Outcome.REPAIRED
    assert packs.make().packs == 1
    assert packs.forget_lost(read=True) == 0
    assert packs.having_parity() == packs.all()


def test_a_task_with_much_work_leaves_the_others_their_turn(running, packs):
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
    assert said.endswith("; more are left")
    while len(packs.having_parity()) < count:
        assert task.run(slow).startswith("parity was made for 1 pack, ")
    assert task.run(lambda: True) == ""


def test_only_the_parity_of_removed_packs_is_removed(running, packs):
    stub = running.stub()
    for number in range(3):
        back_up(stub, f"set{number}", {"x": noise(5000, number)})
    packs.make()
    orphan, unknown, *rest = packs.all()
    stray = packs.parity_path(rest[0]).with_name("stray")
    stray.write_bytes(b"somebody else's")
    with packs.catalog.database.write() as connection:
        for pack in (orphan, unknown):
            sql(connection, "DELETE FROM claims WHERE pack = (SELECT row FROM packs WHERE id = ?)", (pack,))
            sql(connection, "DELETE FROM packs WHERE id = ?", (pack,))
    packs.path(orphan).unlink()
    packs.path(rest[0]).unlink()
    assert remove_orphans(running.blobs, packs.catalog, running.tenant) == 1
    assert not packs.parity_path(orphan).exists()
    assert packs.parity_path(unknown).exists(), "a pack unknown to an older catalog stays"
    assert packs.parity_path(rest[0]).exists(), "a lost pack has yet to be repaired"
    assert stray.exists()
