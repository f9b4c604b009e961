"""The forecast of a full disk alarms when a disk fills, and not for noise or few samples."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from staddle_server.upkeep.events.forecast import SAMPLES_MIN, SPAN_MIN_S, days_left

NS = 10**9
HOUR_NS = 3600 * NS
GIB = 2**30
START_NS = 1_700_000_000 * NS


def hourly(free: list[int]) -> list[tuple[int, int]]:
    return [(START_NS + hour * HOUR_NS, each) for hour, each in enumerate(free)]


@pytest.mark.parametrize("days", [3, 7, 13, 60])
def test_a_disk_that_fills_evenly_is_forecast_to_the_day(days: int) -> None:
    per_hour = 200 * GIB // (days * 24)
    samples = hourly([200 * GIB + (14 * 24 - hour) * per_hour for hour in range(14 * 24 + 1)])
    found = days_left(samples, 0)
    assert found is not None
    assert abs(found - days) < 0.1
    kept = days_left(samples, 100 * GIB)
    assert kept is not None
    assert abs(kept - days / 2) < 0.1


def test_collections_that_free_some_each_day_do_not_hide_that_a_disk_fills() -> None:
    """10 GiB arrive a day, and 6 of them go at night: 4 GiB a day of 40 are 10 days."""
    free = [
        (40 + 14 * 4 - (hour // 24) * 4 - (hour % 24) * 10 / 24) * GIB + 4 * GIB
        for hour in range(14 * 24 + 1)
    ]
    found = days_left(hourly([int(each) for each in free]), 0)
    assert found is not None
    assert 8 < found < 13


@given(
    st.lists(st.integers(min_value=0, max_value=10**13), max_size=SAMPLES_MIN - 1),
    st.integers(min_value=0, max_value=10**13),
)
def test_few_samples_never_alarm(free: list[int], kept_bytes: int) -> None:
    assert days_left(hourly(free), kept_bytes) is None


@given(
    st.lists(
        st.tuples(
            st.integers(min_value=0, max_value=int(SPAN_MIN_S) - 1),
            st.integers(min_value=0, max_value=10**13),
        ),
        max_size=200,
    )
)
def test_less_than_three_days_never_alarm(samples: list[tuple[int, int]]) -> None:
    assert days_left([(START_NS + at * NS, free) for at, free in sorted(samples)], 0) is None


@given(
    st.lists(st.integers(min_value=0, max_value=10**9), min_size=80, max_size=400),
    st.integers(min_value=0, max_value=10**11),
)
def test_a_disk_that_empties_or_stays_never_alarms(growth: list[int], first: int) -> None:
    free, total = [], first
    for each in growth:
        total += each
        free.append(total)
    assert days_left(hourly(free), 0) is None


@given(st.integers(min_value=0, max_value=2**32), st.integers(min_value=1, max_value=100))
def test_noise_around_one_level_does_not_alarm_within_two_weeks(seed: int, part: int) -> None:
    """A tenth of the free space comes and goes at random."""
    seeded = random.Random(seed)
    level = part * GIB
    free = [level + seeded.randint(-level // 10, level // 10) for _ in range(14 * 24)]
    found = days_left(hourly(free), 0)
    assert found is None or found > 17


def test_one_large_backup_does_not_alarm() -> None:
    free = [300 * GIB] * (10 * 24) + [100 * GIB] * (4 * 24 + 1)
    assert days_left(hourly(free), 0) is None


def test_a_disk_that_stopped_filling_does_not_alarm() -> None:
    filled = [(300 - hour) * GIB for hour in range(8 * 24)]
    assert days_left(hourly(filled), 0) is not None
    assert days_left(hourly([*filled, *[filled[-1]] * (6 * 24)]), 0) is None


def test_samples_of_a_clock_that_was_ahead_do_not_count() -> None:
    free = [(14 * 24 - hour) * GIB + GIB for hour in range(14 * 24)]
    ahead = [(START_NS + 10**6 * HOUR_NS, 10**15)]
    samples = sorted([*ahead, *hourly(free)])
    assert days_left(samples, 0) is None, "the last sample is the newest: all others are old"
