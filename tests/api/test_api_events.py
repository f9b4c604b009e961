"""ListEvents: who sees which events, which a filter lets pass, and page by page."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

import grpc
import pytest
from http_door import open_http
from rest_door import RestDoor
from servers import Running
from staddle import BadRequestError, Client, Event, EventSeverity
from staddle.v1 import service_pb2 as sv
from staddle_server.catalog import Alarm, AlarmKey, EventChanges
from thin import reason


class Place:
    """A service where two tenants, and the service itself, have events."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.other = running.make_tenant("other")
        for kind, tenant, subject in (
            ("late", "default", "www"),
            ("damage", "default", ""),
            ("drill", "default", "mail"),
            ("late", "other", "www"),
            ("restore-only", "", "disk"),
        ):
            self.begin(Alarm(AlarmKey(kind, tenant, "", subject), "critical", f"{kind} {subject}", "Do it."))
        self.end("drill mail")

    def change(self, begun: list[Alarm], over: str = "") -> None:
        """As a server does that finds something. The service's own watch may be faster."""
        events, now_ns = self.running.catalog.events, self.running.clock.now_ns()
        while True:
            opened = events.open(now_ns)
            ended = [each for each in opened.events if each.alarm.text == over]
            if events.change(
                opened.fence, EventChanges(begun=begun, over=ended), lambda _: [], "test", now_ns
            ):
                return

    def begin(self, alarm: Alarm) -> None:
        self.change([alarm])

    def end(self, text: str) -> None:
        self.change([], text)

    def client(self, role: str) -> Client:
        return Client(self.running.address, self.running.token(role))

    def texts(self, role: str = "reader", **asked: object) -> list[str]:
        with self.client(role) as client:
            return [each.text for each in client.events(**asked)]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    running = Running(tmp_path_factory.mktemp("events"))
    yield Place(running)
    running.stop()


def test_a_tenant_sees_its_own_events_and_an_administrator_those_of_the_service_too(place: Place) -> None:
    own = ["drill mail", "damage ", "late www"]
    assert place.texts("reader") == own
    assert place.texts("admin") == ["restore-only disk", *own]


def test_what_to_do_and_which_server_it_concerns_is_for_administrators(place: Place) -> None:
    place.begin(Alarm(AlarmKey("lock", "default", "/srv/one", ""), "warning", "lock", "Extend it."))
    try:
        seen: dict[str, Event] = {}
        for role in ("reader", "admin"):
            with place.client(role) as client:
                (seen[role],) = client.events(kinds=["lock"])
        assert (seen["reader"].advice, seen["reader"].server) == ("", "")
        assert (seen["admin"].advice, seen["admin"].server) == ("Extend it.", "/srv/one")
        assert seen["admin"].severity is EventSeverity.WARNING
        assert not seen["admin"].of_service
    finally:
        place.end("lock")
        older = place.running.catalog.events.listed(1)[0]
        assert older.over_ns is not None


def test_events_about_tokens_are_for_administrators(place: Place) -> None:
    place.begin(Alarm(AlarmKey("token", "default", "", "nightly"), "warning", "token nightly", "Make one."))
    try:
        assert place.texts("admin", kinds=["token"]) == ["token nightly"]
        for role in ("reader", "writer"):
            assert place.texts(role, kinds=["token"]) == []
            assert "token nightly" not in place.texts(role)
            assert "late www" in place.texts(role)
    finally:
        place.end("token nightly")


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"dataset": "www"}, ["late www"]),
        ({"dataset": "disk"}, []),
        ({"kinds": ["damage", "drill"], "open_only": True}, ["damage "]),
        ({"kinds": ["damage", "drill"]}, ["drill mail", "damage "]),
        ({"dataset": "mail", "kinds": ["late"]}, []),
        ({"since": datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)}, []),
        ({"until": datetime.datetime(2001, 1, 1, tzinfo=datetime.UTC)}, []),
    ],
)
def test_a_filter_lets_pass_what_it_names(place: Place, asked: dict[str, object], found: list[str]) -> None:
    assert place.texts(**asked) == found


def test_times_say_since_when_it_holds_and_when_it_was_found_and_over(place: Place) -> None:
    with place.client("admin") as client:
        (over,) = client.events("mail")
        (still,) = client.events("www")
    assert over.over_time is not None
    assert over.since_time == over.begin_time <= over.over_time
    assert still.over_time is None
    assert place.texts(since=over.begin_time)[-1] == "drill mail"


def test_pages_end_and_stay_with_their_query_and_tenant(place: Place) -> None:
    stub, theirs = place.running.stub("reader"), place.running.stub("reader", place.other)
    found, token = [], ""
    while page := stub.ListEvents(
        sv.ListEventsRequest(kinds=["late", "damage"], page_size=1, page_token=token)
    ):
        found += [each.text for each in page.events]
        token = page.next_page_token
        if not token:
            break
        for request in (
            sv.ListEventsRequest(page_size=1, page_token=token),
            sv.ListEventsRequest(kinds=["late", "damage"], open_only=True, page_token=token),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                stub.ListEvents(request)
            assert reason(refused.value) == "BAD_PAGE_TOKEN"
        with pytest.raises(grpc.RpcError) as refused:
            theirs.ListEvents(sv.ListEventsRequest(kinds=["late", "damage"], page_token=token))
        assert reason(refused.value) == "BAD_PAGE_TOKEN"
        with pytest.raises(grpc.RpcError) as refused:  # an administrator's list has more in it
            place.running.stub("admin").ListEvents(
                sv.ListEventsRequest(kinds=["late", "damage"], page_token=token)
            )
        assert reason(refused.value) == "BAD_PAGE_TOKEN"
    assert found == ["damage ", "late www"]


def test_an_unknown_kind_is_refused_with_the_known_ones(place: Place) -> None:
    with pytest.raises(BadRequestError, match=r"kinds: .*late.*target"):
        place.texts(kinds=["fire"])
    with pytest.raises(BadRequestError, match="kinds: the limit is 64"):
        place.texts(kinds=["late"] * 65)


def test_rest_has_them_with_their_filters(place: Place) -> None:
    door = RestDoor(place.running, open_http(place.running))
    found = door.get("/v1/events?kind=late&kind=damage&open=true&pageSize=1").said
    assert [each["text"] for each in found["events"]] == ["damage "]
    assert found["nextPageToken"]
    (event,) = door.get("/v1/events?dataset=www").said["events"]
    assert (event["kind"], event["severity"], event["dataset"]) == ("late", "critical", "www")
    assert door.get("/v1/events?kind=fire").status == 400
    assert door.get("/v1/events?from=2001-01-01T00:00:00Z&to=2001-01-02T00:00:00Z").said == {}
