"""Who works while servers, database and store fail: clients that never ask anybody, a restorer, and a collector."""

from __future__ import annotations

import random
import shutil
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import grpc
from chaos_site import Site
from crash_tree import TreeWorker
from crash_work import (
    OPERATIONS,
    Attempt,
    LostError,
    Place,
    Worker,
    collect,
    decide,
    delete,
    messages,
    parts,
    put_entry,
    reason_of,
    undelete,
)
from staddle import BackupNotFoundError, BackupReport, Client, ConnectError, DeadlineError, StaddleError
from staddle.v1 import service_pb2 as sv
from thin import Source

RETRY_S = 240.0
"""How long the bundled client tries again: longer than any fault lasts."""
PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
}
PASSING_REASONS = {"WRONG_SERVER", "TOO_MANY"}
PAUSE_S = 0.4
"""After each step: what is deleted must not outrun the collector on a small machine."""
TREES = 2
KEPT_MAX = 40
"""Backups of a dataset; with more, they are deleted more often than made."""
WORKING = [each for each in OPERATIONS if each not in (collect, delete, undelete)]


def may_pass(error: grpc.RpcError) -> bool:
    """Whether a client without an operator tries again, at another server."""
    if error.code() in PASSING or reason_of(error) in PASSING_REASONS:
        return True
    # A stream that broke, without a word of the server.
    return error.code() is grpc.StatusCode.UNKNOWN and "Stream removed" in (error.details() or "")


class ThinWriter(Worker):
    """A client of another maker, by the generated code alone: after a failure it asks the next server what became of its work."""

    def __init__(self, name: str, seed: int, site: Site) -> None:
        super().__init__(name, seed, Place(site.members[0].data, collected=True))
        self._site = site
        self._doubted: set[str] = set()
        """Backups on which a call's answer was lost. It may be carried out late, so its decision is never reversed."""
        self._at = self.random.randrange(3)
        self.failures: Counter[str] = Counter()

    def step(self) -> None:
        """One operation, or the end of one that is in doubt."""
        stub = self._site.stub(self._at)
        try:
            if self.pending is not None or self.deciding is not None:
                self.settle(stub)
            elif self.random.random() < (0.25 if len(self.kept) < KEPT_MAX else 0.6):
                self._decide(stub)
            else:
                self.random.choice(WORKING)(self, stub)
        except grpc.RpcError as error:
            if self.deciding is not None:
                self._doubted.add(self.deciding[0].request_id)
            self.failures[error.code().name] += 1
            if not may_pass(error):
                raise LostError(
                    f"{self.dataset}: a call failed with {error.code()}: {error.details()}"
                ) from error
            self._at += 1

    def settle_fully(self) -> None:
        """At the end, when nothing fails any more."""
        end_s = time.monotonic() + 120
        while self.pending is not None or self.deciding is not None:
            self.step()
            if time.monotonic() > end_s:
                raise LostError(
                    f"{self.dataset}: the outcome of {self.pending or self.deciding} stays unknown"
                )

    def _decide(self, stub: object) -> None:
        sure = [each for each in self.kept if each.request_id not in self._doubted]
        hidden = [each for each in sure if each.deleted]
        shown = [each for each in sure if not each.deleted]
        if hidden and self.random.random() < 0.3:
            decide(self, stub, self.random.choice(hidden), False)
        elif len(shown) > 1:
            decide(self, stub, self.random.choice(shown[:-1]), True)

    def _settle_backup(self, stub: object, attempt: Attempt) -> None:
        super()._settle_backup(stub, attempt)
        # A late copy of the first call may still come: what was asked for is asked for again by the same id, never dropped.
        if self.pending is attempt and not self._is_known(stub, attempt):
            self._again(stub, attempt)

    def _is_known(self, stub: object, attempt: Attempt) -> bool:
        try:
            stub.GetUpload(sv.GetUploadRequest(request_id=attempt.request_id))  # type: ignore[attr-defined]
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return False
        return True

    def _again(self, stub: object, attempt: Attempt) -> None:
        if not attempt.by_source:
            self.done(attempt, stub.Backup(messages(parts(self, attempt))).backup)  # type: ignore[attr-defined]
            return
        source = Source(stub, self.dataset, request_id=attempt.request_id, scope=attempt.scope)
        for path in attempt.sent:
            put_entry(source, attempt, path)
        attempt.finishing = True
        self.done(attempt, source.commit())


class TreeWriter(TreeWorker):
    """The bundled client with the addresses of all servers, on a directory that changes. No backup may fail."""

    def __init__(self, name: str, seed: int, site: Site) -> None:
        super().__init__(name, seed, Place(site.members[0].data, collected=True))
        self._site = site
        self.failures: Counter[str] = Counter()

    def step(self) -> None:
        try:
            if self.random.random() < (0.2 if len(self.kept) < KEPT_MAX else 0.6):
                self._delete_one()
            else:
                self.work(None, 1)
        except StaddleError as error:
            raise LostError(f"{self.dataset}: the bundled client gave up: {error}") from error

    def settle_fully(self) -> None: ...

    def _report(self) -> BackupReport:
        with client(self._site) as made:
            return made.backup(self._tree, dataset=self.dataset, retry_s=RETRY_S, max_removed_percent=100)

    def _delete_one(self) -> None:
        shown = [attempt for attempt in self.kept if not attempt.deleted]
        if len(shown) < 2:
            return
        attempt = self.random.choice(shown[:-1])
        self.deciding = attempt, True
        # The client does not repeat a deletion that may have been done: who decides does, and may find the backup purged.
        with client(self._site) as made, suppress(BackupNotFoundError):
            while True:
                try:
                    made.delete_backup(self.dataset, attempt.backup)
                    break
                except (ConnectError, DeadlineError):
                    self.failures["answers of deletions lost"] += 1
        attempt.deleted, self.deciding = True, None


def client(site: Site) -> Client:
    """The bundled client, as a command makes it."""
    return Client(",".join(site.addresses), site.token, retry_s=RETRY_S, await_server=True)


class Restorer:
    """Restores any acknowledged backup: the bundled client's with the bundled client, others as a stream."""

    def __init__(self, seed: int, site: Site, writers: list[Worker]) -> None:
        self._random = random.Random(f"restorer-{seed}")
        self._site, self._writers = site, writers
        self._target = site.place / "restored"
        self._at = 0
        self.failures: Counter[str] = Counter()
        self.restored = 0

    def step(self) -> None:
        writer = self._random.choice(self._writers)
        shown = [each for each in writer.kept if _stays(writer, each)]
        if not shown:
            return
        attempt = self._random.choice(shown)
        try:
            self._restore(writer, attempt)
        except grpc.RpcError as error:
            self.failures[error.code().name] += 1
            if not may_pass(error) and _stays(writer, attempt):
                raise LostError(
                    f"{attempt.backup} does not restore: {error.code()}: {error.details()}"
                ) from error
            self._at += 1
        except (StaddleError, LostError) as error:
            if _stays(writer, attempt):  # one that was deleted meanwhile may be gone
                raise LostError(f"{attempt.backup} of {writer.dataset} does not restore: {error}") from error
        else:
            self.restored += 1

    def _restore(self, writer: Worker, attempt: Attempt) -> None:
        if not isinstance(writer, TreeWriter):
            writer.check_restore(self._site.stub(self._at), attempt)
            return
        shutil.rmtree(self._target, ignore_errors=True)
        with client(self._site) as made:
            made.restore(writer.dataset, self._target, backup=attempt.backup, retry_s=RETRY_S)
        if read_tree(self._target) != attempt.files:
            raise LostError("it is not what went in")


def _stays(writer: Worker, attempt: Attempt) -> bool:
    """Whether nobody has asked to delete the backup."""
    return not attempt.deleted and (writer.deciding is None or writer.deciding[0] is not attempt)


def read_tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


class Collecting:
    """Collects garbage beside everything else, without any grace. It may be killed, or find no store: the next run continues."""

    pause_s = 3.0

    def __init__(self, site: Site) -> None:
        self._site = site
        self.failures: Counter[str] = Counter()
        self.done = 0

    def step(self) -> None:
        status, said = self._site.run("gc", "--grace", "0s", "--yes")
        if status == 0:
            self.done += 1
        else:
            self.failures["killed" if status == -signal.SIGKILL else "failed"] += 1
            self.said = said


class Loop(threading.Thread):
    """One of them at work on a thread, until it is told to stop or something was lost."""

    def __init__(
        self, name: str, worker: ThinWriter | TreeWriter | Restorer | Collecting, stop: threading.Event
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.worker = worker
        self.steps = 0
        """Those that ended without a failure."""
        self.error: BaseException | None = None
        self._ends = stop

    def run(self) -> None:
        while not self._ends.is_set():
            failed = self.worker.failures.total()
            try:
                self.worker.step()
            except BaseException as error:
                self.error = error
                return
            self.steps += self.worker.failures.total() == failed
            self._ends.wait(getattr(self.worker, "pause_s", PAUSE_S))
