"""The places for streams: so many at once, and none for a stream in which nothing moves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Final, Protocol, TypeVar

from staddle_server.errors import Exhausted

RETRY_S: Final = 2.0
FIRST_S: Final = 60.0
"""A stream that the client sends has to begin within so long."""
IDLE_S: Final = 15 * 60.0
"""A stream in which no message moved for so long is ended: its client is gone, or will ask what is durable and go on."""

T = TypeVar("T")


class Context(Protocol):
    """What is needed of a call's gRPC context."""

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Calls back when the call has ended; False: it has already."""

    def cancel(self) -> object:
        """Ends the call."""


class Place:
    """One stream's place."""

    def __init__(self, context: Context, begun_s: float, now_s: Callable[[], float]) -> None:
        self.context = context
        self._now_s = now_s
        self._moved_s = begun_s
        self._limit_s = FIRST_S

    def moving(self, messages: Iterator[T]) -> Iterator[T]:
        """Passes messages on, and notes that they move."""
        for message in messages:
            self.moved()
            yield message

    def moved(self) -> None:
        """Something went through the stream."""
        self._moved_s, self._limit_s = self._now_s(), IDLE_S

    def is_idle(self) -> bool:
        """Whether nothing has moved for too long."""
        return self._now_s() - self._moved_s > self._limit_s


class Streams:
    """The places of one server. Thread-safe.

    Attributes:
        idle: Set while no stream is under way.

    """

    def __init__(self, streams_max: int, now_s: Callable[[], float]) -> None:
        self._streams_max = streams_max
        self._now_s = now_s
        self._lock = threading.Lock()
        self._places: set[Place] = set()
        self.idle = threading.Event()
        self.idle.set()

    def enter(self, context: Context) -> Place:
        """A place, until the call has ended.

        Raises:
            Exhausted: TOO_MANY.

        """
        place = Place(context, self._now_s(), self._now_s)
        with self._lock:
            if len(self._places) >= self._streams_max:
                raise Exhausted(
                    "TOO_MANY",
                    f"this server carries {self._streams_max} streams at once, and has so many; try again",
                    retry_after_s=RETRY_S,
                )
            self._places.add(place)
            self.idle.clear()
        # A handler that waits in the library for a reader that went away may never be resumed; this is called all the same.
        if not context.add_callback(lambda: self._leave(place)):
            self._leave(place)
        return place

    def _leave(self, place: Place) -> None:
        with self._lock:
            self._places.discard(place)
            if not self._places:
                self.idle.set()

    def end_idle(self) -> int:
        """Ends the streams in which nothing moves; their number."""
        with self._lock:
            idle = [place for place in self._places if place.is_idle()]
        for place in idle:
            place.context.cancel()
        return len(idle)
