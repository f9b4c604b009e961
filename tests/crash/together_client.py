"""A client of a simulation: it works, loses answers, and finds out the outcome of its calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc
from crash_work import OPERATIONS, Attempt, LostError, Place, Worker, collect
from direct import Failed
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base.limits import GRACE_S, UPLOAD_LIFE_S
from thin import info
from together_faults import (
    SIZES,
)

if TYPE_CHECKING:
    from crash_together import Simulation


class Client(Worker):
    """One client, with its knowledge of holds, times and backups."""

    sizes = SIZES

    def __init__(self, name: str, seed: int, simulation: Simulation) -> None:
        super().__init__(name, seed, Place(simulation.root, collected=True))
        self._simulation = simulation
        self.held: set[str] = set()
        self.retained_s: dict[str, float] = {}
        """By backup, until which time that really passes."""
        self.may_be_held: set[str] = set()
        """Also where no answer came."""
        self.may_be_retained_s: dict[str, float] = {}
        """Until when at the latest, also where no answer came."""
        self.hidden_s: dict[str, float] = {}
        """When a backup was hidden, at the latest."""
        self.begun_s = 0.0
        self.may_go: set[str] = set()
        """What a policy may have hidden since the last look."""
        self.numbers: dict[int, str] = {}

    @property
    def in_doubt(self) -> bool:
        return self.pending is not None or self.deciding is not None

    def is_protected(self, backup: str) -> bool:
        return backup in self.held or self.retained_s.get(backup, 0.0) > self._simulation.clock.ahead_s

    def may_be_protected(self, backup: str) -> bool:
        """Whether a refusal to delete the backup can be right."""
        latest_s = self.may_be_retained_s.get(backup, float("-inf"))
        return backup in self.may_be_held or self._simulation.clock.ahead_s < latest_s

    def operate(self, stub: object) -> None:
        """One operation, or the end of one that is in doubt."""
        before = list(self.kept)
        try:
            if self.in_doubt:
                self.settle(stub)
            else:
                self.begun_s = self._simulation.clock.ahead_s
                self.random.choice(_OPERATIONS)(self, stub)
        except Failed as failed:
            self._refused(failed)
        finally:
            self._note(before)

    def _refused(self, failed: Failed) -> None:
        """Only deletions of protected backups are refused."""
        if failed.code() is grpc.StatusCode.FAILED_PRECONDITION and self.deciding is not None:
            attempt, delete = self.deciding
            if info(failed).reason == "PROTECTED" and delete:
                if not self.may_be_protected(attempt.backup) and not self._simulation.is_in_doubt:
                    raise LostError(f"{attempt.backup} is protected, and nobody knows why")
                self.deciding = None
                return
        raise failed

    def _note(self, before: list[Attempt]) -> None:
        now_s = self._simulation.clock.ahead_s
        for attempt in before:
            if attempt not in self.kept:
                self._gone(attempt)
        for attempt in self.kept:
            if attempt.deleted:
                self.hidden_s.setdefault(attempt.backup, now_s)
            elif self.deciding is None or self.deciding[0] is not attempt:
                self.hidden_s.pop(attempt.backup, None)
            if attempt.deleted and self.is_protected(attempt.backup):
                raise LostError(f"{attempt.backup} is held or retained, and was deleted")

    def _gone(self, attempt: Attempt) -> None:
        """A backup no longer exists."""
        self._simulation.figures["purged"] += 1
        hidden_s = self.hidden_s.get(attempt.backup)
        if hidden_s is None or self._simulation.clock.ahead_s - hidden_s < GRACE_S:
            raise LostError(f"{attempt.backup} is gone before its grace has passed: hidden {hidden_s}")
        if self.is_protected(attempt.backup):
            raise LostError(f"{attempt.backup} is held or retained, and gone")

    def _settle_backup(self, stub: object, attempt: Attempt) -> None:
        try:
            upload = stub.GetUpload(sv.GetUploadRequest(request_id=attempt.request_id)).upload  # type: ignore[attr-defined]
        except Failed as failed:
            if failed.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            if attempt.durable != (0, 0):
                raise LostError(f"{attempt.request_id} is not known any more") from failed
            self.pending = None
            return
        if upload.state == pb.UPLOAD_STATE_EXPIRED:
            self._expired(attempt)
        elif upload.state == pb.UPLOAD_STATE_COMMITTED:
            if not attempt.finishing:
                raise LostError(f"{attempt.request_id} is committed before its end was sent")
            self._replay(stub, attempt, upload)
        elif upload.state == pb.UPLOAD_STATE_OPEN:
            try:
                self._resume(stub, attempt, upload.id)
            except Failed as failed:
                # It may have expired although no task has noticed that yet.
                if (
                    failed.code() is not grpc.StatusCode.FAILED_PRECONDITION
                    or "expired" not in failed.details()
                ):
                    raise
                self._expired(attempt)
        elif attempt.finishing or upload.state != pb.UPLOAD_STATE_ABORTED:
            raise LostError(f"{attempt.request_id} is {pb.UploadState.Name(upload.state)}")
        else:
            self.pending = None

    def _expired(self, attempt: Attempt) -> None:
        if self._simulation.clock.ahead_s - self.begun_s < UPLOAD_LIFE_S:
            raise LostError(f"{attempt.request_id} expired within its life")
        self.pending = None

    def check(self, stub: object, sample: int | None = None) -> None:
        """As the worker does; and what a policy hid it was allowed to hide, no number is given twice, and nothing goes early."""
        before = list(self.kept)
        listed = {backup.id: backup for backup in self._listed(stub)}
        for backup in listed.values():
            if self.numbers.setdefault(backup.number, backup.id) != backup.id:
                raise LostError(f"{self.dataset} has the number {backup.number} twice")
        for attempt in self.kept:
            backup = listed.get(attempt.backup)
            if backup is not None and backup.HasField("delete_time") and not attempt.deleted:
                if attempt.backup not in self.may_go:
                    raise LostError(f"{attempt.backup} was hidden without a request")
                attempt.deleted = True
                self._simulation.figures["hidden by policy"] += 1
        self.may_go = set()
        super().check(stub, sample)
        self._note(before)


def delete_one(client: Worker, stub: object) -> None:
    """Delete any backup but the newest, even a protected one."""
    shown = [attempt for attempt in client.kept if not attempt.deleted]
    if len(shown) > 1:
        kept = [attempt for attempt in shown if client.is_protected(attempt.backup)]  # type: ignore[attr-defined]
        attempt = client.random.choice(kept if kept and client.random.random() < 0.4 else shown)
        client.deciding = attempt, True
        stub.DeleteBackup(sv.DeleteBackupRequest(dataset=client.dataset, backup=attempt.backup))  # type: ignore[attr-defined]
        attempt.deleted, client.deciding = True, None


_OPERATIONS: Final = [
    delete_one if operation.__name__ == "delete" else operation
    for operation in OPERATIONS
    if operation is not collect
]
