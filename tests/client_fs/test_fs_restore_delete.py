"""Restores that delete extras: nothing else, nothing outside, and nothing unless everything else succeeded."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fs_trees import assert_same, make_socket, nodes_of, open_below, plant
from staddle._errors import PathNotFoundError
from staddle._types.reports import ProblemKind
from staddle.v1 import service_pb2 as sv
from test_fs_restore import MTIME_NS, Server, file, other, outside, restore
from test_fs_restore_real import mounted

__all__ = ["mounted", "outside"]

TREE = [other(""), other("d"), file("d/keep"), file("f")]


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A restored tree with extras in it."""
    target = tmp_path / "target"
    restore(Server(*TREE), target)
    (target / "extra").write_text("extra")
    (target / "d" / "more" / "deep").mkdir(parents=True)
    (target / "d" / "more" / "deep" / "x").write_text("x")
    (target / "d" / "more" / "y").write_text("y")
    return target


def test_a_tree_with_extras_of_every_kind_becomes_that_of_the_backup(
    protected, tmp_path: Path, outside: Path
) -> None:
    plant(protected.source)
    protected.backup()
    target = tmp_path / "target"
    protected.restore(target)
    (target / "a" / "extra").write_text("extra")
    os.link(target / "big", target / "another name of big")
    os.link(target / "another name of big", target / "a third")
    (target / "to-outside").symlink_to(outside)
    (target / "empty-dir" / "in").mkdir(parents=True)
    (target / "empty-dir" / "in" / "to-precious").symlink_to(outside / "precious")
    os.mkfifo(target / "empty-dir" / "pipe")
    make_socket(target / "a" / "sock")
    with open(os.fsencode(target) + b"/-rf \xff\n", "w") as odd:
        odd.write("odd")
    (target / "big").write_text("changed")
    report = protected.restore(target, delete=True)
    assert report.problems == ()
    assert report.entries_deleted == 9
    assert_same(protected.source, target, but=frozenset({b""}))  # the root of a target in use keeps its own
    assert protected.restore(target, delete=True).entries_deleted == 0


def test_without_the_option_extras_stay(target: Path) -> None:
    before = names(target)
    restore(Server(*TREE), target)
    assert names(target) == before


def test_a_target_that_is_a_link_is_followed_and_stays_a_link(target: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(target)
    assert restore(Server(*TREE), tmp_path / "link", delete=True).entries_deleted == 5
    assert (tmp_path / "link").is_symlink()
    assert names(target) == ["d", "d/keep", "f"]


def test_directories_have_the_times_of_the_backup_after_a_deletion(target: Path) -> None:
    restore(Server(*TREE), target, delete=True)
    assert (target / "d").stat().st_mtime_ns == MTIME_NS


def test_excluded_names_stay_with_the_directories_that_hold_them(target: Path) -> None:
    report = restore(Server(*TREE), target, delete=True, exclude=["deep/", "extra"])
    assert names(target) == ["d", "d/keep", "d/more", "d/more/deep", "d/more/deep/x", "extra", "f"]
    assert (report.entries_deleted, report.problems, report.warnings) == (1, (), ())


def test_names_that_are_not_included_stay(target: Path) -> None:
    restore(Server(*TREE), target, delete=True, include=["x", "keep"])
    assert names(target) == ["d", "d/keep", "d/more", "d/more/deep", "d/more/y", "extra", "f"]


def test_only_extras_below_the_restored_paths_are_deleted(target: Path) -> None:
    restore(Server(*TREE), target, delete=True, paths=(b"d",))
    assert names(target) == ["d", "d/keep", "extra", "f"]
    restore(Server(*TREE), target, delete=True, paths=(b"f",))
    assert "extra" in names(target)
    with pytest.raises(PathNotFoundError):
        restore(_Missing(*TREE), target, delete=True, paths=(b"gone",))
    assert "extra" in names(target)


class _Missing(Server):
    def stream(self, method, request, *, retry):
        raise PathNotFoundError("there is no path gone")
        yield


def test_a_backup_of_one_file_deletes_nothing_beside_it(protected, tmp_path: Path) -> None:
    (protected.source / "one").write_text("one")
    protected.backup(protected.source / "one")
    target = tmp_path / "target"
    target.mkdir()
    (target / "other").write_text("other")
    report = protected.restore(target, delete=True)
    assert (report.entries_deleted, names(target)) == (0, ["one", "other"])


class ReadableLater(Server):
    """The page of `d/keep` and `f` cannot be read at first, and can be read later."""

    def _parts(self, request):
        is_first = not self.requests[1:]
        for part in super()._parts(request):
            if is_first and part.entry.path in {"d/keep", "f"}:
                continue
            if is_first and part.HasField("end"):
                yield sv.RestorePart(damage=sv.Damage(path="d", message="a page is gone", subtree=True))
                part.end.entry_count -= 2
                part.end.damage_count += 1
            yield part


def test_nothing_is_deleted_if_the_backup_was_unreadable_at_the_decision(target: Path) -> None:
    before = names(target)
    report = restore(ReadableLater(*TREE), target, delete=True, confirm_delete=lambda _: pytest.fail("asked"))
    assert names(target) == before
    assert (report.entries_deleted, report.problems) == (0, ())
    assert any("could be read" in each for each in report.warnings)


@pytest.mark.parametrize("why", ["damaged", "blocked", "full"])
def test_nothing_is_deleted_if_not_everything_was_restored(why: str, target: Path) -> None:
    server = Server(*TREE, file("large", bytes(range(256)) * 40))
    if why == "damaged":
        server.damaged.add(b"large")
    elif why == "blocked":
        (target / "large").mkdir()
        (target / "large" / "full").touch()
    else:
        server.hooks[b"large"] = lambda: os.truncate(target / "f", 1)
        server.break_after = [-1, 3]
    before = names(target)
    if why == "full":
        with pytest.raises(Exception, match="broke"):
            restore(server, target, delete=True, retry_s=0.0)
    else:
        report = restore(server, target, delete=True)
        assert report.entries_deleted == 0
        assert any("because not everything in the backup could be read" in each for each in report.warnings)
    assert names(target) == before


def test_a_preview_names_what_would_be_deleted_and_changes_nothing(target: Path) -> None:
    (target / "f").write_text("changed")
    before = nodes_of(target)
    asked: list[int] = []
    report = restore(Server(*TREE), target, delete=True, dry_run=True, confirm_delete=asked.append)
    assert nodes_of(target) == before
    assert report.entries_deleted == 5
    assert report.deleted_paths == (b"d/more/deep/x", b"d/more/deep", b"d/more/y", b"d/more", b"extra")
    assert asked == []


def test_a_refused_confirmation_changes_nothing(target: Path) -> None:
    class NoError(Exception):
        pass

    asked: list[int] = []

    def refuse(count: int) -> None:
        asked.append(count)
        raise NoError

    (target / "f").write_text("changed")
    before = nodes_of(target)
    with pytest.raises(NoError):
        restore(Server(*TREE), target, delete=True, confirm_delete=refuse)
    assert asked == [5]
    assert nodes_of(target) == before
    assert open_below(target) == []


def test_no_confirmation_is_asked_when_nothing_would_be_deleted(tmp_path: Path) -> None:
    asked: list[int] = []
    for _ in range(2):
        restore(Server(*TREE), tmp_path / "target", delete=True, confirm_delete=asked.append)
    assert asked == []


def test_extras_that_changed_or_appeared_after_the_listing_are_kept(target: Path, tmp_path: Path) -> None:
    def meanwhile(_count: int) -> None:
        (target / "extra").write_text("written again, and precious")
        (target / "new").write_text("new")
        (target / "d" / "more" / "new").write_text("new")

    report = restore(Server(*TREE), target, delete=True, confirm_delete=meanwhile)
    assert [problem.path for problem in report.problems] == ["d/more", "extra"]
    assert {problem.kind for problem in report.problems} == {ProblemKind.NOT_DELETED}
    assert names(target) == ["d", "d/keep", "d/more", "d/more/new", "extra", "f", "new"]


@pytest.mark.parametrize("swapped", ["d", "d/more"])
def test_a_directory_moved_or_swapped_during_the_deletion_is_left_alone(
    swapped: str, target: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"

    def swap(_count: int) -> None:
        (target / swapped).rename(moved)
        (target / swapped).symlink_to(moved)

    restore(Server(*TREE), target, delete=True, confirm_delete=swap)
    inside = "more/deep/x" if swapped == "d" else "deep/x"
    assert (moved / inside).read_text() == "x"


def test_a_target_replaced_during_the_restore_loses_nothing(target: Path, tmp_path: Path) -> None:
    report = restore(
        Server(*TREE),
        target,
        delete=True,
        confirm_delete=lambda _: target.rename(tmp_path / "moved") and None,
    )
    assert [problem.kind for problem in report.problems] == [ProblemKind.NOT_DELETED]
    assert len(names(tmp_path / "moved")) == 8


@pytest.mark.parametrize("place", ["d", "d/more"])
@pytest.mark.parametrize("bind", [True, False], ids=["the same file system", "another one"])
def test_mounted_file_systems_are_neither_entered_nor_removed(
    bind: bool, place: str, target: Path, tmp_path: Path, mounted: Callable[..., Path]
) -> None:
    mounted("-t", "tmpfs", "tmpfs")  # skips where mounting is impossible
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("keep me")
    what = ["--bind", tmp_path / "elsewhere"] if bind else ["-t", "tmpfs", "tmpfs"]
    subprocess.run(["mount", *what, target / place], check=True)
    try:
        (target / place / "precious").write_text("keep me")
        report = restore(Server(*TREE), target, delete=True)
        assert (target / place / "precious").read_text() == "keep me"
        assert not (target / "extra").exists()
        assert any("on which another file system is mounted" in warning for warning in report.warnings)
        assert report.problems == ()
    finally:
        subprocess.run(["umount", "--lazy", target / place], check=True)


def test_the_owner_deletes_from_a_directory_that_may_not_be_written(
    public_path: Path, as_ordinary_user
) -> None:
    target = public_path / "target"
    items = [other(""), other("d", mode=0o555), file("d/f")]
    with as_ordinary_user():
        restore(Server(*items), target)
        (target / "d").chmod(0o755)
        (target / "d" / "extra").touch()
        (target / "d").chmod(0o555)
        report = restore(Server(*items), target, delete=True)
        assert (report.problems, report.entries_deleted) == ((), 1)
        assert (target / "d").stat().st_mode & 0o777 == 0o555
        (target / "d").chmod(0o755)


def test_a_broken_listing_is_resumed_and_counts_nothing_twice(target: Path) -> None:
    server = Server(*TREE)
    server.break_after = [3]
    asked: list[int] = []
    restore(server, target, delete=True, confirm_delete=asked.append, retry_s=5.0)
    assert asked == [5]
    assert names(target) == ["d", "d/keep", "f"]


@pytest.mark.slow
def test_an_extra_tree_of_any_depth_is_removed(target: Path) -> None:
    descriptor = os.open(target, os.O_RDONLY)
    for _ in range(1_100):
        os.mkdir("x", dir_fd=descriptor)
        below = os.open("x", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)
    report = restore(Server(*TREE), target, delete=True)
    assert (report.problems, report.entries_deleted) == ((), 1_105)
    assert names(target) == ["d", "d/keep", "f"]


@pytest.mark.parametrize("place", ["", "d", "only/here"])
def test_a_servers_data_directory_is_never_deleted(place: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / place / "store" / "packs").mkdir(parents=True)
    (target / place / "master.key").write_bytes(b"staddle-master-key-1 and so on")
    (target / place / "store" / "packs" / "one").write_text("backups")
    (target / "gone").write_text("extra")
    items = [*TREE, *([other("d/store"), other("d/store/packs")] if place == "d" else [])]
    report = restore(Server(*items), target, delete=True)
    assert [(each.kind, each.path) for each in report.problems] == [(ProblemKind.NOT_DELETED, place)]
    assert (target / place / "store" / "packs" / "one").read_text() == "backups"
    assert (target / place / "master.key").exists()
    assert (target / "gone").exists() == (place == "")
