"""Hostile objects in place of stored ones, read by everything that reads a store: python stored_bounds.py DIRECTORY KIND...

Prints, as JSON, for each kind of object and each reader the memory that reading added to the process, in bytes, and what it said.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import resource
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Final

from direct import Failed, Stub, open_door
from servers import MASTER, Running
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.app.data_directory import DataDirectory
from staddle_server.app.second_site import SecondSite
from staddle_server.base.errors import StaddleError
from staddle_server.base.limits import RECORD_BYTES_MAX
from staddle_server.base.types import ChunkRef, Role
from staddle_server.catalog import open_catalog
from staddle_server.store import pack_writer, packform
from staddle_server.store.backends.directory import DirectoryBlobs
from staddle_server.store.blobs import check_format, create_format
from staddle_server.store.keys import KeyStore
from staddle_server.store.marks import Began, GenerationMark, marks_in, put_mark, read_mark
from staddle_server.store.pack import Codec
from staddle_server.store.pack_writer import PackWriter
from staddle_server.store.records import TenantRecord, encode_record
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.gc.collector import Collector
from staddle_server.upkeep.integrity.check import Check, CheckPlan
from staddle_server.upkeep.integrity.copies import mend_all
from staddle_server.upkeep.integrity.drill import Drilling
from staddle_server.upkeep.integrity.findings import Kept
from staddle_server.upkeep.integrity.parity import forget_lost, make_all
from staddle_server.upkeep.integrity.repair import Repair
from staddle_server.upkeep.integrity.scrub import Scrubber
from staddle_server.upkeep.rebuild.run import Rebuilding
from staddle_server.upkeep.replication.run import Replication, ReplicationPlan
from thin import begin, finish, messages, noise, small

MIB: Final = 1 << 20
SPARSE_BYTES: Final = 3 << 30
DATA_MAX: Final = 768 * MIB
"""More than this no reader gets: one that reads without a bound fails, and takes no machine down."""
DAY_S: Final = 86_400.0


class Opened:
    """A store and its catalog, as a server or a command opens them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.running = Running(root, parity_percent=10)
        token = root / "token"
        if not token.exists():
            token.write_text(self.running.token())
        self.stub = Stub(token.read_text())
        running = self.running
        self.rows = running.catalog.tenants.list_all()
        self.forget()

    def forget(self) -> None:
        """Let the next reader open the tenants' keys again, as a command does."""
        running = self.running
        self.tenants = Tenants(running.blobs, running.catalog, running.keys)
        self.kept = Kept(running.catalog, running.blobs, running.keys, self.tenants, running.clock)

    def oldest(self) -> str:
        return self.stub.ListBackups(sv.ListBackupsRequest(dataset="www")).backups[-1].id

    def close(self) -> None:
        self.running.service.drain(0.0)
        self.running.catalog.close()


def _start(opened: Opened) -> None:
    """A server has opened all this: it compares the packs, sweeps, and looks at the format."""
    opened.running.blobs.sweep()
    check_format(opened.running.blobs)
    opened.running.service._integrity.look_for_lost(lambda: False)
    opened.running.service._integrity.compare(lambda: False)


def _rebuild(opened: Opened) -> None:
    root = opened.root
    blobs = DirectoryBlobs(str(root / "store"))
    catalog = open_catalog(str(root / "new.db"))
    try:
        Rebuilding(blobs, KeyStore(blobs, MASTER), catalog, 2 * 10**18, lambda *_: None).run()
    finally:
        catalog.close()
        (root / "new.db").unlink()


def _collect(opened: Opened) -> None:
    opened.running.clock.ahead_s += 30 * DAY_S
    Collector(opened.kept.catalog, opened.tenants, opened.kept.clock).collect(grace_s=0)


def _scrub(opened: Opened) -> None:
    opened.running.clock.ahead_s += 2 * DAY_S
    Scrubber(opened.kept, period_s=DAY_S, bytes_per_s=1e12, busy=lambda: False).run(lambda: False)


def _parity(opened: Opened) -> None:
    make_all(opened.tenants, opened.kept.catalog, 10)
    forget_lost(opened.tenants, opened.kept.catalog, opened.kept.blobs, read=True)


def _back_up(opened: Opened) -> None:
    opened.stub.Backup(backup("www", 3))
    opened.stub.Backup(backup("new", 4))


def _replicate(opened: Opened) -> None:
    """Everything is copied, and what is there is read again."""
    place = opened.root / "second"
    shutil.rmtree(place, ignore_errors=True)
    site = SecondSite(DataDirectory(opened.root), str(place), os.environ)
    opened.kept.catalog.replicas.forget(site.name)
    for _ in range(2):
        Replication(opened.kept, site, ReplicationPlan(verify=True)).run()


def _drill(opened: Opened) -> None:
    drills = Drilling(opened.kept, opened.running.service._openers)
    drills.drill(opened.kept.catalog.drills.newest(opened.running.tenant, "www"))


READERS: Final[dict[str, Callable[[Opened], Any]]] = {
    "start": _start,
    "restore": (lambda o: o.stub.Restore(sv.RestoreRequest(dataset="www"))),
    "list": (lambda o: o.stub.ListEntries(sv.ListEntriesRequest(dataset="www", recursive=True))),
    "compare": (
        lambda o: o.stub.ListChanges(
            sv.ListChangesRequest(
                dataset="www",
                from_backup=pb.BackupSelector(backup=o.oldest()),
                to_backup=pb.BackupSelector(backup="latest"),
            )
        )
    ),
    "range": (lambda o: o.stub.ReadRange(sv.ReadRangeRequest(dataset="www", path="a", length_bytes=100))),
    "backup": (_back_up),
    "check": (lambda o: Check(o.kept, CheckPlan(), lambda _: None).run(o.rows, all_tenants=True)),
    "check --read": (
        lambda o: Check(o.kept, CheckPlan(read=True, random=Random(1)), lambda _: None).run(
            o.rows, all_tenants=True
        )
    ),
    "scrub": (_scrub),
    "drill": _drill,
    "packs": (lambda o: o.running.service._integrity.look()),
    "rebuild": _rebuild,
    "copies": (lambda o: mend_all(o.tenants, o.kept.catalog, o.kept.keys)),
    "replicate": (_replicate),
    "parity": (_parity),
    "retention": (lambda o: o.running.service._schedule.look()),
    "gc": (_collect),
    "adopt": lambda o: [read_mark(o.kept.blobs, mark) for mark in marks_in(o.kept.blobs)],
    "repair": (lambda o: Repair(o.kept, lambda _: None, dry_run=False).run(o.rows)),
}
"""All that read a store, those that change it last."""


def backup(name: str, seed: int) -> list[sv.BackupRequest]:
    files = {"a": noise(200_000, seed), "b": b"b" * 5000, **{f"d/{n}": noise(50, n) for n in range(40)}}
    parts = [begin(name), *(small(path, data) for path, data in files.items())]
    return list(messages([*parts, finish(len(files), sum(map(len, files.values())))]))


def make(root: Path) -> None:
    """A store with everything on: two backups, one deleted, a hold, parity, copies."""
    opened = Opened(root)
    create_format(opened.running.blobs)
    put_mark(opened.running.blobs, GenerationMark.after(0), Began("here", "2026-11-29T00:00:00Z"))
    for seed in (1, 2):
        opened.stub.Backup(backup("www", seed))
    gone = opened.stub.Backup(backup("gone", 5)).backup
    opened.stub.DeleteBackup(sv.DeleteBackupRequest(dataset="gone", backup=gone.id))
    opened.stub.SetHold(sv.SetHoldRequest(dataset="www", reason="case"))
    _parity(opened)
    mend_all(opened.tenants, opened.kept.catalog, opened.kept.keys)
    opened.close()


# --- hostile objects


def sparse(path: Path) -> None:
    """A sparse file of gibibytes."""
    with path.open("r+b") as file:
        file.truncate(SPARSE_BYTES)


def sparse_and_ending_as_before(path: Path) -> None:
    """The same with what stood at the end, which says where things lie."""
    end = path.read_bytes()[-200:]
    with path.open("r+b") as file:
        file.truncate(SPARSE_BYTES - len(end))
        file.seek(0, os.SEEK_END)
        file.write(end)


@contextlib.contextmanager
def without_limits() -> Iterator[None]:
    """What writes what must not be written."""
    modules = (pack_writer, packform)
    names = ("PACK_CHUNKS_MAX", "FOOTER_BYTES_MAX")
    before = [(module, name, getattr(module, name)) for module in modules for name in names]
    for module, name, _ in before:
        setattr(module, name, 1 << 40)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def pack_of(path: Path, root: Path, fill: Callable[[PackWriter], None]) -> None:
    """Another pack under the name of this one, sealed with the right keys."""
    opened = Opened(root)
    tenant = opened.tenants.get(opened.rows[0].id)
    path.unlink()
    with without_limits():
        writer = PackWriter(tenant.blobs, tenant.keys, random=lambda n: bytes.fromhex(path.name)[:n])
        fill(writer)
        writer.finish()
    opened.close()


def record_of(path: Path, root: Path) -> None:
    """Another record under the name of this one, as large as a record may be, of small things, sealed with the right keys."""
    opened = Opened(root)
    records = opened.tenants.get(opened.rows[0].id).records
    place = records.stored(f"records/{path.parent.name}/{path.name}").place
    body = encode_record(TenantRecord("x", 1))
    count = (RECORD_BYTES_MAX - 1000) // 3
    # An unknown field: a list of empty items, each of which would become an object.
    many = b"\xdd" + (3 * count).to_bytes(4, "big") + b"\x80\xa0\x90" * count
    path.unlink()
    records.put(
        bytes([body[0] + 1]) + body[1:] + b"\xa4more" + many,
        place,
        bytes.fromhex(path.name.partition("-")[2]),
    )
    opened.close()


def too_many_chunks(writer: PackWriter) -> None:
    """Chunks of a byte, a few times as many as a footer may name."""
    table, payload = [ChunkRef(1, bytes(32))] * 65_536, bytes(65_536)
    for _ in range(4):
        writer.append(Role.DATA, table, Codec.RAW, payload, len(payload))


def all_of_them(harm: Callable[[Path], None]) -> Callable[[list[Path], Path], None]:
    def do(paths: list[Path], _root: Path) -> None:
        for path in paths:
            harm(path)

    return do


SPARSE = {"sparse": all_of_them(sparse)}
WITH_END = {"sparse, with its end": all_of_them(sparse_and_ending_as_before)}
HOSTILE: Final[dict[str, dict[str, Callable[[list[Path], Path], None]]]] = {
    "packs": {
        **SPARSE,
        **WITH_END,
        "too many chunks": lambda paths, root: pack_of(paths[0], root, too_many_chunks),
    },
    "records": {**SPARSE, "too many things": lambda paths, root: record_of(paths[-1], root)},
    "heads": SPARSE,
    "keys": SPARSE,
    "copies": SPARSE,
    "parity": {**SPARSE, **WITH_END},
    "format": SPARSE,
    "marks": SPARSE,
}
"""By kind: what stands in the store in place of all objects of that kind."""


def kinds(root: Path) -> set[str]:
    """The kinds of objects in a store: what lies in its directory, but files that are being written."""
    return {each.name for each in (root / "store").iterdir()} - {"tmp"}


# --- measuring


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{field}:"))


def peak_bytes() -> int:
    return _status("VmHWM")


_libc = ctypes.CDLL(None)


def forget_peak() -> int:
    """From now on the peak counts anew, and what was freed is no room for what comes; what is there now."""
    _libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def measure(read: Callable[[Opened], Any], opened: Opened) -> tuple[int, str]:
    before = forget_peak()
    try:
        opened.forget()
        read(opened)
        said = "read"
    except (StaddleError, Failed) as error:
        said = str(error)
    except BaseException as error:
        said = f"FAULT {error!r}"
    return max(0, peak_bytes() - before), said


def main() -> None:
    place = Path(sys.argv[1])
    logging.disable(logging.CRITICAL)
    threading.stack_size(MIB)  # stacks count as data
    made = place / "made"
    (made / "store").mkdir(parents=True)
    found: dict[str, Any] = {"rows": []}
    with open_door():
        make(made)
        found["kinds"] = sorted(kinds(made))
        found["rows"] += rows_of("nothing", "as it was", made, place, lambda *_: None)
        # Load everything that is loaded once.
        taken = _status("VmData")
        resource.setrlimit(resource.RLIMIT_DATA, (taken + DATA_MAX, taken + DATA_MAX))
        for kind in sys.argv[2:]:
            for way, harm in HOSTILE[kind].items():
                found["rows"] += rows_of(kind, way, made, place, harm)
    print(json.dumps(found))


def rows_of(
    kind: str, way: str, made: Path, place: Path, harm: Callable[[list[Path], Path], None]
) -> Iterator[list[Any]]:
    """What each reader says of a copy of the store in which one kind of objects is harmed."""
    root = place / f"{kind} {way}"
    shutil.copytree(made, root)
    at = root / "store" / kind
    harm([at] if at.is_file() else sorted(each for each in at.rglob("*") if each.is_file()), root)
    opened = Opened(root)
    for name, read in READERS.items():
        yield [kind, way, name, *measure(read, opened)]
    opened.close()


if __name__ == "__main__":
    main()
