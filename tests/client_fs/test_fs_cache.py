"""Backups with a cache of what the base holds, held against backups without one: they are the same, whatever happens to the cache."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import subprocess
import time
from contextlib import closing
from pathlib import Path

import forked
import pytest
from extent import extent
from fs_calls import counted_calls
from fs_trees import open_below, plant, seeded_bytes
from staddle._backup import cached_comparison
from staddle._backup.cache import file as _cache_file
from staddle._backup.cache import store
from staddle._backup.cache.file import NO_ROW, Block, row_of
from staddle._backup.cache.recorder import Record
from staddle._backup.cache.store import Cache
from staddle._backup.cached_comparison import CachedScan
from staddle._backup.changes import Removed
from staddle._errors import ConnectError
from staddle._fs.walk import DESCRIPTORS_MAX
from staddle._types.backups import BackupKind
from staddle._types.reports import ProblemKind

BOTH_WAYS = pytest.mark.parametrize("thin", [False, True], ids=["source-side", "thin"])


def files_of(cache: Path) -> list[Path]:
    return sorted(each for each in cache.iterdir() if each.name != "CACHEDIR.TAG") if cache.exists() else []


def newest_of(cache: Path) -> Path:
    return max(files_of(cache), key=lambda path: path.stat().st_mtime_ns)


class Edits:
    """Random edits of a tree, the same for the same seed."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.chance = random.Random(seed)

    def some(self, count: int) -> None:
        """So many of them."""
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
    """Has blocks of the cache hold so few children that every directory has several."""
    for module in (cached_comparison, _cache_file):
        monkeypatch.setattr(module, "CHILDREN_MAX", most)
    monkeypatch.setattr(Record, "children_max", most)


@pytest.mark.parametrize("most", [4_096, 1, 3])
@pytest.mark.parametrize("seed", range(extent(3, 8)))
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

        ahead_ns = chance.choice([0, 10_000_000_000])  # what was written just now may still change, or not
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
def test_a_file_that_was_to_be_read_again_is_read_again(thin: bool, protected) -> None:
    (protected.source / "f").write_bytes(b"fresh")
    protected.backup(clock=time.time_ns, thin=thin)
    assert protected.backup(clock=time.time_ns, thin=thin).read_bytes == 5
    protected.backup(thin=thin)
    assert files_of(protected.cache)
    assert protected.backup(thin=thin).read_bytes == 0


@BOTH_WAYS
def test_a_file_that_cannot_be_read_is_tried_each_time_and_not_removed_each_time(
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


# --- what may be wrong with a cache


def spoiled(cache: Path, spoil) -> None:
    """Writes the newest file of the cache anew."""
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


@pytest.mark.parametrize("what", SPOILS)
def test_a_cache_that_is_damaged_is_as_none(what: str, protected) -> None:
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
    assert calls["Restore"] == 0  # what it fetched, and what it changed, is remembered


def test_what_is_no_file_in_place_of_a_cache_is_as_none_and_nobody_waits_for_it(protected) -> None:
    """A pipe that nobody writes to, a directory, a link to a device without end, and a file of a terabyte that takes no space."""
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
        # Its own cache is remembered all the same, whatever lies beside it.
        assert protected.backup().entries_unchanged == made.backup.entry_count
        if place.is_dir():
            place.rmdir()


def test_a_cache_under_another_backups_name_is_as_none(protected) -> None:
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


def test_a_backup_that_somebody_else_made_has_no_cache_here(protected, tmp_path: Path) -> None:
    plant(protected.source, files=8)
    protected.backup()
    (protected.source / "a" / "x").write_bytes(b"one")
    protected.backup(cache_dir=str(tmp_path / "elsewhere"))
    (protected.source / "a" / "x").write_bytes(b"two")
    with counted_calls() as calls:
        protected.backup()
    assert calls["Restore"] == 1
    assert protected.client.read("data", "a/x") == b"two"


def write_wrong(protected, blocks: list[Block], root: bytes | None = None) -> None:
    """A cache of the newest backup that is whole by its checksum, and wrong."""
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
        [Block(b"", True, False, 2, b"z\0a", 2 * ROW)],
        [Block(b"", True, False, 3, b"a\0b", 3 * ROW)],
        [Block(b"", True, False, 0, b"", b"")],
        [Block(b"", True, True, 1, b"a", ROW), Block(b"", False, False, 2, b"c\0b", 2 * ROW)],
        [Block(b"x" * 20_000, True, False, 1, b"a", ROW)],
    ],
    ids=["unsorted", "too few names", "no names", "second unsorted", "long path"],
)
def test_a_cache_that_contradicts_itself_is_found_out_and_the_backup_begun_anew(
    blocks: list[Block], thin: bool, protected
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


def test_a_cache_that_others_could_have_written_is_not_believed(protected) -> None:
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
def test_a_server_cannot_name_a_file(backup_id: str, tmp_path: Path) -> None:
    cache = Cache(str(tmp_path / "cache"), "server:1", "data")
    assert cache.find(backup_id) is None
    record = cache.record(differential=False)
    cache.keep(record, backup_id, full=True)
    cache.discard(record)
    assert files_of(tmp_path / "cache") == []


def test_a_cache_is_for_its_owners_eyes_only(protected) -> None:
    plant(protected.source, files=4)
    before = os.umask(0)
    try:
        protected.backup()
    finally:
        os.umask(before)
    assert stat.S_IMODE(protected.cache.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in files_of(protected.cache)] == [0o600]


def test_taking_the_cache_away_harms_nothing(protected) -> None:
    plant(protected.source, files=8)
    protected.backup()
    shutil.rmtree(protected.cache)
    made = protected.backup()
    assert made.entries_unchanged == made.backup.entry_count
    assert files_of(protected.cache)


def test_where_nothing_can_be_written_there_is_no_cache_and_the_backup_is_made(
    protected, tmp_path: Path
) -> None:
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


def test_without_a_cache_nothing_is_remembered(protected) -> None:
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


# --- which files there are


def test_the_newest_stays_and_the_newest_full_one(protected) -> None:
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


def test_a_differential_that_keeps_the_full_ones_metadata_is_not_remembered(protected) -> None:
    plant(protected.source, files=8)
    protected.backup()
    (protected.source / "a" / "x").chmod(0o604)
    differential = protected.backup(kind="differential").backup
    assert differential.changes.metadata_kept
    assert not [path for path in files_of(protected.cache) if differential.id in path.name]
    with counted_calls() as calls:
        assert protected.backup(kind="incremental").backup.changes.metadata_changed
    assert calls["Restore"] == 1


def test_the_directory_is_kept_within_its_limit_and_the_oldest_go_first(
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


def test_what_killed_processes_left_is_taken_away_after_a_day(protected) -> None:
    protected.cache.mkdir(mode=0o700)
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


def test_a_backup_that_was_gone_on_with_leaves_no_cache(protected, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_two_commands_at_once_share_a_cache(server, tmp_path: Path) -> None:
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


# --- the walk


def test_a_tree_deeper_than_the_open_directories_is_compared_whole(protected) -> None:
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


def test_a_directory_of_more_names_than_a_block_holds_is_compared_whole(protected) -> None:
    count = 2 * _cache_file.CHILDREN_MAX + 100
    for number in range(count):
        (protected.source / f"{number:06}").touch()
    protected.backup()
    (protected.source / "000000a").touch()  # moves all behind it to another place in their blocks
    (protected.source / "004096").unlink()
    (protected.source / "zzz").mkdir()
    with counted_calls() as calls:
        made = protected.backup()
    assert calls["Restore"] == 0
    assert made.entries_unchanged == count - 1
    assert (made.backup.changes.added, made.backup.changes.removed) == (2, 1)
    assert protected.backup().entries_unchanged == made.backup.entry_count


def test_a_directory_that_goes_while_the_tree_is_compared_is_reported_and_removed(
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


def test_a_file_that_changes_between_the_two_looks_is_backed_up_as_it_is(
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


def test_a_file_that_cannot_be_looked_at_the_second_time_is_in_the_next_backup(
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
def test_a_file_that_changes_between_look_and_reading_is_remembered_as_it_was_read(
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


def differences(place: Path, root: Path, blocks: list[Block]) -> list[tuple[str, bytes]]:
    """What a walk finds, against a cache with these blocks."""
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


def test_what_stat_says_of_another_name_proves_nothing(protected, tmp_path: Path) -> None:
    (protected.source / "new").touch()
    row = row_of((protected.source / "new").lstat())
    assert differences(tmp_path / "c", protected.source, [Block(b"", True, False, 1, b"new", row)]) == []
    assert differences(tmp_path / "c", protected.source, [Block(b"", True, False, 1, b"old", row)]) == [
        ("changed", b"new"),
        ("removed", b"old"),
    ]


def test_what_the_backup_does_not_have_is_not_removed_when_it_goes(protected, tmp_path: Path) -> None:
    (protected.source / "m").touch()
    row = row_of((protected.source / "m").lstat())
    block = Block(b"", True, False, 3, b"a\0m\0z", NO_ROW + row + NO_ROW)
    assert differences(tmp_path / "c", protected.source, [block]) == []
    known = Block(b"", True, False, 3, b"a\0m\0z", row + row + row)
    assert differences(tmp_path / "c", protected.source, [known]) == [("removed", b"a"), ("removed", b"z")]


def test_the_size_of_what_is_no_file_proves_nothing(protected, tmp_path: Path) -> None:
    (protected.source / "d").mkdir()
    (protected.source / "f").touch()
    rows = [row_of((protected.source / name).lstat())[:-8] + bytes([9] * 8) for name in "df"]
    blocks = [Block(b"", True, False, 2, b"d\0f", b"".join(rows))]
    assert differences(tmp_path / "c", protected.source, blocks) == [("changed", b"f")]


def test_differences_come_in_the_order_of_a_backup(protected, tmp_path: Path) -> None:
    """What is durable of a backup is told by its last path: all before it must have been sent."""
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
