"""Pools of threads that also work where the system gives no further thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

NO_THREAD: Final = "can't start new thread"
"""What Python says where the system gives no thread: at its limit of threads, or without memory for a stack."""


class NoThreadError(RuntimeError):
    """The system gives no further thread."""


def is_no_thread(error: BaseException) -> bool:
    """Whether an error says that a thread could not be started."""
    return isinstance(error, NoThreadError) or (isinstance(error, RuntimeError) and str(error) == NO_THREAD)


class Threads(ThreadPoolExecutor):
    """A pool whose `submit` never fails for want of a thread.

    Where not a single thread can be started, the caller does the work itself; where some run, they do it one after the other.
    Python's own pool raises RuntimeError and keeps the work: a later call could do it although its caller was told that it
    failed, and gRPC's server ends for good. Call no more than the pool has threads that wait for each other.
    """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Does the work, soon; raises RuntimeError once the pool was shut down."""
        work = Work(lambda: fn(*args, **kwargs))
        try:
            super().submit(work.do)
        except NoThreadError:
            if not self._threads:
                work.do()
        return work.future

    def _adjust_thread_count(self) -> None:
        # The work is in the queue already. That is so in every Python from 3.9 on; tests/client/test_client_threads.py looks.
        try:
            super()._adjust_thread_count()
        except (RuntimeError, MemoryError) as error:
            raise NoThreadError(NO_THREAD) from error


class Work:
    """Something to do once, by whichever thread comes first."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.future: Future[Any] = Future()
        self._calls = [call]

    def do(self) -> None:
        try:
            call = self._calls.pop()
        except IndexError:
            return
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
            self.future.set_exception(error)
        else:
            self.future.set_result(result)
