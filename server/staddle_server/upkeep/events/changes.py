"""What began and what is over: the alarms that hold now, compared with the open events.

An event is over only after its alarm was absent for a while, so one that comes and goes is one event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from staddle_server.base.clock import NS
from staddle_server.catalog import Alarm, AlarmKey, Event, EventChanges

OVER_AFTER_S: Final = 300.0
"""How long an alarm must be absent until its event is over."""
GONE_AFTER_S: Final = 86_400.0
"""The same for the alarms of a server that has stopped: it may come back with them."""
OPEN_MAX: Final = 10_000
BEGUN_AT_ONCE: Final = 500
"""Further alarms begin at the next look."""


def changes_of(
    events: Sequence[Event],
    alarms: Iterable[Alarm],
    now_ns: int,
    over_after_s: Callable[[AlarmKey], float | None],
) -> EventChanges:
    """Return what changes of the open events, given all alarms that hold.

    `over_after_s` returns how long the alarm of an event must be absent; None if it is unknown now whether
    the alarm holds.
    """
    holding = {alarm.key: alarm for alarm in alarms}
    begun = dict(holding)
    absent, back, over = [], [], []
    reworded = []
    for event in events:
        key = event.alarm.key
        alarm = begun.pop(key, None)
        if alarm is not None:
            if event.absent_ns is not None:
                back.append(event)
            if alarm._replace(since_ns=None) != event.alarm._replace(since_ns=None):
                reworded.append((event, alarm))
            continue
        after_s = over_after_s(key)
        if after_s is None:
            continue
        # One that is absent since later than now was noted by a clock that was ahead.
        if event.absent_ns is None or event.absent_ns > now_ns:
            absent.append(event)
        elif now_ns - event.absent_ns >= after_s * NS:
            over.append(event)
    room = min(BEGUN_AT_ONCE, max(0, OPEN_MAX - len(events)))
    return EventChanges(list(begun.values())[:room], absent, back, over, reworded)
