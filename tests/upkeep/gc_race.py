"""Concurrent writers, readers, deleters and collectors on a real server, for several rounds; nothing may be lost."""

from __future__ import annotations

import random
import threading
from collections import Counter
from dataclasses import dataclass, field

import grpc
from garbage_left import Garbage
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base.errors import Conflict
from staddle_server.upkeep.gc.collector import LEASE_S
from thin import Source, back_up, noise, restore

WRITERS, READERS, DELETERS, COLLECTORS = 3, 1, 1, 2
POOL = 24


@dataclass
class Race:
    """The backups and their outcomes. Each writer has a dataset; all take their files from one small pool."""

    garbage: Garbage
    seed: int
    rounds: int
    """Backups of each writer."""
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._pool = [noise(40_000 + 1000 * n, n) for n in range(POOL)]
        self._lock = threading.Lock()
        self._backups: dict[str, tuple[str, dict[str, bytes]]] = {}
        self._going: set[str] = set()
        self._faults: list[str] = []
        self._writing = 0
        self._runs = 0
        self.garbage.running.token()  # made once, before the others need it

    def run(self) -> None:
        """Run all at once until the writers are done; then check everything. May be called again, for more of the same."""
        self._writing = WRITERS
        self._runs += 1
        works = [
            (self._write, WRITERS),
            (self._read, READERS),
            (self._delete, DELETERS),
            (self._collect, COLLECTORS),
        ]
        threads = [
            threading.Thread(target=self._guarded, args=(work, n), name=f"{work.__name__} {n}")
            for work, count in works
            for n in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not self._faults, "\n".join(self._faults[:5])
        for _ in range(2):
            self.garbage.running.clock.ahead_s += LEASE_S + 1
            self.garbage.collect_all()
            self._check_all()

    def _check_all(self) -> None:
        stub = self.garbage.running.stub()
        for backup in sorted(set(self._backups) - self._going):
            self._restore(stub, backup)
        assert not self._faults, "\n".join(self._faults[:5])
        assert len(self.garbage.objects()) == self.garbage.count("packs")

    def _guarded(self, work, number: int) -> None:
        try:
            work(random.Random(f"{self.seed} {self._runs} {work.__name__} {number}"), number)
        except Exception as e:
            self._faults.append(f"{threading.current_thread().name}: {type(e).__name__}: {e}")
        finally:
            if work == self._write:
                with self._lock:
                    self._writing -= 1

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    # --- the actors

    def _write(self, rng: random.Random, number: int) -> None:
        stub, dataset = self.garbage.running.stub(), f"w{number}"
        for _ in range(self.rounds):
            files = {f"f{n}": self._pool[n] for n in rng.sample(range(POOL), rng.randint(1, 5))}
            how = rng.choice(["thin", "source", "changes", "resumed", "abandoned"])
            if how == "thin":
                made = back_up(stub, dataset, files)
            else:
                made, files = self._upload(stub, dataset, files, how)
            if made is not None:
                with self._lock:
                    self._backups[made.id] = (dataset, files)
            self._count(how)

    def _upload(self, stub, dataset: str, files: dict[str, bytes], how: str):
        has_base = how == "changes"
        try:
            source = Source(stub, dataset, **({"scope": pb.UPLOAD_SCOPE_CHANGES} if has_base else {}))
        except grpc.RpcError:
            return None, files  # every backup that it could start from is deleted
        for path, data in files.items():
            source.put_file(path, data)
            if how == "resumed":
                stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
                source.upload = stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id)).upload
        if how == "abandoned":
            stub.AbortUpload(sv.AbortUploadRequest(**source.id))
            return None, files
        if has_base:
            with self._lock:
                base = self._backups[source.upload.base_backup_id][1]
            files = base | files
        return source.commit(), files

    def _pick(self, rng: random.Random) -> str | None:
        with self._lock:
            there = sorted(set(self._backups) - self._going)
        return rng.choice(there) if there else None

    def _read(self, rng: random.Random, _number: int) -> None:
        stub = self.garbage.running.stub()
        while self._writing:
            backup = self._pick(rng)
            if backup is not None:
                self._restore(stub, backup)

    def _restore(self, stub, backup: str) -> None:
        dataset, files = self._backups[backup]
        try:
            found = restore(stub, dataset, backup=pb.BackupSelector(backup=backup))
            whole = not found.damages and found.files == files
            what = str([damage.message for damage in found.damages])
        except grpc.RpcError as e:
            whole, what = False, str(e.details())
        # A backup that was deleted meanwhile may disappear in the middle of its restore.
        if not whole and backup not in self._going:
            self._faults.append(f"backup {backup} is not what went in: {what}")
        self._count("restored" if whole else "gone while it was read")

    def _delete(self, rng: random.Random, _number: int) -> None:
        stub = self.garbage.running.stub()
        while self._writing:
            backup = self._pick(rng)
            if backup is None or len(self._backups) - len(self._going) < WRITERS + rng.randint(0, 6):
                threading.Event().wait(0.005)
                continue
            with self._lock:
                self._going.add(backup)
            stub.DeleteBackup(sv.DeleteBackupRequest(dataset=self._backups[backup][0], backup=backup))
            self._count("deleted")

    def _collect(self, rng: random.Random, number: int) -> None:
        collector = self.garbage.collector(f"collector {number}")
        done = threading.Event()
        while self._writing:
            stops = rng.randint(1, 1000)
            asked = iter(range(stops))
            try:
                report = collector.collect(lambda asked=asked: next(asked, None) is None, grace_s=0)
            except Conflict as e:
                self._count(f"collections refused ({e.reason})")
                done.wait(0.02)
                if rng.random() < 0.02:
                    self.garbage.running.clock.ahead_s += LEASE_S + 1  # the collector at work is overtaken
                continue
            self._count("collections cut short" if report.stopped else "collections")
            self._faults.extend(tenant.failure for tenant in report.failed)
            for name in ("backups_purged", "packs_condemned", "packs_compacted", "packs_reaped"):
                self.counts[name] += report.sum_of(name)
