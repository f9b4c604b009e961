"""The cache finds changes even in trees that are deep, wide, or change during the comparison."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import closing
from pathlib import Path

import pytest
from fs_calls import counted_calls
from fs_trees import open_below, plant, seeded_bytes
from staddle._backup.cache import file as _cache_file
from staddle._backup.cache.file import NO_ROW, CacheBlock, row_of
from staddle._backup.cache.store import Cache
from staddle._backup.cached_comparison import CachedScan
from staddle._backup.changes import Removed
from staddle._fs.walk import DESCRIPTORS_MAX
from staddle._types.reports import ProblemKind
from test_fs_cache import BOTH_WAYS, Edits


def test_a_tree_deeper_than_the_open_directories_is_compared_completely(protected) -> None:
    directory = protected.source
    for _ in range(3 * DESCRIPTORS_MAX):
        directory /= "d"
        directory.mkdir()
        (directory / "after").touch()
    first = protected.backup()
    (directory / "after").write_bytes(b"x")
    with counted_calls() as calls:
        made = protected.backup()
    assert calls["Restore"] == 0
    assert made.entries_unchanged == first.backup.entry_count - 1
    assert open_below(protected.source) == open_below(protected.cache) == []


def test_a_directory_larger_than_a_block_is_compared_completely(protected) -> None:
    count = 2 * _cache_file.CHILDREN_MAX + 100
    for number in range(count):
        (protected.source / f"{number:06}").touch()
    protected.backup()
    (protected.source / "000000a").touch()  # moves all later names to another place in their blocks
    (protected.source / "004096").unlink()
    (protected.source / "zzz").mkdir()
    with counted_calls() as calls:
        made = protected.backup()
    assert calls["Restore"] == 0
    assert made.entries_unchanged == count - 1
    assert (made.backup.changes.added, made.backup.changes.removed) == (2, 1)
    assert protected.backup().entries_unchanged == made.backup.entry_count


def test_a_directory_that_vanishes_during_the_comparison_is_reported_and_removed(
    protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        (protected.source / name).mkdir()
        (protected.source / name / "f").touch()
    protected.backup()
    real = os.open

    def removing(path, *args, **options) -> int:
        if path == b"b":
            shutil.rmtree(protected.source / "b", ignore_errors=True)
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", removing)
    made = protected.backup()
    monkeypatch.undo()
    assert made.complete
    assert [(note.kind, note.path) for note in made.notes] == [(ProblemKind.VANISHED, "b")]
    again = protected.backup()
    assert again.complete
    assert {entry.path for entry in protected.client.entries("data", recursive=True)} == {
        "a",
        "a/f",
        "c",
        "c/f",
    }


def test_a_file_that_changes_between_two_stats_is_backed_up_as_it_is(
    protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    (protected.source / "f").write_bytes(b"one")
    protected.backup()
    (protected.source / "f").write_bytes(b"three")
    real = os.stat
    looks = []

    def stat_of(path, **options):
        status = real(path, **options)
        if path == b"f":
            looks.append(path)
            if len(looks) == 1:
                (protected.source / "f").write_bytes(b"number four")
        return status

    monkeypatch.setattr(os, "stat", stat_of)
    protected.backup()
    monkeypatch.undo()
    assert len(looks) >= 2
    assert protected.client.read("data", "f") == b"number four"
    assert protected.backup().read_bytes == 0


def test_a_file_whose_second_stat_fails_is_in_the_next_backup(
    protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    (protected.source / "f").write_bytes(b"one")
    protected.backup()
    (protected.source / "f").write_bytes(b"three")
    real = os.stat
    looks = []

    def stat_of(path, **options):
        if path == b"f":
            looks.append(path)
            if len(looks) == 2:
                raise OSError(errno.EIO, "Input/output error")
        return real(path, **options)

    monkeypatch.setattr(os, "stat", stat_of)
    made = protected.backup()
    monkeypatch.undo()
    assert [problem.path for problem in made.problems] == ["f"]
    assert [entry.path for entry in protected.client.entries("data")] == []
    with counted_calls() as calls:
        assert protected.backup().read_bytes == 5
    assert calls["Restore"] == 0
    assert protected.client.read("data", "f") == b"three"


@BOTH_WAYS
def test_a_file_that_changes_before_reading_is_cached_as_it_was_read(
    thin: bool, protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    (protected.source / "f").write_bytes(b"one")
    real = os.open

    def changing(path, *args, **options) -> int:
        if path == b"f":
            monkeypatch.setattr(os, "open", real)
            (protected.source / "f").write_bytes(b"two and more")
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", changing)
    protected.backup(thin=thin)
    assert protected.client.read("data", "f") == b"two and more"
    with counted_calls() as calls:
        made = protected.backup(thin=thin)
    assert calls["Restore"] == 0
    assert made.read_bytes == 0
    assert made.entries_unchanged == 2


def differences(place: Path, root: Path, blocks: list[CacheBlock]) -> list[tuple[str, bytes]]:
    """The differences that a walk finds, given a cache with these blocks."""
    cache = Cache(str(place), "server:1", "data")
    record = cache.record(differential=False)
    record.writer.set_root(row_of(root.lstat()))
    for block in blocks:
        record.writer.add(block)
    cache.keep(record, "ab" * 16, full=True)
    cache.discard(record)
    scan = CachedScan(os.fsencode(root), pytest.fail, known=cache.find("ab" * 16))
    with closing(scan.known):
        return [
            ("removed", each.path) if isinstance(each, Removed) else ("changed", each.found.path)
            for each in scan
        ]


def test_the_stat_of_another_name_proves_nothing(protected, tmp_path: Path) -> None:
    (protected.source / "new").touch()
    row = row_of((protected.source / "new").lstat())
    assert differences(tmp_path / "c", protected.source, [CacheBlock(b"", True, False, 1, b"new", row)]) == []
    assert differences(tmp_path / "c", protected.source, [CacheBlock(b"", True, False, 1, b"old", row)]) == [
        ("changed", b"new"),
        ("removed", b"old"),
    ]


def test_a_path_missing_from_the_backup_is_not_removed_when_it_vanishes(protected, tmp_path: Path) -> None:
    (protected.source / "m").touch()
    row = row_of((protected.source / "m").lstat())
    block = CacheBlock(b"", True, False, 3, b"a\0m\0z", NO_ROW + row + NO_ROW)
    assert differences(tmp_path / "c", protected.source, [block]) == []
    known = CacheBlock(b"", True, False, 3, b"a\0m\0z", row + row + row)
    assert differences(tmp_path / "c", protected.source, [known]) == [("removed", b"a"), ("removed", b"z")]


def test_the_size_of_anything_but_a_file_is_ignored(protected, tmp_path: Path) -> None:
    (protected.source / "d").mkdir()
    (protected.source / "f").touch()
    rows = [row_of((protected.source / name).lstat())[:-8] + bytes([9] * 8) for name in "df"]
    blocks = [CacheBlock(b"", True, False, 2, b"d\0f", b"".join(rows))]
    assert differences(tmp_path / "c", protected.source, blocks) == [("changed", b"f")]


def test_differences_come_in_the_order_of_a_backup(protected, tmp_path: Path) -> None:
    """The durable part of a backup is given by its last path: all earlier ones must have been sent."""
    edits = Edits(protected.source, 17)
    edits.some(80)
    protected.backup()
    edits.some(60)
    newest = next(iter(protected.client.backups("data")))
    known = Cache(str(protected.cache), protected.client.address, "data").find(newest.id)
    with closing(known):
        paths = [
            each.path if isinstance(each, Removed) else each.found.path
            for each in CachedScan(os.fsencode(protected.source), pytest.fail, known=known)
        ]
    assert len(paths) > 40
    assert paths == sorted(paths, key=lambda path: path.replace(b"/", b"\0"))


def test_dates_beyond_what_a_row_holds_are_compared_each_time(protected) -> None:
    (protected.source / "f").write_bytes(b"far")
    try:
        os.utime(protected.source / "f", ns=(0, 2**63 + 10**9))
    except OverflowError:
        pytest.skip("this Python sets no such dates")
    if (protected.source / "f").stat().st_mtime_ns < 2**63:
        pytest.skip("this file system has no such dates")
    assert row_of((protected.source / "f").stat())[0] & _cache_file.UNTOLD


def test_seeded_trees_of_every_kind_of_path_are_found_unchanged(protected) -> None:
    plant(protected.source, seed=5, files=60)
    (protected.source / os.fsdecode(b"\xff\xfe")).write_bytes(seeded_bytes(3, 70_000))
    first = protected.backup()
    with counted_calls() as calls:
        made = protected.backup()
    assert calls["Restore"] == 0
    assert made.entries_unchanged == first.backup.entry_count
    assert made.read_bytes == 0
