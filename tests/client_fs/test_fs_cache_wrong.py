"""A damaged, forged, missing or unwritable cache costs a listing, and never makes a wrong backup."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest
from extent import extent
from fs_calls import counted_calls
from fs_trees import plant
from staddle._backup.cache import file as _cache_file
from staddle._backup.cache.file import CacheBlock, row_of
from staddle._backup.cache.store import Cache
from staddle._types.backups import BackupKind
from test_fs_cache import BOTH_WAYS, files_of


def newest_of(cache: Path) -> Path:
    return max(files_of(cache), key=lambda path: path.stat().st_mtime_ns)


def spoiled(cache: Path, spoil) -> None:
    """Rewrite the newest cache file."""
    path = newest_of(cache)
    path.write_bytes(spoil(path.read_bytes()))


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


SPOILS = {
    "its first byte": lambda data: flipped(data, 0),
    "its version": lambda data: flipped(data, 15),
    "its checksum": lambda data: flipped(data, 20),
    "its length": lambda data: flipped(data, 48),
    "its backup": lambda data: flipped(data, 60),
    "its dataset": lambda data: flipped(data, 80),
    "the root": lambda data: flipped(data, 110),
    "a block": lambda data: flipped(data, len(data) // 2),
    "its last byte": lambda data: flipped(data, len(data) - 1),
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "a byte too few": lambda data: data[:-1],
    "a byte too many": lambda data: data + b"\0",
    "zeros": lambda data: bytes(len(data)),
    "the header alone": lambda data: data[:104],
}


@pytest.mark.parametrize("what", extent([*SPOILS][::3], [*SPOILS]))
def test_a_damaged_cache_is_ignored(what: str, protected) -> None:
    plant(protected.source, files=12)
    protected.backup()
    (protected.source / "a" / "x").write_bytes(b"changed")
    spoiled(protected.cache, SPOILS[what])
    with counted_calls() as calls:
        made = protected.backup()
    assert calls["Restore"] == 1
    assert made.backup.changes.content_changed == 1
    with counted_calls() as calls:
        assert protected.backup().entries_unchanged == made.backup.entry_count
    assert calls["Restore"] == 0  # the cache has what it fetched and changed


def test_anything_but_a_file_in_place_of_a_cache_is_ignored_without_waiting(protected) -> None:
    """A pipe without a writer, a directory, a link to an endless device, and a sparse file of a terabyte."""
    plant(protected.source, files=3)
    protected.backup()

    def large(path: Path) -> None:
        path.touch()
        os.truncate(path, 2**40)

    for number, put in enumerate((os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero"), large)):
        place = newest_of(protected.cache)
        place.unlink()
        put(place)
        (protected.source / "a" / "x").write_bytes(b"changed %d" % number)
        with counted_calls() as calls:
            made = protected.backup()
        assert (calls["Restore"], made.backup.changes.content_changed) == (1, 1)
        # Its own cache is kept, whatever else is in the directory.
        assert protected.backup().entries_unchanged == made.backup.entry_count
        if place.is_dir():
            place.rmdir()


def test_a_cache_under_the_name_of_another_backup_is_ignored(protected) -> None:
    (protected.source / "f").write_bytes(b"one")
    protected.backup()
    old = newest_of(protected.cache).read_bytes()
    (protected.source / "f").write_bytes(b"two")
    protected.backup()
    newest_of(protected.cache).write_bytes(old)
    with counted_calls() as calls:
        protected.backup()
    assert calls["Restore"] == 1
    assert protected.client.read("data", "f") == b"two"


def test_a_backup_made_elsewhere_has_no_cache_here(protected, tmp_path: Path) -> None:
    plant(protected.source, files=8)
    protected.backup()
    (protected.source / "a" / "x").write_bytes(b"one")
    protected.backup(cache_dir=str(tmp_path / "elsewhere"))
    (protected.source / "a" / "x").write_bytes(b"two")
    with counted_calls() as calls:
        protected.backup()
    assert calls["Restore"] == 1
    assert protected.client.read("data", "a/x") == b"two"


def write_wrong(protected, blocks: list[CacheBlock], root: bytes | None = None) -> None:
    """A wrong cache of the newest backup with a valid checksum."""
    cache = Cache(str(protected.cache), protected.client.address, "data")
    record = cache.record(differential=False)
    record.writer.set_root(root or row_of(protected.source.lstat()))
    for block in blocks:
        record.writer.add(block)
    newest = next(iter(protected.client.backups("data")))
    cache.keep(record, newest.id, full=newest.kind is BackupKind.FULL)
    cache.discard(record)


ROW = bytes(_cache_file.ROW_BYTES)


@BOTH_WAYS
@pytest.mark.parametrize(
    "blocks",
    [
        [CacheBlock(b"", True, False, 2, b"z\0a", 2 * ROW)],
        [CacheBlock(b"", True, False, 3, b"a\0b", 3 * ROW)],
        [CacheBlock(b"", True, False, 0, b"", b"")],
        [CacheBlock(b"", True, True, 1, b"a", ROW), CacheBlock(b"", False, False, 2, b"c\0b", 2 * ROW)],
        [CacheBlock(b"x" * 20_000, True, False, 1, b"a", ROW)],
    ],
    ids=["unsorted", "too few names", "no names", "second unsorted", "long path"],
)
def test_a_contradictory_cache_is_detected_and_the_backup_restarted(
    blocks: list[CacheBlock], thin: bool, protected
) -> None:
    plant(protected.source, files=12)
    protected.backup()
    (protected.source / "new").write_bytes(b"new")
    expected = protected.backup(dataset="untroubled", cache_dir=None).backup
    write_wrong(protected, blocks)
    with counted_calls() as calls:
        made = protected.backup(thin=thin)
    assert made.backup.manifest_digest == expected.manifest_digest
    assert calls["AbortUpload"] == 1
    assert protected.backup().entries_unchanged == made.backup.entry_count


def test_a_cache_that_others_could_have_written_is_not_trusted(protected) -> None:
    plant(protected.source, files=4)
    protected.backup()
    for path, mode in ((newest_of(protected.cache), 0o620), (protected.cache, 0o707)):
        path.chmod(mode)
        with counted_calls() as calls:
            protected.backup()
        assert calls["Restore"] == 1
        path.chmod(0o700)


def test_a_symbolic_link_in_place_of_a_cache_is_not_followed(protected, tmp_path: Path) -> None:
    plant(protected.source, files=4)
    protected.backup()
    path = newest_of(protected.cache)
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    with counted_calls() as calls:
        protected.backup()
    assert calls["Restore"] == 1


@pytest.mark.parametrize(
    "backup_id", ["", "ab", "../" * 10 + "ab", "AB" * 16, "zz" * 16, " " + "ab" * 15 + "a"]
)
def test_a_server_cannot_choose_a_file_name(backup_id: str, tmp_path: Path) -> None:
    cache = Cache(str(tmp_path / "cache"), "server:1", "data")
    assert cache.find(backup_id) is None
    record = cache.record(differential=False)
    cache.keep(record, backup_id, full=True)
    cache.discard(record)
    assert files_of(tmp_path / "cache") == []


def test_a_cache_is_readable_by_its_owner_only(protected) -> None:
    plant(protected.source, files=4)
    before = os.umask(0)
    try:
        protected.backup()
    finally:
        os.umask(before)
    assert stat.S_IMODE(protected.cache.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in files_of(protected.cache)] == [0o600]


def test_removing_the_cache_is_harmless(protected) -> None:
    plant(protected.source, files=8)
    protected.backup()
    shutil.rmtree(protected.cache)
    made = protected.backup()
    assert made.entries_unchanged == made.backup.entry_count
    assert files_of(protected.cache)


def test_on_a_read_only_disk_the_backup_is_made_without_a_cache(protected, tmp_path: Path) -> None:
    plant(protected.source, files=8)
    (tmp_path / "file").touch()
    for place in ("/proc/nowhere", str(tmp_path / "file" / "below")):
        assert protected.backup(cache_dir=place).complete


def test_a_disk_that_fills_up_leaves_no_cache_and_no_trace(
    protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(protected.source, files=8)

    def full(*_args) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert protected.backup().complete
    assert files_of(protected.cache) == []


def test_with_a_disabled_cache_nothing_is_written(protected) -> None:
    plant(protected.source, files=8)
    protected.backup(cache_dir=None)
    with counted_calls() as calls:
        protected.backup(cache_dir=None)
    assert calls["Restore"] == 1
    assert files_of(protected.cache) == []


def test_a_single_file_needs_no_cache(protected) -> None:
    (protected.source / "only").write_bytes(b"1")
    protected.backup(protected.source / "only")
    assert protected.backup(protected.source / "only").entries_unchanged == 1
    assert files_of(protected.cache) == []
