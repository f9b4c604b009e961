"""Streams over REST: bytes in and out with back-pressure, slots until the end, and connections that break off."""

from __future__ import annotations

import http.client
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from http_door import ask, open_http
from servers import Running
from staddle.v1 import service_pb2 as sv
from staddle_server.api.gate import CallerGone
from staddle_server.api.http import connections, server
from staddle_server.api.http.rest.operations import Answer, Body, Operation, RestRequest, Streamed
from staddle_server.base.errors import Damaged
from staddle_server.base.types import TokenRole
from thin import wait_until

MIB = 1 << 20
PIECE = bytes(MIB)
TAR = "application/x-tar"


class Place(NamedTuple):
    """A server with one more operation in its table, whose handler each test sets."""

    running: Running
    port: int
    handlers: list[Callable[[RestRequest], Any]]

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.running.token('reader')}", "content-type": TAR}

    def open(self, path: str = "/v1/bytes", version: str = "1.1") -> socket.socket:
        """A connection on which a GET was sent."""
        line = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        token = self.headers["authorization"]
        line.sendall(f"GET {path} HTTP/{version}\r\nHost: x\r\nAuthorization: {token}\r\n\r\n".encode())
        return line

    def assert_well(self) -> None:
        gate = self.running.service._gate
        wait_until(lambda: not gate._calls and gate.streams.idle and gate.calls.idle)
        assert ask(self.port, "/v1/datasets", None, self.headers).status == 200


@pytest.fixture
def place(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    handlers: list[Callable[[RestRequest], Any]] = []
    answers = (Answer(200, "bytes", sv.ListDatasetsResponse),)

    def handle(asked: RestRequest) -> Any:
        return handlers[0](asked)

    def row(verb: str, body: Body | None) -> Operation:
        return Operation(
            verb,
            "/v1/bytes",
            "Bytes",
            TokenRole.READER,
            "Bytes.",
            handle,
            answers,
            body=body,
            is_stream=True,
        )

    rows = [row("GET", None), row("PUT", Body((TAR,)))]
    table = server.operations
    monkeypatch.setattr(server, "operations", lambda *parts: [*table(*parts), *rows])
    running = Running(tmp_path)
    yield Place(running, open_http(running), handlers)
    running.stop()


def streamed(pieces: Iterator[bytes], **headers: str) -> Callable[[RestRequest], Streamed]:
    return lambda _: Streamed(200, {"content-type": TAR, **headers}, pieces)


def test_an_answer_is_sent_as_it_is_made(place: Place) -> None:
    go_on = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield b"first"
        go_on.wait(60)
        yield b"last"

    place.handlers.append(streamed(pieces()))
    with place.open() as line:
        response = http.client.HTTPResponse(line)
        response.begin()
        assert response.read(5) == b"first"
        assert not place.running.service._gate.streams.idle
        go_on.set()
        assert response.read() == b"last"
    place.assert_well()


def test_a_reader_that_does_not_read_makes_the_answer_wait(place: Place) -> None:
    made = itertools.count()
    ended = threading.Event()

    def pieces() -> Iterator[bytes]:
        try:
            for _ in made:
                yield PIECE
        finally:
            ended.set()

    place.handlers.append(streamed(pieces()))
    with place.open() as line:
        line.recv(100)
        slots = place.running.service._gate.streams._slots
        last = -1
        # It makes no more once the buffers of both sides are full.
        while (now := next(iter(slots))._moved_s) != last:
            last = now
            ended.wait(0.3)
        assert next(made) < 64
        assert not ended.is_set()
    # The reader has gone: so does the work for it.
    assert ended.wait(60)
    place.assert_well()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("length", [False, True])
def test_an_answer_that_fails_in_the_middle_never_looks_whole(
    place: Place, version: str, length: bool
) -> None:
    def pieces() -> Iterator[bytes]:
        yield PIECE
        raise Damaged("a chunk is damaged")

    place.handlers.append(streamed(pieces(), **({"content-length": str(2 * MIB)} if length else {})))
    with place.open(version=version) as line, pytest.raises(ConnectionResetError):
        all(iter(lambda: line.recv(65536), b""))
    place.assert_well()


def test_an_answer_that_nobody_reads_never_looks_whole(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HTTP_SILENCE_S", 2.0)
    place.handlers.append(streamed(iter([PIECE] * 64)))
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.settimeout(60)
    line.connect(("127.0.0.1", place.port))
    token = place.headers["authorization"]
    line.sendall(f"GET /v1/bytes HTTP/1.0\r\nHost: x\r\nAuthorization: {token}\r\n\r\n".encode())
    assert line.recv(1)
    state = place.running.service._http._state
    wait_until(lambda: not state.connections)
    with line, pytest.raises(ConnectionResetError):
        all(iter(lambda: line.recv(65536), b""))
    place.assert_well()


def test_an_answer_that_fails_before_it_begins_is_an_error(place: Place) -> None:
    def handler(_: RestRequest) -> Streamed:
        raise Damaged("a chunk is damaged")

    place.handlers.append(handler)
    found = ask(place.port, "/v1/bytes", None, place.headers)
    assert (found.status, found.said["code"]) == (500, "data_loss")
    place.assert_well()


def test_the_head_of_a_stream_makes_no_body(place: Place) -> None:
    def pieces() -> Iterator[bytes]:
        raise AssertionError("not asked for")
        yield b""

    place.handlers.append(streamed(pieces(), **{"content-length": "9"}))
    found = ask(place.port, "/v1/bytes", None, place.headers, "HEAD")
    assert (found.status, found.headers["content-length"], found.body) == (200, "9", b"")
    place.assert_well()


def test_a_body_arrives_in_pieces_of_any_total_size(place: Place) -> None:
    sizes: list[int] = []

    def handler(asked: RestRequest) -> sv.ListDatasetsResponse:
        sizes.extend(len(piece) for piece in asked.exchange.pieces())
        return sv.ListDatasetsResponse(next_page_token=str(sum(sizes)))

    place.handlers.append(handler)
    found = ask(place.port, "/v1/bytes", PIECE * 20, place.headers, "PUT")
    assert found.said == {"nextPageToken": str(20 * MIB)}
    assert max(sizes) <= MIB
    found = ask(place.port, "/v1/bytes", PIECE, {**place.headers, "content-type": "text/html"}, "PUT")
    assert (found.status, found.info.metadata["field"]) == (400, "Content-Type")
    place.assert_well()


def test_a_body_that_breaks_off_ends_its_call(place: Place) -> None:
    outcomes: list[Exception] = []

    def handler(asked: RestRequest) -> sv.ListDatasetsResponse:
        try:
            for _ in asked.exchange.pieces():
                pass
        except CallerGone as error:
            outcomes.append(error)
            raise
        return sv.ListDatasetsResponse()

    place.handlers.append(handler)
    with socket.create_connection(("127.0.0.1", place.port), timeout=60) as line:
        head = "".join(f"{name}: {value}\r\n" for name, value in place.headers.items())
        line.sendall(f"PUT /v1/bytes HTTP/1.1\r\nHost: x\r\n{head}Content-Length: 99\r\n\r\nabc".encode())
        wait_until(lambda: not place.running.service._gate.streams.idle)
    wait_until(lambda: outcomes)
    place.assert_well()
