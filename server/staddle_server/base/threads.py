"""Background threads, and the server's errors when the system runs out of threads, memory or files."""

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
    "start_thread",
]

log = logging.getLogger(__name__)
RETRY_S: Final = 2.0
PAUSE_S: Final = 0.1
"""The wait between a failure and the next try."""


def no_thread() -> StaddleError:
    """Return the caller's error when no thread can be started."""
    return Exhausted(
        "TOO_MANY",
        "the system gives this server no more threads: try again; if it persists, raise the server's limit of processes "
        "(TasksMax in its systemd unit, `ulimit -u`, the container's limit of pids) or its memory",
        retry_after_s=RETRY_S,
    )


def is_no_memory(error: BaseException) -> bool:
    """Return whether an error means out of memory: itself, or its cause, as libraries wrap it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM):
            return True
        cause = cause.__cause__
    return False


def shortage(error: BaseException) -> StaddleError | None:
    """Return the caller's error if the system is out of memory, threads or files; None for any
    other error.
    """
    if is_no_thread(error):
        return no_thread()
    number = error.errno if isinstance(error, OSError) else None
    if is_no_memory(error):
        return Exhausted(
            "TOO_MANY",
            "the server has no memory left for this: try again; if it persists, give the server more memory, or lower "
            "--streams-max",
            retry_after_s=RETRY_S,
        )
    if number in {errno.EMFILE, errno.ENFILE}:
        return Exhausted(
            "TOO_MANY",
            "the server has no file handle left for this: try again; if it persists, raise its limit of open files "
            "(LimitNOFILE in its systemd unit, `ulimit -n`)",
            retry_after_s=RETRY_S,
        )
    return None


def log_safely(message: str, *arguments: object) -> None:
    """Log the exception in flight; do nothing if even that lacks memory."""
    with contextlib.suppress(Exception):  # the calling thread matters more than its log line
        log.exception(message, *arguments)


class Semaphore:
    """Allows a limited number of threads into a block.

    Python's own semaphore stays locked if an allocation fails during release.
    """

    def __init__(self, count: int) -> None:
        self._free: SimpleQueue[None] = SimpleQueue()
        for _ in range(count):
            self._free.put(None)

    def __enter__(self) -> None:
        self._free.get()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._free.put(None)


class Background:
    """A thread that repeats a task. Failures do not end it: they are logged, and the next turn comes."""

    def __init__(self, name: str, every_s: float, once: Callable[[], None]) -> None:
        """Call `once` every `every_s`, the first time after that interval."""
        self._every_s = every_s
        self._once = once
        self._name = name
        self._stopping = False
        # A lock in C; Python's own stays locked if an allocation fails during release.
        self._waits = threading.Lock()
        self._waits.acquire()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread. Raises RuntimeError if the system gives none."""
        self._thread = start_thread(self._name, self._run)

    def stop(self) -> None:
        """Stop after the current turn."""
        if not self._stopping:
            self._stopping = True
            self._waits.release()
        if self._thread is not None:
            self._thread.join()

    @property
    def stopping(self) -> bool:
        """Whether it should stop: long turns check this."""
        return self._stopping

    def _run(self) -> None:
        while not self._stopping:
            try:
                if not self._waits.acquire(timeout=self._every_s):
                    self._once()
            except Exception:  # noqa: BLE001 - whatever it was, the next turn comes
                log_safely("a fault in the background work %s, which continues", self._name)
                time.sleep(PAUSE_S)
