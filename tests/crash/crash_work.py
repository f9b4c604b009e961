"""Backups as clients make them while a server may die at any moment, and what they know of each: sent, answered, in doubt.

One worker has one dataset and does one thing after another, so what it has is exact. When the server dies, its last
operation is in doubt; `settle` finds out from the next server what became of it, and finishes it.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import forked
import grpc
from grpc_status import rpc_status
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.cli.run import COMMANDS
from thin import PIECE, Part, Source, backups, begin, finish, messages, pieces, reason, restore, small

LARGE_BYTES = 2_500_000
Files = dict[str, bytes]


class LostError(AssertionError):
    """A promise was broken."""


@dataclass
class Attempt:
    """A backup that a client has begun.

    Attributes:
        files: What the backup will have, as a whole.
        sent: What the client sends for that, in order; removed paths with None.
        scope: WHOLE or CHANGES.
        finishing: Its Finish or commit may have been sent.
        durable: Entries and bytes that the server has said are durable.
        backup: Its id, once that is known.

    """

    request_id: str
    files: Files
    sent: dict[str, bytes | None]
    scope: int
    by_source: bool
    finishing: bool = False
    durable: tuple[int, int] = (0, 0)
    sent_bytes: int = 0
    backup: str = ""
    deleted: bool = False


@dataclass
class Tally:
    """The totals of a run."""

    acknowledged: int = 0
    restored: int = 0
    restored_bytes: int = 0
    resumed: int = 0
    resumed_durable_bytes: int = 0
    resumed_sent_bytes: int = 0
    replayed: int = 0


@dataclass
class Place:
    """What all clients of one server have in common.

    Attributes:
        data: The server's directory.
        collect: The command that collects garbage there, the grace of what is deleted ended; empty where there is none.
        collected: It has been run: what is deleted may be gone.

    """

    data: Path
    collect: list[str] = field(default_factory=list)
    collected: bool = False


class Worker:
    """One client, with its own dataset."""

    sizes = (0, 10, 3_000, 70_000, 200_000, LARGE_BYTES)
    """Of its files."""

    def __init__(self, name: str, seed: int, place: Place) -> None:
        self.dataset = name
        self.place = place
        self.random = random.Random(f"{name}-{seed}")
        self.tally = Tally()
        self.kept: list[Attempt] = []
        """Backups that exist, oldest first."""
        self.pending: Attempt | None = None
        self.deciding: tuple[Attempt, bool] | None = None
        """A backup, and whether a call under way deletes it or takes that back."""
        self._count = 0

    def work(self, stub: object, operations: int) -> None:
        """So many operations. A call that fails ends it with grpc.RpcError: what was under way is in doubt."""
        for _ in range(operations):
            operation = self.random.choice(OPERATIONS)
            if self.place.collect or operation is not collect:
                operation(self, stub)

    # --- content

    def attempt(self, *, by_source: bool, changes: bool) -> Attempt:
        """The next backup: of a few files, one of them large now and then."""
        self._count += 1
        base = self.newest()
        changes = changes and base is not None
        before = dict(base.files) if base is not None else {}
        sent: dict[str, bytes | None] = {}
        for _ in range(self.random.randint(1, 6)):
            sent[f"dir{self.random.randint(0, 2)}/f{self.random.randint(0, 9)}"] = self._data()
        if changes and len(before) > 1:
            gone = self.random.choice(sorted(before))
            sent[gone] = None
        files = before if changes else {}
        for path, data in sent.items():
            if data is None:
                files.pop(path, None)
            else:
                files[path] = data
        scope = pb.UPLOAD_SCOPE_CHANGES if changes else pb.UPLOAD_SCOPE_WHOLE
        return Attempt(f"{self.dataset}-{self._count}", files, sent, scope, by_source)

    def newest(self) -> Attempt | None:
        shown = [attempt for attempt in self.kept if not attempt.deleted]
        return shown[-1] if shown else None

    def _data(self) -> bytes:
        size = self.random.choice(self.sizes)
        # Sometimes content of another backup.
        seed = self.random.randint(0, 3) if self.random.random() < 0.3 else self.random.getrandbits(32)
        return random.Random(seed).randbytes(size)

    def done(self, attempt: Attempt, backup: pb.Backup) -> None:
        """A backup that was acknowledged."""
        attempt.backup = backup.id
        self.kept.append(attempt)
        self.pending = None
        self.tally.acknowledged += 1

    # --- after a crash

    def settle(self, stub: object) -> None:
        """Find out the outcome of the operation in doubt, and finish it."""
        if self.pending is not None:
            self._settle_backup(stub, self.pending)
        if self.deciding is not None:
            attempt, delete = self.deciding
            decide(self, stub, attempt, delete)
        self.pending = self.deciding = None

    def _settle_backup(self, stub: object, attempt: Attempt) -> None:
        try:
            upload = stub.GetUpload(sv.GetUploadRequest(request_id=attempt.request_id)).upload
        except grpc.RpcError as error:
            if reason_of(error) != "UPLOAD_NOT_FOUND" or attempt.durable != (0, 0):
                raise
            return
        if upload.state == pb.UPLOAD_STATE_COMMITTED:
            if not attempt.finishing:
                raise LostError(f"{attempt.request_id} is committed before its end was sent")
            self._replay(stub, attempt, upload)
        elif upload.state == pb.UPLOAD_STATE_OPEN:
            self._resume(stub, attempt, upload.id)
        elif attempt.finishing or upload.state != pb.UPLOAD_STATE_ABORTED:
            raise LostError(f"{attempt.request_id} is {pb.UploadState.Name(upload.state)}")

    def _replay(self, stub: object, attempt: Attempt, upload: pb.Upload) -> None:
        """Repeat the commit: it returns the backup of the first one."""
        if attempt.by_source:
            request = sv.CommitUploadRequest(
                upload_id=upload.id,
                epoch=upload.epoch,
                entry_count=entries(attempt),
                data_bytes=size(attempt),
            )
            replays = [stub.CommitUpload(request).backup for _ in range(2)]
        else:
            replays = [stub.Backup(messages(parts(self, attempt))).backup]
        for backup in replays:
            if backup.id != upload.backup_id:
                raise LostError(
                    f"a replay of {attempt.request_id} made {backup.id}, the first {upload.backup_id}"
                )
        self.tally.replayed += 1
        self.done(attempt, replays[0])

    def _resume(self, stub: object, attempt: Attempt, upload_id: str) -> None:
        upload = stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=upload_id)).upload
        durable = upload.durable
        if (durable.entry_count, durable.data_bytes) < attempt.durable:
            raise LostError(f"{attempt.request_id}: durable was {attempt.durable}, now {durable}")
        attempt.finishing, before = True, attempt.sent_bytes
        if attempt.by_source:
            backup = put_the_rest(Going(stub, upload), attempt)
        else:
            backup = stub.Backup(messages(the_rest(attempt, upload))).backup
        held = durable.data_bytes + durable.open_offset_bytes
        again = attempt.sent_bytes - before
        if again > size(attempt) - held:
            raise LostError(
                f"{attempt.request_id}: {held} bytes were durable, and {again} of {size(attempt)} sent"
            )
        self.tally.resumed += 1
        self.tally.resumed_durable_bytes += held
        self.tally.resumed_sent_bytes += again
        self.done(attempt, backup)

    # --- checking

    def check(self, stub: object, sample: int | None = None) -> None:
        """Exactly the expected backups exist; each of a sample restores byte for byte."""
        found = {backup.id for backup in self._listed(stub)}
        if self.place.collected:
            self.kept = [each for each in self.kept if not each.deleted or each.backup in found]
        shown = {attempt.backup: attempt for attempt in self.kept}
        if found != set(shown):
            raise LostError(f"{self.dataset} has {sorted(found)}, and should have {sorted(shown)}")
        hidden = {attempt.backup for attempt in self.kept if attempt.deleted}
        visible = {backup.id for backup in self._listed(stub, show_deleted=False)}
        if visible != set(shown) - hidden:
            raise LostError(
                f"{self.dataset} shows {sorted(visible)}, and should show {sorted(set(shown) - hidden)}"
            )
        looked = [attempt for attempt in self.kept if not attempt.deleted]
        if sample is not None and len(looked) > sample:
            looked = [*looked[-sample // 2 :], *self.random.sample(looked[: -sample // 2], sample // 2)]
        for attempt in looked:
            self.check_restore(stub, attempt)

    def _listed(self, stub: object, *, show_deleted: bool = True) -> list[pb.Backup]:
        try:
            return backups(stub, self.dataset, show_deleted=show_deleted, page_size=1000)
        except grpc.RpcError as error:
            if reason_of(error) != "DATASET_NOT_FOUND":
                raise
            return []

    def check_restore(self, stub: object, attempt: Attempt) -> None:
        restored = restore(stub, self.dataset, backup=pb.BackupSelector(backup=attempt.backup))
        if restored.damages or restored.files != attempt.files:
            raise LostError(f"{attempt.request_id} does not come back as it went in: {restored.damages}")
        self.tally.restored += 1
        self.tally.restored_bytes += sum(map(len, restored.files.values()))


def reason_of(error: grpc.RpcError) -> str:
    """What the server gave as its reason; nothing where no server answered."""
    return "" if rpc_status.from_call(error) is None else reason(error)


def entries(attempt: Attempt) -> int:
    return sum(data is not None for data in attempt.sent.values())


def size(attempt: Attempt) -> int:
    return sum(len(data) for data in attempt.sent.values() if data is not None)


# --- the thin path


def parts(worker: Worker, attempt: Attempt, upto: int | None = None) -> Iterator[Part]:
    """A Backup stream: of everything, or up to a checkpoint after so many entries."""
    yield begin(worker.dataset, request_id=attempt.request_id, scope=attempt.scope)
    yield from some(attempt, list(attempt.sent)[:upto])
    if upto is None:
        yield from ending(attempt)
    else:
        yield Part(checkpoint=sv.Checkpoint())


def some(attempt: Attempt, paths: list[str]) -> Iterator[Part]:
    for path in paths:
        data = attempt.sent[path]
        if data is None:
            yield Part(remove=pb.Remove(path=path))
            continue
        attempt.sent_bytes += len(data)
        if len(data) <= PIECE:
            yield small(path, data)
        else:
            yield Part(entry=pb.Entry(path=path))
            yield from pieces(data)
            yield Part(entry_end=sv.EntryEnd(size_bytes=len(data)))


def ending(attempt: Attempt) -> Iterator[Part]:
    attempt.finishing = True
    yield finish(entries(attempt), size(attempt))


def the_rest(attempt: Attempt, upload: pb.Upload) -> Iterator[Part]:
    """A stream that resumes right after the durable point."""
    durable = upload.durable
    yield Part(
        continue_upload=sv.ContinueUpload(upload_id=upload.id, epoch=upload.epoch, position=durable.position)
    )
    paths = list(attempt.sent)
    if durable.HasField("last_entry"):
        paths = paths[paths.index(durable.last_entry.path) + 1 :]
    if durable.HasField("open_entry"):
        data = attempt.sent[paths[0]]
        assert data is not None
        assert durable.open_entry.path == paths[0]
        offset = durable.open_offset_bytes
        attempt.sent_bytes += len(data) - offset
        yield Part(entry=pb.Entry(path=paths[0], continue_at_bytes=offset))
        yield from pieces(data[offset:])
        yield Part(entry_end=sv.EntryEnd(size_bytes=len(data)))
        paths = paths[1:]
    yield from some(attempt, paths)
    yield from ending(attempt)


def thin(worker: Worker, stub: object, *, changes: bool = False) -> None:
    worker.pending = attempt = worker.attempt(by_source=False, changes=changes)
    worker.done(attempt, stub.Backup(messages(parts(worker, attempt))).backup)


def thin_changes(worker: Worker, stub: object) -> None:
    thin(worker, stub, changes=True)


def thin_in_two_calls(worker: Worker, stub: object) -> None:
    worker.pending = attempt = worker.attempt(by_source=False, changes=True)
    answer = stub.Backup(messages(parts(worker, attempt, upto=len(attempt.sent) // 2)))
    upload = answer.upload
    attempt.durable = (upload.durable.entry_count, upload.durable.data_bytes)
    worker.done(attempt, stub.Backup(messages(the_rest(attempt, upload))).backup)


# --- the source side


class Going(Source):
    """A source-side upload that was begun before."""

    def __init__(self, stub: object, upload: pb.Upload) -> None:
        self.stub = stub
        self.upload = upload
        self.number = upload.durable.put_entries_number
        self.entries = upload.durable.entry_count
        self.bytes = upload.durable.data_bytes


def put_entry(source: Source, attempt: Attempt, path: str) -> None:
    data = attempt.sent[path]
    if data is None:
        source.put_entries(pb.Remove(path=path))
        return
    wanted = source.missing(source.cut(data)) if data else []
    attempt.sent_bytes += sum(map(len, wanted))
    if wanted:
        source.put_chunks(wanted)
    source.put_entries(source.entry(path, data))


def put_the_rest(source: Source, attempt: Attempt) -> pb.Backup:
    """Resume after the durable calls; ask for their chunks, none of which may be missing."""
    paths = list(attempt.sent)
    for path in paths[: source.number]:
        data = attempt.sent[path]
        if data and source.missing(source.cut(data)):
            raise LostError(f"{attempt.request_id}: chunks of {path} were durable, and are asked for again")
    for path in paths[source.number :]:
        put_entry(source, attempt, path)
    attempt.finishing = True
    return source.commit()


def source_side(worker: Worker, stub: object, *, changes: bool = False) -> None:
    worker.pending = attempt = worker.attempt(by_source=True, changes=changes)
    source = Source(stub, worker.dataset, request_id=attempt.request_id, scope=attempt.scope)
    for path in list(attempt.sent)[: len(attempt.sent) // 2]:
        put_entry(source, attempt, path)
    durable = stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id)).durable
    attempt.durable = (durable.entry_count, durable.data_bytes)
    for path in list(attempt.sent)[source.number :]:
        put_entry(source, attempt, path)
    attempt.finishing = True
    worker.done(attempt, source.commit())


def source_changes(worker: Worker, stub: object) -> None:
    source_side(worker, stub, changes=True)


def given_up(worker: Worker, stub: object) -> None:
    """Abort an upload."""
    worker.pending = attempt = worker.attempt(by_source=True, changes=False)
    source = Source(stub, worker.dataset, request_id=attempt.request_id)
    put_entry(source, attempt, next(iter(attempt.sent)))
    stub.AbortUpload(sv.AbortUploadRequest(**source.id))
    worker.pending = None


# --- deletion


def decide(worker: Worker, stub: object, attempt: Attempt, delete: bool) -> None:
    worker.deciding = attempt, delete
    try:
        if delete:
            stub.DeleteBackup(sv.DeleteBackupRequest(dataset=worker.dataset, backup=attempt.backup))
        else:
            stub.UndeleteBackup(sv.UndeleteBackupRequest(dataset=worker.dataset, backup=attempt.backup))
        attempt.deleted = delete
    except grpc.RpcError as error:
        if not worker.place.collected or error.code() != grpc.StatusCode.NOT_FOUND:
            raise
        worker.kept.remove(attempt)
    worker.deciding = None


def delete(worker: Worker, stub: object) -> None:
    shown = [attempt for attempt in worker.kept if not attempt.deleted]
    if len(shown) > 1:
        decide(worker, stub, worker.random.choice(shown), True)


def undelete(worker: Worker, stub: object) -> None:
    hidden = [attempt for attempt in worker.kept if attempt.deleted]
    if hidden:
        decide(worker, stub, worker.random.choice(hidden), False)


def collect(worker: Worker, _stub: object) -> None:
    """Collect garbage during everything else; the collector may be killed too."""
    worker.place.collected = True
    done = forked.run(worker.place.collect, capture_output=True, text=True, timeout=120, check=False)
    # A killed collector keeps its lease for a while; one that paused that long has lost it.
    busy = "is collecting or repairing" in done.stderr or "Another process is collecting" in done.stderr
    if done.returncode not in {0, -signal.SIGKILL} and not busy:
        raise LostError(f"the collection failed: {done.stderr}")


Operation = Callable[[Worker, object], None]
OPERATIONS: list[Operation] = [
    thin,
    thin,
    thin_changes,
    thin_in_two_calls,
    source_side,
    source_side,
    source_changes,
    given_up,
    delete,
    undelete,
    *([collect] if "gc" in COMMANDS else []),
]
