"""Background tasks of several servers that share a catalog: each runs on one server at a time."""

import logging
import threading

import pytest
from harm import kept, objects
from staddle_server.base.errors import Conflict, Unavailable
from staddle_server.upkeep.held_lease import LEASE_S, HeldLease, leased
from staddle_server.upkeep.integrity.watch import COMPARE_EVERY_S, Integrity
from staddle_server.upkeep.schedule import Schedule, Task
from thin import back_up
from upkeep_servers import SetClock, counting, installation

on_postgresql = pytest.mark.parametrize("servers", ["postgresql"], indirect=True)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def servers(request, tmp_path):
    yield from installation(request.param, tmp_path)


@pytest.mark.parametrize("servers", ["sqlite", "postgresql"], indirect=True)
def test_of_servers_that_look_at_once_one_runs_the_due_task(servers):
    ran = []
    task = counting(ran, "gc")
    schedules = [servers.add(task(name)) for name in "abc"]
    together = threading.Barrier(3)

    def look(schedule):
        together.wait()
        schedule.look()

    for turn in range(1, 6):
        threads = [threading.Thread(target=look, args=(schedule,)) for schedule in schedules]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(ran) == turn
        servers.pass_s(60)


@on_postgresql
def test_a_server_whose_clock_is_an_hour_ahead_or_behind_runs_nothing_early_and_delays_nothing(servers):
    ran = []
    task = counting(ran, "gc", every_s=1800)
    right = servers.add(task("right"))
    others = [servers.add(task("ahead"), ahead_s=3600), servers.add(task("behind"), ahead_s=-3600)]
    right.look()
    for _ in range(3):
        for other in others:
            other.look()
    assert ran == ["right"]
    servers.pass_s(1801)
    others[0].look()
    others[1].look()
    right.look()
    assert ran == ["right", "ahead"]
    servers.pass_s(1801)
    others[1].look()
    right.look()
    assert ran == ["right", "ahead", "behind"]


@on_postgresql
def test_the_lease_of_a_server_whose_clock_is_an_hour_behind_holds(servers):
    lease = servers.catalog.tasks.lease("parity")
    with leased(lease, SetClock(-3600)):
        for ahead_s in (-7200, 0, 3600):
            with pytest.raises(Conflict, match="is busy with parity: wait until it ends"):
                lease.acquire("another", SetClock(ahead_s).now_ns(), LEASE_S)


def test_a_task_whose_server_died_runs_on_another_one_after_its_lease(servers):
    ran = []
    task = counting(ran, "gc", every_s=30)
    schedule = servers.add(task("alive"))
    dies = servers.add(Task("gc", 30, lambda _: ran.append("dies") or (_ for _ in ()).throw(SystemExit)))
    with pytest.raises(SystemExit):
        dies.look()
    servers.pass_s(LEASE_S - 1)
    schedule.look()
    assert ran == ["dies"], "it may be alive, and its lease is not over"
    servers.pass_s(2)
    schedule.look()
    assert ran == ["dies", "alive"]
    assert servers.catalog.tasks.last("gc").outcome == "did it"


def test_a_server_that_stalled_loses_the_task_and_its_outcome_does_not_count(servers, caplog):
    ran, seen = [], []
    other = servers.add(counting(ran, "gc", every_s=30)("other"))

    def stalls(stopping):
        seen.append(stopping())
        servers.pass_s(LEASE_S + 1)
        other.look()
        seen.append(stopping())
        return "what it believes"

    stalled = servers.add(Task("gc", 30, stalls))
    with caplog.at_level(logging.WARNING):
        stalled.look()
    assert ran == ["other"]
    assert seen == [False, True]
    last = servers.catalog.tasks.last("gc")
    assert last.outcome == "did it"
    assert last.ended_ns == last.begun_ns or last.ended_ns - last.begun_ns < LEASE_S * 1e9
    assert "another server has taken it over" in caplog.text


def test_an_end_that_comes_late_does_not_free_the_lease_of_the_server_that_took_over(servers):
    tasks, clock = servers.catalog.tasks, SetClock()
    servers.clocks.append(clock)
    late = tasks.lease("gc").acquire("late", clock.now_ns(), LEASE_S)
    servers.pass_s(LEASE_S + 1)
    tasks.lease("gc").acquire("next", clock.now_ns(), LEASE_S)
    assert not tasks.end("gc", late, clock.now_ns(), "late")
    tasks.lease("gc").release(late)
    assert tasks.lease("gc").holder(clock.now_ns()) == "next"
    assert tasks.last("gc").outcome == ""


def test_a_lease_that_is_renewed_holds_and_one_that_is_not_counts_as_lost(servers):
    lease, clock = servers.catalog.tasks.lease("gc"), SetClock()
    servers.clocks.append(clock)
    with leased(lease, clock) as held:
        for _ in range(3):
            servers.pass_s(LEASE_S - 1)
            assert not held.lost
            held.renew()
        with pytest.raises(Conflict):
            lease.acquire("another", clock.now_ns(), LEASE_S)
        servers.pass_s(LEASE_S)
        assert held.lost, "before anyone has taken it"
    assert lease.holder(clock.now_ns()) == ""


def test_a_holder_learns_from_its_next_renewal_that_another_one_took_over(servers):
    lease = servers.catalog.tasks.lease("gc")
    # It does not notice that time passes: its machine was suspended.
    asleep, clock = SetClock(), SetClock()
    servers.clocks.append(clock)
    fence = lease.acquire("asleep", asleep.now_ns(), LEASE_S)
    held = HeldLease(lease, fence, asleep, asleep.monotonic_s())
    held.renew()
    assert not held.lost
    servers.pass_s(LEASE_S + 1)
    lease.acquire("another", clock.now_ns(), LEASE_S)
    held.renew()
    assert held.lost
    assert lease.holder(clock.now_ns()) == "another"


def test_a_catalog_that_does_not_answer_ends_a_lease_at_its_time(servers):
    catalog, clock = servers.new(), SetClock()
    lease = catalog.tasks.lease("gc")
    held = HeldLease(lease, lease.acquire("this", clock.now_ns(), LEASE_S), clock, clock.monotonic_s())
    catalog.database.give_up("the database is gone")
    for lost in (False, True):
        clock.steady_s += LEASE_S / 2
        held.renew()
        assert held.lost == lost


def test_what_a_command_does_by_hand_and_a_servers_task_exclude_each_other(servers):
    ran = []
    schedule = servers.add(counting(ran, "parity")("server"))
    lease, clock = servers.catalog.tasks.lease("parity"), SetClock()
    with leased(lease, clock):
        schedule.look()
        assert ran == []
    schedule.look()
    assert ran == ["server"]

    def by_hand(_):
        with pytest.raises(Conflict) as refused, leased(lease, clock):
            pass
        return f"{refused.value.reason}: {refused.value.message}"

    servers.pass_s(60)
    servers.add(Task("parity", 60, by_hand), ahead_s=60).look()
    assert servers.catalog.tasks.last("parity").outcome.startswith("LEASE_HELD: server ")


def test_a_task_of_every_server_runs_on_each_in_its_own_period(servers):
    ran = []
    schedules = [
        servers.add(Task("scrub", 60, lambda _, name=name: ran.append(name) or name, everywhere=True))
        for name in "ab"
    ]
    for schedule in (*schedules, *schedules):
        schedule.look()
    assert ran == ["a", "b"]
    servers.pass_s(60)
    for schedule in schedules:
        schedule.look()
    assert ran == ["a", "b"] * 2
    assert servers.catalog.tasks.last("scrub").outcome == "b"


def test_a_failure_of_the_catalog_stops_no_other_task(servers, monkeypatch, caplog):
    ran = []
    schedule = servers.add(counting(ran, "first")("a"), counting(ran, "second")("b"))
    tasks = schedule._catalog.tasks
    claim = tasks.claim

    def fails_once(name, *more):
        if name == "first":
            raise Unavailable("STORE_UNAVAILABLE", "the database is gone")
        return claim(name, *more)

    monkeypatch.setattr(tasks, "claim", fails_once)
    schedule.look()
    assert ran == ["b"]
    assert "first could not begin, or its end not be recorded: the database is gone" in caplog.text


def test_a_lost_record_is_an_alarm_on_every_server_and_one_compares_the_packs(running, caplog):
    back_up(running.stub(), "www", {"a": b"1"})
    watches = [Integrity(kept(running)) for _ in range(2)]
    schedules = [Schedule(watch.tasks(), running.catalog, running.clock) for watch in watches]
    objects(running, "records")[-1].unlink()
    running.clock.ahead_s += COMPARE_EVERY_S
    for schedule in schedules:
        schedule.look()
    for watch in watches:
        watch.look()
    assert [watch.is_whole for watch in watches] == [False, False]
    assert running.catalog.tasks.last("packs").ended_ns is not None
    assert sum("is missing" in record.message for record in caplog.records) == 2
