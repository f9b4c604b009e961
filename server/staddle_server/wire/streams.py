"""The places for what holds a thread while it waits for its caller: so many at once, and none for one in which nothing moves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Final, Protocol, TypeVar

from staddle_server.errors import BadRequest, Exhausted

RETRY_S: Final = 2.0
FIRST_S: Final = 60.0
"""A stream that the client sends has to begin within so long."""
ARRIVING_S: Final = 10 * 60.0
"""The message of any other call has to come within so long: on a slow line, several of 3 MiB come at once."""
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
    """One call's place. `owner`: whose it is, where places are counted by owner."""

    def __init__(
        self, context: Context, now_s: Callable[[], float], first_s: float, owner: bytes = b""
    ) -> None:
        self.context = context
        self.owner = owner
        self._now_s = now_s
        self._moved_s = now_s()
        self._limit_s = first_s

    def moving(self, messages: Iterator[T]) -> Iterator[T]:
        """Passes messages on, and notes that they move. Keeps none of them: a generator would hold each until the next has come."""
        return map(self._pass, messages)

    def _pass(self, message: T) -> T:
        self.moved()
        return message

    def moved(self) -> None:
        """Something went through the stream."""
        self._moved_s, self._limit_s = self._now_s(), IDLE_S

    def is_idle(self) -> bool:
        """Whether nothing has moved for too long."""
        return self._now_s() - self._moved_s > self._limit_s


class Streams:
    """The places of one server for one kind of call. Thread-safe.

    Attributes:
        idle: Set while no place is taken.

    """

    def __init__(
        self,
        places_max: int,
        now_s: Callable[[], float],
        *,
        what: str = "streams",
        first_s: float = FIRST_S,
        owner: str = "token",
        owner_max: int | None = None,
    ) -> None:
        """`what` is counted here, as the refusal names it; of one `owner` at most `owner_max`."""
        self._places_max = places_max
        self._now_s = now_s
        self._what = what
        self._first_s = first_s
        self._owner = owner
        self._owner_max = owner_max
        self._lock = threading.Lock()
        self._places: dict[Place, None] = {}
        """The oldest first."""
        self.idle = threading.Event()
        self.idle.set()

    def enter(self, context: Context, owner: bytes = b"") -> Place:
        """A place, until the call has ended or `leave` is called.

        Raises:
            Exhausted: TOO_MANY.

        """
        place = Place(context, self._now_s, self._first_s, owner)
        with self._lock:
            self._check_room(owner)
            self._places[place] = None
            self.idle.clear()
        # A handler that waits in the library for a reader that went away may never be resumed; this is called all the same.
        if not context.add_callback(lambda: self.leave(place)):
            self.leave(place)
        return place

    def _check_room(self, owner: bytes) -> None:
        most, whose = self._places_max, ""
        if len(self._places) < most:
            own = sum(place.owner == owner for place in self._places) if self._owner_max is not None else 0
            if self._owner_max is None or own < self._owner_max:
                return
            most, whose = self._owner_max, f" of one {self._owner}"
        raise Exhausted(
            "TOO_MANY",
            f"this server carries {most} {self._what}{whose} at once, and has so many; try again",
            retry_after_s=RETRY_S,
        )

    def leave(self, place: Place) -> None:
        """The place is free again; does nothing if it is already."""
        with self._lock:
            self._places.pop(place, None)
            if not self._places:
                self.idle.set()

    def only(self, messages: Iterator[T], context: Context, owner: bytes = b"") -> T:
        """The message of a call that has one; the call holds a place until it comes.

        Raises:
            Exhausted: TOO_MANY.
            BadRequest: BAD_SEQUENCE, it carries none.

        """
        place = self.enter(context, owner)
        try:
            for message in messages:
                return message
        finally:
            self.leave(place)
        raise BadRequest("BAD_SEQUENCE", "the call carries no message: send its request, even if it is empty")

    def end_idle(self) -> int:
        """Ends the calls in which nothing moves; their number."""
        with self._lock:
            idle = [place for place in self._places if place.is_idle()]
        for place in idle:
            place.context.cancel()
        return len(idle)

    def end_oldest(self) -> None:
        """Ends the call that came first, for one that comes now."""
        with self._lock:
            oldest = next(iter(self._places), None)
        if oldest is not None:
            self.leave(oldest)
            oldest.context.cancel()
