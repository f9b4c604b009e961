"""Threads that work beside the calls, and what a server says where the system gives no thread, memory or file."""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

from staddle._base.threads import Threads, is_no_thread, start_thread

from staddle_server.base.errors import Exhausted, StaddleError

__all__ = [
    "Background",
    "Semaphore",
    "Threads",
    "is_no_memory",
    "is_no_thread",
    "log_safely",
    "no_thread",
    "shortage",
]

log = logging.getLogger(__name__)
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


class Semaphore:
    """Lets so many into a block at once. A semaphore of Python stays locked for ever when an allocation fails in leaving it."""

    def __init__(self, count: int) -> None:
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(count):
            self._free.put(None)

    def __enter__(self) -> None:
        self._free.get()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._free.put(None)


class Background:
    """A thread that does the same again and again. No failure ends it: what goes wrong is logged, and the next turn comes."""

    def __init__(self, name: str, every_s: float, once: Callable[[], None]) -> None:
        """`once` is called every `every_s`, the first time after that time."""
        self._every_s = every_s
        self._once = once
        self._name = name
        self._stopping = False
        # A lock in C; one in Python stays locked for ever when an allocation fails in leaving it.
        self._waits = threading.Lock()
        self._waits.acquire()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins. Raises RuntimeError where the system gives no thread."""
        self._thread = start_thread(self._name, self._run)

    def stop(self) -> None:
        """Ends, after the turn that is under way."""
        if not self._stopping:
            self._stopping = True
            self._waits.release()
        if self._thread is not None:
            self._thread.join()

    @property
    def stopping(self) -> bool:
        """Whether it has been told to end: long turns ask."""
        return self._stopping

    def _run(self) -> None:
        while not self._stopping:
            try:
                if not self._waits.acquire(timeout=self._every_s):
                    self._once()
            except Exception:  # noqa: BLE001 - whatever it was, the next turn comes
                log_safely("a fault in the background work %s, which continues", self._name)
                time.sleep(PAUSE_S)
