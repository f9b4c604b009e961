"""Thread pools work when the system refuses threads; this also checks that Python's pool has the parts they need."""

import threading

import pytest
from staddle._base.threads import Threads


@pytest.fixture
def no_threads(monkeypatch):
    """Let no further thread start."""

    def start(_thread):
        raise RuntimeError("can't start new thread")

    return lambda: monkeypatch.setattr(threading.Thread, "start", start)


def test_without_any_thread_the_caller_does_the_work(no_threads) -> None:
    no_threads()
    with Threads(2, "test") as pool:
        assert pool.submit(threading.get_ident).result() == threading.get_ident()
        assert list(pool.map(str, range(3))) == ["0", "1", "2"]
        with pytest.raises(ZeroDivisionError):
            pool.submit(lambda: 1 // 0).result()


def test_a_single_thread_does_all_the_work_exactly_once(no_threads) -> None:
    done: list[int] = []
    busy = threading.Event()
    with Threads(4, "test") as pool:
        first = pool.submit(busy.wait)
        no_threads()
        rest = [pool.submit(done.append, number) for number in range(5)]
        assert done == [], "the only thread is busy"
        busy.set()
        for each in (first, *rest):
            each.result(10)
    assert done == [0, 1, 2, 3, 4]


def test_work_done_by_the_caller_is_not_repeated_by_a_late_thread(no_threads, monkeypatch) -> None:
    done: list[int] = []
    with Threads(1, "test") as pool:
        no_threads()
        pool.submit(done.append, 1).result()
        monkeypatch.undo()
        pool.submit(done.append, 2).result(10)
        pool.submit(done.append, 3).result(10)
    assert done == [1, 2, 3]


def test_cancelled_work_is_not_done(no_threads) -> None:
    busy = threading.Event()
    with Threads(1, "test") as pool:
        pool.submit(busy.wait)
        waiting = pool.submit(lambda: 1)
        assert waiting.cancel()
        busy.set()
    assert waiting.cancelled()


def test_a_pool_that_was_shut_down_refuses_work() -> None:
    pool = Threads(1, "test")
    pool.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        pool.submit(lambda: 1)
