"""The faults of a simulation: clock, disk, and the network between clients and the service."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import grpc
from crash_disk import Recorder
from crash_steps import Observer, Step
from direct import Failed
from servers import MovedClock
from staddle.v1 import service_pb2 as sv
from staddle_server.store.files import Files

if TYPE_CHECKING:
    from crash_together import Simulation

HOUR_S, DAY_S = 3600.0, 86_400.0
SIZES = (0, 10, 3_000, 70_000, 200_000)
POLICY: Final = "set2"
"""The dataset that has a policy."""
KEEP_LAST = 3
EPISODES, ACTIONS = 8, 6
EVERY_S = HOUR_S
"""How often the server collects and follows policies by itself."""
STEPS_THAT_FAIL = (
    "pack.*",
    "record.*",
    "directory.*",
    "temporary.create",
    "head.*",
    ".*sync.*",
    ".*write",
    "catalog.*",
)
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EMFILE)
DECISIONS = frozenset({"DeleteBackup", "UndeleteBackup", "SetHold", "ReleaseHold", "RetainBackup"})
"""What a late copy of would decide once more."""


class Clock(MovedClock):
    """A clock with passing time (`ahead_s`) and jumps of the wall clock (`jump_s`)."""

    jump_s = 0.0

    def now_ns(self) -> int:
        return super().now_ns() + int(self.jump_s * 1e9)


class Machine(Observer):
    """Disk and power. Only events recorded before the power failed may survive."""

    def __init__(self) -> None:
        self.recorder: Recorder | None = None
        self.dead = False
        self.steps_left: int | None = None
        """Until the power fails."""
        self.failing, self.number, self.failures = re.compile("$."), 0, 0
        self.short = False
        """Writes write only a part."""
        self.unreadable = False

    def mend(self) -> None:
        self.steps_left, self.failures, self.short, self.unreadable = None, 0, False, False

    def before(self, step: Step) -> None:
        if self.steps_left is not None:
            self.steps_left -= 1
            self.dead = self.dead or self.steps_left <= 0
        if self.dead:
            raise OSError(errno.EIO, "the power has failed")
        if self.failures and self.failing.fullmatch(step.name):
            self.failures -= 1
            raise OSError(self.number, "the disk fails")
        if self.recorder is not None:
            self.recorder.before(step)

    def after(self, step: Step) -> None:
        if self.recorder is not None and not self.dead:
            self.recorder.after(step)


class FailingFiles(Files):
    """Files on such a machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def write(self, descriptor: int, data: Any) -> int:
        if self._machine.short and len(data) > 1:
            data = memoryview(data)[: max(1, len(data) // 2)]
        return super().write(descriptor, data)

    def read(self, descriptor: int, length: int, offset: int) -> bytes:
        if self._machine.unreadable:
            raise OSError(errno.EIO, "the disk fails")
        return super().read(descriptor, length, offset)


class Network:
    """A client's way to the server."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    def __getattr__(self, name: str) -> Any:
        return lambda request: self._call(name, request)

    def _call(self, name: str, request: Any) -> Any:
        simulation = self._simulation
        rng, call = simulation.random, getattr(simulation.stub, name)
        if simulation.machine.dead:
            raise broken()
        what = "whole"
        if rng.random() < simulation.loss:
            what = rng.choice(("unsent", "unanswered", "twice", "late", "cut"))
        simulation.figures[f"calls {what}"] += what != "whole"
        if what == "unsent":
            raise broken()
        if name == "Backup":
            request = _one_by_one(request, rng.randrange(1, 12) if what == "cut" else None)
        asked = list(request) if name == "Backup" and what in {"twice", "late"} else request
        answer = call(asked)
        if what == "unanswered" or simulation.machine.dead:
            raise broken()
        if what == "twice":
            simulation.again(name, asked, answer)
        if what == "late" and name not in DECISIONS:
            simulation.late.append((name, asked, answer))
        return answer


def _one_by_one(messages: Any, cut_after: int | None) -> Iterator[sv.BackupRequest]:
    for message in messages:
        for part in message.parts:
            if cut_after is not None:
                cut_after -= 1
                if cut_after < 0:
                    raise broken()
            yield sv.BackupRequest(parts=[part])


def broken() -> Failed:
    return Failed(grpc.StatusCode.UNAVAILABLE, "the connection broke")
