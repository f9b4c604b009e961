"""Pools of threads work where the system gives no thread; this also looks whether this Python's own pool is as they need it."""

import threading

import pytest
from staddle._base.threads import Threads


@pytest.fixture
def no_threads(monkeypatch):
    """From when it is called on no thread can be started."""

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


def test_with_one_thread_it_does_all_the_work_and_none_of_it_twice(no_threads) -> None:
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


def test_work_that_the_caller_did_is_not_done_again_by_a_thread_that_starts_later(
    no_threads, monkeypatch
) -> None:
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


def test_a_pool_that_was_shut_down_says_so() -> None:
    pool = Threads(1, "test")
    pool.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        pool.submit(lambda: 1)
