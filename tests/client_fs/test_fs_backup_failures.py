"""Backups whose connection, server or base fails: resumed, restarted, or ended with a clear error."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from extent import extent
from fs_trees import plant
from staddle._backup import chunk_files, send_missing
from staddle._backup import entries as _gather
from staddle._errors import (
    ConflictError,
    ConnectError,
    DamageError,
    MissingChunksError,
    StaddleError,
    TooMuchRemovedError,
)
from staddle._protocol.convert import entry_of
from staddle._transport.calls import Calls
from staddle._types.backups import BackupKind
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from test_fs_backup import BOTH_WAYS, Breaking, backup_over


@pytest.mark.parametrize("after", [False, True], ids=["request-lost", "answer-lost"])
@pytest.mark.parametrize("at", range(3, 15, extent(5, 1)))
def test_a_broken_connection_at_any_call_does_not_change_the_backup(
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
def test_the_next_run_resumes_an_interrupted_backup(thin: bool, protected, running) -> None:
    plant(protected.source, files=60)
    expected = protected.backup(dataset="untroubled").backup
    calls = Breaking(running, at=10**9, after=False)
    stopped = Interrupting(calls, protected.source, after_entries=16)
    with pytest.raises(InterruptedError):
        stopped.run(thin=thin)
    (upload,) = stopped.uploads
    calls.call("CheckpointUpload", sv.CheckpointUploadRequest(upload_id=upload.id, epoch=upload.epoch))
    durable = calls.call("GetUpload", sv.GetUploadRequest(upload_id=upload.id)).upload.durable
    assert durable.entry_count > 0
    made = backup_over(calls, protected.source, thin=thin, cache_dir=str(protected.cache))
    calls.close()
    assert made.resumed
    assert not list(
        protected.cache.glob(f"*{made.backup.id}*")
    )  # only the previous run knows what it has sent
    assert made.backup.manifest_digest == expected.manifest_digest
    assert made.backup.entry_count == expected.entry_count


@BOTH_WAYS
@pytest.mark.parametrize("kind", ["full", "incremental"])
def test_changes_since_an_interrupted_run_are_in_the_backup_of_the_next_run(
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
    calls.call("CheckpointUpload", sv.CheckpointUploadRequest(upload_id=upload.id, epoch=upload.epoch))
    durable = calls.call("GetUpload", sv.GetUploadRequest(upload_id=upload.id)).upload.durable
    assert entry_of(durable.last_entry).path_bytes.replace(b"/", b"\0") > b"a\0z"  # all of "a" is done
    (outside / "moved").rename(protected.source / "a" / "moved")  # all its files have earlier times
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


def test_a_mount_since_an_interrupted_run_is_in_the_backup_of_the_next_run(
    only_root: None, protected, running
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
        "CheckpointUpload", sv.CheckpointUploadRequest(upload_id=upload.id, epoch=upload.epoch)
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
    """A backup that is interrupted after so many paths other than files."""

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
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("staddle._backup.capture.entry_without_content", interrupted)
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
            upload_id = sv.PutEntriesRequest.FromString(request).upload_id
            real("ResumeUpload", sv.ResumeUploadRequest(upload_id=upload_id))
        return real(method, request, **options)

    calls.call = call
    with pytest.raises(ConflictError) as caught:
        backup_over(calls, protected.source)
    calls.close()
    assert caught.value.reason == "STALE_EPOCH"
    assert list(protected.client.datasets()) == [] or list(protected.client.backups("data")) == []


def test_a_server_that_stays_down_ends_the_backup_after_the_retry_time(protected, running) -> None:
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


@pytest.mark.parametrize("at", extent([3], [*range(1, 6)]))
def test_a_broken_thin_stream_is_resumed(
    at: int, protected, running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("staddle._backup.stream_files.MESSAGE_BYTES", 400_000)
    plant(protected.source, files=30)
    expected = protected.backup(dataset="untroubled").backup
    calls = Breaking(running, at=10**9, after=False)
    real = calls.start_backup
    started = []

    def start_backup(requests, upload):
        if started:
            return real(requests, upload)

        def some():
            for number, request in enumerate(requests):
                if number == at:
                    started[0].cancel()
                    return
                yield request

        started.append(None)
        call = real(_after(lambda: started[0] is not None, some()), upload)
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
    done = []

    def call(method, request, **options):
        answer = real(method, request, **options)
        if method == "PutEntries" and not done:
            done.append(True)
            answer.incomplete.append(0)
        return answer

    calls.call = call
    made = backup_over(calls, protected.source)
    calls.close()
    assert done
    assert made.read_bytes > 3_000_000
    assert made.backup.manifest_digest == expected.manifest_digest


@pytest.mark.parametrize("kind", [BackupKind.AUTO, BackupKind.INCREMENTAL])
def test_an_unlistable_base_leads_to_a_full_backup_unless_the_kind_was_explicit(
    kind: BackupKind, protected, running
) -> None:
    plant(protected.source, files=8)
    protected.backup()
    calls = Breaking(running, at=10**9, after=False)
    damage = sv.RestorePart(damage=sv.Damage(path="d0", message="a page is gone", subtree=True))

    def stream(method, request, **options):
        backup = pb.Backup(id=request.backup.backup, dataset="data", entry_count=9)
        yield sv.RestoreResponse(parts=[sv.RestorePart(header=sv.RestoreHeader(backup=backup))])
        yield sv.RestoreResponse(parts=[damage])

    calls.stream = stream
    if kind is BackupKind.AUTO:
        made = backup_over(calls, protected.source)
        assert made.backup.kind is BackupKind.FULL
        assert "full" in made.warnings[0]
        (protected.source / "new").touch()  # no path is known to be gone, so the number of entries decides
        made = backup_over(calls, protected.source, kind=BackupKind.FULL, max_removed_percent=0.0)
        assert "number of entries" in made.warnings[0]
        shutil.rmtree(protected.source / "d0")
        with pytest.raises(TooMuchRemovedError):
            backup_over(calls, protected.source, kind=BackupKind.FULL, max_removed_percent=0.0)
    else:
        with pytest.raises(DamageError, match="kind full"):
            backup_over(calls, protected.source, kind=kind)
    calls.close()


def test_the_cause_of_a_failure_is_reported_even_if_the_upload_cannot_be_aborted(
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


@pytest.mark.parametrize("at", extent([3, 5], [3, 4, 5, 6, 8]))
def test_an_interrupted_full_backup_counts_removals_over_all_attempts(
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


@pytest.mark.parametrize(
    ("error", "begun"),
    [(DamageError("the upload relies on damaged data"), 2), (MissingChunksError("chunks were lost"), 1)],
)
def test_an_upload_that_relies_on_damage_is_begun_anew_and_one_whose_chunks_were_lost_resumes(
    error: StaddleError, begun: int, protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(protected.source, files=8)
    protected.backup()
    (protected.source / "new").write_bytes(b"new")
    real = protected.client._calls.call
    commits = []

    def call(method, request, **options):
        if method == "CommitUpload":
            commits.append(request.upload_id)
            if len(commits) == 1:
                raise error
        return real(method, request, **options)

    monkeypatch.setattr(protected.client._calls, "call", call)
    protected.backup(kind="incremental")
    assert len(set(commits)) == begun
    assert protected.client.read("data", "new") == b"new"
