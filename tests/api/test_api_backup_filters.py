"""The filters of a list of backups, as RPC and in the library; tests of REST have the same filters as addresses."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import grpc
import pytest
from servers import Running
from staddle import BadRequestError, Client
from staddle.v1 import service_pb2 as sv
from staddle_server.catalog import backups as listing
from thin import back_up, reason

TAGS: tuple[dict[str, str], ...] = ({"env": "prod", "why": ""}, {"env": "test"}, {}, {"env": "prod"})


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("filters"))
    stub = running.stub()
    for number, tags in enumerate(TAGS):
        back_up(stub, "www", {"a": b"%d" % number}, tags=tags, host=f"h{number % 2}", new_root=True)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[Client]:
    with Client(running.address, running.token("reader")) as client:
        yield client


@pytest.mark.parametrize(
    ("asked", "numbers"),
    [
        ({}, [4, 3, 2, 1]),
        ({"limit": 2}, [4, 3]),
        ({"limit": 0}, []),
        ({"tags": {"env": "prod"}}, [4, 1]),
        ({"tags": {"env": None}}, [4, 2, 1]),
        ({"tags": {"env": "prod", "why": ""}}, [1]),
        ({"tags": {"why": None}, "host": "h1"}, []),
        ({"host": "h1"}, [4, 2]),
        ({"host": "h1", "limit": 1, "tags": {"env": None}}, [4]),
        ({"held": True}, []),
    ],
)
def test_a_list_has_the_backups_that_were_asked_for(
    client: Client, asked: dict[str, object], numbers: list[int]
) -> None:
    assert [each.number for each in client.backups("www", **asked)] == numbers  # type: ignore[arg-type]


def test_times_divide_backups_by_their_begin(client: Client) -> None:
    middle = next(islice(client.backups("www"), 1, None)).begin_time
    assert [each.number for each in client.backups("www", since=middle)] == [4, 3]
    assert [each.number for each in client.backups("www", until=middle)] == [2, 1]


def test_pages_keep_the_filter_and_refuse_another(running: Running) -> None:
    stub = running.stub("reader")
    tags = [sv.TagFilter(key="env")]
    first = stub.ListBackups(sv.ListBackupsRequest(dataset="www", tags=tags, page_size=1))
    second = stub.ListBackups(
        sv.ListBackupsRequest(dataset="www", tags=tags, page_size=1, page_token=first.next_page_token)
    )
    assert [each.number for each in (*first.backups, *second.backups)] == [4, 2]
    for other in ({}, {"tags": tags, "host": "h1"}, {"tags": [sv.TagFilter(key="env", value="")]}):
        request = sv.ListBackupsRequest(dataset="www", page_token=first.next_page_token, **other)  # type: ignore[arg-type]
        with pytest.raises(grpc.RpcError) as refused:
            stub.ListBackups(request)
        assert reason(refused.value) == "BAD_PAGE_TOKEN"


def test_lists_go_on_behind_empty_pages(
    running: Running, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ROWS_AT_ONCE", "LOOKED_AT_MAX"):
        monkeypatch.setattr(listing, name, 1)
    request = sv.ListBackupsRequest(dataset="www", tags=[sv.TagFilter(key="why")])
    first = running.stub("reader").ListBackups(request)
    assert (list(first.backups), first.next_page_token != "") == ([], True)
    assert [each.number for each in client.backups("www", tags={"why": None})] == [1]
    assert [each.number for each in client.backups("www", host="h1")] == [4, 2]
    assert list(client.backups("www", tags={"none": None})) == []


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"tags": {"": None}}, "tags.key"),
        ({"tags": {"a\n": None}}, "tags.key"),
        ({"tags": {"a": "x" * 1025}}, "tags.value"),
        ({"tags": {str(number): None for number in range(65)}}, "tags: the limit is 64"),
        ({"host": "a\x00"}, "host"),
        ({"limit": -1}, "limit"),
    ],
)
def test_a_filter_that_nothing_can_have_is_refused(
    client: Client, asked: dict[str, object], field: str
) -> None:
    with pytest.raises(BadRequestError, match=field):
        list(client.backups("www", **asked))  # type: ignore[arg-type]
