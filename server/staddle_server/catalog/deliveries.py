"""Deliveries of events to targets, at least once each, and how the last tries of each target ended."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Connection, Label, Select, case, delete, func, or_, select, update

from staddle_server.base.clock import NS
from staddle_server.catalog import schema
from staddle_server.catalog.database import Database, insert_or_ignore, later, locking, now_ns
from staddle_server.catalog.events import KEPT_S, Event, event_of

_d, _e, _t = schema.deliveries.c, schema.events.c, schema.targets.c
_first = schema.deliveries.alias("first")
ERROR_CHARS_MAX: Final = 500
RETRY_S_MAX: Final = 3600.0
_AHEAD_NS: Final = int(2 * RETRY_S_MAX * NS)
"""A try that is due this far ahead was put off by a clock that was ahead, and is due now."""


class Delivery(NamedTuple):
    """What a target is to get.

    Attributes:
        event: The event.
        over: That it is over; else that it began.
        target: The name of the target.
        tries: How often it was tried, with the try that this claim is for.
        waiting_s: For how long it has been waiting.

    """

    event: Event
    over: bool
    target: str
    tries: int
    waiting_s: float


class TargetState(NamedTuple):
    """How the last tries of a target ended. Times are None for never.

    Attributes:
        name: Its name.
        kind: Its kind, such as "webhook"; empty if it was never tried.
        tried_ns: The last try.
        reached_ns: The last try that succeeded.
        failing_ns: Since when every try has failed; None if the last one did not.
        error: Why the last try failed; empty if it did not.
        pending: Deliveries that wait for it.
        given_up: Deliveries that were given up.

    """

    name: str
    kind: str = ""
    tried_ns: int | None = None
    reached_ns: int | None = None
    failing_ns: int | None = None
    error: str = ""
    pending: int = 0
    given_up: int = 0


class Deliveries:
    """The deliveries of all events, and the state of the targets.

    `own_ns` is this process's time, for a database without a clock of its own.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, target: str, most: int, own_ns: int, busy_s: float) -> list[Delivery]:
        """Return what is due for the target, the least tried first, and keep it from other processes for
        `busy_s`.

        The end of an event is due once its beginning is delivered or given up.
        """
        with self._database.read() as connection:
            if connection.execute(_due(target, now_ns(connection, own_ns)).limit(1)).one_or_none() is None:
                return []
        with self._database.write() as connection:
            now = now_ns(connection, own_ns)
            query = _due(target, now).order_by(_d.tries, _d.event, _d.over).limit(most)
            rows = connection.execute(locking(query, of=schema.deliveries)).all()
            for row in rows:
                claimed = update(schema.deliveries).where(*_is(target, row.row, over=row.over))
                busy = {"next_ns": row.now_ns + int(busy_s * NS), "tries": row.tries + 1}
                later(connection, claimed.values(**busy))
        return [
            Delivery(event_of(row), row.over, target, row.tries + 1, (row.now_ns - row.created_ns) / NS)
            for row in rows
        ]

    def end(
        self,
        target: str,
        kind: str,
        ended: Sequence[tuple[Delivery, float | None]],
        error: str,
        own_ns: int,
    ) -> None:
        """Record how a try of the target ended, and what becomes of its deliveries.

        Without an error they are delivered. Otherwise each is due again after its seconds; None: it is given
        up.
        """
        error = error[:ERROR_CHARS_MAX]
        with self._database.write() as connection:
            now = now_ns(connection, own_ns)
            _note(connection, target, kind, error, now)
            for delivery, retry_s in ended:
                values: dict[str, object] = {"state": schema.DELIVERY_DONE, "error": error}
                if error and retry_s is None:
                    values["state"] = schema.DELIVERY_GIVEN_UP
                elif error:
                    values["state"] = schema.DELIVERY_PENDING
                    values["next_ns"] = now + int((retry_s or 0.0) * NS)
                # Another process that has claimed it since knows better.
                mine = update(schema.deliveries).where(
                    *_is(target, delivery.event.row, over=delivery.over),
                    schema.IS_PENDING,
                    _d.tries == delivery.tries,
                )
                later(connection, mine.values(**values))

    def give_up(self, waited_s: float, own_ns: int) -> int:
        """Give up deliveries that have waited this long without a try: probably their target is not
        configured any more. Return how many.
        """
        with self._database.write() as connection:
            before = now_ns(connection, own_ns) - int(waited_s * NS)
            given_up = (
                update(schema.deliveries)
                .where(schema.IS_PENDING, _d.tries == 0, _d.created_ns < before)
                .values(
                    state=schema.DELIVERY_GIVEN_UP,
                    error="no server tried it: is the target still configured?",
                )
            )
            done = connection.execute(given_up).rowcount
            later(
                connection,
                delete(schema.targets).where(_t.tried_ns < now_ns(connection, own_ns) - int(KEPT_S * NS)),
            )
        return done

    def states(self) -> dict[str, TargetState]:
        """Return the state of every target that was tried, or has deliveries, by name."""
        count = (
            select(
                _d.target,
                func.sum(case((schema.IS_PENDING, 1), else_=0)).label("pending"),
                func.sum(case((_d.state == schema.DELIVERY_GIVEN_UP, 1), else_=0)).label("given_up"),
            )
            .where(_d.state != schema.DELIVERY_DONE)
            .group_by(_d.target)
        )
        with self._database.read() as connection:
            found = {row.name: TargetState(*row) for row in connection.execute(select(schema.targets))}
            for row in connection.execute(count):
                known = found.get(row.target, TargetState(row.target))
                found[row.target] = known._replace(pending=int(row.pending), given_up=int(row.given_up))
        return found


def _is(target: str, event: int, *, over: bool) -> tuple[ColumnElement[bool], ...]:
    return _d.event == event, _d.over.is_(over), _d.target == target


def _due(target: str, now: Label[int]) -> Select[Any]:
    begins_first = (
        select(_first.c.event)
        .where(
            _first.c.event == _d.event,
            _first.c.target == _d.target,
            _first.c.over.is_(False),
            _first.c.state == schema.DELIVERY_PENDING,
        )
        .exists()
    )
    return (
        select(schema.events, _d.over, _d.tries, _d.created_ns, now)
        .join(schema.deliveries, _d.event == _e.row)
        .where(
            schema.IS_PENDING,
            _d.target == target,
            or_(_d.next_ns <= now, _d.next_ns > now + _AHEAD_NS),
            or_(_d.over.is_(False), ~begins_first),
        )
    )


def _note(connection: Connection, target: str, kind: str, error: str, now: Label[int]) -> None:
    first = {"name": target, "kind": kind, "tried_ns": 0, "error": ""}
    later(connection, insert_or_ignore(connection, schema.targets), first)
    values: dict[str, object] = {"kind": kind, "tried_ns": now, "error": error}
    if error:
        values["failing_ns"] = func.coalesce(_t.failing_ns, now)
    else:
        values["reached_ns"] = now
        values["failing_ns"] = None
    later(connection, update(schema.targets).where(_t.name == target).values(**values))
