"""The scrubber reads everything once per period, at a limited rate, whatever happens meanwhile."""

import gc
import logging
import threading

import pytest
from harm import check, flip, kept, objects, pack_file
from sql import sql
from staddle.v1 import service_pb2 as sv
from staddle_server.app.service import Service
from staddle_server.app.settings import ServiceSettings
from staddle_server.base.types import StoredChunk
from staddle_server.tenancy.pack_check import Examiner
from staddle_server.upkeep.held_lease import holder_name
from staddle_server.upkeep.integrity.parity import make_parity
from staddle_server.upkeep.integrity.scrub import AGAIN_S, RUN_S, Scrubber
from thin import back_up, noise, restore

DAY_S = 24 * 3600.0
PERIOD_S = 30 * DAY_S


class Waits:
    """A clock that moves only when the scrubber waits."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0
        self.waited_s: list[float] = []

    def now_ns(self) -> int:
        return int(self.now_s * 1e9)

    def monotonic_s(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> None:
        self.waited_s.append(seconds)
        self.now_s += seconds


def scrubber(running, clock, rate=1 << 26, busy=lambda: False, period_s=PERIOD_S):
    parts = kept(running)
    parts = type(parts)(parts.catalog, parts.blobs, parts.keys, parts.tenants, clock)
    return Scrubber(parts, period_s=period_s, bytes_per_s=rate, busy=busy, wait=clock.wait)


def live(running):
    return running.catalog.verification.live_packs(running.tenant)


def counted_for_chunks(running):
    return sum(pack.chunk_count for pack in live(running)) * 4096


def verified(running):
    return {pack.id: pack.verified_ns for pack in running.catalog.verification.live_packs(running.tenant)}


def never():
    return False


@pytest.fixture
def packs(running):
    """Eight packs of 300 kB."""
    for n in range(8):
        back_up(running.stub(), "www", {f"f{n}": noise(300_000, n)})
    return running


def test_everything_is_read_once_in_a_period_and_not_again(packs):
    clock = Waits()
    scrub = scrubber(packs, clock)
    assert scrub.run(never).startswith("8 packs read")
    assert all(1_800_000_000 * 10**9 < at <= clock.now_ns() for at in verified(packs).values())
    assert scrub.run(never) == ""
    clock.now_s += PERIOD_S - 1
    assert scrub.run(never) == ""
    clock.now_s += 2
    assert scrub.run(never).startswith("8 packs read")


def test_a_scrub_run_keeps_no_chunks_of_the_packs_that_it_read(packs, monkeypatch):
    seen = []
    read = Examiner.read

    def noted(self, *arguments):
        gc.collect()
        seen.append(sum(type(each) is StoredChunk for each in gc.get_objects()))
        return read(self, *arguments)

    monkeypatch.setattr(Examiner, "read", noted)
    assert scrubber(packs, Waits()).run(never).startswith("8 packs read")
    assert len(seen) == 8
    assert max(seen) == min(seen)


def test_the_scrubber_stays_within_its_rate(packs):
    clock = Waits()
    begun_s = clock.now_s
    scrubber(packs, clock, rate=100_000).run(never)
    size = sum(path.stat().st_size for path in objects(packs)) + counted_for_chunks(packs)
    assert size / 100_000 - 2 <= clock.now_s - begun_s <= size / 100_000
    assert max(clock.waited_s) <= 0.5, "it often checks for the shutdown"


def test_the_scrubber_slows_down_while_clients_are_at_work(packs):
    size = sum(pack.size_bytes for pack in live(packs)) + counted_for_chunks(packs)
    clock = Waits()
    scrubber(packs, clock, rate=200_000, busy=lambda: True).run(never)
    assert sum(clock.waited_s) == pytest.approx(16 * size / 200_000, rel=0.2)


def test_the_scrubber_returns_to_its_full_rate_once_clients_are_gone(packs):
    clock = Waits()
    end_s = clock.now_s + 30
    scrubber(packs, clock, rate=200_000, busy=lambda: clock.now_s < end_s).run(never)
    size = sum(pack.size_bytes for pack in live(packs)) + counted_for_chunks(packs)
    assert sum(clock.waited_s) == pytest.approx(30 + (size - 30 * 200_000 / 16) / 200_000, rel=0.1)


def test_a_server_counts_as_busy_during_calls_and_a_little_longer(running):
    assert not running.service._gate.is_busy()
    running.stub().ListDatasets(sv.ListDatasetsRequest())
    assert running.service._gate.is_busy()
    running.clock.ahead_s += 10
    assert not running.service._gate.is_busy()


def test_a_scrub_run_ends_after_a_while_and_the_next_starts_with_the_longest_unread_packs(packs):
    clock = Waits()
    size = objects(packs)[0].stat().st_size
    scrub = scrubber(packs, clock, rate=size / (RUN_S / 2.5))
    assert "bytes due" in scrub.run(never)
    first = {pack for pack, at in verified(packs).items() if at}
    assert 2 <= len(first) <= 4
    again = scrubber(packs, clock, rate=size / (RUN_S / 2.5))
    again.run(never)
    second = {pack for pack, at in verified(packs).items() if at}
    assert len(first) < len(second) <= 8, "a new server resumes where the old one ended"
    while again.run(never):
        pass
    assert all(verified(packs).values())


def test_the_scrubber_stops_soon_at_shutdown_and_a_partly_read_pack_does_not_count(packs):
    clock = Waits()
    asked = []

    def stopping():
        asked.append(1)
        return len(asked) > 4

    scrubber(packs, clock, rate=1000).run(stopping)
    assert len(clock.waited_s) <= 4
    assert not any(verified(packs).values())


def test_damage_is_marked_and_logged_once_a_day_and_the_scrubber_continues(packs, caplog):
    clock = Waits()
    path = objects(packs)[3]
    flip(path, 1000)
    scrub = scrubber(packs, clock)
    with caplog.at_level(logging.ERROR):
        assert "1 finding of damage: run `staddle-server check`" in scrub.run(never)
    (record,) = [each for each in caplog.records if each.message.startswith("damage found")]
    assert record.fields["pack"] == path.name
    assert (record.fields["tenant"], record.fields["kind"], record.fields["segment"]) == (
        "default",
        "segment",
        48,
    )
    assert [pack.hex() for pack, at in verified(packs).items() if not at] == [path.name]
    found, _ = check(packs)
    assert path.name in {each.pack for each in found}
    assert scrub.run(never) == "", "it is not read again immediately"
    clock.now_s += AGAIN_S + 1
    assert scrub.run(never).startswith("1 pack read")
    flip(path, 1000)
    clock.now_s += AGAIN_S + 1
    scrub.run(never)
    assert all(verified(packs).values()), "a pack that is sound again is verified"
    assert check(packs)[0] == []


def test_a_pack_condemned_while_it_is_read_is_not_damage(packs):
    clock = Waits()
    first = packs.catalog.verification.due(clock.now_ns(), 1)[0]
    gone = pack_file(packs, first.id)

    asked = []

    def condemn():
        asked.append(1)
        if len(asked) == 2:  # its first segment was read just now
            gone.unlink()
            with packs.catalog.database.write() as connection:
                sql(connection, "UPDATE packs SET state = 3 WHERE id = ?", (bytes.fromhex(gone.name),))
        return False

    outcome = scrubber(packs, clock, rate=1_000_000).run(condemn)
    assert outcome.startswith("7 packs read")
    assert "damage" not in outcome
    with packs.catalog.database.read() as connection:
        assert sql(connection, "SELECT count(*) FROM pack_damage").scalar() == 0


def test_a_tenant_with_damaged_keys_does_not_stop_the_scrub_of_others(packs, caplog):
    other = packs.make_tenant("other")
    back_up(packs.stub(tenant=other), "www", {"a": b"1"})
    flip(objects(packs, f"keys/{other.hex()}")[0], -1)
    assert scrubber(packs, Waits()).run(never).startswith("8 packs read")
    assert "was not scrubbed" in caplog.text
    assert all(verified(packs).values())


def test_a_server_scrubs_while_it_serves_calls(packs):
    service = Service(
        packs.catalog,
        packs.blobs,
        packs.keys,
        ServiceSettings(streams_max=8, lease_s=300, upload_life_s=3600, scrub_period_s=DAY_S),
    )
    service._schedule.look()
    service.drain(0)
    assert all(verified(packs).values())
    assert packs.catalog.tasks.last("scrub").outcome.startswith("8 packs read")
    assert restore(packs.stub(), "www").files == {"f7": noise(300_000, 7)}


def test_a_damaged_pack_with_parity_is_repaired_immediately_and_logged(packs, caplog):
    tenant = kept(packs).tenants.get(packs.tenant)
    path = objects(packs)[0]
    pack, sound = bytes.fromhex(path.name), path.read_bytes()
    make_parity(tenant, packs.catalog, pack, 10)
    flip(path, 1000)
    clock = Waits()
    with caplog.at_level(logging.INFO):
        scrubber(packs, clock).run(never)
    assert path.read_bytes() == sound
    assert "damage found" in caplog.text
    assert f"pack {pack.hex()} was repaired with its parity" in caplog.text
    assert packs.catalog.packs.damaged(packs.tenant) == []
    assert verified(packs)[pack] >= 1_800_000_000 * 10**9, "it need not be read again soon"


# --- several servers


def reads(monkeypatch):
    """The packs that are read from now on."""
    seen = []
    read = Examiner.read

    def noted(self, pack):
        seen.append(pack.id)
        return read(self, pack)

    monkeypatch.setattr(Examiner, "read", noted)
    return seen


def test_scrubbers_of_two_servers_divide_the_packs_and_read_none_twice(packs, monkeypatch):
    seen, clock = reads(monkeypatch), Waits()
    found = []

    def the_other_one(seconds):
        clock.now_s += seconds
        if not found:  # the first one is in the middle of a pack, and has listed the next ones
            found.append("")
            found[0] = other.run(never)

    other = scrubber(packs, clock)
    first = scrubber(packs, clock, rate=1_000_000)
    first._wait = the_other_one
    assert first.run(never).startswith("1 pack read")
    assert found[0].startswith("7 packs read")
    assert sorted(seen) == sorted(verified(packs))


def test_scrubbers_at_the_same_time_read_every_pack_once(packs, monkeypatch):
    seen, together = reads(monkeypatch), threading.Barrier(3)
    several = [scrubber(packs, Waits()) for _ in range(3)]

    def run(scrub):
        together.wait()
        scrub.run(never)

    threads = [threading.Thread(target=run, args=(scrub,)) for scrub in several]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == sorted(verified(packs))
    assert all(verified(packs).values())


def test_what_a_server_that_died_was_reading_is_read_a_day_later_by_another(packs, monkeypatch):
    clock = Waits()
    dying = scrubber(packs, clock)
    with monkeypatch.context() as death:
        death.setattr(Examiner, "read", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            dying.run(never)
    other = scrubber(packs, clock)
    assert other.run(never).startswith("7 packs read")
    clock.now_s += AGAIN_S - 60
    assert other.run(never) == ""
    clock.now_s += 61
    assert other.run(never).startswith("1 pack read")


def test_a_pack_that_a_stopping_server_left_is_read_by_another_at_once(packs):
    clock, asked = Waits(), []
    scrubber(packs, clock, rate=1000).run(lambda: asked.append(1) or len(asked) > 3)
    assert scrubber(packs, clock).run(never).startswith("8 packs read")


def test_the_server_that_started_last_decides_the_period_and_the_others_say_so(packs, caplog):
    clock = Waits()
    older = scrubber(packs, clock)
    older.run(never)
    newer = scrubber(packs, clock, period_s=DAY_S)
    clock.now_s += DAY_S + 1
    with caplog.at_level(logging.WARNING):
        assert older.run(never).startswith("8 packs read")
        assert older.run(never) == ""
    (said,) = [record.message for record in caplog.records if "scrub_period_s" in record.message]
    assert f"scrub_period_s is 86400 for all servers, as set by {holder_name()}" in said
    assert "this server was started with 2592000" in said
    scrubber(packs, clock, period_s=0)
    clock.now_s += DAY_S + 1
    assert newer.run(never) == "", "the last one switched it off"
