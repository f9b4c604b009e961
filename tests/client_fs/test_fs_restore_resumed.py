"""Restores whose stream breaks, whose target is full, or whose user lacks permissions."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from fs_trees import seeded_bytes
from staddle._errors import ConnectError
from staddle._restore import run
from staddle._restore.stats import TargetFullError
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from test_fs_restore import MTIME_NS, Server, file, leftovers, other, restore


@pytest.mark.parametrize("first", range(1, 16, 2))
@pytest.mark.parametrize("overwrite", ["if-changed", "always"])
def test_a_restore_resumes_where_its_stream_broke(first: int, overwrite: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "extra").touch()
    items = [
        other(""),
        other("d"),
        file("d/a"),
        file("d/b", seeded_bytes(8, 200_000)),
        other("e"),
        file("e/c"),
        file("z"),
    ]
    server = Server(*items)
    server.break_after = [first, 3]
    report = restore(server, target, overwrite=overwrite)
    assert report.problems == ()
    assert (target / "d" / "b").read_bytes() == seeded_bytes(8, 200_000)
    assert {path.relative_to(target).as_posix() for path in target.rglob("*")} == {
        "extra",
        "d",
        "d/a",
        "d/b",
        "e",
        "e/c",
        "z",
    }
    assert (target / "d").stat().st_mtime_ns == MTIME_NS
    assert report.data_bytes == 200_000 + 3 * 4


def test_a_restore_that_breaks_before_the_first_answer_makes_no_target(tmp_path: Path) -> None:
    server = Server(file("a"))
    server.break_after = [0]
    with pytest.raises(ConnectError):
        restore(server, tmp_path / "target", retry_s=0)
    assert not (tmp_path / "target").exists()


def test_many_differing_files_are_fetched_in_bounded_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "FETCH_PATHS", 10)
    target = tmp_path / "target"
    target.mkdir()
    (target / "extra").touch()
    items = [
        item
        for number in range(7)
        for item in (other(f"d{number}"), *(file(f"d{number}/{name}") for name in "abcde"))
    ]
    server = Server(*items)
    restore(server, target)
    fetches = [len(request.paths) for request in server.requests if request.view == sv.ENTRY_VIEW_DATA]
    assert fetches == [10, 10, 10, 5]
    assert all((target / f"d{number}").stat().st_mtime_ns == MTIME_NS for number in range(7))


def test_a_full_target_stops_the_restore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(TargetFullError):
        restore(Server(file("a"), file("b")), tmp_path / "target")
    assert leftovers(tmp_path / "target") == []


def test_owners_that_only_root_can_set_are_one_counted_warning(public_path: Path, as_ordinary_user) -> None:
    entries = [file(name, uid=0, gid=0) for name in "abc"]
    with as_ordinary_user():
        report = restore(Server(*entries), public_path / "target")
    assert report.problems == ()
    assert [warning for warning in report.warnings if warning.startswith("3 ")]


def test_a_device_that_this_user_may_not_make_is_reported(public_path: Path, as_ordinary_user) -> None:
    device = other("null", pb.ENTRY_TYPE_CHAR_DEVICE, device_major=1, device_minor=3)
    with as_ordinary_user():
        report = restore(Server(device, file("z")), public_path / "target")
    assert [problem.path for problem in report.problems] == ["null"]
    assert (public_path / "target" / "z").read_bytes() == b"data"


def test_a_directory_that_its_owner_may_not_write_is_filled_first(
    public_path: Path, as_ordinary_user
) -> None:
    with as_ordinary_user():
        report = restore(Server(other("d", mode=0o555), file("d/f")), public_path / "target")
        assert report.problems == ()
        (public_path / "target" / "d").chmod(0o755)
    assert (public_path / "target" / "d" / "f").read_bytes() == b"data"
