"""The directory backend: durable before acknowledged, whatever the system answers."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from staddle_server.base.errors import Exhausted, StaddleError, Unavailable
from staddle_server.store.backends.directory import WRITE_BACK_BYTES, DirectoryBlobs
from staddle_server.store.blobs import BlobExists, BlobMissing, BlobShort, Buffer
from staddle_server.store.files import Files

NAME = "packs/aa/00/f00"
STEPS = ("open", "lock", "write", "write_back", "read", "sync", "sync_directory", "link", "unlink")
STEPS += ("replace", "make_directory", "status", "status_of", "scan")


class FaultyFiles(Files):
    """Real files with a journal; a test can make a named step fail, or run something before it."""

    def __init__(self) -> None:
        self.faults: dict[str, int] = {}
        self.before: dict[str, Callable[[], None]] = {}
        self.journal: list[tuple[str, Any]] = []
        self.write_bytes_max = 1 << 30
        self.read_bytes_max = 1 << 30

    def __getattribute__(self, step: str) -> Any:
        real = super().__getattribute__(step)
        if step not in STEPS:
            return real

        def run(*arguments: Any) -> Any:
            self.journal.append((step, arguments[0]))
            happens = self.before.pop(step, None)
            if happens is not None:
                happens()
            if step in self.faults:
                raise OSError(self.faults[step], os.strerror(self.faults[step]))
            return real(*arguments)

        return run

    def write(self, descriptor: int, data: Buffer) -> int:
        return os.write(descriptor, memoryview(data)[: self.write_bytes_max])

    def read(self, descriptor: int, length: int, offset: int) -> bytes:
        return os.pread(descriptor, min(length, self.read_bytes_max), offset)

    def steps(self) -> list[str]:
        return [step for step, _ in self.journal]


@pytest.fixture
def files() -> FaultyFiles:
    return FaultyFiles()


@pytest.fixture
def directory(tmp_path: Path, files: FaultyFiles) -> DirectoryBlobs:
    return DirectoryBlobs(str(tmp_path), files)


def temporary_files(root: Path) -> list[str]:
    return sorted(os.listdir(root / "tmp")) if (root / "tmp").exists() else []


def test_an_object_is_synced_before_it_is_named_and_its_directory_after(
    directory: DirectoryBlobs, files: FaultyFiles
) -> None:
    directory.put("records/aa/0", b"makes the directories")
    files.journal.clear()
    directory.put("records/aa/1", b"data")
    steps = [step for step in files.steps() if step in {"write", "sync", "link", "sync_directory", "unlink"}]
    assert steps == ["write", "sync", "link", "sync_directory", "unlink"]


def test_each_new_directory_is_synced_into_its_parent_before_an_object_is_named_in_it(
    directory: DirectoryBlobs, files: FaultyFiles, tmp_path: Path
) -> None:
    directory.put("b/1", b"")
    files.journal.clear()
    directory.put(NAME, b"")
    made = [
        (step, os.path.relpath(what, tmp_path) if isinstance(what, str) else "")
        for step, what in files.journal
        if step in {"make_directory", "sync_directory", "link"}
    ]
    assert [step for step, _ in made] == ["make_directory", "sync_directory"] * 3 + ["link", "sync_directory"]
    assert [what for step, what in made if step == "make_directory"] == ["packs", "packs/aa", "packs/aa/00"]


def test_a_directory_that_another_process_made_is_synced_too(tmp_path: Path, files: FaultyFiles) -> None:
    DirectoryBlobs(str(tmp_path)).put("packs/1", b"")
    second = DirectoryBlobs(str(tmp_path), files)
    second.put("packs/2", b"")
    before_link = files.steps()[: files.steps().index("link")]
    assert before_link.count("sync_directory") == 2  # for tmp and for packs


def test_a_name_is_durable_before_the_losing_writer_learns_of_it(
    directory: DirectoryBlobs, files: FaultyFiles
) -> None:
    directory.put(NAME, b"first")
    files.journal.clear()
    with pytest.raises(BlobExists):
        directory.put(NAME, b"second")
    assert "sync_directory" in files.steps()[files.steps().index("link") :]


def test_short_writes_and_short_reads_lose_nothing(directory: DirectoryBlobs, files: FaultyFiles) -> None:
    files.write_bytes_max = 7
    files.read_bytes_max = 11
    directory.put(NAME, bytes(range(100)))
    assert directory.read(NAME, 0, 100) == bytes(range(100))
    assert directory.read(NAME, 5, 50) == bytes(range(5, 55))


def test_a_file_that_shrinks_while_it_is_read_is_short(
    directory: DirectoryBlobs, files: FaultyFiles, tmp_path: Path
) -> None:
    directory.put(NAME, bytes(100))
    files.before["read"] = lambda: os.truncate(tmp_path / NAME, 60)
    with pytest.raises(BlobShort) as caught:
        directory.read(NAME, 0, 100)
    assert caught.value.size == 60


@pytest.mark.parametrize(
    "step", ["open", "lock", "make_directory", "write", "sync", "link", "sync_directory"]
)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_exhausted_at_every_step(
    directory: DirectoryBlobs, files: FaultyFiles, step: str, number: int
) -> None:
    files.faults[step] = number
    with pytest.raises(Exhausted) as caught:
        directory.put(NAME, b"data")
    assert caught.value.reason == "STORE_FULL"


@pytest.mark.parametrize(
    "step", ["open", "lock", "make_directory", "write", "write_back", "sync", "link", "sync_directory"]
)
@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EACCES, errno.EMFILE])
def test_a_disk_that_does_not_answer_is_unavailable_at_every_step(
    directory: DirectoryBlobs, files: FaultyFiles, step: str, number: int
) -> None:
    files.faults[step] = number
    with pytest.raises(Unavailable) as caught:
        directory.put(NAME, bytes(WRITE_BACK_BYTES))
    assert caught.value.reason == "STORE_UNAVAILABLE"
    assert errno.errorcode[number] in caught.value.message
    assert caught.value.retry_after_s is not None


@pytest.mark.parametrize("step", ["write", "sync", "link"])
def test_a_write_that_failed_leaves_neither_an_object_nor_a_temporary_file(
    directory: DirectoryBlobs, files: FaultyFiles, tmp_path: Path, step: str
) -> None:
    directory.put("packs/older", b"stays")
    files.faults[step] = errno.EIO
    with pytest.raises(Unavailable):
        directory.put(NAME, b"data")
    assert list(directory.list("")) == [("packs/older", 5)]
    assert temporary_files(tmp_path) == []


def test_a_writer_whose_write_failed_never_commits(directory: DirectoryBlobs, files: FaultyFiles) -> None:
    writer = directory.create()
    writer.write(b"first part")
    files.faults["write"] = errno.ENOSPC
    with pytest.raises(Exhausted):
        writer.write(b"lost part")
    files.faults.clear()
    for attempt in (lambda: writer.write(b"third part"), lambda: writer.commit(NAME)):
        with pytest.raises(ValueError, match="failed"):
            attempt()
    writer.abort()
    assert list(directory.list("")) == []


def test_writing_works_again_once_the_disk_has_room(directory: DirectoryBlobs, files: FaultyFiles) -> None:
    files.faults["write"] = errno.ENOSPC
    with pytest.raises(Exhausted):
        directory.put(NAME, b"data")
    files.faults.clear()
    directory.put(NAME, b"data")
    assert directory.read(NAME, 0, 4) == b"data"


@pytest.mark.parametrize("step", ["sync", "sync_directory"])
def test_a_failed_sync_is_not_retried_and_ends_all_writing_but_not_reading(
    directory: DirectoryBlobs, files: FaultyFiles, step: str
) -> None:
    directory.put("packs/aa/00/older", b"stays")
    begun = directory.create()
    files.journal.clear()
    files.faults[step] = errno.EIO
    with pytest.raises(Unavailable):
        directory.put(NAME, b"data")
    assert files.steps().count(step) == 1
    files.faults.clear()
    assert directory.failed is not None
    assert "sync" in directory.failed
    attempts: list[Callable[[], object]] = [
        directory.create,
        directory.sweep,
        lambda: directory.put("other", b""),
        lambda: directory.delete("packs/aa/00/older"),
        lambda: begun.write(b"more"),
        lambda: begun.commit("packs/begun"),
    ]
    for attempt in attempts:
        with pytest.raises(Unavailable, match="restart the server"):
            attempt()
    assert files.steps().count(step) == 1
    assert directory.read("packs/aa/00/older", 0, 5) == b"stays"
    assert "packs/begun" not in dict(directory.list(""))


def test_a_new_instance_writes_again_after_a_failed_sync(tmp_path: Path, files: FaultyFiles) -> None:
    failed = DirectoryBlobs(str(tmp_path), files)
    files.faults["sync"] = errno.EIO
    with pytest.raises(Unavailable):
        failed.put(NAME, b"data")
    fresh = DirectoryBlobs(str(tmp_path))
    fresh.put(NAME, b"data")
    assert fresh.failed is None
    assert fresh.read(NAME, 0, 4) == b"data"


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_an_unreadable_object_is_not_reported_as_missing(
    directory: DirectoryBlobs, files: FaultyFiles, number: int
) -> None:
    directory.put(NAME, b"data")
    asks: dict[str, Callable[[], object]] = {
        "open": lambda: directory.read(NAME, 0, 4),
        "status_of": lambda: directory.read(NAME, 0, 4),
        "read": lambda: directory.read(NAME, 0, 4),
        "status": lambda: directory.size(NAME),
        "scan": lambda: list(directory.list("")),
        "unlink": lambda: directory.delete(NAME),
    }
    for step, ask in asks.items():
        files.faults = {step: number}
        with pytest.raises(Unavailable):
            ask()
    files.faults.clear()
    assert directory.read(NAME, 0, 4) == b"data"


@pytest.mark.parametrize("linked", [False, True], ids=["a directory", "a link to one"])
@pytest.mark.parametrize("instead", ["nothing", "an empty directory", "a copy"])
def test_a_root_that_is_gone_or_another_one_is_unavailable_and_unchanged(
    tmp_path: Path, instead: str, linked: bool
) -> None:
    mounted, away = tmp_path / "mounted", tmp_path / "elsewhere"
    mounted.mkdir()
    root = tmp_path / "link" if linked else mounted
    if linked:
        root.symlink_to(mounted)
    directory = DirectoryBlobs(str(root))
    directory.put(NAME, b"data")
    begun = directory.create()
    begun.write(b"half of it")
    mounted.rename(away)
    if instead == "an empty directory":
        mounted.mkdir()
    elif instead == "a copy":
        shutil.copytree(away, mounted)
    before = sorted(mounted.rglob("*"))
    begun.write(b", and the rest")
    asks: list[Callable[[], object]] = [
        lambda: directory.read(NAME, 0, 4),
        lambda: directory.size(NAME),
        lambda: list(directory.list("")),
        lambda: directory.put("packs/new", b""),
        lambda: directory.delete(NAME),
        lambda: begun.commit("packs/begun"),
    ]
    for ask in [*asks, lambda: directory.put("packs/new", b"")]:
        with pytest.raises(Unavailable):
            ask()
    after = [path for path in sorted(mounted.rglob("*")) if path.parent.name != "tmp"]
    assert after == [path for path in before if path.parent.name != "tmp"]


def test_a_root_that_is_replaced_while_an_object_gets_its_name_acknowledges_nothing(
    tmp_path: Path, files: FaultyFiles
) -> None:
    root, away = tmp_path / "root", tmp_path / "away"
    root.mkdir()
    directory = DirectoryBlobs(str(root), files)
    directory.put("packs/1", b"makes the directories")

    def replace() -> None:
        shutil.copytree(root, tmp_path / "copy")
        root.rename(away)
        (tmp_path / "copy").rename(root)

    files.before["link"] = replace
    with pytest.raises(Unavailable):
        directory.put("packs/2", b"data")


def test_a_root_that_does_not_exist_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        DirectoryBlobs(str(tmp_path / "nothing"))


def test_removed_directories_are_created_again(directory: DirectoryBlobs, tmp_path: Path) -> None:
    directory.put(NAME, b"data")
    shutil.rmtree(tmp_path / "tmp")
    shutil.rmtree(tmp_path / "packs")
    for _ in range(3):
        try:
            directory.put(NAME, b"again")
            break
        except Unavailable:
            continue
    assert directory.read(NAME, 0, 5) == b"again"


def test_a_trailing_slash_in_the_root_is_ignored(tmp_path: Path) -> None:
    DirectoryBlobs(f"{tmp_path}/").put(NAME, b"data")
    assert (tmp_path / NAME).read_bytes() == b"data"


def test_other_files_are_neither_listed_nor_followed(directory: DirectoryBlobs, tmp_path: Path) -> None:
    directory.put("packs/aa", b"data")
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (tmp_path / "packs" / "link").symlink_to(outside / "secret")
    (tmp_path / "packs" / "linked").symlink_to(outside)
    (tmp_path / "packs" / "Foreign_NAME").write_bytes(b"")
    os.mkfifo(tmp_path / "packs" / "fifo")
    assert list(directory.list("")) == [("packs/aa", 4)]
    for name in ("packs/link", "packs/fifo"):
        with pytest.raises(StaddleError):
            directory.read(name, 0, 1)
    with pytest.raises(BlobMissing):
        directory.size("packs/link")


def test_files_are_readable_by_their_owner_only(directory: DirectoryBlobs, tmp_path: Path) -> None:
    directory.put(NAME, b"data")
    assert (tmp_path / NAME).stat().st_mode & 0o077 == 0
    assert (tmp_path / "packs").stat().st_mode & 0o077 == 0


# --- replacing


def replaced(directory: DirectoryBlobs, name: str, data: bytes) -> None:
    writer = directory.create()
    try:
        writer.write(data)
        writer.replace(name)
    finally:
        writer.abort()


def test_a_replacement_is_synced_before_it_is_named_and_its_directory_after(
    directory: DirectoryBlobs, files: FaultyFiles, tmp_path: Path
) -> None:
    directory.put(NAME, b"old")
    files.journal.clear()
    replaced(directory, NAME, b"new")
    steps = [step for step in files.steps() if step in {"write", "sync", "link", "replace", "sync_directory"}]
    assert steps == ["write", "sync", "replace", "sync_directory"]
    assert directory.read(NAME, 0, 3) == b"new"
    assert temporary_files(tmp_path) == []


@pytest.mark.parametrize("step", ["write", "sync", "replace"])
def test_a_replacement_that_failed_leaves_the_old_object_and_no_temporary_file(
    directory: DirectoryBlobs, files: FaultyFiles, tmp_path: Path, step: str
) -> None:
    directory.put(NAME, b"old")
    files.faults[step] = errno.EIO
    with pytest.raises(Unavailable):
        replaced(directory, NAME, b"new")
    assert directory.read(NAME, 0, 3) == b"old"
    assert temporary_files(tmp_path) == []
    assert (directory.failed is not None) == (step == "sync")


def test_a_replacement_whose_directory_cannot_be_synced_ends_all_writing(
    directory: DirectoryBlobs, files: FaultyFiles
) -> None:
    directory.put(NAME, b"old")
    files.faults["sync_directory"] = errno.EIO
    with pytest.raises(Unavailable):
        replaced(directory, NAME, b"new")
    files.faults.clear()
    with pytest.raises(Unavailable, match="restart the server"):
        replaced(directory, NAME, b"newer")
    assert directory.read(NAME, 0, 3) == b"new"


# --- sweeping

HOLDER = """
import sys
from staddle_server.store.backends.directory import DirectoryBlobs
writer = DirectoryBlobs(sys.argv[1]).create()
writer.write(b"begun")
print("begun", flush=True)
sys.stdin.read()
"""


def test_a_sweep_removes_the_files_of_killed_writers_only(tmp_path: Path) -> None:
    directory = DirectoryBlobs(str(tmp_path))
    mine = directory.create()
    mine.write(b"mine")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"begun\n"
        assert len(temporary_files(tmp_path)) == 2
        assert directory.sweep() == 0
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert directory.sweep() == 1
    mine.commit(NAME)
    assert directory.read(NAME, 0, 4) == b"mine"
    assert temporary_files(tmp_path) == []
    assert directory.sweep() == 0


def test_a_sweep_between_creating_and_locking_a_file_loses_no_data(tmp_path: Path) -> None:
    sweeper = DirectoryBlobs(str(tmp_path))
    files = FaultyFiles()
    directory = DirectoryBlobs(str(tmp_path), files)
    swept: list[int] = []
    files.before["lock"] = lambda: swept.append(sweeper.sweep())
    directory.put(NAME, b"data")
    assert swept == [1]
    assert directory.read(NAME, 0, 4) == b"data"


def test_a_writer_leaves_a_file_that_the_sweeper_has_locked(tmp_path: Path) -> None:
    sweeping, files = FaultyFiles(), FaultyFiles()
    sweeper = DirectoryBlobs(str(tmp_path), sweeping)
    directory = DirectoryBlobs(str(tmp_path), files)
    locked: list[int] = []

    def hold() -> None:
        """Let the sweeper take its lock, and stop there, before the writer tries to lock."""
        (name,) = temporary_files(tmp_path)
        locked.append(os.open(tmp_path / "tmp" / name, os.O_RDONLY))
        assert sweeping.lock(locked[0])

    files.before["lock"] = hold
    writer = directory.create()
    assert files.steps().count("lock") == 2
    writer.write(b"data")
    os.close(locked[0])
    assert sweeper.sweep() == 1
    writer.commit(NAME)
    assert directory.read(NAME, 0, 4) == b"data"


def test_a_crash_between_naming_an_object_and_its_cleanup_keeps_the_object(tmp_path: Path) -> None:
    directory = DirectoryBlobs(str(tmp_path))
    directory.put(NAME, b"data")
    os.link(tmp_path / NAME, tmp_path / "tmp" / ("ab" * 16))
    assert directory.sweep() == 1
    assert directory.read(NAME, 0, 4) == b"data"


def test_a_sweep_removes_only_files_with_the_name_of_a_temporary_file(tmp_path: Path) -> None:
    others = tmp_path / "others"
    others.mkdir()
    (others / "letter").write_bytes(b"not Staddle's")
    (others / ("ab" * 16)).write_bytes(b"left by a crash")
    store = tmp_path / "store"
    store.mkdir()
    (store / "tmp").symlink_to(others)
    assert DirectoryBlobs(str(store)).sweep() == 1
    assert os.listdir(others) == ["letter"]
