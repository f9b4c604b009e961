"""Several servers, one of which takes calls and answers none: when it is left, and when not. All waits are short here;
tests/chaos/test_chaos_hung.py has the real ones.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from memory_servers import Member, members, nobody
from memory_service import TOKEN
from staddle import Client, DeadlineError
from staddle._transport import servers, silence
from staddle._transport.addresses import Address

RETRY_S = 20.0
GENEROUS_S = 60.0
"""For questions that are answered: a busy machine takes longer than the short waits here."""


class Hanging:
    """What a server does with each call from a time on: nothing, until it is released."""

    def __init__(self, member: Member, *, health_too: bool) -> None:
        self.member = member
        self.released = threading.Event()
        self.met: list[str] = []
        member.before = self._wait
        if health_too:
            member.health.before = lambda: self._wait("health")

    def _wait(self, method: str, _context: grpc.ServicerContext | None = None) -> None:
        self.met.append(method)
        assert self.released.wait(60)


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Member]]:
    monkeypatch.setattr(silence, "PULSE_S", 0.3)
    monkeypatch.setattr(silence, "PULSE_LOOK_S", 0.1)
    monkeypatch.setattr(servers, "CONNECT_S", 0.3)
    with members(2) as made:
        yield made


@pytest.fixture
def client(pair: list[Member]) -> Iterator[Client]:
    with Client(",".join(each.address for each in pair), TOKEN, retry_s=RETRY_S) as made:
        made.info()
        yield made


def split(client: Client, pair: list[Member]) -> tuple[Member, Member]:
    """The server that the client uses, and the other."""
    first, second = pair
    return (first, second) if client.address == first.address else (second, first)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a").write_bytes(b"a" * 100_000)
    return tmp_path / "source"


def test_every_kind_of_work_leaves_a_server_that_answers_nothing(
    pair: list[Member], client: Client, source: Path, tmp_path: Path
) -> None:
    client.backup(source, dataset="before", thin=True)
    for number, work in enumerate(
        (
            client.info,
            lambda: client.restore("before", tmp_path / "target"),
            lambda: client.backup(source, dataset="thin", thin=True),
            lambda: client.backup_stream("stream", name="f", source=[b"one", b"two"]),
        )
    ):
        used, other = split(client, pair)
        hanging = Hanging(used, health_too=True)
        begun_s = time.monotonic()
        try:
            work()
        finally:
            spent_s = time.monotonic() - begun_s
            hanging.released.set()
            used.before = lambda _method, _context: None
            used.health.before = lambda: None
        assert client.address == other.address, number
        assert "health" in hanging.met, (
            number
        )  # on a busy machine a question may end before the server has seen it
        assert spent_s < RETRY_S, number
    for dataset in ("thin", "stream"):
        (made,) = client.backups(dataset)
        assert made.number == 1
    assert (tmp_path / "target" / "a").read_bytes() == b"a" * 100_000


def test_a_server_that_is_slow_and_says_that_it_lives_is_waited_for(
    pair: list[Member], client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "CONNECT_S", GENEROUS_S)
    used, _ = split(client, pair)
    hanging = Hanging(used, health_too=False)
    timer = threading.Timer(2.5, hanging.released.set)
    timer.start()
    assert client.info().version == "0.0.0"
    timer.join()
    assert client.address == used.address
    assert hanging.met == ["GetServerInfo"]


def test_a_server_that_answers_the_last_question_is_waited_for(
    pair: list[Member], client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, _ = split(client, pair)
    hanging = Hanging(used, health_too=True)
    found = client._calls._servers
    ask, dumb = found._is_dumb, []

    def ask_and_note(address: Address) -> bool:
        if len(dumb) == servers.QUESTIONS - 1:
            monkeypatch.setattr(servers, "CONNECT_S", GENEROUS_S)
            used.health.before = lambda: None
            hanging.released.set()
        dumb.append(ask(address))
        return dumb[-1]

    monkeypatch.setattr(found, "_is_dumb", ask_and_note)
    assert client.info().version == "0.0.0"
    assert client.address == used.address
    assert dumb == [True] * (servers.QUESTIONS - 1) + [False]


def test_a_refused_question_says_nothing_about_a_call_in_flight(pair: list[Member], client: Client) -> None:
    """As of a server that drains: it accepts no connection any more, and finishes what it has."""
    with nobody() as address:
        found = client._calls._servers
        assert not found.hangs(type(found.address).parse(address))


def test_a_change_that_may_have_been_made_is_not_made_again(pair: list[Member], client: Client) -> None:
    backup = client.backup_stream("d", name="f", source=[b"one"]).backup
    used, other = split(client, pair)
    hanging = Hanging(used, health_too=True)
    with pytest.raises(DeadlineError, match="takes calls, but does not answer") as caught:
        client.delete_backup("d", backup.id)
    hanging.released.set()
    assert "the change may have been made" in "".join(caught.value.__notes__)
    assert client.info().version == "0.0.0"
    assert client.address == other.address


def test_the_only_server_is_waited_for(pair: list[Member]) -> None:
    with Client(pair[0].address, TOKEN) as client:
        client.info()
        hanging = Hanging(pair[0], health_too=True)
        timer = threading.Timer(2.5, hanging.released.set)
        timer.start()
        assert client.info().version == "0.0.0"
        timer.join()
    assert "health" not in hanging.met


def test_close_ends_the_questions(
    pair: list[Member], client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "CONNECT_S", GENEROUS_S)
    used, _ = split(client, pair)
    hanging = Hanging(used, health_too=True)
    ended: list[float] = []

    def ask() -> None:
        with pytest.raises(Exception, match="closed"):
            client.info()
        ended.append(time.monotonic())

    thread = threading.Thread(target=ask)
    thread.start()
    while "health" not in hanging.met:
        time.sleep(0.01)
    closed_s = time.monotonic()
    client.close()
    thread.join()
    hanging.released.set()
    assert ended[0] - closed_s < GENEROUS_S / 2
