"""Concurrency slots for calls that wait for the client: a bounded number, and none for a stalled call."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, Protocol, TypeVar

from staddle_server.base.errors import BadRequest, Exhausted

RETRY_S: Final = 2.0
FIRST_S: Final = 60.0
"""A client stream must begin within this time."""
ARRIVING_S: Final = 10 * 60.0
"""The message of any other call must arrive within this time: a slow line may carry several of 3 MiB at once.
"""
WAIT_S: Final = 5.0
"""How long a call waits for a slot, if it may: a well-behaved caller on a busy machine is not refused."""
IDLE_S: Final = 15 * 60.0
"""A stream without any message for this time is ended: its client is gone, or will ask what is durable and
resume.
"""

T = TypeVar("T")


class Connection(Protocol):
    """What carries a call, whatever the transport. gRPC's context is one."""

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Register a callback for the end of the call; return False if it has already ended."""

    def cancel(self) -> object:
        """End the call."""


class SlotFigures(NamedTuple):
    """How slots are used: taken now; and since the start calls that waited, for how long, and refused ones."""

    taken: int
    waits: int
    waited_s: float
    refusals: int


class Slot:
    """The slot of one call. `owner` and `group`: who it counts for, and that owner's tenant."""

    def __init__(
        self,
        connection: Connection,
        now_s: Callable[[], float],
        first_s: float,
        owner: bytes = b"",
        group: bytes = b"",
    ) -> None:
        self.connection = connection
        self.owner = owner
        self.group = group
        self._now_s = now_s
        self._moved_s = now_s()
        self._limit_s = first_s

    def moving(self, messages: Iterator[T]) -> Iterator[T]:
        """Yield messages, and record that they move.

        Keeps none: a generator would hold each until the next arrives.
        """
        return map(self._pass, messages)

    def _pass(self, message: T) -> T:
        self.moved()
        return message

    def moved(self) -> None:
        """Record that a message moved."""
        self._moved_s, self._limit_s = self._now_s(), IDLE_S

    def at_work(self) -> None:
        """Record that the caller has sent everything, so that its silence no longer counts."""
        self._limit_s = math.inf

    def is_idle(self) -> bool:
        """Return whether nothing has moved for too long."""
        return self._now_s() - self._moved_s > self._limit_s


class Slots:
    """One server's slots for one kind of call. Thread-safe."""

    def __init__(
        self,
        slots_max: int,
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
        """Create `slots_max` slots, at most `owner_max` for one owner and `group_max` for one tenant.

        `what` names the calls in refusals. At most `waiting_max` calls, and `waiting_group_max` of one
        tenant, wait up to WAIT_S for a slot before they are refused.
        """
        self._slots_max = slots_max
        self._now_s = now_s
        self._what = what
        self._first_s = first_s
        self._owner = owner
        self._owner_max = owner_max
        self._group_max = group_max
        self._waiting_max = waiting_max
        self._waiting_group_max = waiting_group_max
        self._waiting: Counter[bytes] = Counter()
        """Calls that wait for a slot, by tenant."""
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._slots: dict[Slot, None] = {}
        """The oldest first."""
        self._waits = self._refusals = 0
        self._waited_s = 0.0

    def enter(
        self, connection: Connection, owner: bytes = b"", group: bytes = b"", *, until_left: bool = False
    ) -> Slot:
        """Take a slot until the call ends or `leave` is called.

        If none is free and calls may wait, wait up to WAIT_S. With `until_left` the end of the call does not
        free the slot: a cancelled call's thread may still be at work.

        Raises:
            Exhausted: TOO_MANY.

        """
        slot = Slot(connection, self._now_s, self._first_s, owner, group)
        with self._lock:
            refusal = self._refusal(owner, group)
            if refusal is not None:
                self._wait(owner, group, refusal)
            self._slots[slot] = None
        # A handler that waits in the library for a lost reader may never be resumed; this is called all the
        # same.
        try:
            gone = not until_left and not connection.add_callback(lambda: self.leave(slot))
        except BaseException:
            self.leave(slot)
            raise
        if gone:
            self.leave(slot)
        return slot

    def _wait(self, owner: bytes, group: bytes, refusal: Exhausted) -> None:
        """Wait for a slot, under the lock.

        Raises the refusal if none becomes free, or if too many calls wait.
        """
        if self._waiting.total() >= self._waiting_max or self._waiting[group] >= self._waiting_group_max:
            self._refusals += 1
            raise refusal
        start_s = time.monotonic()
        end_s = start_s + WAIT_S
        self._waiting[group] += 1
        self._waits += 1
        try:
            while (now := self._refusal(owner, group)) is not None:
                if not self._changed.wait(max(0.0, end_s - time.monotonic())):
                    self._refusals += 1
                    raise now
        finally:
            self._waited_s += time.monotonic() - start_s
            self._waiting[group] -= 1
            if not self._waiting[group]:
                del self._waiting[group]

    def _refusal(self, owner: bytes, group: bytes) -> Exhausted | None:
        """Return why no slot is free for this owner; None if one is."""
        slots = self._slots
        if len(slots) >= self._slots_max:
            return self._full(self._slots_max, "")
        if self._owner_max is not None and self._owner_max <= sum(each.owner == owner for each in slots):
            return self._full(self._owner_max, f" of one {self._owner}")
        if self._group_max is not None and self._group_max <= sum(each.group == group for each in slots):
            return self._full(self._group_max, " of one tenant")
        return None

    def _full(self, most: int, whose: str) -> Exhausted:
        return Exhausted(
            "TOO_MANY",
            f"this server handles at most {most} {self._what}{whose} at once, and the limit is reached; try again",
            retry_after_s=RETRY_S,
        )

    def leave(self, slot: Slot) -> None:
        """Free the slot; does nothing if it is already free."""
        with self._lock:
            self._slots.pop(slot, None)
            self._changed.notify_all()

    def only(
        self, messages: Iterator[T], connection: Connection, owner: bytes = b"", group: bytes = b""
    ) -> T:
        """Return the only message of a call; the call holds a slot until it arrives.

        Raises as `enter` and `first` do.
        """
        slot = self.enter(connection, owner, group)
        try:
            return first(messages)
        finally:
            self.leave(slot)

    def figures(self) -> SlotFigures:
        """Return how the slots are used."""
        with self._lock:
            return SlotFigures(len(self._slots), self._waits, self._waited_s, self._refusals)

    @property
    def idle(self) -> bool:
        """Return whether no slot is taken."""
        return not self._slots

    def wait_idle(self, timeout_s: float) -> None:
        """Wait until no slot is taken, at most `timeout_s`."""
        with self._lock:
            self._changed.wait_for(lambda: self.idle, timeout_s)

    def end_idle(self) -> int:
        """End stalled calls, and return their number."""
        with self._lock:
            idle = [slot for slot in self._slots if slot.is_idle()]
        for slot in idle:
            slot.connection.cancel()
        return len(idle)

    def end_oldest(self) -> None:
        """End the oldest call, to free its slot for a new one."""
        with self._lock:
            oldest = next(iter(self._slots), None)
        if oldest is not None:
            self.leave(oldest)
            oldest.connection.cancel()


def first(messages: Iterator[T]) -> T:
    """Return the only message of a call.

    Raises:
        BadRequest: BAD_SEQUENCE, the call carries none.

    """
    for message in messages:
        return message
    raise BadRequest("BAD_SEQUENCE", "the call carries no message: send its request, even if it is empty")
