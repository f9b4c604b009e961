"""A chunk index with very many rows, filled straight into the catalog's database: as many as take a server hours to write take minutes.

The rows are those of chunks that do not exist, and no pack of theirs has an object: for what only looks chunks up.
"""

import itertools
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blake3 import blake3
from staddle_server.catalog import indexed_id, schema
from staddle_server.store.pack import pack_name

NUMBER_BYTES: Final = 8
WRITE_CACHE_KIB: Final = 64 * 1024
HEAD_BYTES: Final = 64

Name = Callable[[int], bytes]
"""The id at rest of the chunk with this number."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How chunks lie in segments, and segments in packs. Sizes are bytes."""

    pack_chunks: int
    segment_chunks: int
    chunk_bytes: int
    segment_bytes: int
    """As it is stored."""

    @property
    def pack_bytes(self) -> int:
        return HEAD_BYTES + -(-self.pack_chunks // self.segment_chunks) * self.segment_bytes

    def place(self, number: int) -> tuple[int, tuple[int, int, int, int]]:
        """The chunk with this number: its pack, counted from 0, and the last four columns of its row."""
        pack, inside = divmod(number, self.pack_chunks)
        segment, place = divmod(inside, self.segment_chunks)
        offset = HEAD_BYTES + segment * self.segment_bytes
        return pack, (offset, self.segment_bytes, place * self.chunk_bytes, self.chunk_bytes)


def digest_of(number: int) -> bytes:
    """The digest of a chunk that does not exist."""
    return blake3(number.to_bytes(NUMBER_BYTES, "little")).digest()


def fill(catalog: Path, chunks: int, shape: Shape, name: Name) -> None:
    """Gives the first tenant of a catalog, which no server has open, so many chunks in live packs that were verified just now."""
    database = sqlite3.connect(catalog)
    try:
        # If this is cut off, the catalog is thrown away.
        database.execute("PRAGMA synchronous = OFF")
        database.execute(f"PRAGMA cache_size = {-WRITE_CACHE_KIB}")
        tenant, tenant_id = database.execute("SELECT row, id FROM tenants ORDER BY row LIMIT 1").fetchone()
        (before,) = database.execute("SELECT coalesce(max(row), 0) FROM packs").fetchone()
        _insert_packs(database, tenant, before + 1, chunks, shape)
        _make_packs(catalog.parent / "store", tenant_id, before + 1, chunks, shape)
        _insert_chunks(database, before + 1, chunks, shape, name)
    finally:
        database.close()


def _insert_packs(database: sqlite3.Connection, tenant: int, first: int, chunks: int, shape: Shape) -> None:
    now_ns = time.time_ns()
    rows = (
        (first + pack, tenant, (first + pack).to_bytes(16, "big"), schema.PACK_LIVE, b"", shape.pack_bytes, count, now_ns, now_ns)
        for pack, count in enumerate(_pack_counts(chunks, shape.pack_chunks))
    )  # fmt: skip
    database.executemany(
        "INSERT INTO packs (row, tenant, id, state, upload, epoch, size_bytes, chunk_count, damaged, created_ns, verified_ns) "
        "VALUES (?, ?, ?, ?, ?, 0, ?, ?, 0, ?, ?)",
        rows,
    )
    database.commit()


def _make_packs(store: Path, tenant: bytes, first: int, chunks: int, shape: Shape) -> None:
    """Objects of the right size without content: a server compares its packs with the store when it starts."""
    for number, _ in enumerate(_pack_counts(chunks, shape.pack_chunks), first):
        path = store / pack_name(tenant, number.to_bytes(16, "big"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.truncate(shape.pack_bytes)


def _pack_counts(chunks: int, pack_chunks: int) -> Iterator[int]:
    whole, rest = divmod(chunks, pack_chunks)
    return itertools.chain(itertools.repeat(pack_chunks, whole), (rest,) if rest else ())


def _insert_chunks(
    database: sqlite3.Connection, first_pack: int, chunks: int, shape: Shape, name: Name
) -> None:
    """Rows in the order of the packs, as servers write them; then the index of their ids at once: sorting bounds the work."""
    (again,) = database.execute("SELECT sql FROM sqlite_schema WHERE name = 'chunks_id'").fetchone()
    database.execute("DROP INDEX chunks_id")

    def rows() -> Iterator[tuple[int, ...]]:
        for number in range(chunks):
            pack, place = shape.place(number)
            yield *indexed_id(name(number)), first_pack + pack, *place

    database.executemany("INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?)", rows())
    database.execute(again)
    database.commit()
