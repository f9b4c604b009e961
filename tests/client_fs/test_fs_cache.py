"""Backups with a cache of the base compared with backups without one: the same, whatever happens to the cache."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import subprocess
import time
from pathlib import Path

import forked
import pytest
from extent import extent
from fs_calls import counted_calls
from fs_trees import clock_at_last_change, plant
from staddle._backup import cached_comparison
from staddle._backup.cache import file as _cache_file
from staddle._backup.cache import store
from staddle._backup.cache.recorder import CacheRecorder
from staddle._errors import ConnectError

BOTH_WAYS = pytest.mark.parametrize("thin", [False, True], ids=["source-side", "thin"])


def files_of(cache: Path) -> list[Path]:
    return sorted(each for each in cache.iterdir() if each.name != "CACHEDIR.TAG") if cache.exists() else []


class Edits:
    """Random edits of a tree, the same for the same seed."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.chance = random.Random(seed)

    def some(self, count: int) -> None:
        """Apply several edits."""
        makers = (
            [self.write] * 4 + [self.make_directory] * 3 + [self.forge, self.append, self.mode, self.remove]
        )
        makers += [self.rename, self.turn, self.link, self.symlink]
        for _ in range(count):
            self.chance.choice(makers)()

    def paths(self) -> list[Path]:
        return sorted(self.root.rglob("*"))

    def directory(self) -> Path:
        return self.chance.choice([self.root, *(path for path in self.paths() if is_directory(path))])

    def file(self) -> Path | None:
        files = [path for path in self.paths() if path.is_file() and not path.is_symlink()]
        return self.chance.choice(files) if files else None

    def free(self) -> Path | None:
        name = self.chance.choice(["a", "a.b", "a-b", "b", "c", "d", "e", "f", "\udcff", "é"])
        path = self.directory() / name
        return None if os.path.lexists(path) else path

    def write(self) -> None:
        if (path := self.free()) is not None:
            path.write_bytes(self.chance.randbytes(self.chance.choice([0, 3, 5_000])))

    def make_directory(self) -> None:
        if (path := self.free()) is not None:
            path.mkdir()

    def symlink(self) -> None:
        if (path := self.free()) is not None:
            path.symlink_to(self.chance.choice(["a", "../b", "nowhere"]))

    def link(self) -> None:
        path, of = self.free(), self.file()
        if path is not None and of is not None:
            os.link(of, path)

    def append(self) -> None:
        if (path := self.file()) is not None:
            with path.open("ab") as file:
                file.write(b"more")

    def forge(self) -> None:
        """Other bytes under the same size and modification time."""
        if (path := self.file()) is not None:
            status = path.stat()
            path.write_bytes(self.chance.randbytes(status.st_size))
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def mode(self) -> None:
        if (path := self.file()) is not None:
            path.chmod(self.chance.choice([0o600, 0o644, 0o755]))

    def remove(self) -> None:
        if paths := self.paths():
            take_away(self.chance.choice(paths))

    def rename(self) -> None:
        path, paths = self.free(), self.paths()
        if path is not None and paths:
            chosen = self.chance.choice(paths)
            if chosen not in path.parents and chosen != path:
                chosen.rename(path)

    def turn(self) -> None:
        """A directory becomes a file, or a file a directory with something in it."""
        if paths := self.paths():
            path = self.chance.choice(paths)
            was_directory = is_directory(path)
            take_away(path)
            if was_directory:
                path.write_bytes(b"a file now")
            else:
                path.mkdir()
                (path / "inner").write_bytes(b"in a directory now")


def is_directory(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def take_away(path: Path) -> None:
    if is_directory(path):
        shutil.rmtree(path)
    else:
        path.unlink()


def few_children(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Make cache blocks so small that every directory has several."""
    for module in (cached_comparison, _cache_file):
        monkeypatch.setattr(module, "CHILDREN_MAX", most)
    monkeypatch.setattr(CacheRecorder, "children_max", most)


@pytest.mark.parametrize("most", [4_096, 1, 3])
@pytest.mark.parametrize("seed", range(extent(1, 8)))
def test_backups_with_and_without_a_cache_are_the_same_over_random_edits(
    seed: int, most: int, protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_children(monkeypatch, most)
    edits = Edits(protected.source, seed)
    chance = edits.chance
    edits.some(60)
    real_open = os.open
    for step in range(7):
        refused = {os.fsencode(name) for name in chance.sample("abcdef", chance.choice([0, 0, 0, 1]))}

        def refusing(path, *args, refused=refused, **options) -> int:
            if path in refused:
                raise PermissionError(errno.EACCES, "Permission denied")
            return real_open(path, *args, **options)

        ahead_ns = chance.choice([0, 10_000_000_000])  # recently written files may still change
        now_ns = time.time_ns() + ahead_ns
        options = {
            "kind": chance.choice(["auto"] * 6 + ["full", "differential"]) if step else "auto",
            "exclude": chance.choice([(), (), ("c",), ("d/",)]),
            "clock": lambda now_ns=now_ns: now_ns,
        }
        monkeypatch.setattr(os, "open", refusing)
        with_cache = protected.backup(dataset="with", thin=chance.random() < 0.3, **options)
        without = protected.backup(dataset="without", cache_dir=None, thin=chance.random() < 0.3, **options)
        monkeypatch.setattr(os, "open", real_open)
        assert with_cache.backup.manifest_digest == without.backup.manifest_digest
        assert with_cache.backup.changes == without.backup.changes
        assert with_cache.entries_unchanged == without.entries_unchanged
        assert set(with_cache.problems) == set(without.problems)
        edits.some(chance.choice([0, 0, 1, 2, 8]))


@BOTH_WAYS
def test_an_unchanged_tree_costs_the_server_the_same_whatever_its_size(thin: bool, protected) -> None:
    costs = []
    for count in (30, 3_000):
        for number in range(count):
            if number % 100 == 0:
                (directory := protected.source / f"d{count}-{number}").mkdir()
            (directory / f"f{number}").write_bytes(b"x")
        protected.backup(thin=thin)
        with counted_calls() as calls:
            made = protected.backup(thin=thin)
        assert made.entries_unchanged == made.backup.entry_count
        costs.append(calls)
    assert costs[0] == costs[1]
    assert costs[0]["Restore"] == 0
    assert costs[0].total() <= 4


def test_a_change_is_found_by_a_backup_that_lists_nothing(protected) -> None:
    plant(protected.source)
    protected.backup()
    (protected.source / "a" / "x").write_bytes(b"changed")
    with counted_calls() as calls:
        made = protected.backup()
    assert calls["Restore"] == 0
    assert made.read_bytes == 7
    assert made.backup.changes.content_changed == 1
    assert protected.client.read("data", "a/x") == b"changed"


@BOTH_WAYS
def test_a_file_marked_for_rereading_is_read_again(thin: bool, protected) -> None:
    (protected.source / "f").write_bytes(b"fresh")
    clock = clock_at_last_change(protected.source / "f")
    protected.backup(clock=clock, thin=thin)
    assert protected.backup(clock=clock, thin=thin).read_bytes == 5
    protected.backup(thin=thin)
    assert files_of(protected.cache)
    assert protected.backup(thin=thin).read_bytes == 0


@BOTH_WAYS
def test_an_unreadable_file_is_tried_each_time_and_removed_once(
    thin: bool, protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    (protected.source / "secret").write_bytes(b"no")
    real = os.open

    def refusing(path, *args, **options) -> int:
        if path == b"secret":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", refusing)
    made = [protected.backup(thin=thin) for _ in range(2)]
    made.append(protected.backup(thin=thin))
    assert made[-1].backup.changes.removed == 0
    monkeypatch.undo()
    assert [len(each.problems) for each in made] == [1, 1, 1]
    with counted_calls() as calls:
        assert protected.backup(thin=thin).read_bytes == 2
    assert calls["Restore"] == 0
    assert protected.client.read("data", "secret") == b"no"


# --- the files of the cache


def test_the_newest_cache_and_that_of_the_newest_full_backup_stay(protected) -> None:
    plant(protected.source, files=4)
    ids = [protected.backup(kind=kind).backup.id for kind in ("full", "auto", "full", "auto", "auto")]
    assert [path.name.partition("-")[2] for path in files_of(protected.cache)] == sorted(
        [f"{ids[2]}.full", f"{ids[4]}.later"]
    )


def test_a_differential_is_compared_with_the_cache_of_the_full_one(protected) -> None:
    plant(protected.source, files=8)
    protected.backup()
    (protected.source / "a" / "x").write_bytes(b"one")
    protected.backup()
    with counted_calls() as calls:
        made = protected.backup(kind="differential")
    assert calls["Restore"] == 0
    assert made.backup.changes.content_changed == 1


def test_a_differential_that_keeps_the_metadata_of_the_full_backup_is_not_cached(protected) -> None:
    plant(protected.source, files=8)
    protected.backup()
    (protected.source / "a" / "x").chmod(0o604)
    differential = protected.backup(kind="differential").backup
    assert differential.changes.metadata_kept
    assert not [path for path in files_of(protected.cache) if differential.id in path.name]
    with counted_calls() as calls:
        assert protected.backup(kind="incremental").backup.changes.metadata_changed
    assert calls["Restore"] == 1


def test_the_cache_stays_within_its_limit_and_drops_the_oldest_first(
    protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(protected.source, files=4)
    for number in range(3):
        protected.backup(dataset=f"d{number}")
        for path in files_of(protected.cache):
            os.utime(path, (0, path.stat().st_mtime - 10))
    size = files_of(protected.cache)[0].stat().st_size
    monkeypatch.setattr(store, "DIRECTORY_BYTES_MAX", 3 * size)
    protected.backup(dataset="d3")
    assert len(files_of(protected.cache)) == 3
    for dataset, fetches in (("d0", 1), ("d3", 0)):
        with counted_calls() as calls:
            protected.backup(dataset=dataset)
        assert calls["Restore"] == fetches


def test_a_cache_that_would_be_too_large_is_not_written(protected, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(protected.source, files=40)
    monkeypatch.setattr(_cache_file, "FILE_BYTES_MAX", 1_000)
    assert protected.backup().complete
    assert files_of(protected.cache) == []


def test_files_of_killed_processes_are_removed_after_a_day(protected) -> None:
    protected.cache.mkdir(mode=0o700)
    (protected.cache / "CACHEDIR.TAG").write_bytes(store.CACHE_TAG_TEXT)
    (protected.cache / ".new-old").touch()
    (protected.cache / ".new-young").touch()
    os.utime(protected.cache / ".new-old", (0, time.time() - 25 * 3600))
    (protected.cache / "somebody-else's").touch()
    protected.backup()
    names = {path.name for path in files_of(protected.cache) if not path.name.endswith(".full")}
    assert names == {".new-young", "somebody-else's"}


def test_a_backup_that_fails_leaves_no_cache(protected, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(protected.source, files=8)
    real = protected.client._calls.call

    def call(method, request, **options):
        if method == "CommitUpload":
            raise ConnectError("nobody answers")
        return real(method, request, **options)

    monkeypatch.setattr(protected.client._calls, "call", call)
    with pytest.raises(ConnectError):
        protected.backup(retry_s=0.0)
    assert files_of(protected.cache) == []


def test_a_resumed_backup_leaves_no_cache(protected, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(protected.source, files=8)
    real = protected.client._calls.call
    broken = []

    def call(method, request, **options):
        if method == "CommitUpload" and not broken:
            broken.append(method)
            raise ConnectError("the connection broke")
        return real(method, request, **options)

    monkeypatch.setattr(protected.client._calls, "call", call)
    made = protected.backup()
    assert broken
    assert files_of(protected.cache) == []
    assert protected.backup().entries_unchanged == made.backup.entry_count
    assert files_of(protected.cache)


def test_two_concurrent_commands_share_a_cache(server, tmp_path: Path) -> None:
    for name in "ab":
        plant(tmp_path / name, files=30)
    environment = {
        **os.environ,
        "STADDLE_CONFIG": str(server.config),
        "STADDLE_CACHE_DIR": str(tmp_path / "cache"),
    }

    def start(name: str, number: int) -> subprocess.Popen[bytes]:
        (tmp_path / name / "a" / "x").write_bytes(b"%d" % number)
        words = [forked.BIN / "staddle", "backup", str(tmp_path / name), "--dataset", name]
        return forked.start(words, env=environment, stdout=subprocess.DEVNULL)

    for number in range(4):
        assert [process.wait(60) for process in [start("a", number), start("b", number)]] == [0, 0]
    for name in "ab":
        words = [forked.BIN / "staddle", "cat", name, "a/x"]
        assert forked.run(words, env=environment, capture_output=True, check=True).stdout == b"3"
    assert len(files_of(tmp_path / "cache")) == 4
