"""Claims and condemnation meet: nothing that a backup relies on is lost, with several servers' processes on one catalog."""

import ast
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import claim_race
import pytest
from extent import extent
from staddle_server.base import errors
from staddle_server.catalog import open_catalog

ROUNDS = int(os.environ.get("STADDLE_TEST_RACE_ROUNDS", extent("12", "120")))
SECOND = 1_000_000_000
SEED = os.environ.get("STADDLE_TEST_RACE_SEED", "2026")


def test_writers_and_collectors_of_several_processes_lose_nothing(ready_url):
    catalog = open_catalog(ready_url)
    catalog.tenants.create(claim_race.TENANT, "default", 1, record=b"made")
    command = [sys.executable, str(Path(claim_race.__file__)), ready_url]
    running = [
        subprocess.Popen(
            [*command, str(number), SEED, str(ROUNDS)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    counts: Counter[str] = Counter()
    for process in running:
        out, err = process.communicate()
        assert process.returncode == 0, err[-3000:]
        counts.update(ast.literal_eval(out))
    print("\n" + ", ".join(f"{name}: {count}" for name, count in sorted(counts.items())))
    claim_race.collect(catalog, "the last collector", counts)
    datasets = [each.name for each in catalog.datasets.list_page(claim_race.TENANT, "", 100)]
    backups = [backup for name in datasets for backup in claim_race.kept(catalog, name)]
    assert claim_race.lost(catalog, backups) == []
    assert len(datasets) == 4
    for what in ("claimed", "stored", "deleted", "collections", "condemned"):
        assert counts[what] > 0, f"no {what}: so nothing was proven"
    catalog.close()


def test_a_collector_whose_clock_is_behind_does_not_take_the_lease_from_another(world):
    world.catalog.gc_lease.acquire("ahead", world.now, 60)
    for behind_s in (1, 59):
        with pytest.raises(errors.Conflict) as refused:
            world.catalog.gc_lease.acquire("behind", world.now - behind_s * SECOND, 60)
        assert refused.value.reason == "LEASE_HELD"
    if world.url.startswith("sqlite"):  # elsewhere the database's clock decides
        assert world.catalog.gc_lease.acquire("set back", world.now - 3600 * SECOND, 60) == 2
