"""Runs the server's background tasks, one at a time and each once in its period, on a separate thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

from staddle_server.base.clock import Clock
from staddle_server.base.errors import StaddleError
from staddle_server.base.threads import Background, shortage
from staddle_server.catalog import Catalog
from staddle_server.tenancy.clock_guard import JUMP_S

log = logging.getLogger(__name__)

NS: Final = 1_000_000_000
LOOK_S: Final = 10.0
"""How often the schedule looks what is due."""

Stopping = Callable[[], bool]
"""Whether the server is about to end: a task asks now and then, and ends soon when it is."""


class StoppedError(Exception):
    """The server is about to end: the task that raises this to itself stops where it is, and what it left half done counts for nothing."""


class Task(NamedTuple):
    """One thing to do again and again.

    Attributes:
        name: What the catalog and the log call it.
        every_s: How long after its last beginning it is due again; 0: never by itself.
        run: Does it; gives in a few words what it did, "" for nothing worth a line.
        patience_s: When it is due it waits so long for a moment in which no client is at work.
        first_after_s: How long after the schedule's start it is not due: the server's start did its work already.

    """

    name: str
    every_s: float
    run: Callable[[Stopping], str]
    patience_s: float = 0.0
    first_after_s: float = 0.0


class Schedule:
    """Runs tasks when they are due. The catalog keeps when each last ran, so a restart does not run everything at once.

    A task that fails is logged and is due again at its time; a clock that was set back makes no task wait longer than
    its period, give or take a correction of the clock.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        catalog: Catalog,
        clock: Clock,
        *,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """`busy` says whether clients are at work."""
        self._busy = busy
        self._due_since_s: dict[str, float] = {}
        self._started_s = clock.monotonic_s()
        self._tasks = [task for task in tasks if task.every_s > 0]
        self._catalog = catalog
        self._clock = clock
        self._threads = [
            Background(f"upkeep-{task.name}", LOOK_S, partial(self._look, task)) for task in self._tasks
        ]
        self._stopping = False

    def start(self) -> None:
        """Begins; the first look is after LOOK_S. A task that takes hours keeps no other waiting."""
        self._started_s = self._clock.monotonic_s()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends; a task that is at work is waited for, and knows that it shall end."""
        self._stopping = True
        for thread in self._threads:
            thread.stop()

    def look(self) -> None:
        """Runs what is due now, one after the other."""
        for task in self._tasks:
            if not self._stopping:
                self._look(task)

    def _look(self, task: Task) -> None:
        try:
            if self._is_due(task) and not self._waits(task):
                self._catalog.tasks.begin(task.name, self._clock.now_ns())
                outcome = task.run(lambda: self._stopping)
                self._catalog.tasks.end(task.name, self._clock.now_ns(), outcome)
                if outcome:
                    log.info("%s: %s", task.name, outcome)
        except StaddleError as e:
            self._failed(task, e.message)
            log.error("%s failed: %s", task.name, e.message)  # noqa: TRY400 - no fault of ours
        except Exception as e:
            scarce = shortage(e)
            self._failed(task, scarce.message if scarce else f"a fault of the server ({type(e).__name__})")
            log.exception("a fault in %s", task.name)

    def _is_due(self, task: Task) -> bool:
        if self._clock.monotonic_s() - self._started_s < task.first_after_s:
            return False
        begun_ns = self._catalog.tasks.last(task.name).begun_ns
        if begun_ns is None:
            return True
        since_s = (self._clock.now_ns() - begun_ns) / NS
        return since_s >= task.every_s or since_s <= -min(task.every_s, JUMP_S)

    def _waits(self, task: Task) -> bool:
        """Whether a task that is due lets clients go first."""
        now_s = self._clock.monotonic_s()
        since_s = self._due_since_s.setdefault(task.name, now_s)
        if self._busy() and now_s - since_s < task.patience_s:
            return True
        del self._due_since_s[task.name]
        return False

    def _failed(self, task: Task, what: str) -> None:
        try:
            self._catalog.tasks.end(task.name, self._clock.now_ns(), f"failed: {what}")
        except StaddleError as e:
            log.warning("the end of %s could not be put down: %s", task.name, e.message)
