"""The scheduled tasks of a server: when they are due, and how they end."""

import logging

import pytest
from staddle_server.base.errors import Unavailable
from staddle_server.catalog import open_catalog
from staddle_server.upkeep.schedule import Schedule, Task


class SetClock:
    now = 1_700_000_000

    def now_ns(self) -> int:
        return self.now * 10**9

    def monotonic_s(self) -> float:
        return float(self.now)


@pytest.fixture
def catalog(tmp_path):
    made = open_catalog(str(tmp_path / "catalog.db"))
    yield made
    made.close()


def test_a_task_runs_when_due_despite_restarts_and_clock_jumps(catalog):
    clock, ran = SetClock(), []
    tasks = [Task("often", 60, lambda _: ran.append("often") or "did it"), Task("never", 0, ran.append)]
    Schedule(tasks, catalog, clock).look()
    Schedule(tasks, catalog, clock).look()
    assert ran == ["often"]
    assert catalog.tasks.last("often")[1:] == (clock.now_ns(), clock.now_ns(), "did it")
    clock.now += 59
    Schedule(tasks, catalog, clock).look()
    assert ran == ["often"]
    clock.now += 1
    Schedule(tasks, catalog, clock).look()
    assert ran == ["often"] * 2
    clock.now -= 86_400
    Schedule(tasks, catalog, clock).look()
    assert ran == ["often"] * 3, "a clock that was set back delays nothing"


def test_a_small_setback_of_the_clock_does_not_delay_a_task_for_two_periods(catalog):
    clock, ran = SetClock(), []
    task = Task("weekly", 7 * 86_400, lambda _: ran.append("weekly") or "")
    Schedule([task], catalog, clock).look()
    clock.now -= 6 * 86_400
    Schedule([task], catalog, clock).look()
    Schedule([task], catalog, clock).look()
    assert ran == ["weekly"] * 2
    clock.now -= 60
    Schedule([task], catalog, clock).look()
    assert ran == ["weekly"] * 2, "a correction of the clock"


def test_a_task_that_the_start_covers_is_first_due_a_period_later(catalog):
    clock, ran = SetClock(), []
    schedule = Schedule(
        [Task("compare", 60, lambda _: ran.append(1) or "", first_after_s=60)], catalog, clock
    )
    clock.now += 59
    schedule.look()
    assert not ran
    clock.now += 1
    schedule.look()
    assert ran == [1]


def test_a_patient_task_lets_clients_go_first_for_a_limited_time(catalog):
    clock, ran, busy = SetClock(), [], [True]
    tasks = [
        Task("patient", 600, lambda _: ran.append("patient") or "", patience_s=150),
        Task("hasty", 600, lambda _: ran.append("hasty") or ""),
    ]
    schedule = Schedule(tasks, catalog, clock, busy=lambda: busy[0])
    schedule.look()
    clock.now += 149
    schedule.look()
    assert ran == ["hasty"]
    clock.now += 1
    schedule.look()
    assert ran == ["hasty", "patient"]
    clock.now += 600
    schedule.look()
    assert ran == ["hasty", "patient", "hasty"], "it waits again when it is due again"
    busy[0] = False
    schedule.look()
    assert ran == ["hasty", "patient", "hasty", "patient"]


def test_a_failed_task_is_reported_and_stops_no_other(catalog, caplog):
    ran = []

    def unavailable(_):
        raise Unavailable("STORE_UNAVAILABLE", "the disk does not answer")

    def faulty(_):
        raise KeyError("oops")

    tasks = [
        Task("first", 60, unavailable),
        Task("second", 60, faulty),
        Task("third", 60, lambda _: ran.append(1) or ""),
    ]
    with caplog.at_level(logging.ERROR):
        Schedule(tasks, catalog, SetClock()).look()
    assert ran == [1]
    assert catalog.tasks.last("first").outcome == "failed: the disk does not answer"
    assert catalog.tasks.last("second").outcome == "failed: a fault of the server (KeyError)"
    assert "the disk does not answer" in caplog.text


def test_a_running_task_learns_of_the_shutdown(catalog):
    seen = []
    schedule = Schedule([], catalog, SetClock())

    def work(stopping):
        seen.append(stopping())
        schedule.stop()
        seen.append(stopping())
        return ""

    schedule._tasks = [Task("long", 1, work), Task("next", 1, lambda _: seen.append("next") or "")]
    schedule.look()
    assert seen == [False, True]
