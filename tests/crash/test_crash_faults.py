"""Faults of disk, clock and catalog: the documented error, no loss, a running server, and service once the cause is gone."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner
from crash_server import CrashServer
from crash_steps import Observer, Step, watched
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sqlalchemy import event
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.app import health_probe
from staddle_server.base.clock import SystemClock
from staddle_server.base.errors import Unavailable
from staddle_server.catalog import open_catalog
from staddle_server.cli.run import group
from staddle_server.store.backends.directory import DirectoryBlobs
from staddle_server.store.files import Files
from thin import (
    Part,
    Source,
    back_up,
    backups,
    begin,
    finish,
    info,
    large,
    messages,
    noise,
    restore,
    wait_until,
)

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE"
FULL = grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL"
FAILS = [(errno.ENOSPC, FULL), (errno.EDQUOT, FULL)]
FAILS += [(number, UNAVAILABLE) for number in (errno.EIO, errno.EROFS, errno.EACCES, errno.EMFILE)]


class Fault(Observer):
    """Steps and reads that fail while a test says so."""

    def __init__(self) -> None:
        self.steps = re.compile("$.")
        self.number = 0
        self.reads = False

    def before(self, step: Step) -> None:
        if self.steps.fullmatch(step.name):
            raise OSError(self.number, os.strerror(self.number))

    def fail(self, steps: str, number: int) -> None:
        self.steps, self.number = re.compile(steps), number

    def mend(self) -> None:
        self.steps = re.compile("$.")


class Reading(Files):
    """Files of which nothing can be read while a test says so, or only what is in `where` of the one that has this size."""

    fails = 0
    where = range(0)
    size = 0

    def read(self, descriptor: int, length: int, offset: int) -> bytes:
        here = not self.where or (
            os.fstat(descriptor).st_size == self.size and {*self.where} & {*range(offset, offset + length)}
        )
        if self.fails and here:
            raise OSError(self.fails, os.strerror(self.fails))
        return super().read(descriptor, length, offset)


@pytest.fixture
def fault() -> Iterator[Fault]:
    made = Fault()
    with watched(made):
        yield made
        made.mend()


def failure(call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as failed:
        call()
    assert failed.value.details()
    return failed.value.code(), info(failed.value).reason


def writes(address: str) -> str:
    """The health of writing; asserts that everything else is healthy."""
    with grpc.insecure_channel(address) as channel:
        ask = health_pb2_grpc.HealthStub(channel).Check
        whole = ask(health_pb2.HealthCheckRequest(), timeout=60).status
        assert whole == health_pb2.HealthCheckResponse.SERVING
        half = ask(health_pb2.HealthCheckRequest(service=health_probe.WRITES), timeout=60).status
    return health_pb2.HealthCheckResponse.ServingStatus.Name(half)


# --- the disk


STEPS = ["temporary.create", "pack.write", "pack.link", "record.write", "record.link", "directory.make"]
STEP_FAILS = [
    (step, *fails) for step in STEPS for fails in FAILS if step == "pack.write" or fails in FAILS[:3:2]
]


@pytest.mark.parametrize(
    ("steps", "number", "expected"),
    STEP_FAILS,
    ids=[f"{step} {errno.errorcode[number]}" for step, number, _ in STEP_FAILS],
)
def test_each_failing_step_is_reported_and_a_repeated_backup_succeeds(
    fault: Fault, running, steps: str, number: int, expected: tuple[grpc.StatusCode, str]
) -> None:
    stub = running.stub()
    if steps == "directory.make":
        shutil.rmtree(running.root / "store" / "packs", ignore_errors=True)
    else:
        back_up(stub, "www", {"a": b"1"})
    parts = [begin("www", request_id="r"), *large("b", noise(1_500_000)), finish(1, 1_500_000)]
    fault.fail(steps, number)
    assert failure(lambda: stub.Backup(messages(parts))) == expected
    assert writes(running.address) == "SERVING", "nothing has failed for good"
    fault.mend()
    upload = stub.GetUpload(sv.GetUploadRequest(request_id="r")).upload
    if not upload.backup_id:
        stub.AbortUpload(sv.AbortUploadRequest(upload_id=upload.id, epoch=upload.epoch))
        parts[0] = begin("www", request_id="again")
    made = stub.Backup(messages(parts)).backup
    assert restore(stub, "www").files == {"b": noise(1_500_000)}
    assert made.id == backups(stub, "www")[0].id
    wait_until(lambda: not os.listdir(running.root / "store" / "tmp"))


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE])
def test_a_temporary_read_error_is_not_reported_as_damage(running, number: int) -> None:
    stub = running.stub()
    back_up(stub, "www", {"a": noise(500_000)})
    reading = Reading()
    running.stop()
    running.wrap = lambda _: DirectoryBlobs(str(running.root / "store"), reading)
    running.start()
    stub = running.stub()
    assert restore(stub, "www").files  # the keys are open now, as in a working server
    reading.fails = number
    assert failure(lambda: restore(stub, "www")) == UNAVAILABLE
    reading.fails = 0
    assert restore(stub, "www").files == {"a": noise(500_000)}
    source = Source(stub, "other")
    assert source.missing(source.cut(noise(500_000))) == [], "nothing was marked as damaged"


def test_an_unreadable_sector_costs_its_own_files_and_the_rest_is_restored(running) -> None:
    files = {"a": noise(600_000, 1), "b": noise(1_200_000, 2), "c": noise(1_200_000, 3)}
    back_up(running.stub(), "www", files)
    pack = max((running.root / "store" / "packs").rglob("*"), key=lambda path: path.stat().st_size)
    reading = Reading()
    running.stop()
    running.wrap = lambda _: DirectoryBlobs(str(running.root / "store"), reading)
    running.start()
    stub = running.stub()
    reading.size, reading.where, reading.fails = pack.stat().st_size, range(1000, 1512), errno.EIO
    restored = restore(stub, "www")
    damaged = {damage.path for damage in restored.damages}
    assert "a" in damaged
    assert "c" not in damaged, "b may share a segment with a; c does not"
    assert "EIO" in restored.damages[0].message
    assert {path: data for path, data in restored.files.items() if path not in damaged} == {
        path: data for path, data in files.items() if path not in damaged
    }
    reading.fails = 0
    assert restore(stub, "www").files == files, "it was not marked, and is read again"
    source = Source(stub, "other")
    assert source.missing(source.cut(files["a"])) == [], "nothing was marked as damaged"


@pytest.mark.parametrize(
    "steps", ["pack.sync", "pack.sync-directory", "record.sync", "record.sync-directory"]
)
def test_after_a_failed_sync_health_reports_read_only_until_a_restart(
    fault: Fault, running, caplog: pytest.LogCaptureFixture, steps: str
) -> None:
    stub = running.stub()
    back_up(stub, "www", {"a": b"1"})
    assert writes(running.address) == "SERVING"
    fault.fail(steps, errno.EIO)
    assert failure(lambda: back_up(stub, "www", {"b": b"2"})) == UNAVAILABLE
    fault.mend()
    wait_until(lambda: writes(running.address) == "NOT_SERVING")
    assert caplog.text.count("refuses writes from now on") == 1
    asked = CliRunner().invoke(
        group, ["health", "--data", str(running.root), "--server", running.address, "--wait", "20s"]
    )
    assert asked.exit_code == 3
    assert "read-only" in asked.output
    assert "restart it" in asked.output
    assert failure(lambda: back_up(stub, "www", {"b": b"2"})) == UNAVAILABLE
    shown = [backup.id for backup in backups(stub, "www")]
    for decided in (
        lambda: stub.DeleteBackup(sv.DeleteBackupRequest(dataset="www", backup=shown[0])),
        lambda: stub.BeginUpload(sv.BeginUploadRequest(dataset="www")),
        lambda: stub.SetHold(sv.SetHoldRequest(dataset="www", reason="case 1")),
        lambda: stub.SetHold(sv.SetHoldRequest(dataset="www", backup=shown[0], reason="case 1")),
        lambda: stub.SetRetention(
            sv.SetRetentionRequest(dataset="www", policy=pb.RetentionPolicy(keep_last=1))
        ),
    ):
        assert failure(decided) == UNAVAILABLE
    assert [backup.id for backup in backups(stub, "www")] == shown, (
        "nothing was decided that cannot be recorded"
    )
    assert restore(stub, "www").files, "existing data can be read"
    running.restart()
    assert writes(running.address) == "SERVING"
    stub = running.stub()
    back_up(stub, "www", {"b": b"2"})
    assert restore(stub, "www").files == {"b": b"2"}


@contextmanager
def small_disk(place: Path, size_bytes: int) -> Iterator[Path]:
    """A separate file system. Skips the test where none can be mounted."""
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(place)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@dataclass(frozen=True)
class FailingDisk:
    """A file system that its kernel makes read-only."""

    place: Path
    trigger: Path

    def fail(self) -> None:
        self.trigger.write_text("an error of a test")


@contextmanager
def failing_disk(directory: Path) -> Iterator[FailingDisk]:
    """An ext4 file system in a file. Skips the test where none can be mounted."""
    image, place = directory / "image", directory / "disk"
    place.mkdir()
    image.touch()
    os.truncate(image, 64 << 20)
    device = ""
    for words in (
        ["mkfs.ext4", "-q", str(image)],
        ["mount", "-o", "loop,errors=remount-ro", str(image), str(place)],
        ["findmnt", "-n", "-o", "SOURCE", str(place)],
    ):
        if not shutil.which(words[0]):
            pytest.skip(f"no ext4 file system can be mounted here: that takes {words[0]}")
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no ext4 file system can be mounted here: {done.stderr.strip()}")
        device = done.stdout.strip()
    try:
        yield FailingDisk(place, Path("/sys/fs/ext4", Path(device).name, "trigger_fs_error"))
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_really_full_disk_stops_backups_but_not_restores(only_root: None, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 24 << 20) as disk:
        server = CrashServer(disk)
        try:
            server.start()
            stub = server.stub
            back_up(stub, "www", {"a": noise(1_000_000)})
            # Everything is full, the catalog's file too.
            blocks = disk / "filler"
            filler = subprocess.run(
                ["dd", "if=/dev/zero", f"of={blocks}", "bs=4096"], capture_output=True, check=False
            )
            assert b"No space left" in filler.stderr
            for _ in range(2):
                assert failure(lambda: back_up(stub, "www", {"b": noise(3_000_000, 2)})) == FULL
            assert restore(stub, "www").files == {"a": noise(1_000_000)}
            blocks.unlink()
            back_up(stub, "www", {"b": noise(3_000_000, 2)})
            assert restore(stub, "www").files == {"b": noise(3_000_000, 2)}
        finally:
            server.kill()


def test_a_server_without_file_handles_reports_that_and_recovers(tmp_path: Path) -> None:
    server = CrashServer(tmp_path)
    try:
        server.start()
        stub = server.stub
        back_up(stub, "www", {"a": b"1"})
        before = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        highest = max(int(name) for name in os.listdir(f"/proc/{server.pid}/fd"))
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (highest + 1, before[1]))
        taken = [failure(lambda: back_up(stub, "www", {"b": b"2"})) for _ in range(3)]
        assert set(taken) == {UNAVAILABLE}
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, before)
        back_up(stub, "www", {"b": b"2"})
        assert restore(stub, "www").files == {"b": b"2"}
        assert not server.has_died()
    finally:
        server.kill()


# --- the catalog

HOLD = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN " + sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(path: Path, how: str) -> Iterator[None]:
    """Another process with an open transaction of the database."""
    words = [sys.executable, "-c", HOLD, str(path), how]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "held\n"
        yield
        holder.stdin.close()


@pytest.fixture
def impatient(running):
    """The service, with a catalog that waits only briefly for a lock."""
    running.stop()
    running.catalog_options = {"busy_timeout_s": 0.2}
    running.start()
    return running


def test_a_catalog_locked_by_another_process_is_busy_until_it_is_unlocked(impatient) -> None:
    stub = impatient.stub()
    back_up(stub, "www", {"a": b"1"})
    with held(impatient.root / "catalog.db", "IMMEDIATE"):
        with pytest.raises(grpc.RpcError) as failed:
            back_up(stub, "www", {"b": b"2"})
        assert (failed.value.code(), info(failed.value).reason) == UNAVAILABLE
        assert "busy" in failed.value.details()
        assert restore(stub, "www").files == {"a": b"1"}, "reading waits for no lock"
    back_up(stub, "www", {"b": b"2"})
    assert restore(stub, "www").files == {"b": b"2"}


def test_health_says_while_the_catalog_takes_no_write(impatient) -> None:
    impatient.stop()
    impatient.beat_every_s = 0.05
    impatient.start()
    stub = impatient.stub()
    back_up(stub, "www", {"a": b"1"})
    assert writes(impatient.address) == "SERVING"
    with held(impatient.root / "catalog.db", "IMMEDIATE"):
        wait_until(lambda: writes(impatient.address) == "NOT_SERVING")
        with grpc.insecure_channel(impatient.address) as channel, pytest.raises(health_probe.ReadOnlyError):
            health_probe.check_on(channel, impatient.address, 5.0)
        assert restore(stub, "www").files == {"a": b"1"}
    wait_until(lambda: writes(impatient.address) == "SERVING")


def test_a_file_system_that_an_error_made_read_only_is_named(only_root: None, tmp_path: Path) -> None:
    with failing_disk(tmp_path) as disk:
        (disk.place / "data").mkdir()
        (tmp_path / "data").symlink_to(disk.place / "data")
        server = CrashServer(tmp_path)
        try:
            server.start()
            back_up(server.stub, "www", {"a": b"1"})
            disk.fail()
            with pytest.raises(grpc.RpcError) as failed:
                back_up(server.stub, "www", {"b": b"2"})
            assert "become read-only" in failed.value.details()
            assert (failed.value.code(), info(failed.value).reason) == UNAVAILABLE
            wait_until(lambda: writes(server.address) == "NOT_SERVING")
            assert restore(server.stub, "www").files == {"a": b"1"}
        finally:
            server.kill()


def test_a_catalog_that_is_locked_at_the_start_is_reported_and_not_recreated(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    with held(path, "EXCLUSIVE"), pytest.raises(Unavailable, match="busy"):
        open_catalog(str(path), busy_timeout_s=0.1)
    open_catalog(str(path), busy_timeout_s=5.0).close()


def test_a_catalog_on_a_full_disk_reports_that_and_recovers_without_changes(running) -> None:
    stub = running.stub()
    back_up(stub, "www", {"a": b"1"})
    engine = running.catalog.database.engine

    def no_room(connection) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    event.listen(engine, "begin", no_room, insert=True)
    source = Source(stub, "www")
    files = {f"f{index}": noise(100, index) for index in range(3000)}

    def fill() -> None:
        for path, data in files.items():
            source.put_chunks([data])
            source.put_entries(source.entry(path, data))
            if source.number % 100 == 0:
                stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))

    assert failure(fill) == FULL
    event.remove(engine, "begin", no_room)

    def room(connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")

    event.listen(engine, "begin", room, insert=True)
    assert restore(stub, "www").files == {"a": b"1"}
    back_up(stub, "www", files)
    assert restore(stub, "www").files == files


# --- the clock


class JumpingClock(SystemClock):
    """The machine's clock, whose wall time the test sets forward and back."""

    jump_s = 0

    def now_ns(self) -> int:
        return super().now_ns() + self.jump_s * 1_000_000_000


@pytest.mark.parametrize("jumps", [(86_400, 0), (-86_400, 0), (86_400, -86_400)])
def test_a_clock_jump_during_backups_neither_ends_nor_reorders_them(running, jumps: tuple[int, ...]) -> None:
    running.stop()
    running.clock = clock = JumpingClock()
    running.start()
    stub = running.stub()
    back_up(stub, "www", {"old": b"0"})

    def parts() -> Iterator[Part]:
        yield begin("www")
        yield from large("a", noise(1_500_000))
        for jump in jumps:
            clock.jump_s = jump
            yield from large(f"b{jump}", noise(1_500_000, jump))
        yield finish(1 + len(jumps), 1_500_000 * (1 + len(jumps)))

    source = Source(stub, "other")
    source.put_file("x", b"1")
    streamed = stub.Backup(messages(parts())).backup
    for jump in jumps:
        clock.jump_s = jump
        stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
        source.put_file(f"y{jump}", b"2")
    source.commit()
    assert set(restore(stub, "other").files) == {"x", *(f"y{jump}" for jump in jumps)}
    again = back_up(stub, "www", {"new": b"1"})
    listed = backups(stub, "www")
    assert [backup.number for backup in listed] == [3, 2, 1], "numbers, not times, say what is newest"
    assert listed[0].id == again.id
    assert len(restore(stub, "www", backup=_by_id(streamed.id)).files) == 1 + len(jumps)
    assert restore(stub, "www").files == {"new": b"1"}


def _by_id(backup: str):
    return pb.BackupSelector(backup=backup)
