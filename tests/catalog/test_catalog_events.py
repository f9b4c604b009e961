"""Events and deliveries in the catalog: each change once, whichever server makes it."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from sqlalchemy import func, select, update
from staddle_server.catalog import Alarm, AlarmKey, Catalog, EventChanges
from staddle_server.catalog.deliveries import RETRY_S_MAX
from staddle_server.catalog.events import KEPT_S
from staddle_server.catalog.schema import deliveries, events, tasks

NS = 10**9
BUSY_S = 90.0


def alarm_of(subject: str, tenant: str = "") -> Alarm:
    return Alarm(AlarmKey("damage", tenant, "", subject), "critical", f"{subject} burns.", "Put it out.")


def begin(world, *alarms: Alarm, to: Sequence[str] = ("one",)) -> None:
    catalog = world.catalog
    opened = catalog.events.open(world.now)
    assert catalog.events.change(opened.fence, EventChanges(begun=alarms), lambda _: to, "p", world.now)


def finish(world) -> None:
    """All open events are over."""
    opened = world.catalog.events.open(world.now)
    over = EventChanges(over=opened.events)
    assert world.catalog.events.change(opened.fence, over, lambda _: (), "p", world.now)


def older(world, table, column, by_ns: int) -> None:
    """Let this time pass for what is in a table, also where the database has a clock of its own."""
    with world.catalog.database.write() as connection:
        connection.execute(update(table).values({column: table.c[column] - by_ns}))


def claim(world, target: str = "one", most: int = 10):
    return world.catalog.deliveries.claim(target, most, world.now, BUSY_S)


def test_an_event_begins_changes_and_ends(world):
    begin(world, alarm_of("a"), alarm_of("b", "acme"))
    opened = world.catalog.events.open(world.now)
    assert [event.alarm.key.subject for event in opened.events] == ["a", "b"]
    first, second = opened.events
    assert first.alarm.since_ns == first.began_ns
    assert len({first.id, second.id}) == 2
    reworded = first.alarm._replace(text="a burns more.", severity="warning")
    changes = EventChanges(absent=[second], reworded=[(first, reworded)])
    assert world.catalog.events.change(opened.fence, changes, lambda _: (), "p", world.now)
    opened = world.catalog.events.open(world.now)
    assert opened.events[0].alarm == reworded
    assert opened.events[1].absent_ns is not None
    changes = EventChanges(back=[opened.events[1]], over=[opened.events[0]])
    assert world.catalog.events.change(opened.fence, changes, lambda _: (), "p", world.now)
    (left,) = world.catalog.events.open(world.now).events
    assert (left.id, left.absent_ns) == (second.id, None)
    assert [event.over_ns is None for event in world.catalog.events.listed(10)] == [True, False]
    assert [event.id for event in world.catalog.events.listed(1)] == [second.id]


def test_a_change_of_one_server_refuses_what_another_concluded_before(world):
    seen = world.catalog.events.open(world.now)
    begin(world, alarm_of("a"))
    late = EventChanges(begun=[alarm_of("a")])
    assert not world.catalog.events.change(seen.fence, late, lambda _: ["one"], "q", world.now)
    assert len(world.catalog.events.open(world.now).events) == 1
    assert len(claim(world)) == 1


def test_servers_that_find_the_same_at_once_begin_one_event(world):
    together = threading.Barrier(4)
    made = []

    def find() -> None:
        opened = world.catalog.events.open(world.now)
        together.wait()
        change = EventChanges(begun=[alarm_of("a")])
        made.append(world.catalog.events.change(opened.fence, change, lambda _: ["one"], "p", world.now))

    threads = [threading.Thread(target=find) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False, False, False, True]
    assert len(world.catalog.events.open(world.now).events) == 1


def test_a_delivery_is_claimed_by_one_server_and_free_again_if_that_one_dies(world):
    begin(world, alarm_of("a"), to=["one", "two"])
    (mine,) = claim(world)
    assert (mine.over, mine.tries, mine.event.alarm.key.subject) == (False, 1, "a")
    assert claim(world) == []
    assert [each.target for each in claim(world, "two")] == ["two"]
    older(world, deliveries, "next_ns", int(BUSY_S * NS))
    (again,) = claim(world)
    assert (again.event.id, again.tries) == (mine.event.id, 2), "with the same id"
    world.catalog.deliveries.end("one", "webhook", [(mine, 5.0)], "too late to matter", world.now)
    world.catalog.deliveries.end("one", "webhook", [(again, None)], "", world.now)
    older(world, deliveries, "next_ns", 10**15)
    assert claim(world) == []


def test_two_servers_that_claim_at_once_share_the_deliveries(world):
    begin(world, *[alarm_of(str(number)) for number in range(50)])
    together, got = threading.Barrier(4), []

    def take() -> None:
        together.wait()
        while found := claim(world, most=5):
            got.extend(each.event.row for each in found)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == len(set(got)) == 50


def test_a_failed_try_is_due_again_later_and_shown(world):
    begin(world, alarm_of("a"))
    world.catalog.deliveries.end("one", "webhook", [(claim(world)[0], 30.0)], "refused", world.now)
    state = world.catalog.deliveries.states()["one"]
    assert (state.kind, state.error, state.pending, state.given_up) == ("webhook", "refused", 1, 0)
    assert state.failing_ns is not None
    assert state.reached_ns is None
    assert claim(world) == []
    older(world, deliveries, "next_ns", 31 * NS)
    (again,) = claim(world)
    world.catalog.deliveries.end("one", "webhook", [(again, None)], "refused again", world.now)
    given_up = world.catalog.deliveries.states()["one"]
    assert (given_up.pending, given_up.given_up, given_up.failing_ns) == (0, 1, state.failing_ns)
    begin(world, alarm_of("b"))
    world.catalog.deliveries.end("one", "webhook", [(claim(world)[0], None)], "", world.now)
    well = world.catalog.deliveries.states()["one"]
    assert (well.failing_ns, well.error, well.reached_ns is None) == (None, "", False)


def test_the_end_of_an_event_follows_its_beginning_to_the_same_targets(world):
    begin(world, alarm_of("a"), to=["one"])
    finish(world)
    (began,) = claim(world)
    assert not began.over
    assert claim(world) == [], "the end waits for the beginning"
    world.catalog.deliveries.end("one", "webhook", [(began, None)], "", world.now)
    (over,) = claim(world)
    assert over.over
    assert over.event.over_ns is not None
    assert claim(world, "two") == []


def test_the_end_is_delivered_even_if_the_beginning_was_given_up(world):
    begin(world, alarm_of("a"))
    finish(world)
    world.catalog.deliveries.end("one", "webhook", [(claim(world)[0], None)], "gone", world.now)
    assert [each.over for each in claim(world)] == [True]


def test_what_failed_often_lets_the_rest_go_first(world):
    begin(world, alarm_of("poison"))
    world.catalog.deliveries.end("one", "webhook", [(claim(world)[0], 0.0)], "refused", world.now)
    begin(world, alarm_of("b"), alarm_of("c"))
    assert [each.event.alarm.key.subject for each in claim(world)] == ["b", "c", "poison"]


def test_a_try_that_a_wrong_clock_put_off_is_due_now(world):
    begin(world, alarm_of("a"))
    older(world, deliveries, "next_ns", -int(365 * 86_400 * NS))
    assert len(claim(world)) == 1
    older(world, deliveries, "next_ns", int((BUSY_S - RETRY_S_MAX) * NS))
    assert claim(world) == [], "an hour ahead is a retry"


def test_deliveries_that_no_server_tries_are_given_up(world):
    begin(world, alarm_of("a"), to=["one", "removed"])
    claim(world)
    older(world, deliveries, "created_ns", 100 * NS)
    assert world.catalog.deliveries.give_up(101, world.now) == 0
    assert world.catalog.deliveries.give_up(99, world.now) == 1
    states = world.catalog.deliveries.states()
    assert (states["removed"].given_up, states["one"].pending) == (1, 1)


def test_past_events_are_thinned_by_age_and_number_and_open_ones_stay(world, monkeypatch):
    begin(world, *[alarm_of(str(number)) for number in range(20)])
    finish(world)
    begin(world, alarm_of("open"))
    assert world.catalog.events.thin(world.now) == 0
    monkeypatch.setattr("staddle_server.catalog.events.KEPT_MAX", 15)
    assert world.catalog.events.thin(world.now) == 5
    older(world, events, "over_ns", int((KEPT_S + 1) * NS))
    assert world.catalog.events.thin(world.now) == 15
    assert [event.alarm.key.subject for event in world.catalog.events.listed(100)] == ["open"]
    with world.catalog.database.read() as connection:
        assert connection.execute(select(func.count()).select_from(deliveries)).scalar() == 1


def test_a_look_that_changes_nothing_writes_nothing(world):
    begin(world, alarm_of("a"))
    with world.catalog.database.read() as connection:
        before = connection.execute(select(tasks.c.fence).where(tasks.c.name == "events")).scalar()
    for _ in range(3):
        assert world.catalog.events.open(world.now).fence == before


def test_samples_of_space_are_kept_for_ninety_days_and_none_from_the_future(world):
    day_ns, samples = 86_400 * NS, world.catalog.space_samples
    samples.note("s", {"/a": 999}, 1000 * day_ns)
    for day in range(100):
        samples.note("s", {"/a": day, "/b": 2 * day}, day * day_ns)
    samples.note("t", {"/a": 5}, 0)
    found = samples.of("s", "/a")
    assert found == [(day * day_ns, day) for day in range(9, 100)]
    assert samples.of("t", "/a") == [(0, 5)]
    assert samples.of("s", "/c") == []


@pytest.mark.parametrize("ends_in_days", [1, 13])
def test_tokens_that_end_soon_are_listed_for_all_tenants(world, ends_in_days):
    catalog: Catalog = world.catalog
    from staddle_server.base.types import TokenRole

    day_ns, tenant = 86_400 * NS, world.tenant
    ends_ns = world.now + ends_in_days * day_ns
    catalog.tokens.create(tenant, "soon", TokenRole.READER, world.now, ends_ns)
    catalog.tokens.create(tenant, "later", TokenRole.READER, world.now, world.now + 15 * day_ns)
    catalog.tokens.create(tenant, "never", TokenRole.READER, world.now)
    catalog.tokens.create(tenant, "revoked", TokenRole.READER, world.now, ends_ns)
    catalog.tokens.revoke(tenant, "revoked", world.now)
    found = catalog.tokens.ending(world.now - day_ns, world.now + 14 * day_ns, 10)
    assert [(name, token.name, token.expires_ns) for name, token in found] == [("one", "soon", ends_ns)]
