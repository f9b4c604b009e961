"""A sleeping server never misses a request to stop."""

import os
import queue
import signal

from staddle_server.app.signals import StopRequest, asked_to_stop


class _Sleeper:
    """A queue whose first wait misses an item, as with a signal that comes just before it."""

    def __init__(self, asked: StopRequest) -> None:
        self._queue: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._asked = asked
        self.slept = 0

    def put(self, why: str) -> None:
        self._queue.put(why)

    def get(self, timeout: float | None = None) -> str:
        self.slept += 1
        if self.slept == 1:
            assert timeout is not None, "this sleep would never end"
            self._asked.ask("SIGTERM")
            raise queue.Empty
        return self._queue.get(timeout=timeout)


def test_a_signal_just_before_the_thread_sleeps_is_seen() -> None:
    stop = StopRequest()
    sleeper = stop._queue = _Sleeper(stop)  # type: ignore[assignment]
    assert stop.wait() == "SIGTERM"
    assert sleeper.slept == 2


def test_a_closing_terminal_ends_a_command_cleanly_and_is_not_a_second_signal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with asked_to_stop() as stopping:
            assert not stopping()
            os.kill(os.getpid(), signal.SIGHUP)
            assert stopping()
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
