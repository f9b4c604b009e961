"""A replicated storage cluster: every part of it is killed once, and the store loses nothing that it acknowledged."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import postgres_server
import pytest
import seaweed
from seaweed_cluster import FilerDatabase, SeaweedCluster, running
from staddle_server.store.open import open_blobs

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.slow]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SeaweedCluster]:
    for name, value in seaweed.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    database = postgres_server.shared().new_database()
    place = str(postgres_server.shared().place)
    with running(tmp_path / "cluster", database=FilerDatabase(place, database, postgres_server.USER)) as made:
        yield made


def test_a_replicated_storage_cluster_loses_nothing_when_each_of_its_parts_is_killed_in_turn(
    cluster: SeaweedCluster, tmp_path: Path
) -> None:
    blobs = open_blobs(cluster.url("killed"), seaweed.ENVIRONMENT, str(tmp_path))
    kept: dict[str, bytes] = {}
    for number, part in enumerate(cluster.parts):
        part.kill()
        for name in (f"{number}a", f"{number}b"):
            data = random.Random(name).randbytes(300_000)
            blobs.put(name, data)
            kept[name] = data
        assert all(blobs.read(name, 0, len(data)) == data for name, data in kept.items()), part.name
        part.start()
        cluster.wait_ready()
    assert dict(blobs.list("")) == {name: len(data) for name, data in kept.items()}


def test_the_cluster_writes_every_object_twice_and_syncs_it(cluster: SeaweedCluster, tmp_path: Path) -> None:
    assert '"fsync":  true' in cluster.shell("fs.configure")
    data = random.Random(7).randbytes(300_000)
    open_blobs(cluster.url("twice"), seaweed.ENVIRONMENT, str(tmp_path)).put("object", data)
    holding = [
        part.name
        for part in cluster.volumes
        if any(data[1000:2000] in path.read_bytes() for path in part.place.glob("*.dat"))
    ]
    assert len(holding) == 2
