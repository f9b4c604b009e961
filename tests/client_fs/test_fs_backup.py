"""Directories to a server and back: kinds, resume, both ways of sending, changing files, damage."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from fs_trees import assert_same, clock_at_last_change, plant, seeded_bytes
from staddle._backup import chunk_files
from staddle._backup.run import backup_directory
from staddle._errors import (
    ConnectError,
    NoBaseError,
    RootDiffersError,
)
from staddle._transport.calls import Calls
from staddle._transport.settings import Settings
from staddle._types.backups import BackupKind, ChangeType
from staddle._types.options import BackupOptions
from staddle._types.reports import ProblemKind

BOTH_WAYS = pytest.mark.parametrize("thin", [False, True], ids=["source-side", "thin"])


def change(source: Path) -> None:
    """Some of every kind of change, in a planted tree."""
    (source / "big").write_bytes((source / "big").read_bytes()[:1_000_000] + b"!" + seeded_bytes(9, 500_000))
    (source / "text").unlink()
    (source / "a" / "x").chmod(0o600)
    (source / "new").mkdir()
    (source / "new" / "file").write_text("new")
    (source / "a.b").unlink()
    (source / "a.b").mkdir()
    (source / "a.b" / "now-a-directory").write_text("yes")
    (source / "empty-dir").rmdir()
    (source / "empty-dir").symlink_to("a")


@BOTH_WAYS
def test_every_backup_restores_the_tree(thin: bool, protected, tmp_path: Path) -> None:
    source = protected.source
    plant(source)
    kept = {}
    for step, kind in enumerate(["auto", "auto", "differential", "incremental", "full"]):
        made = protected.backup(kind=kind, thin=thin)
        assert made.complete
        kept[step] = made.backup
        protected.restore(tmp_path / f"out{step}", backup=made.backup.id)
        if step == 2:
            continue  # it keeps the metadata of the full one: tested elsewhere
        assert_same(source, tmp_path / f"out{step}", but=frozenset({b""}))
        if step == 0:
            change(source)
    assert [str(kept[step].kind) for step in kept] == [
        "full",
        "incremental",
        "differential",
        "incremental",
        "full",
    ]
    assert kept[3].manifest_digest == kept[4].manifest_digest == kept[1].manifest_digest


def test_both_ways_of_sending_give_the_same_manifest_and_may_be_mixed(protected) -> None:
    plant(protected.source)
    digests = [protected.backup(dataset=name, thin=name == "t").backup.manifest_digest for name in "st"]
    assert digests[0] == digests[1]
    change(protected.source)
    after = {
        protected.backup(dataset=dataset, thin=thin, kind=kind).backup.manifest_digest
        for dataset, thin, kind in (
            ("s", True, "auto"),
            ("t", False, "auto"),
            ("s", False, "full"),
            ("t", True, "full"),
        )
    }
    assert len(after) == 1


@BOTH_WAYS
def test_unchanged_files_are_neither_read_nor_sent(thin: bool, protected) -> None:
    plant(protected.source)
    first = protected.backup(thin=thin)
    assert first.read_bytes > 3_000_000
    (protected.source / "small").write_text("new")
    second = protected.backup(thin=thin)
    assert second.read_bytes == 3
    assert second.sent_bytes == 3
    assert second.entries_unchanged == first.backup.entry_count - 1  # except the root, which has a new time
    assert (second.backup.changes.added, second.backup.changes.metadata_changed) == (1, 1)


def test_only_the_changed_chunks_of_a_file_are_sent(protected) -> None:
    (protected.source / "big").write_bytes(seeded_bytes(1, 20_000_000))
    protected.backup()
    with (protected.source / "big").open("r+b") as file:
        file.seek(10_000_000)
        file.write(b"a change")
    second = protected.backup()
    assert second.read_bytes == 20_000_000
    assert 0 < second.sent_bytes < 2_500_000
    assert second.sent_bytes + second.reused_bytes == 20_000_000


def test_a_change_that_restores_size_and_mtime_is_found(protected, tmp_path: Path) -> None:
    path = protected.source / "f"
    path.write_bytes(b"before")
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    protected.backup()
    path.write_bytes(b"behind")
    os.utime(path, ns=times)
    protected.backup()
    protected.restore(tmp_path / "out")
    assert (tmp_path / "out" / "f").read_bytes() == b"behind"


def test_a_file_with_a_too_recent_timestamp_is_read_again(protected) -> None:
    (protected.source / "f").write_bytes(b"fresh")
    clock = clock_at_last_change(protected.source / "f")
    protected.backup(clock=clock)
    assert protected.backup(clock=clock).read_bytes == 5
    protected.backup()
    assert protected.backup().read_bytes == 0


@BOTH_WAYS
def test_links_and_directories_with_recent_timestamps_are_checked_again(protected, thin: bool) -> None:
    (protected.source / "directory").mkdir()
    (protected.source / "link").symlink_to("anywhere")
    recent = clock_at_last_change(protected.source / "directory", protected.source / "link")
    for clock, again in ((recent, True), (lambda: recent() + 10**10, False)):
        protected.backup(clock=clock, thin=thin)
        entries = {entry.path: entry.read_again for entry in protected.client.entries("data")}
        assert entries == {"directory": again, "link": again}


def test_a_metadata_change_counts_for_incremental_and_not_for_differential(protected) -> None:
    plant(protected.source)
    full = protected.backup().backup
    (protected.source / "big").chmod(0o606)
    differential = protected.backup(kind="differential").backup
    assert differential.changes.metadata_kept >= 1
    assert (
        differential.changes.content_changed
        == differential.changes.added
        == differential.changes.removed
        == 0
    )
    incremental = protected.backup(kind="incremental").backup
    assert incremental.changes.metadata_changed >= 1
    changes = list(protected.client.changes("data", full.id, incremental.id))
    assert {change.path for change in changes} == {"big", "big-too"}
    assert {change.type for change in changes} == {ChangeType.METADATA}


def test_a_missing_base_is_a_clear_error_and_auto_makes_a_full_one(protected) -> None:
    for kind in ("incremental", "differential"):
        with pytest.raises(NoBaseError):
            protected.backup(kind=kind)
    assert protected.backup().backup.kind is BackupKind.FULL


def test_another_root_is_refused_unless_allowed_and_then_everything_is_read(
    protected, tmp_path: Path
) -> None:
    plant(protected.source)
    protected.backup()
    other = tmp_path / "other"
    plant(other, seed=2, files=8)
    with pytest.raises(RootDiffersError):
        protected.backup(other)
    made = protected.backup(other, new_root=True)
    assert made.backup.kind is BackupKind.FULL
    protected.restore(tmp_path / "out")
    assert_same(other, tmp_path / "out")


@BOTH_WAYS
def test_excluded_paths_are_not_in_the_backup_even_if_the_base_has_them(thin: bool, protected) -> None:
    plant(protected.source)
    protected.backup(thin=thin)
    protected.backup(thin=thin, exclude=["a/", "*.bin"])
    paths = {entry.path for entry in protected.client.entries("data", recursive=True)}
    assert "big" in paths
    assert not {path for path in paths if path.startswith("a/") or path.endswith(".bin") or path == "a"}


@BOTH_WAYS
def test_unreadable_paths_are_reported_and_the_rest_is_backed_up(
    thin: bool, protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    (protected.source / "ok").write_text("read me")
    (protected.source / "secret").write_text("no")
    (protected.source / "closed").mkdir()
    (protected.source / "closed" / "unseen").touch()
    protected.backup(thin=thin)
    (protected.source / "secret").write_text("changed")
    real = os.open

    def refusing(path, *args, **options) -> int:
        if path in {b"secret", b"closed"}:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", refusing)
    made = protected.backup(thin=thin)
    monkeypatch.undo()
    assert {(problem.kind, problem.path, problem.message) for problem in made.problems} == {
        (ProblemKind.UNREADABLE, "secret", "Permission denied"),
        (ProblemKind.UNREADABLE, "closed", "Permission denied"),
    }
    assert {entry.path for entry in protected.client.entries("data", recursive=True)} == {"closed", "ok"}
    assert protected.backup(thin=thin).complete
    paths = {entry.path for entry in protected.client.entries("data", recursive=True)}
    assert paths == {"closed", "closed/unseen", "ok", "secret"}


class Changing:
    """Adds to a file just after each of the first `times` readings of any file."""

    def __init__(self, path: Path, times: int) -> None:
        self.path, self.times = path, times

    def pread(self, real):
        def pread(descriptor: int, count: int, offset: int) -> bytes:
            data = real(descriptor, count, offset)
            if self.times:
                self.times -= 1
                with self.path.open("ab") as file:
                    file.write(b"more")
            return data

        return pread


@BOTH_WAYS
@pytest.mark.parametrize("size", [10_000, 1_500_000])
@pytest.mark.parametrize("times", [1, 9])
def test_a_file_that_changes_during_reading_is_read_once_more_and_then_marked(
    thin: bool, size: int, times: int, protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = protected.source / "f"
    path.write_bytes(seeded_bytes(4, size))
    monkeypatch.setattr(os, "pread", Changing(path, times).pread(os.pread))
    made = protected.backup(thin=thin)
    monkeypatch.undo()
    (entry,) = [each for each in protected.client.entries("data") if each.path == "f"]
    if times == 1:
        assert made.complete
        assert entry.size_bytes == size + 4
        assert not entry.read_again
    else:
        assert [(problem.kind, problem.path) for problem in made.problems] == [(ProblemKind.CHANGED, "f")]
        assert entry.read_again
        assert protected.backup(thin=thin).read_bytes > 0


def test_a_file_of_many_chunks_is_sent_in_parts_and_restored(
    protected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_files, "PART_CHUNKS", 3)
    (protected.source / "big").write_bytes(seeded_bytes(5, 9_000_000))
    digest = protected.backup().backup.manifest_digest
    assert protected.backup(dataset="t", thin=True).backup.manifest_digest == digest
    protected.restore(tmp_path / "out")
    assert_same(protected.source, tmp_path / "out")


def test_a_huge_hole_is_neither_read_nor_sent(protected, tmp_path: Path) -> None:
    with (protected.source / "disk").open("wb") as file:
        file.truncate(6 * 2**30)
        file.seek(3 * 2**30 + 12_345)
        file.write(b"the only bytes")
    made = protected.backup()
    assert made.backup.data_bytes == 6 * 2**30
    assert made.read_bytes < 1_000_000
    assert made.sent_bytes < 4_000_000
    protected.restore(tmp_path / "out")
    assert (tmp_path / "out" / "disk").stat().st_blocks * 512 < 100_000
    with (tmp_path / "out" / "disk").open("rb") as file:
        file.seek(3 * 2**30 + 12_345)
        assert file.read(14) == b"the only bytes"


def test_a_file_with_several_names_is_read_once(protected) -> None:
    (protected.source / "a").write_bytes(seeded_bytes(6, 700_000))
    for name in "bcd":
        os.link(protected.source / "a", protected.source / name)
    made = protected.backup()
    assert made.read_bytes == 700_000
    assert made.backup.data_bytes == 4 * 700_000


# --- failures


class Breaking(Calls):
    """Calls over a connection that breaks: the `at`-th call (counted over `methods`) fails before or after the server has it."""

    def __init__(self, running, *, at: int, after: bool, error: type[BaseException] = ConnectError) -> None:
        super().__init__(
            Settings(server=running.address, token=running.token(), ca="", cert="", key="", server_name="")
        )
        self.at, self.after, self.error = at, after, error
        self.counts: Counter[str] = Counter()
        self.broken = False
        self.clock.sleep = lambda _seconds: None

    def call(self, method, request, **options):
        self.counts[method] += 1
        breaks = (
            not self.broken
            and method not in {"ListBackups", "ResumeUpload"}
            and sum(self.counts.values()) > self.at
        )
        if breaks:
            self.broken = True
        if breaks and not self.after:
            raise self.error("the connection broke")
        answer = super().call(method, request, **options)
        if breaks:
            raise self.error("the connection broke, and took the answer with it")
        return answer


def backup_over(calls: Calls, source: Path, dataset: str = "data", **options):
    def clock() -> int:
        return time.time_ns() + 10**10

    options.setdefault("retry_s", 20.0)
    return backup_directory(calls, os.fsencode(source), BackupOptions(dataset=dataset, **options), clock)


def test_retries_are_reported_in_words(protected, running) -> None:
    plant(protected.source, files=4)
    calls = Breaking(running, at=4, after=False)
    notices = []
    backup_over(calls, protected.source, progress=lambda progress: notices.append(progress.notice))
    calls.close()
    assert [notice for notice in notices if "Trying again" in notice]


def test_the_thin_path_and_restore_import_no_packages_of_the_command() -> None:
    code = (
        "import sys, staddle._backup.run, staddle._backup.stream_files, staddle._restore.run\n"
        "print([name for name in ('zstandard', 'pyfastcdc', 'pathspec', 'click', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
