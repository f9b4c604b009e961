"""A crash between any two durable steps, then a lost catalog: everything acknowledged by then is rebuilt completely.

The store records the order in which its objects become durable. Each prefix of that order is a store that a crash can leave.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rebuilt import files_of, rebuilt
from servers import empty_catalog
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.catalog import Catalog
from staddle_server.store.blobs import Blobs, BlobWriter, Buffer
from staddle_server.store.wrapped import WrappedBlobs, WrappedWriter
from thin import Source, back_up, noise

Files = dict[str, bytes]


class Event(NamedTuple):
    """An event: an object became durable or replaced another one, or a call on a backup was sent (begun) or answered (done)."""

    kind: str
    what: Any


class Journal(WrappedBlobs):
    """A store that records when an object becomes durable."""

    def __init__(self, blobs: Blobs, note: Callable[[Event], None]) -> None:
        super().__init__(blobs)
        self._note = note

    def create(self) -> JournalWriter:
        return JournalWriter(super().create(), self._note)

    def put(self, name: str, data: bytes) -> None:
        super().put(name, data)
        self._note(Event("object", name))


class JournalWriter(WrappedWriter):
    def __init__(self, writer: BlobWriter, note: Callable[[Event], None]) -> None:
        super().__init__(writer)
        self._note = note
        self._written = bytearray()

    def write(self, data: Buffer) -> None:
        super().write(data)
        if len(self._written) < 1000:
            self._written += data

    def replace(self, name: str) -> None:
        super().replace(name)
        self._note(Event("replaced", (name, bytes(self._written))))

    def commit(self, name: str) -> None:
        super().commit(name)
        self._note(Event("object", name))


class Job:
    """Clients' calls, one after the other, each noted before it is sent and after it was answered."""

    def __init__(self, running: Any, note: Callable[[Event], None]) -> None:
        self.other = running.make_tenant("other")
        running.restart()
        self.stubs = {running.tenant: running.stub(), self.other: running.stub(tenant=self.other)}
        self.note = note
        self.contents: list[tuple[bytes, Files]] = []
        """The tenant and the files of each backup, by the number in its tag."""
        self.ids: dict[int, str] = {}

    def back_up(self, tenant: bytes, dataset: str, files: Files, **said: Any) -> int:
        return self._backup(
            tenant, files, lambda tags: back_up(self.stubs[tenant], dataset, files, tags=tags, **said)
        )

    def source_side(self, tenant: bytes, dataset: str, files: Files, checkpoints: bool = False) -> int:
        def send(tags: dict[str, str]) -> pb.Backup:
            source = Source(self.stubs[tenant], dataset, tags=tags, scope=pb.UPLOAD_SCOPE_WHOLE)
            for path, data in files.items():
                source.put_file(path, data)
                if checkpoints:
                    source.stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
            return source.commit()

        return self._backup(tenant, files, send)

    def changes(self, tenant: bytes, dataset: str, base: int, changed: Files) -> int:
        def send(tags: dict[str, str]) -> pb.Backup:
            source = Source(self.stubs[tenant], dataset, tags=tags, scope=pb.UPLOAD_SCOPE_CHANGES)
            for path, data in changed.items():
                source.put_file(path, data)
            return source.commit()

        return self._backup(tenant, self.contents[base][1] | changed, send)

    def _backup(self, tenant: bytes, files: Files, send: Callable[[dict[str, str]], pb.Backup]) -> int:
        number = len(self.contents)
        self.contents.append((tenant, files))
        self.note(Event("begun", ("backup", number)))
        self.ids[number] = send({"n": str(number)}).id
        self.note(Event("done", ("backup", number)))
        return number

    def delete(self, dataset: str, number: int) -> None:
        self._decide("delete", number, lambda stub: stub.DeleteBackup, sv.DeleteBackupRequest, dataset)

    def undelete(self, dataset: str, number: int) -> None:
        self._decide("undelete", number, lambda stub: stub.UndeleteBackup, sv.UndeleteBackupRequest, dataset)

    def _decide(self, what: str, number: int, method: Any, request: Any, dataset: str) -> None:
        self.note(Event("begun", (what, number)))
        stub = self.stubs[self.contents[number][0]]
        method(stub)(request(dataset=dataset, backup=self.ids[number]))
        self.note(Event("done", (what, number)))


def do(job: Job, tenant: bytes) -> None:
    """Every kind of call that leaves something in the store."""
    small = {f"d{i % 3}/f{i}": b"%d" % i for i in range(40)}
    large = {"a": noise(400_000, 1), "b": noise(300_000, 2)}
    one = job.back_up(tenant, "www", small)
    two = job.source_side(tenant, "www", small | large, checkpoints=True)
    job.delete("www", one)
    job.changes(tenant, "www", two, {"a": noise(400_000, 3)})
    job.source_side(job.other, "www", large)
    job.undelete("www", one)
    job.delete("www", two)
    four = job.back_up(tenant, "empty", {})
    job.back_up(tenant, "empty", {"x": noise(10, 4)}, kind=pb.BACKUP_KIND_DIFFERENTIAL)
    job.delete("empty", four)
    job.undelete("empty", four)
    job.delete("empty", four)
    left_open = Source(job.stubs[tenant], "www")
    left_open.put_file("c", noise(200_000, 5))
    left_open.stub.CheckpointUpload(sv.CheckpointUploadRequest(**left_open.id))


class Expected:
    """The backups that must, and those that may exist after the events so far."""

    def __init__(self) -> None:
        self.begun: set[int] = set()
        self.done: set[int] = set()
        self.deleted: dict[int, set[bool]] = {}
        """For each backup, what a rebuild may say of it: an unanswered call leaves both open."""

    def take(self, event: Event) -> None:
        what, number = event.what
        if what == "backup":
            (self.begun if event.kind == "begun" else self.done).add(number)
            self.deleted.setdefault(number, {False})
        elif event.kind == "begun":
            self.deleted[number] = self.deleted[number] | {what == "delete"}
        else:
            self.deleted[number] = {what == "delete"}

    def check(self, found: dict[int, bool]) -> None:
        """`found` maps each backup in the catalog to whether it is deleted."""
        assert self.done <= found.keys(), "an acknowledged backup is gone"
        assert found.keys() <= self.begun
        for number, deleted in found.items():
            assert deleted in self.deleted[number], f"backup {number} was deleted or undeleted"


def found_in(catalog: Catalog, store: Path, job: Job) -> dict[int, bool]:
    """The backups of a catalog, by the number in their tag, and whether they are deleted. Each one is restored and compared."""
    found = {}
    for tenant in catalog.tenants.list_all():
        for dataset in catalog.datasets.list_page(tenant.id, "", 1000):
            for backup in catalog.backups.list_page(tenant.id, dataset.name, limit=1000, show_deleted=True):
                number = int(backup.tags["n"])
                owner, files = job.contents[number]
                assert owner == tenant.id
                assert files_of(catalog, store, tenant.id, backup.id) == files
                found[number] = backup.deleted_ns is not None
    return found


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_catalog_rebuilt_after_any_crash_has_exactly_what_was_acknowledged(
    running: Any, tmp_path: Path, every: int
) -> None:
    events: list[Event] = []
    made = [
        Event("replaced", (name, running.blobs.read(name, 0, size)))
        if name.startswith("heads/")
        else Event("object", name)
        for name, size in running.blobs.list("")
    ]
    made.sort(key=lambda event: event.kind)  # a head says no more than there is
    running.wrap = lambda blobs: Journal(blobs, events.append)
    running.restart()
    job = Job(running, events.append)
    do(job, running.tenant)
    running.stop()

    store, expected = tmp_path / "prefix", Expected()
    found: dict[int, bool] = {}
    objects, rebuilds, is_rebuilt = 0, 0, False
    store.mkdir()
    last = sum(event.kind in {"object", "replaced"} for event in made + events)
    for event in made + events:
        if event.kind in {"object", "replaced"}:
            name, data = event.what if event.kind == "replaced" else (event.what, None)
            (store / name).parent.mkdir(parents=True, exist_ok=True)
            if data is None:
                os.link(running.root / "store" / name, store / name)
            else:
                (store / name).unlink(missing_ok=True)
                (store / name).write_bytes(data)
            objects += 1
            if not (is_rebuilt := objects % every == 0 or objects == last):
                continue
            rebuilds += 1
            path = tmp_path / f"{rebuilds}.db"
            path.write_bytes(empty_catalog())
            with rebuilt(store, path) as (catalog, report):
                assert report.problems == []
                found = found_in(catalog, store, job)
        else:
            expected.take(event)
        if is_rebuilt:
            expected.check(found)
    assert rebuilds > 30 // every
    assert found == {0: False, 1: True, 2: False, 3: False, 4: True, 5: False}
    running.start()
