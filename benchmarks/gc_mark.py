"""How much memory and time the mark of a garbage collection takes: `python -m benchmarks.gc_mark --chunks 10000000`.

A tenant with so many chunks, all of them referred to by manifests with 16 chunks a file. The catalog is a real one; the pages of
the manifests lie in a file beside it, and no pack has any data: a mark reads none. The mark runs in a separate process.
"""

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from array import array
from pathlib import Path
from typing import Final

from blake3 import blake3
from staddle_server.base.types import ChunkRef, Content, Entry, Role, Root
from staddle_server.catalog import indexed_id, open_catalog
from staddle_server.manifest.tree import TreeBuilder
from staddle_server.store.backends.directory import DirectoryBlobs
from staddle_server.store.blobs import create_format
from staddle_server.store.keys import KeyStore
from staddle_server.tenancy.tenant import Tenant, Tenants
from staddle_server.upkeep.gc.live_chunks import Reached

from benchmarks.data import chunk_index
from benchmarks.data.chunk_index import Shape
from benchmarks.programs.processes import MIB, peak_bytes

FILE_CHUNKS: Final = 16
FILES_A_BACKUP: Final = 100_000
SHAPE: Final = Shape(pack_chunks=8_192, segment_chunks=16, chunk_bytes=65_536, segment_bytes=1_000)
PAGES: Final = "pages"
PLACES: Final = "pages.json"


class Pages:
    """Manifest pages in a file, by digest."""

    def __init__(self, directory: Path) -> None:
        self._file = (directory / PAGES).open("a+b")
        places = directory / PLACES
        self.places: dict[str, tuple[int, int]] = json.loads(places.read_text()) if places.exists() else {}

    def write(self, data: bytes) -> bytes:
        digest = blake3(data).digest()
        self._file.seek(0, 2)
        self.places[digest.hex()] = (self._file.tell(), len(data))
        self._file.write(data)
        return digest

    def read(self, digest: bytes) -> bytes:
        offset, length = self.places[digest.hex()]
        self._file.seek(offset)
        return self._file.read(length)


def opened(directory: Path) -> tuple[Tenant, Tenants]:
    """The tenant of that directory, which is made if it is not there."""
    store = directory / "store"
    new = not store.exists()
    store.mkdir(exist_ok=True)
    blobs = DirectoryBlobs(str(store))
    catalog = open_catalog(str(directory / "catalog.db"))
    keys = KeyStore(blobs, bytes(32))
    if new:
        create_format(blobs)
        made = keys.create("default", 1)
        catalog.tenants.create(made.tenant, "default", 1, record=b"made")
    tenants = Tenants(blobs, catalog, keys)
    return tenants.get(catalog.tenants.list_all()[0].id), tenants


def fill(directory: Path, chunks: int) -> list[Root]:
    """Makes the catalog's rows and the manifests; gives the roots."""
    tenant, _ = opened(directory)
    pages = Pages(directory)
    roots = [
        manifest(tenant, pages, first, chunks) for first in range(0, chunks, FILES_A_BACKUP * FILE_CHUNKS)
    ]
    (directory / PLACES).write_text(json.dumps(pages.places))
    chunk_index.fill(
        directory / "catalog.db",
        chunks,
        SHAPE,
        lambda number: tenant.chunk_id(Role.DATA, chunk_index.digest_of(number)),
    )
    database = sqlite3.connect(directory / "catalog.db")
    # References to pages are looked up as well: the pages are in the first pack.
    database.executemany(
        "INSERT INTO chunks VALUES (?, ?, 1, 999, 1000, ?, 1)",
        (
            (*indexed_id(tenant.chunk_id(Role.MANIFEST, bytes.fromhex(page))), n)
            for n, page in enumerate(pages.places)
        ),
    )
    database.commit()
    database.close()
    return roots


def manifest(tenant: Tenant, pages: Pages, first: int, chunks: int) -> Root:
    """A backup of files whose chunks begin with this one."""
    builder = TreeBuilder(pages, tenant.secrets.page_key)
    for number in range(first, min(chunks, first + FILES_A_BACKUP * FILE_CHUNKS), FILE_CHUNKS):
        refs = tuple(
            ChunkRef(SHAPE.chunk_bytes, chunk_index.digest_of(each))
            for each in range(number, min(chunks, number + FILE_CHUNKS))
        )
        content = Content(SHAPE.chunk_bytes * len(refs), chunk_index.digest_of(number), chunks=refs)
        builder.add(Entry(b"%012d" % number, content=content))
    return builder.finish()


def walk(directory: Path, roots: list[Root]) -> None:
    """The mark's walk over all manifests; prints what it took as JSON."""
    tenant, tenants = opened(directory)
    reached = Reached(tenant, tenants._catalog)  # noqa: SLF001 - a benchmark
    reached._reader = Pages(directory)  # type: ignore[assignment] # noqa: SLF001
    begun_s = time.monotonic()
    for root in roots:
        reached.walk(root)
    kept = sum(len(positions.pack()) for positions in reached.packs.values())
    print(
        json.dumps(
            {
                "seconds": round(time.monotonic() - begun_s, 1),
                "peak_mib": round(peak_bytes(os.getpid()) / MIB),
                "chunks": reached.chunks,
                "missing": reached.missing,
                "positions": kept // array("Q").itemsize,
            }
        )
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--chunks", type=int, default=1_000_000)
    parser.add_argument("--walk", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.walk:
        roots = [
            Root(*root[:1], bytes.fromhex(root[1]), *root[2:])
            for root in json.loads((given.walk / "roots").read_text())
        ]
        walk(given.walk, roots)
        return 0
    with tempfile.TemporaryDirectory(prefix="staddle-mark-") as place:
        directory = Path(place)
        begun_s = time.monotonic()
        roots = fill(directory, given.chunks)
        (directory / "roots").write_text(
            json.dumps([[root.level, root.digest.hex(), root.entries, root.data_bytes] for root in roots])
        )
        size = (directory / "catalog.db").stat().st_size / MIB
        print(
            f"{given.chunks:,} chunks in {len(roots)} backups; catalog {size:,.0f} MiB; made in {time.monotonic() - begun_s:.0f} s"
        )
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.gc_mark", "--walk", place],
            capture_output=True,
            text=True,
            check=True,
        )
        took = json.loads(done.stdout)
        print(
            f"the mark: {took['seconds']} s, peak {took['peak_mib']} MiB, {took['positions']:,} positions, {took['missing']} missing"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
