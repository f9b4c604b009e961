"""Data of real machines: values out of range, pseudo files, caches, dead mounts, unmounted disks."""

from __future__ import annotations

import mmap
import os
import subprocess
import time
from pathlib import Path

import pytest
from extent import extent
from staddle._backup.entries import BackupTally
from staddle._errors import BadRequestError, TooMuchRemovedError
from staddle._fs import metadata
from staddle._fs.found import Found
from staddle._types.reports import ProblemKind

BOTH_WAYS = pytest.mark.parametrize("thin", [False, True], ids=["source-side", "thin"])
FAR_NS = 2**63 + 5 * 10**9


def set_far_time(path: Path) -> None:
    os.utime(path, ns=(0, FAR_NS))
    if path.stat().st_mtime_ns != FAR_NS:
        pytest.skip("this file system has no time beyond 64 bits of nanoseconds")


def names_in(protected, dataset: str = "data") -> set[str]:
    return {entry.path for entry in protected.client.entries(dataset, recursive=True)}


# --- values that do not fit


@BOTH_WAYS
@pytest.mark.parametrize("cached", [True, False], ids=["cache", "no-cache"])
def test_a_time_beyond_64_bits_is_reported_and_the_backup_continues(
    thin: bool, cached: bool, protected
) -> None:
    for name in ("far", "near"):
        (protected.source / name).write_text(name)
    (protected.source / "directory").mkdir()
    set_far_time(protected.source / "far")
    set_far_time(protected.source / "directory")
    options = {} if cached else {"cache_dir": None}
    for _ in range(2):  # the second one compares with the base
        made = protected.backup(thin=thin, **options)
        assert [(problem.kind, problem.path) for problem in made.problems] == [
            (ProblemKind.ALTERED, "directory"),
            (ProblemKind.ALTERED, "far"),
        ]
    entries = {entry.path: entry for entry in protected.client.entries("data")}
    assert entries["far"].mtime_ns == entries["directory"].mtime_ns == 2**63 - 1
    assert protected.client.read("data", "far") == b"far"


def test_an_owner_inode_or_change_time_out_of_range_is_omitted_or_clamped() -> None:
    numbers = (0o100644, 2**64, 1, 1, 2**32, 0, 5, 0, 0, 0)
    status = os.stat_result(numbers, {"st_mtime_ns": 0, "st_ctime_ns": -(2**63) - 1})
    tally = BackupTally()
    entry = metadata.entry_of(Found(b"f", b"f", -1, status, b"", 0), metadata.OwnerNames(), tally)
    assert entry is not None
    assert not any(map(entry.HasField, ("uid", "gid", "inode")))
    assert entry.ctime_ns == -(2**63)
    assert [(problem.kind, problem.path) for problem in tally.problems.values()] == [
        (ProblemKind.ALTERED, "f")
    ]


@BOTH_WAYS
def test_a_path_with_too_many_components_is_reported_and_the_backup_continues(thin: bool, protected) -> None:
    (protected.source / "near").touch()
    directory = os.open(protected.source, os.O_RDONLY)
    for _ in range(1030):
        os.mkdir("d", dir_fd=directory)
        below = os.open("d", os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = below
    os.close(directory)
    try:
        for _ in range(2):
            made = protected.backup(thin=thin)
            assert [problem.path.count("/") for problem in made.problems] == [1024]
            assert made.backup.entry_count == 1024 + 2
    finally:  # it is deeper than Python's own removal reaches
        subprocess.run(["rm", "-rf", protected.source / "d"], check=True)


@BOTH_WAYS
def test_a_file_larger_than_a_backup_can_hold_is_named(
    thin: bool, protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    (protected.source / "large").write_bytes(b"x" * 1000)
    (protected.source / "small").write_bytes(b"x")
    monkeypatch.setattr(metadata, "FILE_BYTES_MAX", 999)
    made = protected.backup(thin=thin)
    assert [problem.path for problem in made.problems] == ["large"]
    assert names_in(protected) == {"small"}


# --- named paths


@BOTH_WAYS
def test_a_path_that_is_a_link_is_followed(thin: bool, protected, tmp_path: Path) -> None:
    (protected.source / "f").write_text("in it")
    directory, file = tmp_path / "to-directory", tmp_path / "to-file"
    directory.symlink_to(protected.source)
    file.symlink_to(protected.source / "f")
    protected.backup(directory, dataset="d", thin=thin)
    protected.backup(file, dataset="f", thin=thin)
    assert protected.client.read("d", "f") == b"in it"
    assert protected.client.read("f", "to-file") == b"in it"


def test_a_pipe_or_a_device_is_refused_with_what_to_do(protected, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(BadRequestError, match="staddle backup - "):
            protected.backup(path)
    assert list(protected.client.datasets()) == []


# --- files that say another size than they have


@BOTH_WAYS
def test_files_of_proc_are_read_to_their_end(thin: bool, protected) -> None:
    if not os.path.exists("/proc/version"):
        pytest.skip("there is no /proc")
    for name in ("version", "kallsyms"):
        size = len(Path("/proc", name).read_bytes())
        made = protected.backup(f"/proc/{name}".encode(), dataset=name, thin=thin)
        assert made.complete
        assert made.backup.data_bytes == size > 0


@BOTH_WAYS
def test_a_file_of_sysfs_has_the_bytes_that_it_returns(thin: bool, protected) -> None:
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not path.exists():
        pytest.skip("there is no such file here")
    assert path.stat().st_size > len(path.read_bytes())
    made = protected.backup(path, thin=thin)
    assert made.complete
    assert protected.client.read("data", "enabled") == path.read_bytes()


# --- removals


def fill(source: Path, count: int = 10) -> None:
    for number in range(count):
        (source / f"d{number}").mkdir()
        (source / f"d{number}" / "f").write_text("here")


def empty(source: Path) -> None:
    for directory in source.iterdir():
        (directory / "f").unlink()
        directory.rmdir()


@BOTH_WAYS
@pytest.mark.parametrize("cached", [True, False], ids=["cache", "no-cache"])
@pytest.mark.parametrize("kind", extent(["auto"], ["auto", "full", "differential"]))
def test_a_source_that_became_empty_makes_no_backup_unless_allowed(
    kind: str, cached: bool, thin: bool, protected
) -> None:
    options = {"thin": thin} if cached else {"thin": thin, "cache_dir": None}
    fill(protected.source)
    first = protected.backup(**options).backup
    empty(protected.source)
    for _ in range(2):
        with pytest.raises(TooMuchRemovedError, match="--max-removed 100"):
            protected.backup(kind=kind, **options)
    assert [backup.id for backup in protected.client.backups("data")] == [first.id]
    assert protected.backup(kind=kind, max_removed_percent=100.0, **options).backup.entry_count == 1
    assert protected.backup(kind=kind, **options).complete


@BOTH_WAYS
@pytest.mark.parametrize("cached", [True, False], ids=["cache", "no-cache"])
@pytest.mark.parametrize("kind", ["auto", "full"])
def test_removals_beyond_the_limit_are_refused(kind: str, cached: bool, thin: bool, protected) -> None:
    options = {"thin": thin, "kind": kind} if cached else {"thin": thin, "kind": kind, "cache_dir": None}
    fill(protected.source)
    protected.backup(**options)
    for number in range(5):
        (protected.source / f"d{number}" / "f").unlink()
    (protected.source / "d0").rmdir()
    with pytest.raises(TooMuchRemovedError, match=r"6 of 20 .* 29 %"):
        protected.backup(max_removed_percent=29.0, **options)
    assert protected.backup(max_removed_percent=30.0, **options).complete


def test_a_refused_backup_leaves_nothing_to_resume(protected) -> None:
    fill(protected.source)
    protected.backup()
    empty(protected.source)
    with pytest.raises(TooMuchRemovedError):
        protected.backup()
    fill(protected.source)
    assert not protected.backup().resumed


# --- changes that leave no trace


@BOTH_WAYS
def test_a_write_through_a_mapping_that_changes_no_time_is_in_the_next_backup(thin: bool, protected) -> None:
    path = protected.source / "mapped"
    path.write_bytes(b"a" * 8192)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 8192) as mapped:
        mapped[0] = ord("1")
        old = time.time_ns() - 3600 * 10**9
        os.utime(path, ns=(old, old))

        def later() -> int:
            return time.time_ns() + 3600 * 10**9

        protected.backup(thin=thin, clock=later)
        before = path.stat().st_mtime_ns, path.stat().st_ctime_ns
        mapped[0] = ord("2")
        if (path.stat().st_mtime_ns, path.stat().st_ctime_ns) == before:
            pytest.skip("no file system of this kind writes mapped pages to a disk")
        protected.backup(thin=thin, clock=later)
        assert protected.client.read("data", "mapped", length=1) == b"2"


@BOTH_WAYS
@pytest.mark.parametrize(
    ("named", "size"), [(".", 5), (".", 3_000_000), ("f", 5)], ids=["directory", "large file in it", "file"]
)
def test_files_changed_since_their_file_system_was_synced_are_read_again(
    protected, named: str, size: int, thin: bool
) -> None:
    path = protected.source / "f"
    path.write_bytes(bytes(size))
    source = protected.source / named
    now = iter([path.stat().st_mtime_ns])
    synced_then_much_later = lambda: next(now, path.stat().st_mtime_ns + 3600 * 10**9)  # noqa: E731
    protected.backup(source, clock=synced_then_much_later, thin=thin)
    assert protected.backup(source, thin=thin).read_bytes == size
    assert protected.backup(source, thin=thin).read_bytes == 0


# --- temporary data


@BOTH_WAYS
def test_temporary_files_of_a_killed_restore_are_not_backed_up(protected, thin: bool) -> None:
    (protected.source / f".staddle-restore-{'0' * 16}-1").write_bytes(b"half a file")
    (protected.source / ".staddle-restore-notes").touch()
    for more in ("first", "second"):  # the second one uses a cache
        (protected.source / more).touch()
        protected.backup(thin=thin)
    assert names_in(protected) == {".staddle-restore-notes", "first", "second"}


# --- paths that vanish during the scan


@BOTH_WAYS
def test_a_path_that_vanishes_during_the_run_is_a_note(
    thin: bool, protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "stays"):
        (protected.source / name).write_text(name)
    real_stat, real_open = os.stat, os.open

    def look(path, **options):
        if path == b"a":
            (protected.source / "a").unlink(missing_ok=True)
        return real_stat(path, **options)

    def opened(path, *rest, **options):
        if path == b"b":
            (protected.source / "b").unlink(missing_ok=True)
        return real_open(path, *rest, **options)

    monkeypatch.setattr(os, "stat", look)
    monkeypatch.setattr(os, "open", opened)
    made = protected.backup(thin=thin)
    assert made.complete
    assert {(note.kind, note.path) for note in made.notes} == {
        (ProblemKind.VANISHED, "a"),
        (ProblemKind.VANISHED, "b"),
    }
    assert names_in(protected) == {"stays"}


def test_a_listed_name_that_is_never_found_stays_a_problem(
    protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("odd", "f"):
        (protected.source / name).touch()
    real = os.stat

    def look(path, **options):
        if path == b"odd":
            raise FileNotFoundError(2, "No such file or directory")
        return real(path, **options)

    monkeypatch.setattr(os, "stat", look)
    for _ in range(2):
        made = protected.backup()
        assert [problem.path for problem in made.problems] == ["odd"]
        assert made.notes == ()
