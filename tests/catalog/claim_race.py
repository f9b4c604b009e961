"""Writers that reuse chunks, and collectors that take packs out of the index: one process of a race for one catalog.

    python claim_race.py URL NUMBER SEED ROUNDS

Two writers and a collector in each process. A backup says in its tags which chunks of a small pool it consists of: that stands for
its manifest. After every commit, and at the end, all chunks of every backup that is not deleted must be found.
"""

import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from staddle_server.base import errors
from staddle_server.base.types import (
    ChangeCounts,
    ChunkPlace,
    Kind,
    PackSummary,
    Root,
    SegmentRef,
    StoredChunk,
    TokenRole,
)
from staddle_server.catalog import (
    Backup,
    BeginUpload,
    Catalog,
    DurableUpdate,
    NewBackup,
    PendingRecord,
    Principal,
    Terms,
    open_catalog,
)

TENANT, POOL, EACH = bytes(16), 60, 4
CHUNKS = [bytes([number]) * 32 for number in range(POOL)]
TERMS = Terms(300, 7 * 24 * 3600)
LEASE_S = 60.0


def _chunks(backup: Backup) -> list[bytes]:
    return [CHUNKS[int(number)] for number in backup.tags["chunks"].split("-")]


def lost(catalog: Catalog, backups: Iterable[Backup]) -> list[str]:
    """What cannot be found of these backups."""
    return [
        f"chunk {wanted[0]} of backup {backup.number} of {backup.dataset}"
        for backup in backups
        for wanted in _chunks(backup)
        if not catalog.chunks.find(TENANT, [wanted])
    ]


def kept(catalog: Catalog, dataset: str) -> list[Backup]:
    return catalog.backups.list_page(TENANT, dataset, limit=1000)


class Writer:
    """Backs up, deletes now and then what it made, and looks whether everything else is there."""

    def __init__(self, catalog: Catalog, principal: Principal, name: str, seed: str) -> None:
        self.catalog, self.principal, self.name = catalog, principal, name
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()

    def round(self) -> None:
        numbers = self.random.sample(range(POOL), EACH)
        upload = self.catalog.uploads.begin(
            BeginUpload(
                upload=self.random.randbytes(16),
                principal=self.principal,
                dataset=self.name,
                now_ns=time.time_ns(),
                terms=TERMS,
                kind=Kind.FULL,
                tags={"chunks": "-".join(map(str, numbers))},
            )
        ).upload
        wanted = [CHUNKS[number] for number in numbers]
        claimed = self.catalog.chunks.claim(TENANT, upload.id, 1, wanted).places
        self.counts["claimed"] += len(claimed)
        self._store(upload.id, [each for each in wanted if each not in claimed])
        backup = self.random.randbytes(16)
        new = NewBackup(backup, Root(0, backup + backup, 1, 1), 1, ChangeCounts(1, 0, 0, 0, 0))
        made = self.catalog.uploads.commit(
            TENANT, upload.id, 1, packs=(), backup=new, record=lambda _: b"made", now_ns=time.time_ns(), accepted=(1, 1)
        )  # fmt: skip
        self.counts["committed"] += 1
        assert lost(self.catalog, [made]) == []
        mine = kept(self.catalog, self.name)
        if len(mine) > 3:
            chosen = self.random.choice(mine)
            record = PendingRecord(self.random.randbytes(16), TENANT, b"deleted")
            self.catalog.backups.delete(TENANT, chosen.id, time.time_ns(), record)
            self.counts["deleted"] += 1

    def _store(self, upload: bytes, missing: list[bytes]) -> None:
        for chunk in missing:
            pack = self.random.randbytes(16)
            self.catalog.packs.begin(TENANT, upload, 1, pack, time.time_ns())
            summary = PackSummary(
                pack, 500, [StoredChunk(chunk, ChunkPlace(SegmentRef(pack, 48, 400), 0, 400))]
            )
            self.catalog.uploads.checkpoint(
                TENANT, upload, 1, packs=[summary], durable=DurableUpdate(b"", 0, 0, 0), now_ns=time.time_ns(), terms=TERMS
            )  # fmt: skip
            self.counts["stored"] += 1


def collect(catalog: Catalog, holder: str, counts: Counter[str]) -> None:
    """One collection: purge, mark, condemn what was not reached."""
    fence = catalog.gc_lease.acquire(holder, time.time_ns(), LEASE_S)
    try:
        for each in catalog.purge.purgeable(TENANT, time.time_ns(), 0):
            record = PendingRecord(random.randbytes(16), TENANT, b"purged")
            if catalog.purge.purge(TENANT, fence, each.backup, time.time_ns(), record, grace_s=0):
                catalog.backups.mark_records_written(TENANT, [record.id])
        mark = catalog.marks.begin_mark(TENANT, fence, time.time_ns()).number
        roots = [root.backup for root in catalog.marks.roots(mark)]
        live = [chunk for root in roots for chunk in _chunks(catalog.backups.get(TENANT, root))]
        places = [place for found in catalog.chunks.find(TENANT, live).values() for place in found]
        catalog.marks.save_reached(
            TENANT, fence, mark, {place.segment.pack: b"reached" for place in places}.items()
        )
        catalog.marks.roots_walked(fence, mark, roots)
        catalog.marks.walk_done(fence, mark)
        for pack in catalog.marks.reached(mark, limit=10_000):
            if not pack.reached:
                done = catalog.marks.condemn(TENANT, fence, mark, [pack.pack], now_ns=time.time_ns())
                counts["condemned" if done else "kept by a claim"] += 1
        catalog.marks.end_claims(fence, mark)
        catalog.marks.end_mark(fence, mark, time.time_ns(), "")
        counts["collections"] += 1
    finally:
        catalog.gc_lease.release(fence)


def _collect_until(catalog: Catalog, holder: str, counts: Counter[str], done: threading.Event) -> None:
    while not done.is_set():
        try:
            collect(catalog, holder, counts)
        except errors.Conflict:
            counts["waited for the other collector"] += 1
            done.wait(0.02)


def _guarded(work: Any, faults: list[str]) -> Any:
    def run() -> None:
        try:
            work()
        except BaseException as error:
            faults.append(f"{type(error).__name__}: {error}")

    return run


def race(url: str, number: str, seed: str, rounds: int) -> tuple[Counter[str], list[str]]:
    """What happened, and what went wrong, in this process."""
    catalog = open_catalog(url)
    token = catalog.tokens.create(TENANT, f"w{number}", TokenRole.WRITER, 1)
    principal = catalog.tokens.authenticate(token, 2)
    counts: Counter[str] = Counter()
    faults: list[str] = []
    done = threading.Event()
    writers = [Writer(catalog, principal, f"set-{number}-{n}", f"{seed} {number} {n}") for n in range(2)]

    def work(writer: Writer) -> None:
        for _ in range(rounds):
            writer.round()

    threads = [threading.Thread(target=_guarded(lambda w=writer: work(w), faults)) for writer in writers]
    collector = threading.Thread(
        target=_guarded(lambda: _collect_until(catalog, f"collector {number}", counts, done), faults)
    )
    for thread in (*threads, collector):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    collector.join()
    for writer in writers:
        counts.update(writer.counts)
    catalog.close()
    return counts, faults


if __name__ == "__main__":
    counted, wrong = race(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
    print(repr(dict(counted)))
    sys.exit("\n".join(wrong[:3]) if wrong else 0)
