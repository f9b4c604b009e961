"""How often a server waits for its catalog in PostgreSQL: each round trip costs the network's latency.

The figures are printed with pytest's -s; docs/operations.md has them.
"""

from collections.abc import Callable, Iterator

import postgres_server
import pytest
from round_trips import RoundTrips
from servers import Running
from test_catalog_chunks import _stored
from thin import back_up, noise

SMALL_BACKUP_MAX = 65
CLAIM_MAX = 12
"""Of 1,000 chunks that the upload has not claimed yet: looked up, then claimed."""
CHECKPOINT_MAX = 4
"""With one pack of 1,000 chunks."""


@pytest.fixture
def trips() -> Iterator[RoundTrips]:
    made = RoundTrips(postgres_server.shared().place)
    yield made
    made.close()


@pytest.fixture
def counted(trips: RoundTrips) -> Callable[[Callable[[], object]], int]:
    """How many round trips a call takes; its second run, since the first one opens connections."""

    def count(call: Callable[[], object]) -> int:
        call()
        before = trips.count
        call()
        return trips.count - before

    return count


def _through(trips: RoundTrips, url: str) -> str:
    return url.replace(str(postgres_server.shared().place), str(trips.place))


def test_a_small_backup_takes_few_round_trips(trips, counted, tmp_path):
    running = Running(tmp_path, catalog_url=_through(trips, postgres_server.new_url()))
    seeds = iter(range(100))
    try:
        stub = running.stub()
        taken = counted(lambda: back_up(stub, "www", {"a": noise(20_000, next(seeds))}))
    finally:
        running.stop()
    print(f"\na small backup: {taken} round trips")
    assert taken <= SMALL_BACKUP_MAX


@pytest.fixture
def ready_url(trips: RoundTrips) -> str:
    return _through(trips, postgres_server.ready_url())


def test_a_thousand_chunks_take_few_round_trips(world, counted):
    catalog = world.catalog
    ids = world.digests(1000)
    _stored(world, ids)

    def claim() -> None:
        upload = uploads.pop()
        assert len(catalog.chunks.claim(world.tenant, upload.id, 1, ids)) == 1000

    def checkpoint() -> None:
        world.checkpoint(*packs.pop())

    uploads = [world.begin(world.bob).upload for _ in range(4)]
    claimed = counted(claim)
    packs = [(upload, world.pack(upload, world.digests(1000))) for upload in uploads]
    stored = counted(checkpoint)
    print(f"\n1,000 chunks: {claimed} round trips to claim, {stored} to store")
    assert claimed <= CLAIM_MAX
    assert stored <= CHECKPOINT_MAX
