"""Restores to file systems that fold two names of a backup into one: neither replaces or deletes part of the other."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from staddle._types.reports import ProblemKind
from test_fs_restore import MTIME_NS, Server, file, other, restore
from test_fs_restore_delete import names
from test_fs_restore_real import mounted

__all__ = ["mounted"]


@pytest.fixture
def folding(tmp_path: Path, mounted: Callable[..., Path]) -> Iterator[Path]:
    """A case-insensitive directory; skips where none can be made."""
    image = tmp_path / "image"
    image.write_bytes(b"")
    os.truncate(image, 32_000_000)
    made = subprocess.run(["mkfs.ext4", "-q", "-O", "casefold", image], capture_output=True, check=False)
    if made.returncode == 0 and "\tcasefold" in _features():
        place = mounted("-o", "loop", str(image)) / "folded"
        place.mkdir()
        subprocess.run(["chattr", "+F", place], check=True)
        yield place
        return
    if not (shutil.which("mkntfs") and shutil.which("lowntfs-3g")):
        pytest.skip("no file system here ignores case")
    subprocess.run(["mkntfs", "-F", "-Q", "-q", image], capture_output=True, check=True)
    place = mounted("-t", "lowntfs-3g", "-o", "ignore_case,streams_interface=none,permissions", str(image))
    (place / "folded").mkdir()
    yield place / "folded"


def _features() -> str:
    """The features of ext4 on this machine."""
    features = Path("/sys/fs/ext4/features")
    return "".join(f"\t{each.name}" for each in features.iterdir()) if features.is_dir() else ""


BOTH = [other(""), file("A", b"upper"), file("a", b"lower letters")]
DIRECTORIES = [
    other(""),
    other("Dir"),
    file("Dir/both", b"upper"),
    file("Dir/one"),
    other("dir"),
    file("dir/both", b"lower letters"),
    file("dir/two"),
]


@pytest.mark.parametrize("overwrite", ["if-changed", "always"])
@pytest.mark.parametrize("there", [(), ("extra",), ("extra", "a"), ("extra", "A")], ids=" ".join)
def test_of_two_folded_names_the_second_is_reported_and_replaces_nothing(
    there: tuple[str, ...], overwrite: str, folding: Path
) -> None:
    for name in there:
        (folding / name).write_bytes(b"other")
    for _ in range(2):
        report = restore(Server(*BOTH), folding, overwrite=overwrite)
        assert [(each.kind, each.path) for each in report.problems] == [(ProblemKind.NOT_WRITTEN, "a")]
        assert (folding / "A").read_bytes() == b"upper"


@pytest.mark.parametrize("overwrite", ["if-changed", "always"])
def test_of_two_folded_directories_neither_replaces_files_of_the_other(overwrite: str, folding: Path) -> None:
    for _ in range(2):
        report = restore(Server(*DIRECTORIES), folding, overwrite=overwrite)
        assert {each.path for each in report.problems} >= {"dir", "dir/both"}
        found = {path.name.lower(): path.read_bytes() for path in (folding / "dir").iterdir()}
        assert found == {"both": b"upper", "one": b"data", "two": b"data"}


def test_nothing_is_deleted_in_folded_directories(folding: Path) -> None:
    restore(Server(*DIRECTORIES), folding)
    (folding / "extra").touch()
    before = names(folding)
    report = restore(Server(*DIRECTORIES), folding, delete=True)
    assert report.entries_deleted == 0
    assert names(folding) == before
    assert (ProblemKind.NOT_DELETED, "dir") in [(each.kind, each.path) for each in report.problems]


def test_a_dry_run_names_the_same_paths_as_the_restore(folding: Path) -> None:
    restore(Server(*DIRECTORIES, *BOTH[1:]), folding)
    reports = [
        restore(Server(*DIRECTORIES, *BOTH[1:]), folding, dry_run=dry_run) for dry_run in (True, False)
    ]
    named = [sorted((each.path, each.message) for each in report.problems) for report in reports]
    assert named[0] == named[1]
    assert [path for path, _ in named[0]] == ["a", "dir", "dir/both"]


def test_hard_links_that_differ_only_in_case_are_two_names_where_case_counts(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    items = [other(""), file("A", link_group=b"g"), file("a", link_group=b"g"), file("b")]
    for _ in range(2):
        report = restore(Server(*items), tmp_path / "target")
        assert report.problems == ()
    assert (tmp_path / "target" / "A").samefile(tmp_path / "target" / "a")


def test_a_file_whose_name_differs_only_in_case_is_replaced(folding: Path) -> None:
    (folding / "README").write_bytes(b"old")
    report = restore(Server(other(""), file("readme", b"new!")), folding)
    assert report.problems == ()
    assert (folding / "readme").read_bytes() == b"new!"
    assert len(names(folding)) == 1


def test_a_name_folded_into_one_of_the_backup_is_not_deleted(folding: Path) -> None:
    (folding / "PAGE").write_bytes(b"data")
    os.utime(folding / "PAGE", ns=(MTIME_NS, MTIME_NS))
    (folding / "extra").touch()
    report = restore(Server(other(""), file("page")), folding, delete=True)
    assert (report.problems, report.entries_deleted) == ((), 1)
    assert [name.lower() for name in names(folding)] == ["page"]
