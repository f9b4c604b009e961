"""Small files are read in as few calls as possible if they are as the scan saw them; all others by the general path."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fs_trees import open_below
from staddle._fs.file_reader import NotRegularError, open_file, read_small
from staddle._fs.found import Found

MAX = 64 * 1024


def found(path: Path) -> Found:
    """A path as a scan saw it; its directory stays open for the rest of the test."""
    name = os.fsencode(path.name)
    dir_fd = os.open(path.parent, os.O_RDONLY)
    return Found(name, name, dir_fd, os.lstat(path), b"", 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "file"
    made.write_bytes(b"what it holds")
    return made


def test_a_small_file_is_read_completely(path: Path) -> None:
    assert read_small(found(path), MAX) == b"what it holds"
    path.write_bytes(b"")
    assert read_small(found(path), MAX) == b""


def test_a_file_of_the_largest_size_is_small_and_the_next_one_is_not(path: Path) -> None:
    path.write_bytes(b"x" * MAX)
    assert read_small(found(path), MAX) == b"x" * MAX
    path.write_bytes(b"x" * (MAX + 1))
    assert read_small(found(path), MAX) is None


def link(path: Path) -> None:
    os.link(path, path.with_name("another name"))


def make_sparse(path: Path) -> None:
    path.unlink()
    with path.open("wb") as file:
        file.truncate(MAX)


def set_attribute(path: Path) -> None:
    os.setxattr(path, "user.comment", b"kept")


@pytest.mark.parametrize("make", [link, make_sparse, set_attribute])
def test_a_file_with_attributes_or_holes_is_left_to_the_general_path(
    path: Path, make: Callable[[Path], None]
) -> None:
    make(path)
    assert read_small(found(path), MAX) is None


def write_over(path: Path) -> None:
    path.write_bytes(b"something els")


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b", and more")


def cut_off(path: Path) -> None:
    os.truncate(path, 4)


def replace(path: Path) -> None:
    path.with_name("new").write_bytes(b"what it holds")
    path.with_name("new").replace(path)


def change_mode(path: Path) -> None:
    path.chmod(0o600 if path.stat().st_mode & 0o077 else 0o644)


def write_with_the_old_times(path: Path) -> None:
    status = path.stat()
    path.write_bytes(b"another thing")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(
    "change", [write_over, append, cut_off, replace, change_mode, write_with_the_old_times, link]
)
def test_a_file_that_changed_since_the_scan_is_left_to_the_general_path(
    path: Path, change: Callable[[Path], None]
) -> None:
    seen = found(path)
    change(path)
    assert read_small(seen, MAX) is None


def test_a_change_between_reading_and_the_last_stat_is_noticed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, read = found(path), os.pread

    def read_and_change(*arguments: int) -> bytes:
        data = read(*arguments)
        write_over(path)
        return data

    monkeypatch.setattr(os, "pread", read_and_change)
    assert read_small(seen, MAX) is None


def test_a_path_that_is_no_longer_a_file_is_left_to_the_general_path(path: Path) -> None:
    seen = found(path)
    path.unlink()
    os.mkfifo(path)
    assert read_small(seen, MAX) is None
    with pytest.raises(NotRegularError), open_file(seen, lambda: 0):
        pass


def test_a_path_that_cannot_be_opened_is_an_error(path: Path) -> None:
    seen = found(path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_small(seen, MAX)
    path.symlink_to("/etc/hostname")
    with pytest.raises(OSError, match="symbolic links"):
        read_small(seen, MAX)


def test_no_descriptor_is_left_open(path: Path) -> None:
    seen = found(path)
    read_small(seen, MAX)
    set_attribute(path)
    read_small(seen, MAX)
    assert open_below(path) == []
