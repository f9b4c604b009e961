"""Memory does not grow with the listing of a store: what compares it with the catalog takes both as a stream."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from types import ModuleType

import listing_catalog
import listing_store
import pytest
from listing_store import serve
from servers import Running
from sqlalchemy import insert
from staddle_server.catalog import schema
from staddle_server.store.pack import pack_name

FEW, MANY = 5_000, 50_000
GROWTH_BYTES_MAX = 4 << 20
"""50,000 names in a list are 6 MiB or more."""


def fill(running: Running, start: int, count: int) -> None:
    """Live packs of one byte each, in the store and in the catalog; their content is not looked at."""
    ids = [bytes([number % 256]) + number.to_bytes(15) for number in range(start, count)]
    for pack in ids:
        path = running.root / "store" / pack_name(running.tenant, pack)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    with running.catalog.database.write() as connection:
        tenant = connection.exec_driver_sql("SELECT row FROM tenants").scalar_one()
        same = {
            "tenant": tenant,
            "state": schema.PACK_LIVE,
            "upload": bytes(16),
            "epoch": 1,
            "size_bytes": 1,
            "chunk_count": 0,
        }
        connection.execute(
            insert(schema.packs), [{**same, "id": each, "damaged": False, "created_ns": 1} for each in ids]
        )


def run(program: ModuleType, *words: object) -> str:
    """What a program beside the tests prints."""
    command = [sys.executable, str(program.__file__), *map(str, words)]
    paths = os.pathsep.join(each for each in sys.path if each)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_comparison_of_50_000_packs_takes_no_more_memory_than_one_of_5_000(running: Running) -> None:
    peaks: list[dict[str, int]] = []
    for start, count in ((0, FEW), (FEW, MANY)):
        fill(running, start, count)
        peaks.append(json.loads(run(listing_catalog, running.catalog_place, running.root / "store")))
    few, many = peaks
    grown = {name: many[name] - few[name] for name in few}
    assert grown.pop("listed") > GROWTH_BYTES_MAX, "a list would be found out"
    assert len(grown) == 2
    assert max(grown.values()) < GROWTH_BYTES_MAX, grown


@pytest.mark.slow
def test_a_listing_of_a_bucket_is_a_stream() -> None:
    pytest.importorskip("obstore", reason="the store in a bucket is listed with it")
    endpoint = serve()
    threading.Thread(target=endpoint.serve_forever, daemon=True).start()
    try:
        printed = run(listing_store, endpoint.server_port, FEW, 2 * MANY)
    finally:
        endpoint.shutdown()
        endpoint.server_close()
    few, many, grown = map(int, printed.split())
    assert (few, many) == (FEW, 2 * MANY)
    assert grown < 2 * GROWTH_BYTES_MAX
