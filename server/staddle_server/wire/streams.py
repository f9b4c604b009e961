"""The places for what holds a thread while it waits for its caller: so many at once, and none for one in which nothing moves."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final, Protocol, TypeVar

from staddle_server.errors import BadRequest, Exhausted

RETRY_S: Final = 2.0
FIRST_S: Final = 60.0
"""A stream that the client sends has to begin within so long."""
ARRIVING_S: Final = 10 * 60.0
"""The message of any other call has to come within so long: on a slow line, several of 3 MiB come at once."""
WAIT_S: Final = 5.0
"""So long a call waits for a place, where it may: a well-behaved caller on a busy machine is not refused."""
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
    """One call's place. `owner`: whose it is, where places are counted by owner; `group`: the tenant of the owner, likewise."""

    def __init__(
        self,
        context: Context,
        now_s: Callable[[], float],
        first_s: float,
        owner: bytes = b"",
        group: bytes = b"",
    ) -> None:
        self.context = context
        self.owner = owner
        self.group = group
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

    def at_work(self) -> None:
        """All has come that the caller sends: its silence means nothing any more."""
        self._limit_s = math.inf

    def is_idle(self) -> bool:
        """Whether nothing has moved for too long."""
        return self._now_s() - self._moved_s > self._limit_s


class Streams:
    """The places of one server for one kind of call. Thread-safe."""

    def __init__(
        self,
        places_max: int,
        now_s: Callable[[], float],
        *,
        what: str = "streams",
        first_s: float = FIRST_S,
        owner: str = "token",
        owner_max: int | None = None,
        group_max: int | None = None,
        waiting_max: int = 0,
        waiting_group_max: int = 0,
    ) -> None:
        """`what` is counted here, as the refusal names it; of one `owner` at most `owner_max`, of one tenant `group_max`.

        So many calls, and so many of one tenant, wait a moment for a place before they are refused.
        """
        self._places_max = places_max
        self._now_s = now_s
        self._what = what
        self._first_s = first_s
        self._owner = owner
        self._owner_max = owner_max
        self._group_max = group_max
        self._waiting_max = waiting_max
        self._waiting_group_max = waiting_group_max
        self._waiting: Counter[bytes] = Counter()
        """Calls that wait for a place, by tenant."""
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._places: dict[Place, None] = {}
        """The oldest first."""

    def enter(
        self, context: Context, owner: bytes = b"", group: bytes = b"", *, until_left: bool = False
    ) -> Place:
        """A place, until the call has ended or `leave` is called. Where there is none, and calls may wait, it waits a moment.

        With `until_left` the end of the call does not free the place: a cancelled call's thread may still be at work.

        Raises:
            Exhausted: TOO_MANY.

        """
        place = Place(context, self._now_s, self._first_s, owner, group)
        with self._lock:
            refusal = self._refusal(owner, group)
            if refusal is not None:
                self._wait(owner, group, refusal)
            self._places[place] = None
        # A handler that waits in the library for a reader that went away may never be resumed; this is called all the same.
        try:
            gone = not until_left and not context.add_callback(lambda: self.leave(place))
        except BaseException:
            self.leave(place)
            raise
        if gone:
            self.leave(place)
        return place

    def _wait(self, owner: bytes, group: bytes, refusal: Exhausted) -> None:
        """Waits for a place, under the lock. Raises the refusal where none comes, or too many wait."""
        if self._waiting.total() >= self._waiting_max or self._waiting[group] >= self._waiting_group_max:
            raise refusal
        end_s = time.monotonic() + WAIT_S
        self._waiting[group] += 1
        try:
            while (now := self._refusal(owner, group)) is not None:
                if not self._changed.wait(max(0.0, end_s - time.monotonic())):
                    raise now
        finally:
            self._waiting[group] -= 1
            if not self._waiting[group]:
                del self._waiting[group]

    def _refusal(self, owner: bytes, group: bytes) -> Exhausted | None:
        """Why there is no place; None: there is one."""
        places = self._places
        if len(places) >= self._places_max:
            return self._full(self._places_max, "")
        if self._owner_max is not None and self._owner_max <= sum(each.owner == owner for each in places):
            return self._full(self._owner_max, f" of one {self._owner}")
        if self._group_max is not None and self._group_max <= sum(each.group == group for each in places):
            return self._full(self._group_max, " of one tenant")
        return None

    def _full(self, most: int, whose: str) -> Exhausted:
        return Exhausted(
            "TOO_MANY",
            f"this server carries {most} {self._what}{whose} at once, and has so many; try again",
            retry_after_s=RETRY_S,
        )

    def leave(self, place: Place) -> None:
        """The place is free again; does nothing if it is already."""
        with self._lock:
            self._places.pop(place, None)
            self._changed.notify_all()

    def only(self, messages: Iterator[T], context: Context, owner: bytes = b"", group: bytes = b"") -> T:
        """The message of a call that has one; the call holds a place until it comes. Raises what `enter` and `first` say."""
        place = self.enter(context, owner, group)
        try:
            return first(messages)
        finally:
            self.leave(place)

    @property
    def idle(self) -> bool:
        """Whether no place is taken."""
        return not self._places

    def wait_idle(self, timeout_s: float) -> None:
        """Waits until no place is taken, so long at the most."""
        with self._lock:
            self._changed.wait_for(lambda: self.idle, timeout_s)

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


def first(messages: Iterator[T]) -> T:
    """The message of a call that has one.

    Raises:
        BadRequest: BAD_SEQUENCE, it carries none.

    """
    for message in messages:
        return message
    raise BadRequest("BAD_SEQUENCE", "the call carries no message: send its request, even if it is empty")
