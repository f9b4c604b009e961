"""kill -9 at named steps and at random times: acknowledged backups survive, others are complete or absent.

The long form: make crash ARGS="--runs 1000 --seed 7".
"""

from __future__ import annotations

from pathlib import Path

import crash_run
import pytest
from crash_server import CrashServer, Plan, check_agreement, check_swept
from crash_work import LostError, Place, Worker
from staddle_server.app import bootstrap
from staddle_server.app.data_directory import DataDirectory


@pytest.mark.parametrize("runs", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_killed_server_loses_nothing_that_was_acknowledged(tmp_path: Path, runs: int) -> None:
    figures = crash_run.Figures()
    crash_run.crash(tmp_path, seed=7, runs=runs, figures=figures)
    assert sum(figures.kills.values()) >= runs
    assert figures.checks["acknowledged"] > 0
    assert figures.checks["restored"] > 0


@pytest.fixture
def server(tmp_path: Path):
    made = CrashServer(tmp_path)
    yield made
    made.kill()


@pytest.mark.parametrize("phase", ["before", "after"])
def test_a_server_dies_at_the_named_step(server: CrashServer, phase: str) -> None:
    assert not server.start(Plan("master-key.link", phase, 1))
    assert (server.data / "master.key").exists() == (phase == "after")
    assert server.start(Plan("catalog.tenants.create", phase, 2))
    check_swept(server.data)


def test_the_crash_harness_detects_losses(server: CrashServer) -> None:
    server.start()
    worker = Worker("set", 1, Place(server.data))
    worker.work(server.stub, 6)
    worker.check(server.stub)
    assert worker.kept
    with bootstrap.open_rooms(DataDirectory(server.data)) as opened:
        (tenant,) = opened.catalog.tenants.list_all()
        packs = list(opened.blobs.list(f"packs/{tenant.id.hex()}"))
        gone = opened.blobs.read(packs[0][0], 0, packs[0][1])
        opened.blobs.delete(packs[0][0])
    with pytest.raises(Exception, match="is missing"):
        check_agreement(server.data)
    with pytest.raises(LostError, match="does not come back"):
        worker.check(server.stub)
    with bootstrap.open_rooms(DataDirectory(server.data)) as opened:
        opened.blobs.put(packs[0][0], gone)
        records = list(opened.blobs.list(f"records/{tenant.id.hex()}"))
        opened.blobs.delete(records[-1][0])
    with pytest.raises(LostError, match=r"record"):
        check_agreement(server.data)
    worker.kept.append(worker.attempt(by_source=False, changes=False))
    with pytest.raises(LostError, match="should have"):
        worker.check(server.stub)
    (server.data / "store" / "tmp" / "left").touch()
    with pytest.raises(LostError, match="left behind"):
        check_swept(server.data)
