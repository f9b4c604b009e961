"""Events: what operators are notified of, from the moment that it is found until it is over.

An alarm says that something holds now. The open events are the alarms that were found before: comparing
both tells what began and what is over (upkeep/events). What one server concludes is refused if another one
changed the events since they were read.
"""

import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, Select, delete, func, insert, literal, or_, select, update

from staddle_server.base.clock import NS
from staddle_server.catalog import schema
from staddle_server.catalog.database import Database, later, now_ns
from staddle_server.catalog.leases import lock, take
from staddle_server.catalog.rows import Page, page_of
from staddle_server.catalog.validation import ID_BYTES, batches

_e, _d, _t = schema.events.c, schema.deliveries.c, schema.tasks.c
TASK: Final = "events"
"""The row of `tasks` whose fence rises with every change of the events."""
KEPT_S: Final = 90 * 24 * 3600.0
KEPT_MAX: Final = 10_000
"""Past events, which are kept for KEPT_S, and this many at most, the newest."""
_AT_ONCE: Final = 500


class AlarmKey(NamedTuple):
    """What an alarm is about: at most one event of a key is open.

    Attributes:
        kind: What is wrong (upkeep/events/kinds.py).
        tenant: The name of the tenant; empty for what concerns all of them.
        server: The endpoint of the one server that it concerns; empty for all.
        subject: What it is about among those of its kind, such as a dataset or a file.

    """

    kind: str
    tenant: str
    server: str
    subject: str


class Alarm(NamedTuple):
    """Something that holds now, and that an operator must know.

    Attributes:
        key: What it is about.
        severity: "warning" or "critical".
        text: What is wrong, in one sentence.
        advice: What to do, in one sentence.
        since_ns: Since when it holds, if that is known.

    """

    key: AlarmKey
    severity: str
    text: str
    advice: str
    since_ns: int | None = None


class Event(NamedTuple):
    """An alarm that was found.

    Attributes:
        row: Its number in the catalog.
        id: Its id for receivers, who may get a message twice.
        alarm: What was found last; `since_ns` is set.
        began_ns: When it was first found.
        absent_ns: Since when it is not found any more; None while it is.
        over_ns: When that had lasted long enough; None while the event is open.

    """

    row: int
    id: bytes
    alarm: Alarm
    began_ns: int
    absent_ns: int | None
    over_ns: int | None


class OpenEvents(NamedTuple):
    """The open events at one moment.

    Attributes:
        fence: What `change` compares.
        now_ns: The time, the database's where it has a clock.
        events: Those of all servers.

    """

    fence: int
    now_ns: int
    events: Sequence[Event]


class EventFilter(NamedTuple):
    """Which events are listed. What is empty or None lets all pass.

    Attributes:
        tenants: Of these tenants; "" is for what concerns all of them.
        kinds: Of these kinds.
        hidden_kinds: Not of these, even if `kinds` has them.
        subject: About this, among `subject_kinds`.
        subject_kinds: The kinds that have such subjects.
        since_ns: Found at this time or later.
        until_ns: Found before this time.
        open_only: Not over.

    """

    tenants: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()
    subject: str = ""
    subject_kinds: frozenset[str] = frozenset()
    since_ns: int | None = None
    until_ns: int | None = None
    open_only: bool = False
    hidden_kinds: frozenset[str] = frozenset()


ALL_EVENTS: Final = EventFilter()


class EventChanges(NamedTuple):
    """What changes of the events.

    Attributes:
        begun: Alarms that are new.
        absent: Events whose alarm is not found any more.
        back: Events whose alarm is found again.
        over: Events that are over.
        reworded: Events with the newest words for them.

    """

    begun: Sequence[Alarm] = ()
    absent: Sequence[Event] = ()
    back: Sequence[Event] = ()
    over: Sequence[Event] = ()
    reworded: Sequence[tuple[Event, Alarm]] = ()


class Events:
    """The events of all tenants and servers.

    `own_ns` is this process's time, for a database without a clock of its own.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def open(self, own_ns: int) -> OpenEvents:
        """Return the open events, oldest first."""
        with self._database.read() as connection:
            now = now_ns(connection, own_ns)
            fence = select(_t.fence).where(_t.name == TASK).scalar_subquery()
            found = connection.execute(select(func.coalesce(fence, 0).label("fence"), now)).one()
            query = select(schema.events).where(schema.IS_HAPPENING).order_by(_e.row)
            return OpenEvents(found.fence, found.now_ns, [event_of(row) for row in connection.execute(query)])

    def listed(self, most: int, asked: EventFilter = ALL_EVENTS) -> list[Event]:
        """Return the newest events, newest first."""
        with self._database.read() as connection:
            return [event_of(row) for row in connection.execute(_select(asked).limit(most))]

    def list_page(self, asked: EventFilter, limit: int, before: int | None = None) -> Page[Event]:
        """Return at most `limit` events, the newest first, after the one with this row."""
        query = _select(asked)
        if before is not None:
            query = query.where(_e.row < before)
        with self._database.read() as connection:
            return page_of(connection, query, limit, event_of)

    def change(
        self,
        fence: int,
        changes: EventChanges,
        wanting: Callable[[Alarm], Iterable[str]],
        holder: str,
        own_ns: int,
    ) -> bool:
        """Make these changes, and the deliveries of what began and what is over, if no process has changed
        the events since `open` returned this fence. Return whether they were made.

        `wanting` returns the names of the targets for an alarm. Those that were to get its beginning get its
        end.
        """
        with self._database.write() as connection:
            row = lock(connection, TASK, own_ns)
            if row.fence != fence:
                return False
            take(connection, row, holder, 0.0)
            now = row.now_ns
            for alarm in changes.begun:
                _begin(connection, alarm, now, wanting(alarm))
            _set(connection, changes.absent, absent_ns=now)
            _set(connection, changes.back, absent_ns=None)
            _set(connection, changes.over, over_ns=now)
            for some in batches(changes.over, _AT_ONCE):
                _deliver_end(connection, [event.row for event in some], now)
            for event, alarm in changes.reworded:
                connection.execute(
                    update(schema.events)
                    .where(_e.row == event.row)
                    .values(text=alarm.text, advice=alarm.advice, severity=alarm.severity)
                )
        return True

    def thin(self, own_ns: int) -> int:
        """Delete past events that are older than KEPT_S, or more than KEPT_MAX; return how many."""
        with self._database.write() as connection:
            past = select(_e.row).where(_e.over_ns.is_not(None))
            oldest = past.order_by(_e.row.desc()).offset(KEPT_MAX).limit(1)
            keep = connection.execute(oldest).scalar() or 0
            old = now_ns(connection, own_ns) - int(KEPT_S * NS)
            gone = connection.execute(past.where(or_(_e.over_ns < old, _e.row <= keep))).scalars().all()
            for some in batches(gone, _AT_ONCE):
                later(connection, delete(schema.deliveries).where(_d.event.in_(some)))
                later(connection, delete(schema.events).where(_e.row.in_(some)))
        return len(gone)


def event_of(row: Row[Any]) -> Event:
    """Return the event of a row with all its columns."""
    key = AlarmKey(row.kind, row.tenant, row.server, row.subject)
    alarm = Alarm(key, row.severity, row.text, row.advice, row.since_ns)
    return Event(row.row, row.id, alarm, row.began_ns, row.absent_ns, row.over_ns)


def _select(asked: EventFilter) -> Select[Any]:
    query = select(schema.events).order_by(_e.row.desc())
    for column, among in ((_e.tenant, asked.tenants), (_e.kind, asked.kinds)):
        query = query.where(column.in_(among)) if among else query
    if asked.hidden_kinds:
        query = query.where(_e.kind.not_in(asked.hidden_kinds))
    if asked.subject:
        query = query.where(_e.subject == asked.subject, _e.kind.in_(asked.subject_kinds))
    if asked.since_ns is not None:
        query = query.where(_e.began_ns >= asked.since_ns)
    if asked.until_ns is not None:
        query = query.where(_e.began_ns < asked.until_ns)
    return query.where(schema.IS_HAPPENING) if asked.open_only else query


def _begin(connection: Connection, alarm: Alarm, now: int, targets: Iterable[str]) -> None:
    values = {
        **alarm.key._asdict(),
        "id": secrets.token_bytes(ID_BYTES),
        "severity": alarm.severity,
        "text": alarm.text,
        "advice": alarm.advice,
        "since_ns": now if alarm.since_ns is None else alarm.since_ns,
        "began_ns": now,
    }
    made = connection.execute(insert(schema.events).values(**values)).inserted_primary_key
    assert made is not None
    rows = [
        {
            "event": made[0],
            "over": False,
            "target": target,
            **_pending(now),
        }
        for target in targets
    ]
    if rows:
        later(connection, insert(schema.deliveries), rows)


def _deliver_end(connection: Connection, rows: Sequence[int], now: int) -> None:
    columns = {"event": _d.event, "over": literal(value=True), "target": _d.target}
    columns |= {name: literal(value) for name, value in _pending(now).items()}
    got_beginning = select(*columns.values()).where(_d.event.in_(rows), _d.over.is_(False))
    later(connection, insert(schema.deliveries).from_select(list(columns), got_beginning))


def _pending(now: int) -> dict[str, object]:
    return {"state": schema.DELIVERY_PENDING, "created_ns": now, "tries": 0, "next_ns": now, "error": ""}


def _set(connection: Connection, events: Sequence[Event], **values: object) -> None:
    for some in batches(events, _AT_ONCE):
        changed = update(schema.events).where(_e.row.in_([event.row for event in some]))
        later(connection, changed.values(**values))
