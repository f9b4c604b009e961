"""Concurrent clients and collectors lose nothing.

STADDLE_TEST_RACE_ROUNDS=N makes each of three writers do N backups (the default is small), STADDLE_TEST_RACE_SEED
varies the run; pytest's -s prints the figures.
"""

import os

import pytest
from extent import extent
from garbage_left import Garbage
from gc_race import Race
from postgres_server import on_both_databases_in_test_all

ROUNDS = int(os.environ.get("STADDLE_TEST_RACE_ROUNDS", extent("8", "15")))
RUNS_MAX = 10
"""A small run may meet too few collections to show everything."""
SEED = int(os.environ.get("STADDLE_TEST_RACE_SEED", "2026"))


@on_both_databases_in_test_all
@pytest.mark.timeout(300 + 2 * ROUNDS)
def test_many_writers_readers_deleters_and_collectors_lose_nothing(running):
    race = Race(Garbage(running), SEED, ROUNDS)
    proven = ("restored", "deleted", "collections", "backups_purged", "packs_condemned", "packs_reaped")
    for _ in range(RUNS_MAX):
        race.run()
        if all(race.counts[what] for what in proven):
            break
    print("\n" + ", ".join(f"{name}: {count}" for name, count in sorted(race.counts.items())))
    for what in proven:
        assert race.counts[what] > 0, f"no {what}: so nothing was proven"
