"""A request to stop is never slept through."""

import os
import queue
import signal

from staddle_server.app.signals import StopRequest, asked_to_stop


class _Sleeper:
    """A queue whose first sleep is not ended by what was put in meanwhile, as by a signal that comes just before it."""

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


def test_a_signal_that_comes_just_before_the_thread_falls_asleep_is_seen() -> None:
    stop = StopRequest()
    sleeper = stop._queue = _Sleeper(stop)  # type: ignore[assignment]
    assert stop.wait() == "SIGTERM"
    assert sleeper.slept == 2


def test_a_terminal_that_closes_ends_a_command_in_order_and_is_no_second_signal() -> None:
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
