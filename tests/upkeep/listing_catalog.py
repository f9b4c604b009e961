"""As a program, in a process where nothing else allocates: compares a catalog with its store in each way that there is, and prints
by how many bytes memory grew meanwhile, as JSON: python listing_catalog.py CATALOG STORE.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import tracemalloc
from collections.abc import Callable

from servers import MASTER
from staddle_server.base.clock import SystemClock
from staddle_server.catalog import open_catalog
from staddle_server.catalog.values import TenantRow
from staddle_server.store.backends.directory import DirectoryBlobs
from staddle_server.store.keys import KeyStore
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.integrity.check import Check, CheckPlan, _TenantCheck
from staddle_server.upkeep.integrity.findings import Kept
from staddle_server.upkeep.integrity.watch import compare_packs


def compared(kept: Kept, row: TenantRow) -> None:
    found = compare_packs(kept, kept.tenants.get(row.id))
    assert (found.gone, found.other_size) == (0, 0)


def looked_for_orphans(kept: Kept, row: TenantRow) -> None:
    check = Check(kept, CheckPlan(mark_damage=False), lambda _finding: None)
    _TenantCheck(check, kept.tenants.get(row.id), row)._look_for_orphans()
    assert check.summary.orphans == 0


def listed(kept: Kept, _row: TenantRow) -> None:
    """For comparison."""
    assert list(kept.blobs.list("packs"))


def peak(work: Callable[[Kept, TenantRow], None], kept: Kept, row: TenantRow) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        work(kept, row)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def main() -> None:
    place, store = sys.argv[1:]
    catalog = open_catalog(place)
    blobs = DirectoryBlobs(store)
    keys = KeyStore(blobs, MASTER, random.randbytes)
    kept = Kept(catalog, blobs, keys, Tenants(blobs, catalog, keys), SystemClock())
    (row,) = catalog.tenants.list_all()
    compared(kept, row)  # what is loaded once
    print(
        json.dumps({work.__name__: peak(work, kept, row) for work in (compared, looked_for_orphans, listed)})
    )
    catalog.close()


if __name__ == "__main__":
    main()
