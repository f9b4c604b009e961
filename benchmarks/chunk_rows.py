"""`make bench-index`: what a row of the chunk index costs, and how fast rows are written and found, at growing sizes.

The index is filled in its database, in packs of 1,000 chunks with random ids, in the order in which servers write them: PostgreSQL (a
server started for this) and an SQLite file. At 10^5 rows and each further power of ten up to `--rows`, the last packs are published through the
catalog, as checkpoints of an upload do; then 1,000 chunks are looked up and claimed at a time: neighbours of one pack, chunks from anywhere, and
chunks that do not exist. Bytes a row are those of the table with its indexes; with SQLite, those of the whole file. Times are medians, with
the fastest beside each. With PostgreSQL no table has statistics until its autovacuum makes them.

110 bytes a row of disk, as many again for PostgreSQL's log; 10^7 rows take minutes, 10^8 an hour or more.
"""

import argparse
import hashlib
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
from typing import Any, Final

import postgres_server
import psycopg
from postgres_server import PostgresServer
from staddle_server.base.types import ChunkPlace, PackSummary, SegmentRef, StoredChunk, TokenRole
from staddle_server.catalog import (
    BeginUpload,
    Catalog,
    DurableUpdate,
    Principal,
    Terms,
    indexed_id,
    open_catalog,
    schema,
)
from staddle_server.catalog.sqlite import PAGE_CACHE_KIB

from benchmarks.programs import machine

PACK_CHUNKS: Final = 1_000
SEGMENT_CHUNKS: Final = 4
CHUNK_BYTES: Final = 300_000
SEGMENT_BYTES: Final = SEGMENT_CHUNKS * CHUNK_BYTES
PUBLISHED: Final = 50
"""Packs that are published through the catalog at each size."""
BULK_PACKS: Final = 1_000
"""Packs that are filled with one statement or transaction."""
FIRST_SIZE: Final = 100_000
LOOK_UPS: Final = 50
CLAIMS: Final = 20
ABSENT: Final = 1 << 60
"""Chunks from this number on are never stored."""
DATABASES: Final = ("postgresql", "sqlite")
TERMS: Final = Terms(3600.0, 7 * 24 * 3600.0)
BUFFERS: Final = "shared_buffers=1GB"
FILL_CACHE_KIB: Final = 1024 * 1024


Bulk = Callable[[int, int], None]
"""Adds so many packs: the first one's number, counted from 0, and their count."""


class Filling:
    """One catalog, which grows. It has one tenant; its packs have the rows 1, 2, and so on."""

    def __init__(self, catalog: Catalog, bulk: Bulk) -> None:
        self.catalog = catalog
        self._bulk = bulk
        self.packs = 0
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

    def grow(self, rows: int) -> float:
        """Fills the index up to so many rows; returns the rows a second with which the last packs were published."""
        packs = rows // PACK_CHUNKS
        while self.packs < packs - PUBLISHED:
            count = min(BULK_PACKS, packs - PUBLISHED - self.packs)
            self._bulk(self.packs, count)
            self.packs += count
        seconds = sum(self._publish() for _ in range(packs - self.packs))
        return PUBLISHED * PACK_CHUNKS / seconds

    def _publish(self) -> float:
        pack = self._id()
        chunks = list(_chunks(pack, self.packs * PACK_CHUNKS))
        begun_s = time.perf_counter()
        self.catalog.packs.begin(self.tenant, self._upload, 1, pack, time.time_ns())
        self.catalog.uploads.checkpoint(
            self.tenant, self._upload, 1, packs=[PackSummary(pack, CHUNK_BYTES * PACK_CHUNKS, chunks)],
            durable=DurableUpdate(b"", 0, 0, 0), now_ns=time.time_ns(), terms=TERMS,
        )  # fmt: skip
        self.packs += 1
        return time.perf_counter() - begun_s

    def neighbours(self) -> list[bytes]:
        """The ids of a pack's chunks."""
        first = self._random.randrange(self.packs) * PACK_CHUNKS
        return [chunk_id(first + number) for number in range(PACK_CHUNKS)]

    def scattered(self) -> list[bytes]:
        """The ids of chunks from all over the index."""
        return [chunk_id(self._random.randrange(self.packs * PACK_CHUNKS)) for _ in range(PACK_CHUNKS)]

    def absent(self) -> list[bytes]:
        """Ids that the index does not have."""
        first = ABSENT + self._random.randrange(ABSENT)
        return [chunk_id(first + number) for number in range(PACK_CHUNKS)]

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
        self.catalog.uploads.abort(self.tenant, upload, 1, time.time_ns())
        return took_ms


def chunk_id(number: int) -> bytes:
    """The id of the chunk with this number."""
    return hashlib.sha256(number.to_bytes(8, "big")).digest()


def _place(number: int) -> tuple[int, int, int, int]:
    """Where a chunk lies in its pack: segment offset and length, offset and length."""
    segment, inside = divmod(number % PACK_CHUNKS, SEGMENT_CHUNKS)
    return 64 + segment * SEGMENT_BYTES, SEGMENT_BYTES, inside * CHUNK_BYTES, CHUNK_BYTES


def _chunks(pack: bytes, first: int) -> Iterator[StoredChunk]:
    for number in range(first, first + PACK_CHUNKS):
        segment_offset, segment_length, offset, length = _place(number)
        place = ChunkPlace(SegmentRef(pack, segment_offset, segment_length), offset, length)
        yield StoredChunk(chunk_id(number), place)


# --- filling in bulk

_PACK_COLUMNS: Final = "tenant, id, state, upload, epoch, size_bytes, chunk_count, damaged, created_ns"
_PACK_VALUES: Final = f"{schema.PACK_LIVE}, '', 0, 1, {PACK_CHUNKS}, FALSE, 1"
_POSTGRES_PACKS: Final = f"""INSERT INTO packs ({_PACK_COLUMNS})
    SELECT 1, decode(md5(n::text), 'hex'), {_PACK_VALUES} FROM generate_series(%s::bigint, %s::bigint) AS n"""
_POSTGRES_HALF: Final = "('x' || encode(substring(id FROM {} FOR 8), 'hex'))::bit(64)::bigint"
_POSTGRES_CHUNKS: Final = f"""INSERT INTO chunks
    SELECT {_POSTGRES_HALF.format(1)}, {_POSTGRES_HALF.format(9)}, 1 + n / {PACK_CHUNKS},
        64 + n %% {PACK_CHUNKS} / {SEGMENT_CHUNKS} * {SEGMENT_BYTES}, {SEGMENT_BYTES},
        n %% {SEGMENT_CHUNKS} * {CHUNK_BYTES}, {CHUNK_BYTES}
    FROM (SELECT n, sha256(int8send(n)) AS id FROM generate_series(%s::bigint, %s::bigint) AS n) AS numbered"""
_SQLITE_PACKS: Final = f"INSERT INTO packs ({_PACK_COLUMNS}) VALUES (1, ?, {_PACK_VALUES})"
_SQLITE_CHUNKS: Final = "INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?)"


def _bulk_postgresql(url: str) -> Bulk:
    def add(first: int, count: int) -> None:
        with psycopg.connect(url) as connection:
            connection.execute(_POSTGRES_PACKS, (first, first + count - 1))
            connection.execute(_POSTGRES_CHUNKS, (first * PACK_CHUNKS, (first + count) * PACK_CHUNKS - 1))

    return add


def _bulk_sqlite(catalog: Catalog) -> Bulk:
    def rows(first: int, count: int) -> Iterator[tuple[int, ...]]:
        for number in range(first * PACK_CHUNKS, (first + count) * PACK_CHUNKS):
            yield *indexed_id(chunk_id(number)), 1 + number // PACK_CHUNKS, *_place(number)

    def add(first: int, count: int) -> None:
        with catalog.database.write() as connection:
            driver: Any = connection.connection.driver_connection
            driver.execute(f"PRAGMA cache_size = {-FILL_CACHE_KIB}")
            packs = (((1 << 64) + number).to_bytes(16, "big") for number in range(first, first + count))
            driver.executemany(_SQLITE_PACKS, ((pack,) for pack in packs))
            driver.executemany(_SQLITE_CHUNKS, rows(first, count))
            driver.execute(f"PRAGMA cache_size = {-PAGE_CACHE_KIB}")

    return add


# --- measuring


def _sizes(rows: int) -> list[int]:
    sizes = [FIRST_SIZE]
    while sizes[-1] * 10 <= rows:
        sizes.append(sizes[-1] * 10)
    return sizes if sizes[-1] == rows or rows < FIRST_SIZE else [*sizes, rows]


def measure(name: str, filling: Filling, rows: int, size_bytes: Callable[[], int]) -> None:
    """Grows a catalog, and prints a line for each size."""
    print(f"\n{name}: 1,000 look-ups or claims, ms (fastest)")
    titles = ("rows", "B/row", "written/s", "neighbours", "scattered", "absent", "claims")
    print(_line(*titles))
    for size in _sizes(rows):
        rate = filling.grow(size)
        looked = [
            _median([filling.look_up(make(), present) for _ in range(LOOK_UPS)])
            for make, present in (
                (filling.neighbours, True),
                (filling.scattered, True),
                (filling.absent, False),
            )
        ]
        claimed = _median([filling.claim(filling.scattered()) for _ in range(CLAIMS)])
        print(_line(f"{size:,}", f"{size_bytes() / size:.1f}", f"{rate:,.0f}", *looked, claimed), flush=True)


def _line(rows: str, bytes_a_row: str, rate: str, *times: str) -> str:
    return f"{rows:>13} {bytes_a_row:>5} {rate:>9}" + "".join(f" {each:>11}" for each in times)


def _median(times_ms: Sequence[float]) -> str:
    return f"{statistics.median(times_ms):.1f} ({min(times_ms):.1f})"


@contextmanager
def _postgresql(_work: Path) -> Iterator[tuple[Filling, Callable[[], int]]]:
    server = PostgresServer(durable=True, settings=[BUFFERS])
    try:
        name = server.new_database()
        catalog = open_catalog(server.url(name))

        def size_bytes() -> int:
            ((size,),) = server.execute("SELECT pg_total_relation_size('chunks')", name)
            assert isinstance(size, int)
            return size

        yield Filling(catalog, _bulk_postgresql(server.url(name))), size_bytes
        catalog.close()
    finally:
        server.remove()


@contextmanager
def _sqlite(work: Path) -> Iterator[tuple[Filling, Callable[[], int]]]:
    place = Path(tempfile.mkdtemp(prefix="staddle-index-", dir=work))
    try:
        path = place / "catalog.db"
        catalog = open_catalog(str(path))

        def size_bytes() -> int:
            catalog.database.empty_log()
            return path.stat().st_size

        yield Filling(catalog, _bulk_sqlite(catalog)), size_bytes
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
        with opened(given.work) as (filling, size_bytes):
            measure(database, filling, int(given.rows), size_bytes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
