"""The costs of backups and restores: calls, memory, waits. They are counted and not timed."""

from __future__ import annotations

import errno
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from extent import extent
from fs_calls import counted_calls
from fs_trees import assert_same, open_below, plant, seeded_bytes
from staddle._restore import write_pool
from staddle._restore.stats import TargetFullError
from staddle._transport import progress as reporting
from staddle._types.backups import Profile

MIB = 1024 * 1024


def plant_small(root: Path, count: int) -> None:
    """Many different small files, a hundred in a directory."""
    for number in range(count):
        if number % 100 == 0:
            (directory := root / f"d{number:05}").mkdir(parents=True)
        (directory / f"f{number}").write_bytes(b"%d" % number * 20)


@pytest.mark.parametrize("thin", [False, True], ids=["source", "thin"])
def test_thousands_of_small_files_need_only_a_few_calls(thin: bool, protected, tmp_path: Path) -> None:
    plant_small(protected.source, extent(1_000, 5_000))
    with counted_calls() as calls:
        protected.backup(thin=thin)
    assert calls["CommitUpload"] + calls["Backup"] == 1
    assert 3 <= calls.total() <= 20, calls
    with counted_calls() as calls:
        protected.backup(thin=thin)
    assert calls.total() <= 6, calls
    with counted_calls() as calls:
        protected.restore(tmp_path / "target")
    assert calls == {"Restore": 1}
    assert_same(protected.source, tmp_path / "target")
    for file in (tmp_path / "target").rglob("*0"):
        if file.is_file():
            file.write_bytes(b"differs now")
    with counted_calls() as calls:
        protected.restore(tmp_path / "target")
    assert calls.keys() == {"Restore"}
    assert calls.total() <= 3
    assert_same(protected.source, tmp_path / "target")


@pytest.mark.parametrize("waiting", [-1.0, float("inf")], ids=["threads", "one"])
def test_a_tree_is_the_same_whether_one_or_many_threads_write_it(
    waiting: float, protected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_pool, "WAITING", waiting)
    monkeypatch.setattr(write_pool, "BATCH_FILES", 3)
    plant(protected.source, files=200)
    protected.backup()
    report = protected.restore(tmp_path / "target")
    assert report.problems == ()
    assert report.entries_written + report.entries_unchanged == report.backup.entry_count
    assert_same(protected.source, tmp_path / "target")


def test_a_slow_target_gets_more_writer_threads(
    protected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_small(protected.source, 300)
    protected.backup()
    made: list[int] = []
    pool = write_pool.Threads
    monkeypatch.setattr(
        write_pool, "Threads", lambda count, **names: made.append(count) or pool(count, **names)
    )
    working = iter(float(number) for number in range(1_000))
    monkeypatch.setattr(write_pool.time, "thread_time", lambda: next(working))
    protected.restore(tmp_path / "quick")
    assert made == [1]
    monkeypatch.setattr(write_pool.time, "thread_time", lambda: 0.0)
    protected.restore(tmp_path / "slow")
    assert made == [1, write_pool.WRITERS]
    assert_same(tmp_path / "quick", tmp_path / "slow")


@pytest.mark.parametrize("waiting", [-1.0, float("inf")], ids=["threads", "one"])
def test_a_target_that_is_full_stops_a_restore_of_small_files_and_keeps_no_temporary_name(
    waiting: float, protected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_pool, "WAITING", waiting)
    plant_small(protected.source, 1_000)
    protected.backup()
    write = os.pwrite
    left = iter(range(200))

    def full(descriptor: int, data: bytes, position: int) -> int:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(TargetFullError):
        protected.restore(tmp_path / "target")
    assert not list((tmp_path / "target").rglob(".staddle-*"))
    assert len([path for path in (tmp_path / "target").rglob("*") if path.is_file()]) == 200
    assert open_below(tmp_path / "target") == []


@pytest.mark.parametrize(("waiting", "most"), [(-1.0, 300), (float("inf"), 100)], ids=["threads", "one"])
def test_many_directories_with_a_file_each_need_few_descriptors(
    waiting: float, most: int, protected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_pool, "WAITING", waiting)
    for number in range(1_000):
        (protected.source / f"d{number}").mkdir()
        (protected.source / f"d{number}" / "f").write_bytes(b"%d" % number)
    protected.backup()
    write, open_at_once = os.pwrite, []

    def counting(descriptor: int, data: bytes, position: int) -> int:
        open_at_once.append(len(open_below(tmp_path / "target")))
        return write(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", counting)
    protected.restore(tmp_path / "target")
    assert 0 < max(open_at_once) < most
    assert_same(protected.source, tmp_path / "target")


@pytest.mark.skipif(sys.platform != "linux", reason="ACLs as extended attributes")
@pytest.mark.parametrize("waiting", [-1.0, float("inf")], ids=["threads", "one"])
def test_files_do_not_keep_an_acl_inherited_from_the_target(
    waiting: float, protected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_pool, "WAITING", waiting)
    entries = [(0x01, 7, -1), (0x02, 7, 12_345), (0x04, 5, -1), (0x10, 7, -1), (0x20, 5, -1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    (tmp_path / "target").mkdir()
    try:
        os.setxattr(tmp_path / "target", "system.posix_acl_default", acl)
    except OSError:
        pytest.skip("this file system has no ACLs")
    plant_small(protected.source, 200)
    protected.backup()
    protected.restore(tmp_path / "target")
    made = [path for path in (tmp_path / "target").rglob("*") if path.is_file()]
    assert len(made) == 200
    assert all("system.posix_acl_access" not in os.listxattr(path) for path in made)


def reported_bytes(work: Callable[..., object]) -> list[int]:
    """The byte counts of every progress report of `work`."""
    reported: list[int] = []
    work(progress=lambda progress: reported.append(progress.bytes_done))
    return reported


@pytest.mark.parametrize("thin", [False, True], ids=["source", "thin"])
def test_progress_is_reported_inside_a_large_file(
    thin: bool, protected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "PROGRESS_S", 0.0)
    size = 24 * MIB
    (protected.source / "image").write_bytes(seeded_bytes(1, size))
    reported = reported_bytes(lambda **options: protected.backup(thin=thin, **options))
    assert len({count for count in reported if 0 < count < size}) >= 5
    assert reported == sorted(reported)
    reported = reported_bytes(lambda **options: protected.restore(tmp_path / "target", **options))
    assert len({count for count in reported if 0 < count < size}) >= 5
    assert reported == sorted(reported)


@pytest.mark.parametrize("profile", ["content-defined", "fixed"])
def test_small_uncut_files_have_the_chunks_that_the_server_cuts(profile: str, protected) -> None:
    minimum = 64 * 1024 if profile == "content-defined" else MIB
    for size in (0, 1, 4_000, minimum - 1, minimum, minimum + 1, 2 * minimum):
        (protected.source / f"f{size}").write_bytes(seeded_bytes(size, size))
    for number in range(60):  # some of which the content cuts
        (protected.source / f"n{number}").write_bytes(seeded_bytes(number, 2 * 64 * 1024 - 1))
    chosen = Profile(profile)
    source = protected.backup(dataset="source", profile=chosen)
    thin = protected.backup(dataset="thin", profile=chosen, thin=True)
    contents = [
        {entry.path: (entry.content_id, entry.size_bytes) for entry in protected.client.entries(dataset)}
        for dataset in ("source", "thin")
    ]
    assert contents[0] == contents[1]
    assert source.backup.manifest_digest == thin.backup.manifest_digest
    assert thin.sent_bytes == source.sent_bytes + source.reused_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
@pytest.mark.parametrize("thin", [False, True], ids=["source", "thin"])
@pytest.mark.slow
def test_a_command_needs_less_than_200_mib_of_memory_for_larger_data(
    thin: bool, running, protected, tmp_path: Path
) -> None:
    with (protected.source / "image").open("wb") as image:
        for number in range(320):
            image.write(random.Random(number).randbytes(MIB))
    commands = [
        ["backup", str(protected.source), "--dataset", "data", *(["--thin"] if thin else [])],
        ["restore", "data", "--target", str(tmp_path / "target")],
    ]
    for command in commands:
        assert peak_bytes(command, running.address, running.token()) < 200 * MIB
    assert_same(protected.source, tmp_path / "target")


def peak_bytes(command: list[str], address: str, token: str) -> int:
    """The peak memory of a command, which must succeed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("STADDLE_")} | {
        "STADDLE_SERVER": address,
        "STADDLE_TOKEN": token,
    }
    # A process starts with the size of its parent: so a small process in between, instead of this one.
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run([sys.executable, '-m', 'staddle.command', *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return int(done.stdout) * 1024
