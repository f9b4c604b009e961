"""`make bench-index`: what a row of the chunk index costs, and how fast rows are written and found, at growing sizes.

Packs of 1,000 chunks with random ids are published one after the other through the catalog, as checkpoints of an upload do, in PostgreSQL
(a server started for this, with its own settings besides shared_buffers; durable) and in an SQLite file. At 10^5 rows and each further power of ten up to
`--rows`, 1,000 chunks are looked up and claimed at a time: neighbours of one pack, chunks from anywhere, and chunks that do not exist. Bytes a
row are those of the table with its indexes; with SQLite, those of the whole file. Look-ups are medians; the fastest stands beside each.

10^6 rows take a minute or two for each database, 10^7 ten times as much, 10^8 and more hours, and 110 bytes a row of disk.
"""

import argparse
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import postgres_server
from postgres_server import PostgresServer
from staddle_server.base.types import ChunkPlace, PackSummary, SegmentRef, StoredChunk, TokenRole
from staddle_server.catalog import BeginUpload, Catalog, DurableUpdate, Principal, Terms, open_catalog

from benchmarks.data.chunk_index import digest_of
from benchmarks.programs import machine

PACK_CHUNKS: Final = 1_000
SEGMENT_CHUNKS: Final = 4
CHUNK_BYTES: Final = 300_000
FIRST_SIZE: Final = 100_000
LOOK_UPS: Final = 50
CLAIMS: Final = 20
ABSENT: Final = 1 << 60
"""Chunks from this number on are never stored."""
DATABASES: Final = ("postgresql", "sqlite")
TERMS: Final = Terms(3600.0, 7 * 24 * 3600.0)
NS: Final = 1_000_000_000
BUFFERS: Final = "shared_buffers=1GB"


class Filling:
    """One catalog, which grows."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.packs = 0
        self.seconds = 0.0
        """Spent in the catalog, since the last measurement."""
        self._random = random.Random(7)
        tenant = catalog.tenants.create(self._id(), "default", time.time_ns(), record=b"made")
        token = catalog.tokens.create(tenant.id, "writer", TokenRole.WRITER, time.time_ns())
        self._writer: Principal = catalog.tokens.authenticate(token, time.time_ns())
        self.tenant = tenant.id
        self._upload = self._begin()

    def _id(self) -> bytes:
        return self._random.randbytes(16)

    def _begin(self) -> bytes:
        begun = self.catalog.uploads.begin(
            BeginUpload(
                upload=self._id(), principal=self._writer, dataset="index", now_ns=time.time_ns(), terms=TERMS
            )
        )
        return begun.upload.id

    def grow(self, rows: int) -> None:
        """Publishes packs until there are so many rows."""
        while self.packs * PACK_CHUNKS < rows:
            pack = self._id()
            chunks = list(_chunks(pack, self.packs * PACK_CHUNKS))
            begun_s = time.perf_counter()
            self.catalog.packs.begin(self.tenant, self._upload, 1, pack, time.time_ns())
            self.catalog.uploads.checkpoint(
                self.tenant, self._upload, 1, packs=[PackSummary(pack, CHUNK_BYTES * PACK_CHUNKS, chunks)],
                durable=DurableUpdate(b"", 0, 0, 0), now_ns=time.time_ns(), terms=TERMS,
            )  # fmt: skip
            self.seconds += time.perf_counter() - begun_s
            self.packs += 1

    def neighbours(self) -> list[bytes]:
        """The ids of a pack's chunks."""
        first = self._random.randrange(self.packs) * PACK_CHUNKS
        return [digest_of(first + number) for number in range(PACK_CHUNKS)]

    def scattered(self) -> list[bytes]:
        """The ids of chunks from all over the index."""
        return [digest_of(self._random.randrange(self.packs * PACK_CHUNKS)) for _ in range(PACK_CHUNKS)]

    def absent(self) -> list[bytes]:
        """Ids that the index does not have."""
        first = ABSENT + self._random.randrange(ABSENT)
        return [digest_of(first + number) for number in range(PACK_CHUNKS)]

    def look_up(self, ids: Sequence[bytes], present: bool) -> float:
        """Looks chunks up, and returns the milliseconds."""
        begun_s = time.perf_counter()
        found = self.catalog.chunks.find(self.tenant, ids)
        took_ms = 1000 * (time.perf_counter() - begun_s)
        if len(found) != (len(set(ids)) if present else 0):
            raise SystemExit(f"{len(found)} of {len(set(ids))} chunks were found")
        return took_ms

    def claim(self, ids: Sequence[bytes]) -> float:
        """Has a new upload claim chunks, and returns the milliseconds."""
        upload = self._begin()
        begun_s = time.perf_counter()
        claimed = self.catalog.chunks.claim(self.tenant, upload, 1, ids)
        took_ms = 1000 * (time.perf_counter() - begun_s)
        if len(claimed.places) != len(set(ids)):
            raise SystemExit(f"{len(claimed.places)} of {len(set(ids))} chunks were claimed")
        self.catalog.uploads.abort(self.tenant, upload, 1)
        return took_ms


def _chunks(pack: bytes, first: int) -> Iterator[StoredChunk]:
    segment = SegmentRef(pack, 64, 1)
    for number in range(PACK_CHUNKS):
        at, inside = divmod(number, SEGMENT_CHUNKS)
        if not inside:
            segment = SegmentRef(pack, 64 + at * SEGMENT_CHUNKS * CHUNK_BYTES, SEGMENT_CHUNKS * CHUNK_BYTES)
        yield StoredChunk(digest_of(first + number), ChunkPlace(segment, inside * CHUNK_BYTES, CHUNK_BYTES))


def _sizes(rows: int) -> list[int]:
    sizes = [FIRST_SIZE]
    while sizes[-1] * 10 <= rows:
        sizes.append(sizes[-1] * 10)
    return sizes if sizes[-1] == rows or rows < FIRST_SIZE else [*sizes, rows]


def measure(name: str, filling: Filling, rows: int, size_bytes: Callable[[], int]) -> None:
    """Grows a catalog, and prints a line for each size."""
    print(
        f"\n{name}\n{'':>12} {'bytes':>6} {'rows/s':>9}  {'1,000 look-ups, ms (fastest)':^38}  {'1,000 claims, ms':^16}"
    )
    print(f"{'rows':>12} {'a row':>6} {'written':>9}  {'neighbours':>12} {'scattered':>12} {'absent':>12}  {'scattered':^16}")  # fmt: skip
    before = 0
    for size in _sizes(rows):
        filling.seconds = 0.0
        filling.grow(size)
        rate = (filling.packs * PACK_CHUNKS - before) / filling.seconds
        before = filling.packs * PACK_CHUNKS
        looked = [
            _median([filling.look_up(make(), present) for _ in range(LOOK_UPS)])
            for make, present in (
                (filling.neighbours, True),
                (filling.scattered, True),
                (filling.absent, False),
            )
        ]
        claimed = _median([filling.claim(filling.scattered()) for _ in range(CLAIMS)])
        print(
            f"{before:>12,} {size_bytes() / before:>6.1f} {rate:>9,.0f}  "
            + " ".join(f"{each:>12}" for each in looked)
            + f"  {claimed:^16}",
            flush=True,
        )


def _median(times_ms: Sequence[float]) -> str:
    return f"{statistics.median(times_ms):.1f} ({min(times_ms):.1f})"


@contextmanager
def _postgresql(_work: Path) -> Iterator[tuple[Catalog, Callable[[], int]]]:
    server = PostgresServer(durable=True, settings=[BUFFERS])
    try:
        name = server.new_database()
        catalog = open_catalog(server.url(name))

        def size_bytes() -> int:
            ((size,),) = server.execute("SELECT pg_total_relation_size('chunks')", name)
            assert isinstance(size, int)
            return size

        yield catalog, size_bytes
        catalog.close()
    finally:
        server.remove()


@contextmanager
def _sqlite(work: Path) -> Iterator[tuple[Catalog, Callable[[], int]]]:
    place = Path(tempfile.mkdtemp(prefix="staddle-index-", dir=work))
    try:
        catalog = open_catalog(str(place / "catalog.db"))
        yield catalog, lambda: (place / "catalog.db").stat().st_size
        catalog.close()
    finally:
        shutil.rmtree(place)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=float, default=1e6, help="of the largest index, such as 1e7")
    parser.add_argument("--database", choices=DATABASES, action="append", help="only this one")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()), help="where the SQLite file lies"
    )
    given = parser.parse_args(arguments)
    if postgres_server.programs() is None and "postgresql" in (given.database or DATABASES):
        print(f"PostgreSQL is needed ({postgres_server.INSTALL})", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # removes what it made
    print(
        ", ".join(
            machine.describe(given.work)[each] for each in ("processor", "memory", "file system", "system")
        )
    )
    for database in given.database or DATABASES:
        opened = _postgresql if database == "postgresql" else _sqlite
        with opened(given.work) as (catalog, size_bytes):
            measure(database, Filling(catalog), int(given.rows), size_bytes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
