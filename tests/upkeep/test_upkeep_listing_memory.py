"""Memory does not grow with the listing of a store: what compares it with the catalog takes both as a stream."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import listing_store
import pytest
from listing_store import serve
from second_place import kept_of
from servers import Running
from sqlalchemy import insert
from staddle_server.catalog import schema
from staddle_server.store.pack import pack_name
from staddle_server.upkeep.integrity.check import Check, CheckPlan, _TenantCheck
from staddle_server.upkeep.integrity.findings import Kept
from staddle_server.upkeep.integrity.watch import compare_packs

FEW, MANY = 5_000, 100_000
GROWTH_BYTES_MAX = 4 << 20
"""100,000 names in a list are 12 MiB or more."""


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


def peak(work: Callable[[], object]) -> int:
    """The lower of two peaks: they include what the service's own threads do meanwhile."""
    found = []
    for _ in range(2):
        gc.collect()
        tracemalloc.start()
        try:
            work()
            found.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return min(found)


def compared(kept: Kept, running: Running) -> None:
    found = compare_packs(kept, kept.tenants.get(running.tenant))
    assert (found.gone, found.other_size) == (0, 0)


def looked_for_orphans(kept: Kept, running: Running) -> None:
    check = Check(kept, CheckPlan(mark_damage=False), lambda _finding: None)
    (row,) = kept.catalog.tenants.list_all()
    _TenantCheck(check, kept.tenants.get(running.tenant), row)._look_for_orphans()
    assert check.summary.orphans == 0


def listed(_kept: Kept, running: Running) -> None:
    """For comparison."""
    assert len(list(running.blobs.list("packs"))) >= FEW


@pytest.mark.slow
def test_a_comparison_of_100_000_packs_takes_no_more_memory_than_one_of_5_000(running: Running) -> None:
    kept = kept_of(running)
    works = (compared, looked_for_orphans, listed)
    peaks: dict[str, list[int]] = {work.__name__: [] for work in works}
    fill(running, 0, FEW)
    compared(kept, running)  # what is loaded once
    for _ in range(2):
        for work in works:
            peaks[work.__name__].append(peak(partial(work, kept, running)))
        if len(peaks["listed"]) == 1:
            fill(running, FEW, MANY)
    grown = {name: many - few for name, (few, many) in peaks.items()}
    assert grown.pop("listed") > GROWTH_BYTES_MAX, "a list would be found out"
    assert max(grown.values()) < GROWTH_BYTES_MAX, grown


@pytest.mark.slow
def test_a_listing_of_a_bucket_is_a_stream(tmp_path: Path) -> None:
    pytest.importorskip("obstore", reason="the store in a bucket is listed with it")
    endpoint = serve()
    threading.Thread(target=endpoint.serve_forever, daemon=True).start()
    try:
        words = [sys.executable, listing_store.__file__, str(endpoint.server_port), str(FEW), str(MANY)]
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path, timeout=100)
    finally:
        endpoint.shutdown()
        endpoint.server_close()
    few, many, grown = map(int, done.stdout.split())
    assert (few, many) == (FEW, MANY)
    assert grown < 2 * GROWTH_BYTES_MAX
