"""A service in this process without gRPC's core, of which single allocations fail: scarce_sweep.py DIRECTORY SEED POINTS FIRST

The handlers are called as gRPC calls them. For each point of the sweep one allocation of Python fails, somewhere in one call;
then everything that was acknowledged must be there, nothing may be held that the call took, and the same call must succeed.
Prints what came of it as JSON.
"""

from __future__ import annotations

import _testcapi
import gc
import json
import logging
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from direct import Failed, Stub, open_door
from servers import Running
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from thin import messages, noise

LEFT_S = 60.0
"""A thread of a call that was given up may still be closing its file."""
ALLOCATIONS = {True: 14_000, False: 4_000}
"""So many a backup makes, or a restore, and some more."""


class Failing(Stub):
    """`failing`: the allocation that fails in the next call, counted from its beginning."""

    failing: int | None = None

    @contextmanager
    def calling(self) -> Iterator[None]:
        at, self.failing = self.failing, None
        if at is not None:
            _testcapi.set_nomemory(at, at + 1)
        try:
            yield
        finally:
            _testcapi.remove_mem_hooks()


def held(running: Running) -> list[str]:
    """Resources still held by ended calls."""
    service = running.service
    gate = service._gate
    found = []
    if gate.calls._slots or gate.streams._slots or gate._calls:
        found.append(f"slots: {len(gate.calls._slots)}, {len(gate.streams._slots)}, {len(gate._calls)}")
    for _ in range(100):  # threads in the background hold one for a moment
        if not running.catalog.database.engine.pool.checkedout():
            break
        threading.Event().wait(0.05)
    else:
        found.append("connections of the catalog")
    turn = running.catalog.database._turn
    if not turn.acquire(timeout=60):
        found.append("the turn to write")
    else:
        turn.release()
    return found


def files(number: int) -> dict[str, bytes]:
    """The content of a point's backup."""
    return {"a": noise(3000, number), "dir/b": noise(90_000, number), "c": b"", "shared": noise(70_000)}


def parts(number: int, request: str) -> list[sv.BackupRequest]:
    wanted = files(number)
    begun = sv.BeginUploadRequest(dataset=f"set{number % 4}", request_id=request)
    made = [sv.BackupPart(begin=begun)]
    made += [sv.BackupPart(entry=pb.Entry(path=path, data=data)) for path, data in wanted.items()]
    made.append(
        sv.BackupPart(finish=sv.Finish(entry_count=len(wanted), data_bytes=sum(map(len, wanted.values()))))
    )
    return list(messages(made))


def restored(responses: list[sv.RestoreResponse]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    path = ""
    for part in (part for response in responses for part in response.parts):
        assert not part.HasField("damage"), part.damage
        if part.HasField("entry"):
            path = part.entry.path
            if part.entry.type == pb.ENTRY_TYPE_FILE:
                found[path] = part.entry.data
        elif part.HasField("data"):
            found[path] += part.data.data
    return found


class Sweep:
    """One service; what it has acknowledged stands in a file, so that the next process knows it if this one dies."""

    def __init__(self, root: Path, seed: int) -> None:
        self._seed = seed
        self._journal = root / "acknowledged"
        self._journal.touch()
        self.kept: dict[str, int] = {}
        """By its id the number of each backup that was acknowledged."""
        for line in self._journal.read_text().splitlines():
            backup, number = line.split()
            self.kept[backup] = int(number)
        self.running = Running(root)
        self.running.blobs.sweep()  # as a starting server does
        token = root / "token"
        if not token.exists():
            token.write_text(self.running.token())
        self.stub = Failing(token.read_text())
        self._outcomes = root / "outcomes"
        self.problems: list[str] = []

    def back_up(self, number: int, request: str) -> str:
        made = self.stub.Backup(parts(number, request)).backup
        with self._journal.open("a") as file:
            file.write(f"{made.id} {number}\n")
        self.kept[made.id] = number
        return made.id

    def is_whole(self, backup: str) -> bool:
        number = self.kept[backup]
        request = sv.RestoreRequest(dataset=f"set{number % 4}", backup=pb.BackupSelector(backup=backup))
        return restored(self.stub.Restore(request)) == files(number)

    def point(self, number: int) -> None:
        """Fail one allocation in one call; then check everything, and repeat the call."""
        rng = random.Random(f"{self._seed}-{number}")
        is_backup = number % 3 > 0
        before = rng.choice(sorted(self.kept)) if self.kept else self.back_up(0, "r0")
        self.stub.failing = rng.randrange(1, ALLOCATIONS[is_backup])
        try:
            if is_backup:
                self.back_up(number, f"r{number}")
            elif not self.is_whole(before):
                self.problems.append(f"{number}: a restore gave something else")
            outcome = "OK"
        except Failed as failed:
            outcome = failed.code().name
        except AssertionError as error:
            outcome = "damage"
            self.problems.append(f"{number}: what is whole is said to be damaged: {error}")
        except Exception as error:
            outcome = type(error).__name__
        with self._outcomes.open("a") as file:
            file.write(f"{outcome}\n")
        self.problems += [f"{number}: still held: {each}" for each in held(self.running)]
        try:
            backup = self.again(number) if is_backup else before
            if not self.is_whole(backup):
                self.problems.append(f"{number}: the backup is not whole")
        except Exception as error:
            self.problems.append(f"{number}: afterwards: {''.join(traceback.format_exception(error)[-3:])}")

    def again(self, number: int) -> str:
        """The backup of this point, as its client makes it sure: by GetUpload, ResumeUpload and the same call once more.

        A process may die in here too, so an upload that was given up has a successor that is
        looked at in the same way.
        """
        request = f"r{number}"
        while (upload := self._upload_of(request)) is not None:
            if upload.state == pb.UPLOAD_STATE_COMMITTED:
                made = self.back_up(number, request)
                assert made == upload.backup_id, "a replay made another backup"
                return made
            if upload.state == pb.UPLOAD_STATE_OPEN:
                resumed = self.stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=upload.id)).upload
                self.stub.AbortUpload(sv.AbortUploadRequest(upload_id=upload.id, epoch=resumed.epoch))
            request += "-again"
        return self.back_up(number, request)

    def _upload_of(self, request: str) -> pb.Upload | None:
        try:
            upload: pb.Upload = self.stub.GetUpload(sv.GetUploadRequest(request_id=request)).upload
        except Failed as failed:
            if failed.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return None
        return upload

    def check(self) -> None:
        """Everything acknowledged is complete, and nothing else exists."""
        self.problems += [f"{backup} is not whole" for backup in self.kept if not self.is_whole(backup)]
        listed = {
            each.id
            for number in range(4)
            for each in self.stub.ListBackups(
                sv.ListBackupsRequest(dataset=f"set{number}", page_size=1000)
            ).backups
        }
        if listed != set(self.kept):
            self.problems.append(f"too many: {listed - set(self.kept)}; missing: {set(self.kept) - listed}")


def main() -> None:
    root, seed, points = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    first = int(sys.argv[4])
    logging.disable(logging.CRITICAL)
    with open_door():
        sweep_points(root, seed, points, first)


def sweep_points(root: Path, seed: int, points: int, first: int) -> None:
    died: list[str] = []
    threading.excepthook = lambda args: died.append("".join(traceback.format_exception(args.exc_value)))
    sweep = Sweep(root, seed)
    if first > 1 and (first - 1) % 3:  # the previous process died in it
        sweep.again(first - 1)
    for number in range(first, points + 1):
        (root / "point").write_text(str(number))
        sweep.point(number)
        if sweep.problems:
            break
    sweep.check()
    sweep.running.service.drain(0.0)
    end_s = time.monotonic() + LEFT_S
    while True:
        gc.collect()
        sweep.running.blobs.sweep()  # what is left is not locked by a live process
        left = os.listdir(root / "store" / "tmp")
        if not left or time.monotonic() > end_s:
            break
        time.sleep(0.1)
    print(json.dumps({"problems": sweep.problems, "died": died, "left": left}))


if __name__ == "__main__":
    main()
