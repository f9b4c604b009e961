"""Directories to a server and back: kinds, resuming, mixing both ways of sending, files that change, damage."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from extent import extent
from fs_trees import assert_same, plant, seeded_bytes
from staddle._backup import chunk_files, send_missing
from staddle._backup import entries as _gather
from staddle._backup.run import backup_directory
from staddle._errors import (
    ConflictError,
    ConnectError,
    DamageError,
    NoBaseError,
    RootDiffersError,
    TooMuchRemovedError,
)
from staddle._protocol.convert import entry_of
from staddle._transport.calls import Calls
from staddle._transport.settings import Settings
from staddle._types.backups import BackupKind, ChangeType
from staddle._types.options import BackupOptions
from staddle._types.reports import ProblemKind
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as wire

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
def test_every_backup_comes_back_as_the_tree_was(thin: bool, protected, tmp_path: Path) -> None:
    source = protected.source
    plant(source)
    kept = {}
    for step, kind in enumerate(["auto", "auto", "differential", "incremental", "full"]):
        made = protected.backup(kind=kind, thin=thin)
        assert made.complete
        kept[step] = made.backup
        protected.restore(tmp_path / f"out{step}", backup=made.backup.id)
        if step == 2:
            continue  # it keeps the metadata of the full one: looked at elsewhere
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
def test_what_did_not_change_is_neither_read_nor_sent(thin: bool, protected) -> None:
    plant(protected.source)
    first = protected.backup(thin=thin)
    assert first.read_bytes > 3_000_000
    (protected.source / "small").write_text("new")
    second = protected.backup(thin=thin)
    assert second.read_bytes == 3
    assert second.sent_bytes == 3
    assert second.entries_unchanged == first.backup.entry_count - 1  # but the root, which has a new time
    assert (second.backup.changes.added, second.backup.changes.metadata_changed) == (1, 1)


def test_a_changed_file_sends_the_chunks_that_changed(protected) -> None:
    (protected.source / "big").write_bytes(seeded_bytes(1, 20_000_000))
    protected.backup()
    with (protected.source / "big").open("r+b") as file:
        file.seek(10_000_000)
        file.write(b"a change")
    second = protected.backup()
    assert second.read_bytes == 20_000_000
    assert 0 < second.sent_bytes < 2_500_000
    assert second.sent_bytes + second.reused_bytes == 20_000_000


def test_a_change_that_puts_size_and_mtime_back_is_found(protected, tmp_path: Path) -> None:
    path = protected.source / "f"
    path.write_bytes(b"before")
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    protected.backup()
    path.write_bytes(b"behind")
    os.utime(path, ns=times)
    protected.backup()
    protected.restore(tmp_path / "out")
    assert (tmp_path / "out" / "f").read_bytes() == b"behind"


def test_a_timestamp_too_recent_to_be_trusted_is_read_again(protected) -> None:
    (protected.source / "f").write_bytes(b"fresh")
    protected.backup(clock=time.time_ns)
    assert protected.backup(clock=time.time_ns).read_bytes == 5
    protected.backup()
    assert protected.backup().read_bytes == 0


@BOTH_WAYS
def test_links_and_directories_with_recent_timestamps_are_looked_at_again(protected, thin: bool) -> None:
    (protected.source / "directory").mkdir()
    (protected.source / "link").symlink_to("anywhere")
    for clock, again in ((time.time_ns, True), (lambda: time.time_ns() + 10**10, False)):
        protected.backup(clock=clock, thin=thin)
        entries = {entry.path: entry.read_again for entry in protected.client.entries("data")}
        assert entries == {"directory": again, "link": again}


def test_metadata_alone_is_a_change_to_incremental_and_none_to_differential(protected) -> None:
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


def test_another_root_is_refused_unless_it_is_meant_and_then_everything_is_read(
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
def test_what_is_excluded_is_not_in_the_backup_and_leaves_it_when_it_becomes_excluded(
    thin: bool, protected
) -> None:
    plant(protected.source)
    protected.backup(thin=thin)
    protected.backup(thin=thin, exclude=["a/", "*.bin"])
    paths = {entry.path for entry in protected.client.entries("data", recursive=True)}
    assert "big" in paths
    assert not {path for path in paths if path.startswith("a/") or path.endswith(".bin") or path == "a"}


@BOTH_WAYS
def test_what_cannot_be_read_is_reported_and_the_rest_is_in_the_backup(
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
def test_a_file_that_changes_while_it_is_read_is_read_once_more_and_then_marked(
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


def test_a_file_of_many_chunks_goes_in_parts_and_comes_back(
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


def test_names_of_one_file_are_read_once(protected) -> None:
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


@pytest.mark.parametrize("after", [False, True], ids=["request-lost", "answer-lost"])
@pytest.mark.parametrize("at", range(3, 15, extent(3, 1)))
def test_a_broken_connection_at_any_call_changes_nothing_about_the_backup(
    at: int, after: bool, protected, running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send_missing, "ENTRIES_MAX", 8)
    monkeypatch.setattr(send_missing, "FRAME_BYTES_MAX", 1_000_000)
    monkeypatch.setattr(chunk_files, "BATCH_BYTES", 1_000_000)
    plant(protected.source, files=30)
    expected = protected.backup(dataset="untroubled").backup
    calls = Breaking(running, at=at, after=after)
    try:
        made = backup_over(calls, protected.source)
    finally:
        calls.close()
    assert calls.broken
    assert made.complete
    assert made.backup.manifest_digest == expected.manifest_digest
    assert [each.number for each in protected.client.backups("data")] == [1]


@BOTH_WAYS
def test_an_interrupted_backup_is_gone_on_with_by_the_next_run(thin: bool, protected, running) -> None:
    plant(protected.source, files=60)
    expected = protected.backup(dataset="untroubled").backup
    calls = Breaking(running, at=10**9, after=False)
    stopped = Interrupting(calls, protected.source, after_entries=16)
    with pytest.raises(InterruptedError):
        stopped.run(thin=thin)
    (upload,) = stopped.uploads
    calls.call("CheckpointUpload", wire.CheckpointUploadRequest(upload_id=upload.id, epoch=upload.epoch))
    durable = calls.call("GetUpload", wire.GetUploadRequest(upload_id=upload.id)).upload.durable
    assert durable.entry_count > 0
    made = backup_over(calls, protected.source, thin=thin, cache_dir=str(protected.cache))
    calls.close()
    assert made.resumed
    assert not list(protected.cache.glob(f"*{made.backup.id}*"))  # only the run before knows what it has sent
    assert made.backup.manifest_digest == expected.manifest_digest
    assert made.backup.entry_count == expected.entry_count


@BOTH_WAYS
@pytest.mark.parametrize("kind", ["full", "incremental"])
def test_what_changed_since_an_interrupted_run_began_is_in_the_backup_of_the_next_run(
    thin: bool, kind: str, protected, running
) -> None:
    outside = protected.source.parent / "outside"
    for name in ("moved", "mounted"):
        (outside / name / "deep").mkdir(parents=True)
        (outside / name / "deep" / "old").write_text("long there")
    plant(protected.source, files=160)
    (protected.source / "a" / "mnt").mkdir()
    for name in ("a/gone", "a/x", "a/becomes-dir"):
        (protected.source / name).write_text("before")
    if kind == "incremental":
        protected.backup()
        plant(protected.source / "more", 2, files=160)
        (protected.source / "a" / "x").write_text("changed before")
    calls = Breaking(running, at=10**9, after=False)
    stopped = Interrupting(calls, protected.source, after_entries=30)
    with pytest.raises(InterruptedError):
        stopped.run(thin=thin)
    (upload,) = stopped.uploads
    calls.call("CheckpointUpload", wire.CheckpointUploadRequest(upload_id=upload.id, epoch=upload.epoch))
    durable = calls.call("GetUpload", wire.GetUploadRequest(upload_id=upload.id)).upload.durable
    assert entry_of(durable.last_entry).path_bytes.replace(b"/", b"\0") > b"a\0z"  # all of "a" is behind it
    (outside / "moved").rename(protected.source / "a" / "moved")  # all in it has times from before
    (protected.source / "a" / "x").write_text("changed in between")
    (protected.source / "a" / "new").write_text("made in between")
    (protected.source / "a" / "becomes-dir").unlink()
    (protected.source / "a" / "becomes-dir").mkdir()
    (protected.source / "a" / "becomes-dir" / "in").write_text("in it")
    (protected.source / "a" / "gone").unlink()
    made = backup_over(calls, protected.source, thin=thin, cache_dir=str(protected.cache))
    calls.close()
    assert made.resumed
    assert made.complete
    read = protected.client.read
    assert read("data", "a/x") == b"changed in between"
    assert read("data", "a/new") == b"made in between"
    assert read("data", "a/becomes-dir/in") == b"in it"
    entries = {entry.path: entry for entry in protected.client.entries("data", recursive=True)}
    assert "a/moved/deep/old" in entries
    assert not entries["a"].incomplete
    assert "a/gone" not in entries
    assert protected.backup().complete
    entries = {entry.path: entry for entry in protected.client.entries("data", recursive=True)}
    assert "a/gone" not in entries
    assert not any(entry.incomplete for entry in entries.values())


def test_what_was_mounted_since_an_interrupted_run_is_in_the_backup_of_the_next_run(
    protected, running
) -> None:
    outside = protected.source.parent / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "old").write_text("long there")
    plant(protected.source, files=160)
    point = protected.source / "a" / "mnt"
    point.mkdir()
    stopped = Interrupting(Breaking(running, at=10**9, after=False), protected.source, after_entries=30)
    with pytest.raises(InterruptedError):
        stopped.run(thin=False)
    (upload,) = stopped.uploads
    stopped.calls.call(
        "CheckpointUpload", wire.CheckpointUploadRequest(upload_id=upload.id, epoch=upload.epoch)
    )
    mounted = subprocess.run(["mount", "--bind", outside, point], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        made = backup_over(stopped.calls, protected.source, thin=False, cache_dir=str(protected.cache))
    finally:
        subprocess.run(["umount", "--lazy", point], check=True)
    stopped.calls.close()
    assert made.resumed
    assert protected.client.read("data", "a/mnt/deep/old") == b"long there"


class Interrupting:
    """A backup that is interrupted when it has come to so many paths that are no files."""

    def __init__(self, calls: Calls, source: Path, *, after_entries: int) -> None:
        self.calls, self.source, self.after_entries = calls, source, after_entries
        self.uploads: list[pb.Upload] = []

    def run(self, *, thin: bool) -> None:
        real_call, real_scan = self.calls.call, _gather.entry_without_content
        count = 0

        def call(method, request, **options):
            answer = real_call(method, request, **options)
            if method == "BeginUpload":
                self.uploads.append(answer.upload)
            return answer

        def interrupted(*args):
            nonlocal count
            count += 1
            if count >= self.after_entries:
                raise InterruptedError("stopped by the test")
            return real_scan(*args)

        self.calls.call = call
        module = "staddle._backup.stream_files" if thin else "staddle._backup.chunk_files"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"{module}.entry_without_content", interrupted)
            patch.setattr("staddle._backup.chunk_files.BATCH_STEPS", 4)
            patch.setattr(send_missing, "ENTRIES_MAX", 2)
            try:
                backup_over(self.calls, self.source, thin=thin)
            finally:
                self.calls.call = real_call


def test_a_second_writer_ends_the_first_with_a_clear_error(protected, running) -> None:
    plant(protected.source)
    calls = Breaking(running, at=10**9, after=False)
    real = calls.call

    def call(method, request, **options):
        if method == "PutEntries":
            upload_id = wire.PutEntriesRequest.FromString(request).upload_id
            real("ResumeUpload", wire.ResumeUploadRequest(upload_id=upload_id))
        return real(method, request, **options)

    calls.call = call
    with pytest.raises(ConflictError) as caught:
        backup_over(calls, protected.source)
    calls.close()
    assert caught.value.reason == "STALE_EPOCH"
    assert list(protected.client.datasets()) == [] or list(protected.client.backups("data")) == []


def test_a_server_that_stays_away_ends_the_backup_when_the_time_for_retries_is_over(
    protected, running
) -> None:
    plant(protected.source, files=4)
    calls = Breaking(running, at=4, after=False)
    real = calls.call

    def call(method, request, **options):
        if calls.broken:
            raise ConnectError("nobody answers")
        return real(method, request, **options)

    calls.call = call
    with pytest.raises(ConnectError):
        backup_over(calls, protected.source, retry_s=0.0)
    calls.close()


@pytest.mark.parametrize("at", range(1, 6))
def test_a_broken_thin_stream_is_gone_on_with(
    at: int, protected, running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("staddle._backup.stream_files.MESSAGE_BYTES", 400_000)
    plant(protected.source, files=30)
    expected = protected.backup(dataset="untroubled").backup
    calls = Breaking(running, at=10**9, after=False)
    real = calls.start_backup
    started = []

    def start_backup(requests):
        if started:
            return real(requests)

        def some():
            for number, request in enumerate(requests):
                if number == at:
                    started[0].cancel()
                    return
                yield request

        started.append(None)
        call = real(_after(lambda: started[0] is not None, some()))
        started[0] = call
        return call

    calls.start_backup = start_backup
    made = backup_over(calls, protected.source, thin=True, retry_s=30.0)
    calls.close()
    assert made.complete
    assert made.backup.manifest_digest == expected.manifest_digest


def _after(ready, items):
    """Items, once `ready` says so: the call that they are for has to be known first."""
    while not ready():
        os.sched_yield()
    yield from items


def test_chunks_that_the_server_lost_are_sent_again(protected, running) -> None:
    plant(protected.source, files=20)
    protected.backup()
    (protected.source / "big").chmod(0o600)
    expected = protected.backup(dataset="untroubled").backup
    calls = Breaking(running, at=10**9, after=False)
    real = calls.call
    told = []

    def call(method, request, **options):
        answer = real(method, request, **options)
        if method == "PutEntries" and not told:
            told.append(True)
            answer.incomplete.append(0)
        return answer

    calls.call = call
    made = backup_over(calls, protected.source)
    calls.close()
    assert told
    assert made.read_bytes > 3_000_000
    assert made.backup.manifest_digest == expected.manifest_digest


@pytest.mark.parametrize("kind", [BackupKind.AUTO, BackupKind.INCREMENTAL])
def test_a_base_that_cannot_be_listed_makes_a_full_backup_of_what_was_not_asked_for_by_name(
    kind: BackupKind, protected, running
) -> None:
    plant(protected.source, files=8)
    protected.backup()
    calls = Breaking(running, at=10**9, after=False)
    damage = wire.RestorePart(damage=wire.Damage(path="d0", message="a page is gone", subtree=True))

    def stream(method, request, **options):
        backup = pb.Backup(id=request.backup.backup, dataset="data", entry_count=9)
        yield wire.RestoreResponse(parts=[wire.RestorePart(header=wire.RestoreHeader(backup=backup))])
        yield wire.RestoreResponse(parts=[damage])

    calls.stream = stream
    if kind is BackupKind.AUTO:
        made = backup_over(calls, protected.source)
        assert made.backup.kind is BackupKind.FULL
        assert "full" in made.warnings[0]
        (protected.source / "new").touch()  # nothing is known to be gone, so the number of entries decides
        made = backup_over(calls, protected.source, kind=BackupKind.FULL, max_removed_percent=0.0)
        assert "number of entries" in made.warnings[0]
        shutil.rmtree(protected.source / "d0")
        with pytest.raises(TooMuchRemovedError):
            backup_over(calls, protected.source, kind=BackupKind.FULL, max_removed_percent=0.0)
    else:
        with pytest.raises(DamageError, match="kind full"):
            backup_over(calls, protected.source, kind=kind)
    calls.close()


def test_the_reason_for_giving_up_is_told_although_the_upload_cannot_be_aborted(
    protected, running, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(protected.source, files=5)
    protected.backup()
    shutil.rmtree(protected.source / "d0")
    calls = Breaking(running, at=10**9, after=False)
    real_call = calls.call

    def call(method, request, **options):
        if method == "AbortUpload":
            raise calls.error("the server has gone")
        return real_call(method, request, **options)

    monkeypatch.setattr(calls, "call", call)
    with pytest.raises(TooMuchRemovedError):
        backup_over(calls, protected.source, max_removed_percent=0.0)
    calls.close()


@pytest.mark.parametrize("at", [3, 4, 5, 6, 8])
def test_a_full_backup_that_was_cut_short_counts_what_is_gone_over_all_its_attempts(
    at: int, protected, running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send_missing, "ENTRIES_MAX", 8)
    monkeypatch.setattr(chunk_files, "BATCH_BYTES", 1_000_000)
    plant(protected.source, files=20)
    before = protected.backup().backup.entry_count - 1
    for gone in (0, 2):
        for name in ["d0", "big"][:gone]:
            path = protected.source / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        left = sum(len(names) + len(files) for _, names, files in os.walk(protected.source))
        calls = Breaking(running, at=at, after=True)
        options = {"kind": BackupKind.FULL, "max_removed_percent": 0.0}
        if left == before:
            assert backup_over(calls, protected.source, **options).complete
        else:
            with pytest.raises(TooMuchRemovedError, match=f"{before - left} of {before}"):
                backup_over(calls, protected.source, **options)
        calls.close()


def test_retrying_is_told_in_words(protected, running) -> None:
    plant(protected.source, files=4)
    calls = Breaking(running, at=4, after=False)
    notices = []
    backup_over(calls, protected.source, progress=lambda progress: notices.append(progress.notice))
    calls.close()
    assert [notice for notice in notices if "Trying again" in notice]


def test_the_thin_path_and_restore_load_none_of_the_packages_of_the_command() -> None:
    code = (
        "import sys, staddle._backup.run, staddle._backup.stream_files, staddle._restore.run\n"
        "print([name for name in ('zstandard', 'pyfastcdc', 'pathspec', 'click', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
