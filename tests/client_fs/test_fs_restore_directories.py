"""Directories of a restore: their modes and times, and those above a selected path."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from fs_trees import seeded_bytes
from staddle._errors import ConnectError, PathNotFoundError
from staddle._types.reports import ProblemKind
from test_fs_restore import MTIME_NS, Server, file, leftovers, other, restore


def test_a_directory_in_the_way_is_removed_if_empty_and_reported_otherwise(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "empty").mkdir(parents=True)
    (target / "full").mkdir()
    (target / "full" / "x").write_text("stays")
    report = restore(Server(file("empty"), file("full")), target)
    assert (target / "empty").read_bytes() == b"data"
    assert [(problem.kind, problem.path) for problem in report.problems] == [
        (ProblemKind.NOT_WRITTEN, "full")
    ]
    assert (target / "full" / "x").read_text() == "stays"
    assert leftovers(target) == []


def test_a_non_empty_root_keeps_its_own_metadata(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o711)
    (target / "mine").touch()
    restore(Server(other("", mode=0o700), file("f")), target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o711
    restore(Server(other("", mode=0o700), file("f")), tmp_path / "fresh")
    assert stat.S_IMODE((tmp_path / "fresh").stat().st_mode) == 0o700


def test_a_directory_is_never_more_open_than_the_backup_says_not_even_while_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    modes: dict[bytes, int] = {}
    make = os.mkdir

    def noting(name: bytes, mode: int = 0o777, **options: int) -> None:
        make(name, mode, **options)
        modes[name] = mode
        if name == b"z":
            modes[b"way, later"] = stat.S_IMODE((target / "way").stat().st_mode)

    monkeypatch.setattr(os, "mkdir", noting)
    items = [other("way", mode=0o2710), other("way/d", mode=0o700), file("way/d/f"), other("z", mode=0o700)]
    restore(Server(*items), target, paths=(b"way/d", b"z"))
    assert [modes[name] for name in (b"way", b"d", b"z")] == [0o700] * 3
    assert modes[b"way, later"] == 0o710, "a killed restore leaves what another one keeps unchanged"
    assert stat.S_IMODE((target / "way").stat().st_mode) == 0o2710, "setgid comes last"


def test_directories_made_on_the_way_to_a_selected_path_are_as_in_the_backup(tmp_path: Path) -> None:
    items = [
        other("", mode=0o710),
        other("a", mode=0o700),
        other("a/b", mode=0o2750),
        file("a/b/c"),
        file("z"),
    ]
    target = tmp_path / "target"
    report = restore(Server(*items), target, paths=(b"a/b/c",))
    assert (target / "a" / "b" / "c").read_bytes() == b"data"
    assert (report.entries_written, report.problems) == (1, ())
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (target, target / "a", target / "a" / "b")]
    assert modes == [0o710, 0o700, 0o2750]
    assert {path.stat().st_mtime_ns for path in (target, target / "a", target / "a" / "b")} == {MTIME_NS}
    assert not (target / "z").exists()


def test_directories_on_the_way_that_exist_are_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "a").mkdir(parents=True)
    (target / "a").chmod(0o711)
    target.chmod(0o711)
    items = [
        other("", mode=0o700),
        other("a", mode=0o700),
        other("a/b", mode=0o700),
        file("a/b/c"),
        file("a/d"),
    ]
    restore(Server(*items), target, paths=(b"a/b/c", b"a/d"))
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (target, target / "a", target / "a" / "b")]
    assert modes == [0o711, 0o711, 0o700]


def test_directories_on_the_way_are_finished_even_if_the_restore_fails(tmp_path: Path) -> None:
    items = [
        other("a", mode=0o750),
        other("a/b", mode=0o550),
        file("a/b/c"),
        file("a/b/d", seeded_bytes(3, 300_000)),
    ]
    server = Server(*items)
    server.break_after = [-1, 4]
    with pytest.raises(ConnectError):
        restore(server, tmp_path / "target", paths=(b"a/b/c", b"a/b/d"), retry_s=0)
    assert stat.S_IMODE((tmp_path / "target" / "a").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "target" / "a" / "b").stat().st_mode) == 0o550


def test_a_selected_path_that_the_server_refuses_makes_no_target(tmp_path: Path) -> None:
    class Refuses(Server):
        def stream(self, method, request, *, retry):
            if request.exact and "gone" in request.paths:
                raise PathNotFoundError("the backup has no gone")
            return super().stream(method, request, retry=retry)

    with pytest.raises(PathNotFoundError):
        restore(Refuses(other("a"), file("a/b")), tmp_path / "target", paths=(b"a/b", b"gone"))
    assert not (tmp_path / "target").exists()
