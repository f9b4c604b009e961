"""The clocks of several machines that share a catalog: each is watched by itself."""

import pytest
from staddle_server.tenancy.clock_guard import ClockGuard, ClockInDoubt
from upkeep_servers import SetClock, installation

DAY = 24 * 3600


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def catalog(request, tmp_path):
    for servers in installation(request.param, tmp_path):
        yield servers.catalog


@pytest.fixture
def machines(catalog):
    """The clocks of two machines, and their guards."""
    clocks = [SetClock(), SetClock()]
    return clocks, [ClockGuard(catalog, clock, name) for clock, name in zip(clocks, "ab", strict=True)]


def test_a_jump_of_one_machines_clock_puts_no_other_machine_in_doubt(machines):
    (clock, other_clock), (one, other) = machines
    for _ in range(3):
        assert one.look().jump_ns == other.look().jump_ns == 0
    clock.wall_s += 2 * DAY
    for _ in range(3):
        with pytest.raises(ClockInDoubt):
            one.require()
        assert other.look().jump_ns == 0
    one.confirm()
    assert one.look().jump_ns == other.look().jump_ns == 0
    other_clock.wall_s += 2 * DAY
    with pytest.raises(ClockInDoubt):
        other.require()


def test_machines_that_look_in_turn_write_no_more_often_than_one(catalog, machines):
    clocks, guards = machines
    for guard in guards:
        guard.look()
    noted = [catalog.clock.get(name) for name in "ab"]
    for _ in range(6):
        for clock, guard in zip(clocks, guards, strict=True):
            clock.wall_s += 5
            clock.steady_s += 5
            guard.look()
    assert [catalog.clock.get(name) for name in "ab"] == noted


@pytest.mark.parametrize(
    ("ahead_s", "trusted"), [(3600, True), (-3600, True), (7 * DAY, False), (-7 * DAY, False)]
)
def test_a_further_machine_whose_clock_is_an_hour_off_is_trusted_and_one_a_week_off_is_not(
    catalog, machines, ahead_s, trusted
):
    machines[1][0].look()
    assert (ClockGuard(catalog, SetClock(ahead_s), "further").look().jump_ns == 0) is trusted
