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
"""How often the schedule checks what is due."""

Stopping = Callable[[], bool]
"""Whether the server is about to end: tasks call it from time to time, and then end soon."""


class StoppedError(Exception):
    """The server is about to end: a task raises this to stop where it is, and its unfinished work does not
    count.
    """


class Task(NamedTuple):
    """One recurring task.

    Attributes:
        name: Its name in the catalog and the log.
        every_s: The period from one start to the next; 0: never automatically.
        run: Runs it; returns a short summary, "" for nothing worth a line.
        patience_s: How long a due task waits for a moment without active clients.
        first_after_s: How long after the schedule's start it is not due, because the server's start has done
            its work.

    """

    name: str
    every_s: float
    run: Callable[[Stopping], str]
    patience_s: float = 0.0
    first_after_s: float = 0.0


class Schedule:
    """Runs tasks when they are due.

    The catalog keeps when each last ran, so a restart does not run everything at once. A failed task is
    logged and is due again at its time; a clock that was set back delays no task beyond its period, give or
    take a correction of the clock.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        catalog: Catalog,
        clock: Clock,
        *,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """`busy` returns whether clients are active."""
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
        """Start; the first look is after LOOK_S. A task that takes hours does not delay the others."""
        self._started_s = self._clock.monotonic_s()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop, and wait for the running task, which is asked to end."""
        self._stopping = True
        for thread in self._threads:
            thread.stop()

    def look(self) -> None:
        """Run what is due now, one after the other."""
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
        """Return whether a due task lets clients go first."""
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
            log.warning("the end of %s could not be recorded: %s", task.name, e.message)
