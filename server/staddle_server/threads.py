"""Threads that work beside the calls, and what a server says where the system gives no thread, memory or file."""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Final, ParamSpec, TypeVar

from staddle._threads import Threads, Work, is_no_thread

from staddle_server.errors import Exhausted, StaddleError

__all__ = [
    "Background",
    "CallThreads",
    "Threads",
    "is_no_memory",
    "is_no_thread",
    "log_safely",
    "no_thread",
    "shortage",
]

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

RETRY_S: Final = 2.0
PAUSE_S: Final = 0.1
"""Between a failure and the next try."""


def no_thread() -> StaddleError:
    """What a caller is told where no thread can be started."""
    return Exhausted(
        "TOO_MANY",
        "the system gives this server no further thread: try again; if it lasts, raise the server's limit of processes "
        "(TasksMax in its systemd unit, `ulimit -u`, the container's limit of pids) or its memory",
        retry_after_s=RETRY_S,
    )


def is_no_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left: itself, or the one that it was raised for, as libraries wrap it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM):
            return True
        cause = cause.__cause__
    return False


def shortage(error: BaseException) -> StaddleError | None:
    """What a caller is told of an error that says that the system has no memory, thread or file left; None: it says something else."""
    if is_no_thread(error):
        return no_thread()
    number = error.errno if isinstance(error, OSError) else None
    if is_no_memory(error):
        return Exhausted(
            "TOO_MANY",
            "the server has no memory left for this: try again; if it lasts, give the server more memory, or lower "
            "--streams-max",
            retry_after_s=RETRY_S,
        )
    if number in {errno.EMFILE, errno.ENFILE}:
        return Exhausted(
            "TOO_MANY",
            "the server has no file handle left for this: try again; if it lasts, raise its limit of open files "
            "(LimitNOFILE in its systemd unit, `ulimit -n`)",
            retry_after_s=RETRY_S,
        )
    return None


def log_safely(message: str, *arguments: object) -> None:
    """Logs the exception that is being handled; where there is no memory even for that, does nothing."""
    with contextlib.suppress(Exception):  # the thread that wants to say it matters more
        log.exception(message, *arguments)


class Background:
    """A thread that does the same again and again. No failure ends it: what goes wrong is logged, and the next turn comes."""

    def __init__(self, name: str, every_s: float, once: Callable[[], None]) -> None:
        """`once` is called every `every_s`, the first time after that time."""
        self._every_s = every_s
        self._once = once
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begins. Raises RuntimeError where the system gives no thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends, after the turn that is under way."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def stopping(self) -> bool:
        """Whether it has been told to end: long turns ask."""
        return self._stop.is_set()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                # To wait takes memory, too.
                if not self._stop.wait(self._every_s):
                    self._once()
            except Exception:  # noqa: BLE001 - whatever it was, the next turn comes
                log_safely("a fault in the background work %s, which continues", self._thread.name)
                time.sleep(PAUSE_S)


class CallThreads(Executor):
    """The threads of calls, started as they are needed and a few ahead. `submit` never fails for want of one.

    Where the system gives no more, work waits for one of those that run, and `is_short` says so: then nothing may take one for
    long, so that the few that were started ahead serve everything else.
    """

    def __init__(self, most: int, ahead: int) -> None:
        self._most = most
        self._ahead = ahead
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._running = 0
        self._load = 0
        """Calls that were taken and have not ended."""
        self._closed = False
        self.is_short = False

    @property
    def left(self) -> int:
        """Threads that have nothing to do."""
        return self._running - self._load

    def start(self) -> None:
        """Starts those that are ahead. Raises RuntimeError where the system does not give them."""
        with self._lock:
            self._start_ahead()
        if self.is_short:
            raise no_thread()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Does the work, soon; raises RuntimeError once the threads were ended."""
        work = Work(lambda: fn(*args, **kwargs))
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._load += 1
            self._start_ahead()  # before the work is taken, so that it finds `is_short` as it is now
            self._queue.put(work)
        return work.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """Ends the threads when all that was taken is done; waits for nothing."""
        with self._lock:
            self._closed = True
            for _ in range(self._running):
                self._queue.put(None)

    def _start_ahead(self) -> None:
        try:
            while self._running < min(self._most, self._load + self._ahead):
                threading.Thread(target=self._run, name=f"call_{self._running}", daemon=True).start()
                self._running += 1
        except (RuntimeError, MemoryError):
            self.is_short = True
        else:
            self.is_short = False

    def _run(self) -> None:
        while True:
            try:
                work = self._queue.get()
                if work is None:
                    return
                work.do()
            except Exception:  # noqa: BLE001 - `do` keeps what the work raises; here is something else
                log_safely("a fault in a thread of calls, which continues")
            with self._lock:
                self._load -= 1
            work = None  # else it would stay until the next one comes
