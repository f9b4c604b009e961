"""Streams on which a server says nothing: its connection may live, and its answer never come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Final, Self, TypeVar

from staddle._base.shortage import start
from staddle._errors import DeadlineError

T = TypeVar("T")

SILENCE_S: Final = 600.0
"""After so long without a message, or without taking one, a stream is given up."""
ANSWER_S: Final = 3600.0
"""So long may the answer take to a Backup stream that has ended: a commit."""
LOOKS: Final = 8
"""So often is looked within that time."""
PULSE_S: Final = 20.0
"""A server that owes an answer for so long is asked whether it lives, if another server could answer instead."""
PULSE_LOOK_S: Final = 5.0
"""How often a stream is looked at for that."""


class Listening:
    """Messages of a stream, which is cancelled if it says nothing for `silence_s` while one is waited for, or if its server hangs."""

    def __init__(
        self, name: str, cancel: Callable[[], object], silence_s: float, hangs: Callable[[], bool]
    ) -> None:
        """`hangs` asks the server whether it lives."""
        self._name = name
        self._hangs = hangs
        self._cancel = cancel
        self._silence_s = silence_s
        self._since_s: float | None = None
        self._silent_s = 0.0
        self._over = threading.Event()
        self.is_silent = False

    def __enter__(self) -> Self:
        start("staddle-listen", self._look)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def each(self, messages: Iterator[T]) -> Iterator[T]:
        """Passes messages on. The time that is spent with them is not the server's."""
        while True:
            self._since_s = monotonic()
            try:
                message = next(messages)
            except StopIteration:
                return
            finally:
                self._since_s = None
            yield message

    def error(self) -> DeadlineError:
        """What to raise in place of the cancelled call's error."""
        return DeadlineError(f"{self._name} said nothing for {self._silent_s:.0f} s.")

    def _look(self) -> None:
        while not self._over.wait(min(self._silence_s / LOOKS, PULSE_LOOK_S)):
            since_s = self._since_s
            if since_s is None:
                continue
            if monotonic() - since_s > self._silence_s or (
                monotonic() - since_s > PULSE_S and self._hangs() and self._since_s == since_s
            ):
                self._silent_s = monotonic() - since_s
                self.is_silent = True
                self._cancel()
                return


class Telling(Iterator[T]):
    """Requests of a stream, which knows how long the server has not taken the next one, or not answered the last one."""

    def __init__(self, requests: Iterator[T]) -> None:
        self._requests = requests
        self._since_s: float | None = monotonic()
        self._ended = False

    def __next__(self) -> T:
        self._since_s = None
        try:
            return next(self._requests)
        except BaseException:
            self._ended = True
            raise
        finally:
            self._since_s = monotonic()

    def is_silent(self, silence_s: float, answer_s: float) -> bool:
        """Whether it is the server that is waited for, for longer than that."""
        since_s = self._since_s
        return since_s is not None and monotonic() - since_s > (answer_s if self._ended else silence_s)
