"""The state machine of events: once when an alarm begins, once when it is over."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from staddle_server.base.clock import NS
from staddle_server.catalog import Alarm, AlarmKey, Event, EventChanges
from staddle_server.upkeep.events.changes import OVER_AFTER_S, changes_of

SUBJECTS = "abc"


def alarm_of(subject: str, text: str = "It burns.") -> Alarm:
    return Alarm(AlarmKey("damage", "", "", subject), "critical", text, "Put it out.")


@dataclass
class Book:
    """The events as the catalog keeps them."""

    events: dict[int, Event] = field(default_factory=dict)
    began: list[tuple[str, int]] = field(default_factory=list)
    over: list[tuple[str, int]] = field(default_factory=list)

    def open(self) -> list[Event]:
        return [event for event in self.events.values() if event.over_ns is None]

    def apply(self, changes: EventChanges, now_ns: int) -> None:
        for alarm in changes.begun:
            row = len(self.events)
            self.events[row] = Event(row, bytes(16), alarm, now_ns, None, None)
            self.began.append((alarm.key.subject, now_ns))
        for event in changes.absent:
            self.events[event.row] = event._replace(absent_ns=now_ns)
        for event in changes.back:
            self.events[event.row] = event._replace(absent_ns=None)
        for event in changes.over:
            self.events[event.row] = event._replace(over_ns=now_ns)
            self.over.append((event.alarm.key.subject, now_ns))


LOOKS = st.lists(
    st.tuples(
        st.integers(min_value=-3600, max_value=900),
        st.frozensets(st.sampled_from(SUBJECTS)),
        st.booleans(),
    ),
    max_size=60,
)


@given(LOOKS)
def test_an_alarm_begins_once_and_is_over_once_whatever_the_clock_does(
    looks: list[tuple[int, frozenset[str], bool]],
) -> None:
    book, now_ns = Book(), 10**18
    holding: frozenset[str] = frozenset()
    for step_s, holding, known in looks:
        now_ns += step_s * NS
        before = len(book.began), len(book.over)
        changes = changes_of(
            book.open(),
            map(alarm_of, sorted(holding)),
            now_ns,
            lambda _, known=known: OVER_AFTER_S if known else None,
        )
        book.apply(changes, now_ns)
        open_now = Counter(event.alarm.key.subject for event in book.open())
        assert set(open_now.values()) <= {1}
        assert holding <= open_now.keys()
        if not known:
            assert len(book.over) == before[1], "what is unknown ends nothing"
        again = changes_of(
            book.open(),
            map(alarm_of, sorted(holding)),
            now_ns,
            lambda _, known=known: OVER_AFTER_S if known else None,
        )
        assert not any(again), "a second look at the same moment, as by another server, changes nothing"
    for subject in SUBJECTS:
        began = [at for name, at in book.began if name == subject]
        over = [at for name, at in book.over if name == subject]
        assert len(began) - len(over) == sum(each.alarm.key.subject == subject for each in book.open())
    for _ in range(2):
        now_ns += int(OVER_AFTER_S * NS)
        book.apply(changes_of(book.open(), [], now_ns, lambda _: OVER_AFTER_S), now_ns)
    assert book.open() == []
    assert len(book.began) == len(book.over)


def test_an_alarm_that_comes_and_goes_is_one_event() -> None:
    book = Book()
    for minute in range(60):
        now_ns = 10**18 + minute * 60 * NS
        alarms = [alarm_of("a")] if minute % 4 == 0 else []
        book.apply(changes_of(book.open(), alarms, now_ns, lambda _: OVER_AFTER_S), now_ns)
    assert len(book.began) == 1
    assert book.over == []


def test_new_words_for_an_open_event_are_kept_and_begin_nothing() -> None:
    event = Event(1, bytes(16), alarm_of("a")._replace(since_ns=5), 5, None, None)
    found = changes_of([event], [alarm_of("a", "It burns more.")], 10, lambda _: OVER_AFTER_S)
    assert found == EventChanges([], [], [], [], [(event, alarm_of("a", "It burns more."))])
    assert not any(changes_of([event], [alarm_of("a")], 10, lambda _: OVER_AFTER_S))


def test_a_storm_of_alarms_begins_in_bounded_parts() -> None:
    alarms = [alarm_of(str(number)) for number in range(1200)]
    found = changes_of([], alarms, 10, lambda _: OVER_AFTER_S)
    assert found.begun == alarms[:500]
    full = [Event(number, bytes(16), alarm_of(f"x{number}"), 1, None, None) for number in range(10_000)]
    assert changes_of(full, alarms, 10, lambda _: None).begun == []
