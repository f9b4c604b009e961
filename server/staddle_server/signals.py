"""Signals: the first SIGTERM or SIGINT asks the server to stop, the second ends it at once."""

import contextlib
import logging
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

ASKED_TO_STOP: Final = (signal.SIGTERM, signal.SIGINT)
LOOK_S: Final = 1.0

_log = logging.getLogger(__name__)


class StopRequest:
    """Waits in the main thread for somebody to ask.

    A SimpleQueue carries the word, because a signal handler may put into it at any moment; a threading.Event could deadlock.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.asked = False
        self.died = ""
        """The thread that has died, and so ended the server."""

    def ask(self, why: str) -> None:
        self.asked = True
        self._queue.put(why)

    def wait(self) -> str:
        """Blocks until asked; answers why.

        A signal that comes just before the thread falls asleep wakes nobody, and its handler runs only when the thread goes on.
        """
        while True:
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=LOOK_S)

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """The first asks. The second ends the process there and then, with the exit code that a shell shows for that signal:

        what was acknowledged is durable, and uploads resume from their last checkpoint.
        """
        if self.asked:
            os._exit(128 + number)
        self.ask(signal.Signals(number).name)


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """For work that looks by itself, now and then, whether a signal has asked it to end. Main thread only."""
    with listening_for_signals() as request:
        yield lambda: request.asked


@contextlib.contextmanager
def listening_for_signals() -> Iterator[StopRequest]:
    """Signals go to the StopRequest while the context lasts. Main thread only."""
    request = StopRequest()
    before = {number: signal.signal(number, request.on_signal) for number in ASKED_TO_STOP}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def watching_threads(request: StopRequest) -> Iterator[None]:
    """A thread that dies of an error asks the server to stop: it may be the one that takes in calls, and what supervises the
    server starts it again. Our own threads survive whatever they meet (see threads.py); those of libraries may not.
    """

    def died(failure: threading.ExceptHookArgs) -> None:
        name = failure.thread.name if failure.thread is not None else "without a name"
        request.died = request.died or name
        request.ask(f"the thread {name} died")
        error = failure.exc_value or failure.exc_type()
        _log.critical("the thread %s died, and the server stops", name, exc_info=error)

    before, threading.excepthook = threading.excepthook, died
    try:
        yield
    finally:
        threading.excepthook = before
