"""Events of running services: found once, sent once, and over once, also with several servers and after restarts."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import postgres_server
import pytest
from receivers import Receiver, receiving
from servers import Running
from several_servers import sharing
from sqlalchemy import update
from staddle.v1 import service_pb2 as sv
from staddle_server.base.errors import Unavailable
from staddle_server.base.types import TokenRole
from staddle_server.catalog import KnownDamage
from staddle_server.catalog.schema import deliveries, events, targets
from staddle_server.store.space import MinFree, Space
from staddle_server.upkeep.events import kinds
from staddle_server.upkeep.events.kinds import alarm
from staddle_server.upkeep.events.sources import FailingTargets, FillingDisks
from staddle_server.upkeep.notify.delivery import AnyTarget
from staddle_server.upkeep.notify.http_post import parse_http_url
from staddle_server.upkeep.notify.ping import Ping
from staddle_server.upkeep.notify.targets import Filter
from staddle_server.upkeep.notify.webhook import Webhook
from thin import back_up

NS = 10**9
DAY_NS = 86_400 * NS
DATABASES = {"sqlite": lambda: "", "postgresql": postgres_server.new_url}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture(params=DATABASES)
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path, catalog_url=DATABASES[request.param]())
    yield made
    made.stop()


def hook(receiver: Receiver, name: str = "hook") -> Webhook:
    return Webhook(name, Filter(), receiver.parsed())


def use(one: Running, *given: AnyTarget) -> None:
    one.service.notifier.set_targets(given)


def look(one: Running) -> None:
    one.service._events.look()


def send(one: Running, name: str = "hook") -> None:
    one.service.notifier.turn(name)


def later(one: Running, table, column: str, by_s: float) -> None:
    """Let this time pass for what the catalog holds, also where the database has a clock of its own."""
    with one.catalog.database.write() as connection:
        connection.execute(update(table).values({column: table.c[column] - int(by_s * NS)}))


def ending_token(one: Running, name: str = "old") -> None:
    """A token of 60 days that ends in 5 days."""
    now_ns = one.clock.now_ns()
    one.catalog.tokens.create(one.tenant, name, TokenRole.READER, now_ns - 55 * DAY_NS, now_ns + 5 * DAY_NS)


def states(receiver: Receiver) -> list[tuple[str, str]]:
    return [(each.value["kind"], each.value["state"]) for each in receiver.all()]


def test_an_event_goes_once_and_once_when_it_is_over_also_over_a_restart(
    service: Running, receiver: Receiver
) -> None:
    ending_token(service)
    use(service, hook(receiver))
    for _ in range(3):
        look(service)
        send(service)
    assert states(receiver) == [("token", "began")]
    service.restart()
    use(service, hook(receiver))
    look(service)
    send(service)
    assert states(receiver) == []
    service.catalog.tokens.revoke(service.tenant, "old", service.clock.now_ns())
    look(service)
    send(service)
    assert states(receiver) == [], "not before 5 minutes"
    later(service, events, "absent_ns", 301)
    for _ in range(3):
        look(service)
        send(service)
    (over,) = receiver.all()
    assert (over.value["state"], over.value["title"]) == ("over", "A token no longer ends soon (default)")
    assert service.catalog.events.open(0).events == []


def test_several_servers_find_an_event_once_and_send_it_once(tmp_path: Path, receiver: Receiver) -> None:
    with sharing(tmp_path, postgres_server.new_url(), 3) as servers:
        for one in servers:
            use(one, hook(receiver))
        for number in range(10):
            ending_token(servers[0], f"token{number}")

        def work(one: Running) -> None:
            for _ in range(12):
                look(one)
                send(one)

        threads = [threading.Thread(target=work, args=(one,)) for one in servers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        got = receiver.all()
        assert len(got) == 10
        assert len({each.headers["Staddle-Id"] for each in got}) == 10
        for number in range(10):
            servers[1].catalog.tokens.revoke(servers[1].tenant, f"token{number}", servers[1].clock.now_ns())
        look(servers[2])
        later(servers[0], events, "absent_ns", 301)
        threads = [threading.Thread(target=work, args=(one,)) for one in servers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert states(receiver) == [("token", "over")] * 10


def test_what_concerns_one_server_stays_its_own_until_it_is_gone_for_a_day(tmp_path: Path) -> None:
    with sharing(tmp_path, postgres_server.new_url(), 2) as (one, two):
        one.service._integrity._absent.add("the store")
        look(one)
        look(two)
        (event,) = one.catalog.events.open(0).events
        assert (event.alarm.key.kind, event.alarm.key.server) == ("store", one.address)
        assert event.absent_ns is None, "another server does not end it"
        one.catalog.servers.remove(one.service._id)
        look(two)
        later(two, events, "absent_ns", 86_300)
        look(two)
        assert len(two.catalog.events.open(0).events) == 1
        later(two, events, "absent_ns", 101)
        look(two)
        assert two.catalog.events.open(0).events == []


@pytest.mark.parametrize("error", [Unavailable("STORE_UNAVAILABLE", "no answer"), ValueError("a fault")])
def test_a_source_that_cannot_tell_ends_no_event(service: Running, error: Exception) -> None:
    ending_token(service)
    look(service)

    def fails(*_: object) -> list[object]:
        raise error

    ending = service.catalog.tokens.ending
    service.catalog.tokens.ending = fails  # type: ignore[method-assign]
    for _ in range(2):
        look(service)
        (event,) = service.catalog.events.open(0).events
        assert event.absent_ns is None
    service.catalog.tokens.ending = ending  # type: ignore[method-assign]
    service.catalog.tokens.revoke(service.tenant, "old", service.clock.now_ns())
    look(service)
    assert service.catalog.events.open(0).events[0].absent_ns is not None


def test_what_waits_for_a_target_that_is_down_is_delivered_in_order_when_it_is_back(
    service: Running, receiver: Receiver
) -> None:
    receiver.status = 503
    use(service, hook(receiver))
    ending_token(service)
    look(service)
    send(service)
    service.catalog.tokens.revoke(service.tenant, "old", service.clock.now_ns())
    look(service)
    later(service, events, "absent_ns", 301)
    look(service)
    send(service)
    assert len(receiver.all()) == 1, "a target that failed is left alone for a while"
    assert service.catalog.deliveries.states()["hook"].error == "127.0.0.1 answers 503"
    receiver.status = 200
    for _ in range(2):
        service.clock.ahead_s += 600
        later(service, deliveries, "next_ns", 600)
        send(service)
    assert states(receiver) == [("token", "began"), ("token", "over")]
    state = service.catalog.deliveries.states()["hook"]
    assert (state.pending, state.failing_ns, state.error) == (0, None, "")


def test_a_message_is_given_up_after_three_days_and_many_tries(service: Running, receiver: Receiver) -> None:
    receiver.status = 500
    use(service, hook(receiver))
    ending_token(service)
    look(service)
    tries = 0
    while service.catalog.deliveries.states().get("hook", None) is None or tries < 12:
        later(service, deliveries, "created_ns", 86_400)
        later(service, deliveries, "next_ns", 3700)
        service.service.notifier._pauses.clear()
        send(service)
        tries += 1
    assert len(receiver.all()) == 10, "three days are over before, but few tries are not enough"
    state = service.catalog.deliveries.states()["hook"]
    assert (state.pending, state.given_up) == (0, 1)


def test_a_target_that_fails_is_an_event_for_the_others_and_shown_to_administrators(
    service: Running, receiver: Receiver
) -> None:
    use(service, hook(receiver), Webhook("down", Filter(), parse_http_url("http://127.0.0.1:1/")))
    ending_token(service)
    look(service)
    send(service, "down")
    look(service)
    send(service)
    assert states(receiver) == [("token", "began")]
    assert service.service._events.reaches_targets()
    later(service, targets, "failing_ns", 601)
    look(service)
    send(service)
    (told,) = receiver.all()
    assert told.value["text"] == (
        "The notification target down (webhook) fails: no connection with 127.0.0.1: Connection refused. 1 message waits for it."
    )
    assert not service.service._events.reaches_targets()
    assert service.catalog.deliveries.states()["down"].pending == 1, "it is not told of itself"
    asked = sv.GetServerInfoRequest()
    assert list(service.stub("admin").GetServerInfo(asked).condition.warnings) == [told.value["text"]]
    assert list(service.stub("writer").GetServerInfo(asked).condition.warnings) == []
    use(service, hook(receiver))
    look(service)
    assert service.service._events.reaches_targets(), "a target that is configured no more fails no more"


def test_a_ping_service_hears_regularly_and_at_once_of_a_change(service: Running, receiver: Receiver) -> None:
    use(service, Ping("beat", Filter(), receiver.parsed("/uuid"), every_s=300))
    send(service, "beat")
    send(service, "beat")
    assert [each.path for each in receiver.all()] == ["/uuid"]
    service.clock.ahead_s += 301
    send(service, "beat")
    assert [each.path for each in receiver.all()] == ["/uuid"]
    ending_token(service)
    look(service)
    send(service, "beat")
    (fail,) = receiver.all()
    assert fail.path == "/uuid/fail"
    assert fail.body.startswith(b"The token old of tenant default ends at ")
    service.catalog.tokens.revoke(service.tenant, "old", service.clock.now_ns())
    look(service)
    later(service, events, "absent_ns", 301)
    look(service)
    send(service, "beat")
    assert [each.path for each in receiver.all()] == ["/uuid"]
    assert service.catalog.deliveries.states()["beat"].reached_ns is not None


def test_a_ping_service_hears_nothing_while_it_is_unknown_how_things_are(
    service: Running, receiver: Receiver
) -> None:
    use(service, Ping("beat", Filter(), receiver.parsed("/uuid"), every_s=300))
    ending_token(service)

    def fails(*_: object) -> bool:
        raise Unavailable("STORE_UNAVAILABLE", "read-only")

    change = service.catalog.events.change
    service.catalog.events.change = fails  # type: ignore[method-assign]
    look(service)
    send(service, "beat")
    assert receiver.all() == []
    service.catalog.events.change = change  # type: ignore[method-assign]
    look(service)
    send(service, "beat")
    assert [each.path for each in receiver.all()] == ["/uuid/fail"]


def test_while_one_source_cannot_tell_the_others_are_asked_and_no_ping_says_that_all_is_well(
    service: Running, receiver: Receiver
) -> None:
    use(service, Ping("beat", Filter(), receiver.parsed("/uuid"), every_s=300))

    def fails(*_: object) -> list[object]:
        raise ValueError("a fault")

    ending = service.catalog.tokens.ending
    service.catalog.tokens.ending = fails  # type: ignore[method-assign]
    service.service._heartbeat._failing = True
    look(service)
    send(service, "beat")
    assert receiver.all() == []
    assert [event.alarm.key.kind for event in service.catalog.events.open(0).events] == ["restore-only"]
    service.catalog.tokens.ending = ending  # type: ignore[method-assign]
    look(service)
    send(service, "beat")
    assert [each.path for each in receiver.all()] == ["/uuid/fail"]


def test_a_look_that_fails_in_any_way_is_no_state_to_ping_about(service: Running, receiver: Receiver) -> None:
    use(service, Ping("beat", Filter(), receiver.parsed("/uuid"), every_s=300))

    def fails(*_: object) -> bool:
        raise ValueError("a fault")

    ending_token(service)
    service.catalog.events.change = fails  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="a fault"):
        look(service)
    send(service, "beat")
    assert receiver.all() == []


def test_datasets_whose_names_differ_only_in_spaces_are_late_each_by_itself(service: Running) -> None:
    names = ["a b", "a  b", " a b", "a\u2028b"]
    for name in names:
        service.stub().SetExpectation(
            sv.SetExpectationRequest(dataset=name, every={"seconds": 3600}, grace={})
        )
    service.clock.ahead_s += 2 * 3600
    look(service)
    found = [event.alarm for event in service.catalog.events.open(0).events]
    assert sorted(alarm.key.subject for alarm in found) == sorted(names)
    assert all(alarm.text.isprintable() for alarm in found)


def test_a_disk_may_have_a_path_that_is_not_utf_8(service: Running, tmp_path: Path) -> None:
    paths = [os.fsdecode(os.fsencode(tmp_path) + name) for name in (b"/\xfe", b"/\xff")]
    free = [300 * 2**30]

    def status(_: str) -> object:
        blocks = free[0] // 4096
        return os.statvfs_result((4096, 4096, 10**9, blocks, blocks, 0, 0, 0, 0, 255))

    disks = FillingDisks(service.catalog, Space(paths, MinFree(size_bytes=0), status=status))  # type: ignore[arg-type]
    now_ns = service.clock.now_ns()
    for _ in range(5 * 24):
        now_ns += 3600 * NS
        free[0] -= 2**30
        found = list(disks.alarms("", now_ns))
    assert len({alarm.key for alarm in found}) == len(found) == 2


def test_a_catalog_that_takes_no_writes_is_an_alarm(service: Running) -> None:
    service.service._heartbeat._failing = True
    look(service)
    assert [alarm.key[:1] + alarm.key[3:] for alarm in service.service._events.holding] == [
        ("restore-only", "catalog")
    ]


def test_new_targets_get_what_begins_from_then_on_and_removed_ones_nothing(
    service: Running, receiver: Receiver
) -> None:
    with receiving() as second:
        use(service, hook(receiver))
        ending_token(service, "a")
        look(service)
        use(service, hook(receiver), hook(second, "second"))
        ending_token(service, "b")
        look(service)
        for name in ("hook", "second"):
            for _ in range(3):
                send(service, name)
        assert (len(receiver.all()), len(second.all())) == (2, 1)
        use(service, hook(second, "second"))
        ending_token(service, "c")
        look(service)
        send(service, "hook")
        send(service, "second")
        assert (len(receiver.all()), len(second.all())) == (0, 1)


def test_late_failed_and_incomplete_backups_are_events_until_the_next_backup(
    service: Running, receiver: Receiver
) -> None:
    use(service, hook(receiver))
    stub = service.stub()
    stub.SetExpectation(sv.SetExpectationRequest(dataset="orders", every={"seconds": 3600}, grace={}))
    stub.ReportRun(sv.ReportRunRequest(request_id="r", dataset="mail", host="web1", reason="exit code 3."))
    look(service)
    found = {event.alarm.key.kind: event.alarm for event in service.catalog.events.open(0).events}
    assert found.keys() == {"failed"}
    assert (
        found["failed"].text == "A backup of the dataset mail of tenant default on web1 failed: exit code 3."
    )
    service.clock.ahead_s += 2 * 3600
    look(service)
    found = {event.alarm.key.kind: event.alarm for event in service.catalog.events.open(0).events}
    assert found.keys() == {"failed", "late"}
    assert found["late"].key.subject == "orders"
    assert found["late"].text == (
        "The dataset orders of tenant default is late: it never had a backup, and one is expected every 1h."
    )
    for name in ("orders", "mail"):
        back_up(stub, name, {"a": b"1"})
    look(service)
    later(service, events, "absent_ns", 301)
    look(service)
    for _ in range(4):
        send(service)
    assert sorted(states(receiver)) == [
        ("failed", "began"),
        ("failed", "over"),
        ("late", "began"),
        ("late", "over"),
    ]


def test_damage_is_an_event_with_its_tenant(service: Running) -> None:
    service.service._integrity.known = {service.tenant: KnownDamage(1, 2, 1, 0)}
    look(service)
    (event,) = service.catalog.events.open(0).events
    assert event.alarm.key == ("damage", "default", "", "stored data")
    assert event.alarm.text == (
        "Stored data of tenant default is damaged: 2 packs and 1 part of another pack."
    )


def test_a_disk_that_fills_is_forecast_from_hourly_samples_in_the_catalog(
    service: Running, tmp_path: Path
) -> None:
    gib = 2**30
    free = [300 * gib]

    def status(_: str) -> object:
        blocks = free[0] // 4096
        return os.statvfs_result((4096, 4096, 10**9, blocks, blocks, 0, 0, 0, 0, 255))

    disks = FillingDisks(service.catalog, Space([str(tmp_path)], MinFree(size_bytes=0), status=status))  # type: ignore[arg-type]
    now_ns, found = service.clock.now_ns(), []
    for _ in range(5 * 24):
        now_ns += 3600 * NS
        free[0] -= gib
        found = list(disks.alarms("", now_ns))
        assert list(disks.alarms("", now_ns + 60 * NS)) == found, "one sample an hour"
    (alarm,) = found
    assert "has room for backups for about 8 more days" in alarm.text
    assert alarm.key.subject == str(tmp_path)
    again = FillingDisks(service.catalog, Space([str(tmp_path)], MinFree(size_bytes=0), status=status))  # type: ignore[arg-type]
    assert list(again.alarms("", now_ns + 60 * NS)) == found, "a restarted server knows as much"
    assert len(service.catalog.space_samples.of("", str(tmp_path))) == 5 * 24


def test_sources_that_have_nothing_to_look_at_are_silent(service: Running) -> None:
    assert list(FailingTargets(service.catalog, lambda: ()).alarms("", 0)) == []
    assert list(FillingDisks(service.catalog, None).alarms("", 0)) == []


def test_each_kind_has_words_for_its_begin_and_its_end_and_one_source() -> None:
    for name, kind in kinds.KINDS.items():
        assert kind.name == name
        assert kind.begins != kind.ends
        assert not kind.begins.endswith(".")


def test_long_subjects_stay_apart_and_short_enough_for_an_index() -> None:
    long = ["ä" * 4000 + end for end in ("a", "b")]
    found = [alarm(kinds.DISK, "warning", "text", "advice", subject=each).key.subject for each in long]
    assert len(set(found)) == 2
    assert all(len(each.encode()) <= kinds.SUBJECT_BYTES_MAX for each in found)
    exact = "ä" * (kinds.SUBJECT_BYTES_MAX // 2)
    assert alarm(kinds.DISK, "warning", "text", "advice", subject=exact).key.subject == exact
