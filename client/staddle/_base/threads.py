"""Thread pools that keep working where the system refuses a thread, or memory for a moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

NO_THREAD: Final = "can't start new thread"
"""What Python says where the system gives no thread: at its limit of threads, or without memory for a stack."""
BEGINS_S: Final = 30.0
"""How long a new thread may take to its first step."""


def is_no_thread(error: BaseException) -> bool:
    """Whether an error says that a thread could not be started."""
    return isinstance(error, RuntimeError) and str(error) == NO_THREAD


class _Started(threading.Event):
    """Bounds the wait of `Thread.start`: Python's own never ends where the new thread has no memory for its first step.

    Source: https://github.com/python/cpython/issues/140746.
    """

    def wait(self, timeout: float | None = None) -> bool:
        found = super().wait(BEGINS_S if timeout is None else timeout)
        if not found and timeout is None:
            raise RuntimeError(NO_THREAD)
        return found


def start_thread(name: str, run: Callable[[], object]) -> threading.Thread:
    """Start a daemon thread. Raises RuntimeError (see `is_no_thread`) or MemoryError if the system refuses it."""
    thread = threading.Thread(target=run, name=name, daemon=True)
    # Where a later Python has no such attribute, it does nothing.
    thread._started = _Started()  # type: ignore[attr-defined]  # noqa: SLF001
    thread.start()
    return thread


class Threads(Executor):
    """A pool whose `submit` never fails for want of a thread; threads are started as they are needed, and some ahead.

    Where the system gives no more, work waits for one of those that run, and `is_short` says so; where none runs, the caller does
    the work itself. Call no more than the pool has threads that wait for each other.

    Python's own pool raises RuntimeError there and keeps the work, so that a later call does what its caller believes to have
    failed; and it waits with locks in Python, which an allocation that fails can leave locked. A queue and locks in C
    have no such state.
    """

    def __init__(self, most: int, thread_name_prefix: str, *, ahead: int = 0) -> None:
        """`ahead`: so many threads more are running than there is work, up to `most`."""
        self._most = most
        self._ahead = ahead
        self._name = thread_name_prefix
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._load = 0
        """Work that was taken and has not ended."""
        self._closed = False
        self.is_short = False

    @property
    def left(self) -> int:
        """Threads that have nothing to do."""
        return len(self._threads) - self._load

    def start(self) -> None:
        """Starts those that are ahead; `is_short` says whether there was one for each."""
        with self._lock:
            self._start_ahead()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Does the work, soon. Raises RuntimeError once the pool was shut down."""
        # In the context of its caller: what is logged and traced belongs to the same call.
        context = copy_context()
        work = _Work(lambda: context.run(fn, *args, **kwargs))
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._load += 1
            self._start_ahead()  # before the work is taken, so that it finds `is_short` as it is now
            if self._threads:
                self._queue.put(work)
                return work.future
            self._load -= 1
        work.do()
        return work.future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the threads when all that was taken is done or, with `cancel_futures`, cancelled; `wait`: returns after that."""
        with self._lock:
            if not self._closed:
                self._closed = True
                if cancel_futures:
                    self._cancel()
                for _ in self._threads:
                    self._queue.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _cancel(self) -> None:
        try:
            while work := self._queue.get_nowait():
                work.future.cancel()
        except Empty:
            pass

    def _start_ahead(self) -> None:
        try:
            while len(self._threads) < min(self._most, self._load + self._ahead):
                self._threads.append(start_thread(f"{self._name}_{len(self._threads)}", self._run))
        except (RuntimeError, MemoryError):
            self.is_short = True
        else:
            self.is_short = False

    def _run(self) -> None:
        with self._lock:
            if threading.current_thread() not in self._threads:
                return  # it started too late: the pool no longer counts on it
        while True:
            try:
                work = self._queue.get()
                if work is None:
                    return
                work.do()
            except Exception:  # noqa: BLE001, S110 - no memory for the future of the work; the thread is needed on
                pass
            with self._lock:
                self._load -= 1
            work = None  # otherwise it would stay until the next one comes


class _Work:
    """A call, and the future of its result."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.future: Future[Any] = Future()
        self._call = call

    def do(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._call()
        except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
            self.future.set_exception(error)
        else:
            self.future.set_result(result)
