"""A collection that is killed between any two steps: the next one finishes its work, and nothing is lost.

With STADDLE_TEST_LONG=1 at every step, else at every sixth, and in `make test` at every eighteenth.
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from extent import extent
from garbage_left import Garbage, contents
from postgres_server import only_in_a_file
from servers import MovedClock
from sql import sql
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.catalog import open_catalog
from staddle_server.store.backends.directory import DirectoryBlobs
from staddle_server.store.keys import KeyStore
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.gc import mark
from staddle_server.upkeep.gc.collector import LEASE_S, Collector
from thin import Source, back_up, noise

MASTER = bytes(range(32))
LONG = bool(os.environ.get("STADDLE_TEST_LONG"))


class Killed(BaseException):
    """The process ends here."""


class World:
    """A data directory without a server, whose every durable step is counted; at step `die_at` the process is dead."""

    def __init__(self, path: Path) -> None:
        self.clock = MovedClock()
        self.catalog = open_catalog(str(path / "catalog.db"))
        self.blobs = DirectoryBlobs(str(path / "store"))
        self.tenants = Tenants(self.blobs, self.catalog, KeyStore(self.blobs, MASTER))
        self.steps = 0
        self.die_at: int | None = None
        write, publish, delete = self.catalog.database.write, self.blobs.publish, self.blobs.delete

        @contextmanager
        def counted_write():
            self._step()
            with write() as connection:
                yield connection

        def counted_publish(*arguments):
            self._step()
            publish(*arguments)

        def counted_delete(name):
            self._step()
            delete(name)

        self.catalog.database.write = counted_write
        self.blobs.publish, self.blobs.delete = counted_publish, counted_delete

    def _step(self) -> None:
        self.steps += 1
        if self.die_at is not None and self.steps >= self.die_at:
            raise Killed

    def collect(self):
        report = Collector(self.catalog, self.tenants, self.clock).collect(grace_s=0)
        assert [tenant.failure for tenant in report.tenants] == [""]

    def live_again(self) -> None:
        """The next process, after the lease of the dead one is over."""
        self.die_at = None
        self.clock.ahead_s += LEASE_S + 1

    def left(self) -> tuple[int, int, int, int]:
        """Packs in the store; rows of packs; rows of backups; records."""
        with self.catalog.database.read() as connection:
            rows = [
                sql(connection, f"SELECT count(*) FROM {table}").scalar() for table in ("packs", "backups")
            ]
        return (len(list(self.blobs.list("packs"))), *rows, len(list(self.blobs.list("records"))))


@pytest.fixture
def made(running, tmp_path, monkeypatch):
    """A data directory with work for every step, and the content of its backups."""
    monkeypatch.setattr(mark, "SAVE_S", 0.0)
    garbage, stub = Garbage(running), running.stub()
    small = {}
    for number in range(8):
        small[f"s{number}"] = noise(3_000, number)
        back_up(stub, "small", small)
    data = {f"d{number}": noise(20_000, 50 + number) for number in range(8)}
    back_up(stub, "all", data)
    back_up(stub, "few", {"d1": data["d1"]})
    back_up(stub, "gone", {"g": noise(90_000, 99)})
    Source(stub, "gone", scope=pb.UPLOAD_SCOPE_CHANGES)  # stays open, with the deleted backup as its base
    for dataset in ("all", "gone"):
        garbage.delete(dataset)
    given_up = Source(stub, "given-up")
    given_up.put_file("x", noise(10_000, 7))
    stub.AbortUpload(sv.AbortUploadRequest(**given_up.id))
    running.stop()
    saved = tmp_path / "saved"
    saved.mkdir()
    shutil.copy(running.root / "catalog.db", saved)
    shutil.copytree(running.root / "store", saved / "store")
    running.start()
    return saved, {"small": small, "few": {"d1": data["d1"]}}


@only_in_a_file
def test_a_collection_can_be_killed_between_any_two_steps(made, tmp_path):
    saved, wanted = made
    reference = _world(saved, tmp_path / "reference")
    reference.collect()
    steps = reference.steps
    assert steps > 40
    reference.clock.ahead_s += 1
    reference.collect()
    expected = reference.left()
    reference.catalog.close()
    for die_at in range(2, steps + 1, 1 if LONG else extent(18, 6)):
        world = _world(saved, tmp_path / str(die_at))
        world.die_at = die_at
        with pytest.raises(Killed):
            world.collect()
        _check(world, wanted)
        world.live_again()
        world.collect()
        _check(world, wanted)
        world.clock.ahead_s += 1
        world.collect()
        assert world.left() == expected, f"killed at step {die_at}"
        world.catalog.close()
        shutil.rmtree(tmp_path / str(die_at))


@only_in_a_file
def test_a_collection_that_is_killed_again_and_again_still_completes(made, tmp_path):
    saved, wanted = made
    world = _world(saved, tmp_path / "again")
    for _ in range(400):
        world.die_at = world.steps + 25
        try:
            world.collect()
        except Killed:
            _check(world, wanted)
            world.live_again()
        else:
            return
    raise AssertionError("no collection came to its end")


def _world(saved: Path, path: Path) -> World:
    shutil.copytree(saved, path)
    return World(path)


def _check(world: World, wanted: dict[str, dict[str, bytes]]) -> None:
    """Read what must exist, as another process: a dead one reads nothing."""
    die_at, world.die_at = world.die_at, None
    row = world.catalog.tenants.get_by_name("default")
    tenant = world.tenants.get(row.id)
    for dataset, files in wanted.items():
        backup = world.catalog.backups.resolve(row.id, dataset)
        assert contents(world.catalog, tenant, backup) == files
    world.die_at = die_at
