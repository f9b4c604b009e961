"""How often a server waits for its catalog in PostgreSQL: each round trip costs the network's latency.

The figures are printed with pytest's -s; docs/operations.md has them.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import postgres_server
import pytest
from round_trips import RoundTrips
from servers import Running
from staddle import Client
from test_catalog_chunks import _stored
from thin import back_up, noise

THIN_BACKUP = 12
SOURCE_SIDE_BACKUP = 15
CLAIM = 4
"""Of 1,000 chunks that the upload has not claimed yet: looked up, then claimed."""
CHECKPOINT = 2
"""With one pack of 1,000 chunks."""
FIRST = 6
"""Calls after which connections are open, and their statements prepared."""


@pytest.fixture
def trips() -> Iterator[RoundTrips]:
    made = RoundTrips(postgres_server.shared().place)
    yield made
    made.close()


@pytest.fixture
def counted(trips: RoundTrips) -> Callable[[Callable[[], object]], int]:
    """How many round trips a call takes: the fewest of three, since the server's own work adds some."""

    def count(call: Callable[[], object]) -> int:
        for _ in range(FIRST):
            call()
        taken = []
        for _ in range(3):
            before = trips.count
            call()
            taken.append(trips.count - before)
        return min(taken)

    return count


def _through(trips: RoundTrips, url: str) -> str:
    return url.replace(str(postgres_server.shared().place), str(trips.place))


@pytest.fixture
def running(trips: RoundTrips, tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path / "data", catalog_url=_through(trips, postgres_server.new_url()))
    yield made
    made.stop()


def test_a_small_backup_takes_few_round_trips(running, counted, tmp_path):
    seeds = iter(range(100))
    stub = running.stub()
    thin = counted(lambda: back_up(stub, "www", {"a": noise(20_000, next(seeds))}))
    (tmp_path / "tree").mkdir()

    def back_up_tree() -> None:
        (tmp_path / "tree" / "a").write_bytes(noise(20_000, next(seeds)))
        client.backup(tmp_path / "tree", dataset="tree")

    with Client(running.address, token=running.token("writer")) as client:
        source_side = counted(back_up_tree)
    print(f"\na small backup: {thin} round trips if thin, {source_side} source-side")
    assert (thin, source_side) == (THIN_BACKUP, SOURCE_SIDE_BACKUP)


@pytest.fixture
def ready_url(trips: RoundTrips) -> str:
    return _through(trips, postgres_server.ready_url())


def test_a_thousand_chunks_take_few_round_trips(world, counted):
    catalog = world.catalog
    ids = world.digests(1000)
    _stored(world, ids)

    def claim() -> None:
        upload = uploads.pop()
        assert len(catalog.chunks.claim(world.tenant, upload.id, 1, ids).places) == 1000

    def checkpoint() -> None:
        world.checkpoint(*packs.pop())

    uploads = [world.begin(world.bob).upload for _ in range(FIRST + 3)]
    made = list(uploads)
    claimed = counted(claim)
    packs = [(upload, world.pack(upload, world.digests(1000))) for upload in made]
    stored = counted(checkpoint)
    print(f"\n1,000 chunks: {claimed} round trips to claim, {stored} to store")
    assert claimed == CLAIM
    assert stored == CHECKPOINT
