"""Runs the server's background tasks, each once in its period, on threads of their own.

Where several servers share the catalog, a task runs on one of them at a time, by a lease.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

from staddle_server.base.clock import Clock
from staddle_server.base.errors import StaddleError
from staddle_server.base.threads import Background, shortage
from staddle_server.catalog import Catalog
from staddle_server.catalog.tasks import FAILED, Period
from staddle_server.tenancy.clock_guard import JUMP_S
from staddle_server.upkeep.held_lease import LEASE_S, HeldLease, holder_name

log = logging.getLogger(__name__)

LOOK_S: Final = 10.0
"""How often the schedule checks what is due."""

Stopping = Callable[[], bool]
"""Whether the server is about to end, or lost the task's lease: tasks call it from time to time, and then end
soon.
"""


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
        everywhere: Every server runs it, in its own period; they divide the work themselves.

    """

    name: str
    every_s: float
    run: Callable[[Stopping], str]
    patience_s: float = 0.0
    first_after_s: float = 0.0
    everywhere: bool = False


class Schedule:
    """Runs tasks when they are due.

    The catalog keeps when each last ran, so a restart, or another server, does not run everything at once. A
    failed task is logged and is due again at its time, as is one whose server died; a clock that was set back
    delays no task beyond its period, give or take a correction of the clock.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        catalog: Catalog,
        clock: Clock,
        *,
        busy: Callable[[], bool] = lambda: False,
        holder: str = "",
    ) -> None:
        """`busy` returns whether clients are active. `holder` names this server to the others."""
        self._holder = holder or holder_name()
        self._ran_s: dict[str, float] = {}
        self._busy = busy
        self._due_since_s: dict[str, float] = {}
        self._started_s = clock.monotonic_s()
        self._tasks = [task for task in tasks if task.every_s > 0]
        self._catalog = catalog
        self._clock = clock
        self._threads = [
            Background(f"upkeep-{task.name}", LOOK_S, partial(self._look_at, task)) for task in self._tasks
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
                self._look_at(task)

    def _look_at(self, task: Task) -> None:
        try:
            self._look(task)
        except StaddleError as e:
            log.warning("%s could not begin, or its end not be recorded: %s", task.name, e.message)

    def _look(self, task: Task) -> None:
        if not self._is_due(task) or self._waits(task):
            return
        if task.everywhere:
            self._run_here(task)
            return
        now_s = self._clock.monotonic_s()
        fence = self._catalog.tasks.claim(
            task.name, self._holder, self._clock.now_ns(), LEASE_S, _period(task)
        )
        if fence is None:
            return  # another server was faster, or runs it still
        with HeldLease(self._catalog.tasks.lease(task.name), fence, self._clock, now_s) as lease:
            outcome = self._outcome(task, lambda: self._stopping or lease.lost)
        if outcome is None:
            self._catalog.tasks.give_up(task.name, fence)
        elif not self._catalog.tasks.end(task.name, fence, self._clock.now_ns(), outcome):
            log.warning("%s took longer than its lease, and another server has taken it over", task.name)

    def _run_here(self, task: Task) -> None:
        begun_ns = self._clock.now_ns()
        outcome = self._outcome(task, lambda: self._stopping)
        if outcome is None:
            return
        self._catalog.tasks.note(task.name, begun_ns, self._clock.now_ns(), outcome)
        self._ran_s[task.name] = self._clock.monotonic_s()

    def _outcome(self, task: Task, stopping: Stopping) -> str | None:
        """Run the task; log and return its summary, or its failure; None if it was stopped."""
        try:
            outcome = task.run(stopping)
        except StoppedError:
            return None
        except StaddleError as e:
            log.error("%s failed: %s", task.name, e.message)  # noqa: TRY400 - no fault of ours
            return f"{FAILED}{e.message}"
        except Exception as e:
            log.exception("a fault in %s", task.name)
            scarce = shortage(e)
            return f"{FAILED}{scarce.message if scarce else f'a fault of the server ({type(e).__name__})'}"
        if outcome:
            log.info("%s: %s", task.name, outcome)
        return outcome

    def _is_due(self, task: Task) -> bool:
        now_s = self._clock.monotonic_s()
        if now_s - self._started_s < task.first_after_s:
            return False
        if task.everywhere:
            return task.name not in self._ran_s or now_s - self._ran_s[task.name] >= task.every_s
        return self._catalog.tasks.is_due(task.name, self._clock.now_ns(), _period(task))

    def _waits(self, task: Task) -> bool:
        """Return whether a due task lets clients go first."""
        now_s = self._clock.monotonic_s()
        since_s = self._due_since_s.setdefault(task.name, now_s)
        if self._busy() and now_s - since_s < task.patience_s:
            return True
        del self._due_since_s[task.name]
        return False


def _period(task: Task) -> Period:
    return Period(task.every_s, min(task.every_s, JUMP_S))
