"""Signals: the first SIGTERM or SIGINT asks the server to stop, the second ends it at once; SIGHUP asks it to
reload.
"""

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


_HANGUP: Final = "SIGHUP"


def _nothing() -> None:
    pass


class StopRequest:
    """Waits in the main thread for a request to stop.

    A SimpleQueue carries it, because a signal handler may put into it at any moment; a threading.Event could
    deadlock.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.asked = False
        self._hangup = False
        self.died = ""
        """The thread whose death ended the server."""

    def ask(self, why: str) -> None:
        self.asked = True
        self._queue.put(why)

    def wait(self, on_hangup: Callable[[], None] = _nothing, on_look: Callable[[], None] = _nothing) -> str:
        """Block until asked; return why.

        Meanwhile call `on_hangup` after a SIGHUP, and `on_look` about every LOOK_S. A signal right before the
        thread falls asleep does not wake it; its handler only runs when the thread continues.
        """
        while True:
            with contextlib.suppress(queue.Empty):
                why = self._queue.get(timeout=LOOK_S)
                if why != _HANGUP:
                    return why
            if self._hangup:
                # Before the work: a signal during it requests it once more.
                self._hangup = False
                on_hangup()
            on_look()

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Ask to stop at the first signal.

        The second ends the process at once, with the exit code that a shell shows for it. What was
        acknowledged is durable, and uploads resume from their last checkpoint. A SIGHUP never counts as a
        second signal: a closing terminal may send it beside another one.
        """
        if self.asked:
            if number == signal.SIGHUP:
                return
            os._exit(128 + number)
        self.ask(signal.Signals(number).name)

    def on_hangup(self, _number: int, _frame: FrameType | None) -> None:
        """Record a SIGHUP; several before the thread handles it count as one."""
        if not self._hangup:
            self._hangup = True
            self._queue.put(_HANGUP)


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """For work that checks from time to time whether a signal has asked it to end. Main thread only."""
    with listening_for_signals() as request:
        yield lambda: request.asked


@contextlib.contextmanager
def listening_for_signals(*, hangup: bool = False) -> Iterator[StopRequest]:
    """Direct signals to the StopRequest while the context lasts. Main thread only.

    With `hangup` a SIGHUP asks to reload, else to stop, as when a terminal closes; an ignored one (nohup)
    stays ignored.
    """
    request = StopRequest()
    before = {number: signal.signal(number, request.on_signal) for number in ASKED_TO_STOP}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        on_hangup = request.on_hangup if hangup else request.on_signal
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, on_hangup)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def watching_threads(request: StopRequest) -> Iterator[None]:
    """Stop the server if a thread dies of an error: it may be the one that accepts calls, and a supervisor
    restarts the server.

    The server's own threads survive any error (see threads.py); those of libraries may not.
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
