"""`make bench-cluster` measures servers on PostgreSQL and S3 beside what these give raw, and fails if a backup fails."""

from __future__ import annotations

import json
from pathlib import Path

import postgres_server
import pytest
import seaweed

from benchmarks import cluster

pytestmark = [pytest.mark.usefixtures("results"), pytest.mark.slow, pytest.mark.xdist_group("cluster")]
SMALL = ["--mib", "3", "--rounds", "1", "--count", "2"]


@pytest.fixture(autouse=True)
def _engines(monkeypatch: pytest.MonkeyPatch) -> None:
    postgres_server.need()
    seaweed.require()
    monkeypatch.setattr(cluster, "PACK_BYTES", 1 << 20)
    monkeypatch.setattr(cluster, "FILES", 50)
    monkeypatch.setattr(cluster, "SMALL_BACKUPS", 2)


def test_servers_are_measured_beside_the_raw_store_and_database(
    tmp_path: Path, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work").mkdir()
    assert cluster.main([*SMALL, "--work", str(tmp_path / "work")]) == 0
    (path,) = results.glob("cluster-*.json")
    record = json.loads(path.read_text())
    (found,) = record["rounds"]
    assert found["store"] > 0
    assert min(found["database"].values()) > 0
    assert min(*found["2"]["large"].values(), *found["2"]["small"].values()) > 0
    assert [each["way"] for each in record["ways"]] == list(cluster.WAYS)
    assert min(record["restores"]) > 0
    text = capsys.readouterr().out
    assert all(way in text for way in cluster.WAYS)
    assert not list((tmp_path / "work").iterdir()), "it leaves nothing behind"


def test_a_backup_that_fails_ends_the_run(
    tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_server(*_: object, **__: object) -> dict[str, str]:
        return {"STADDLE_CONFIG": "/dev/null", "STADDLE_SERVER": "127.0.0.1:1", "STADDLE_TOKEN": "x"}

    monkeypatch.setattr(cluster.Site, "environment", without_server)
    with pytest.raises(SystemExit, match="Nothing was measured"):
        cluster.main([*SMALL, "--work", str(tmp_path)])
    assert not results.exists()
