"""Hostile HTTP: half bodies, wrong lengths, slow clients, bombs; no request leaves anything held or stops the next one."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from http_door import JSON, PROTO, answer_of, call, open_http, path_of, raw, rest_of
from servers import Running
from staddle_server.api.http import connections, exchange
from staddle_server.base.limits import HTTP_HEAD_BYTES_MAX, MESSAGE_BYTES_MAX
from thin import wait_until

MIB = 1 << 20


class Place(NamedTuple):
    running: Running
    port: int
    token: str

    def head(self, method: str, length: object, *more: str, token: str | None = None) -> bytes:
        lines = [
            f"POST {path_of(method)} HTTP/1.1",
            "Host: here",
            f"Authorization: Bearer {token or self.token}",
            f"Content-Type: {JSON}",
            f"Content-Length: {length}",
            *more,
        ]
        return "\r\n".join([*lines, "", ""]).encode()

    def assert_well(self) -> None:
        """It answers, and nothing is held."""
        assert call(self.port, "ListDatasets", self.token).said == {}
        gate = self.running.service._gate
        wait_until(lambda: not gate._calls and gate.calls.idle)
        wait_until(lambda: gate.decoded.used(self.running.tenant) == 0)


@pytest.fixture
def place(tmp_path) -> Iterator[Place]:
    running = Running(tmp_path)
    yield Place(running, open_http(running), running.token())
    running.stop()


def test_a_body_that_ends_early_ends_its_call(place: Place) -> None:
    for _ in range(3):
        with raw(place.port) as line:
            line.sendall(place.head("ListDatasets", 100) + b"{")
            wait_until(lambda: place.running.service._gate._calls)
    place.assert_well()


@pytest.mark.parametrize(
    ("length", "more"),
    [
        ("-1", ()),
        ("x", ()),
        ("2, 3", ()),
        ("9" * 30, ()),
        ("2", ("Transfer-Encoding: chunked",)),
        ("2", ("Content-Length: 3",)),
    ],
)
def test_a_wrong_length_is_refused(place: Place, length: str, more: tuple[str, ...]) -> None:
    with raw(place.port) as line:
        line.sendall(place.head("ListDatasets", length, *more) + b"{}")
        line.shutdown(1)
        found = rest_of(line)
    assert not found or re.match(rb"HTTP/1.1 (400|429) ", found), found
    place.assert_well()


def test_a_head_that_is_too_large_is_answered_before_its_connection_ends(place: Place) -> None:
    """A reset would take the answer away, if bytes of the head were still unread."""
    for _ in range(20):
        with raw(place.port) as line:
            line.sendall(place.head("ListDatasets", 2, "X: " + "x" * (4 * HTTP_HEAD_BYTES_MAX)) + b"{}")
            found = b""
            while piece := line.recv(4096):  # which raises after a reset
                found += piece
            assert found.startswith(b"HTTP/1.1 400 ")
            assert found.endswith(b"Invalid HTTP request received.")
    place.assert_well()


def test_a_client_that_is_refused_and_goes_on_is_cut_off(place: Place) -> None:
    with raw(place.port) as line:
        line.sendall(b"\0\r\n\r\n")
        assert rest_of(line).startswith(b"HTTP/1.1 400 ")

        def is_cut_off() -> bool:
            try:
                line.sendall(b"x" * 1000)
            except (BrokenPipeError, ConnectionResetError):
                return True
            return False

        wait_until(is_cut_off)
    place.assert_well()


def test_what_follows_a_body_that_is_longer_than_it_says_is_no_request(place: Place) -> None:
    with raw(place.port) as line:
        line.sendall(place.head("ListDatasets", 2) + b"{} and more\r\n\r\n")
        found = rest_of(line)
    assert re.findall(rb"HTTP/1.1 (\d+)", found) == [b"200", b"400"]
    place.assert_well()


def test_a_body_above_the_limit_is_refused_whatever_its_form(place: Place) -> None:
    long = b" " * (MESSAGE_BYTES_MAX + 1)
    packed = gzip.compress(bytes(200 * MIB), 9)
    assert len(packed) < MIB
    for body, more in ((long, {}), (packed, {"content_encoding": "gzip"})):
        found = call(place.port, "ListDatasets", place.token, body, **more)
        assert (found.status, found.said["code"]) == (429, "resource_exhausted")
        assert "longer than 4 MiB" in found.said["message"]
    with raw(place.port) as line:
        head = place.head("ListDatasets", 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        line.sendall(head)
        try:
            for _ in range(8):
                line.sendall(b"%x\r\n%s\r\n" % (MIB, b" " * MIB))
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert b" 429 " in line.recv(4096)
    place.assert_well()


def test_a_body_that_is_not_the_gzip_that_it_claims_is_refused(place: Place) -> None:
    whole = gzip.compress(b"{}")
    assert call(place.port, "ListDatasets", place.token, whole, content_encoding="gzip").status == 200
    for body in (b"{}", whole[:-3], whole + b"x", b""):
        found = call(place.port, "ListDatasets", place.token, body, content_encoding="gzip")
        assert (found.status, found.info.reason) == (400, "BAD_FIELD"), body
    found = call(place.port, "ListDatasets", place.token, whole, content_encoding="br")
    assert "Content-Encoding" in found.said["message"]
    place.assert_well()


BOMBS = {
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep and whole": b'{"policy":' * 500 + b"{}" + b"}" * 500,
    "a number that is too long": b'{"pageSize":' + b"9" * 100_000 + b"}",
    "a fraction": b'{"pageSize":1.5}',
    "no number": b'{"pageSize":NaN}',
    "two keys": b'{"pageSize":1,"pageSize":2}',
    "an unknown field": b'{"page":1}',
    "a list": b"[]",
    "a text": b'"x"',
    "nothing": b"",
    "bytes": bytes(range(256)),
    "a lone surrogate": b'{"pageToken":"\\ud800"}',
}


@pytest.mark.parametrize("name", BOMBS)
def test_json_that_is_no_message_is_refused_by_name(place: Place, name: str) -> None:
    found = call(place.port, "ListDatasets", place.token, BOMBS[name])
    assert (found.status, found.said["code"]) == (400, "invalid_argument"), found.body
    assert len(found.body) < 8192
    place.assert_well()


@pytest.mark.parametrize("body", [b'{"changes":[' + b"{}," * (MIB - 10) + b"{}]}", b"[" * 4 * MIB])
def test_json_that_no_wait_would_bring_room_for_is_refused_and_not_to_be_repeated(
    place: Place, body: bytes
) -> None:
    found = call(place.port, "PutEntries", place.token, body)
    assert (found.status, found.info.reason) == (400, "BAD_FIELD")
    assert "too many objects" in found.said["message"]
    place.assert_well()


def test_unknown_fields_of_an_encoded_message_are_skipped_as_over_grpc(place: Place) -> None:
    assert call(place.port, "ListDatasets", place.token, b"\xfa\x7f\x03abc", PROTO).status == 200
    assert call(place.port, "ListDatasets", place.token, b"\xff\xff\xff", PROTO).status == 400


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"connect_protocol_version": "1"}, 200),
        ({"connect_protocol_version": "2"}, 400),
        ({"connect_timeout_ms": "60000"}, 200),
        ({"connect_timeout_ms": "-1"}, 400),
        ({"connect_timeout_ms": "99999999999"}, 400),
        ({"content_type": "application/json; charset=utf-8"}, 200),
        ({"content_type": "text/plain"}, 415),
    ],
)
def test_the_headers_of_connect_are_checked(place: Place, more: dict[str, str], status: int) -> None:
    assert call(place.port, "ListDatasets", place.token, **more).status == status


def test_a_call_ends_when_its_callers_time_is_over(place: Place) -> None:
    with raw(place.port) as line:
        line.sendall(place.head("ListDatasets", 100, "Connect-Timeout-Ms: 200") + b"{")
        found = answer_of(line)
    assert (found.status, found.said["code"]) == (504, "deadline_exceeded")
    place.assert_well()


# ---------------------------------------------------------------------- slow clients, and many


def test_a_silent_client_and_a_slow_head_are_cut_off(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(connections, "HTTP_HEAD_S", 1.0)
        with raw(place.port) as silent, raw(place.port) as slow:
            slow.sendall(b"POST /x HTTP/1.1\r\nHost:")
            assert (rest_of(silent), rest_of(slow)) == (b"", b"")
    monkeypatch.setattr(connections, "HTTP_SILENCE_S", 0.2)
    with raw(place.port) as line:
        line.sendall(place.head("ListDatasets", 2) + b"{}")
        assert b" 200 " in rest_of(line)
    place.assert_well()


def test_a_body_that_pauses_ends_its_call(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with raw(place.port) as line, monkeypatch.context() as patched:
        patched.setattr(exchange, "HTTP_SILENCE_S", 0.2)
        line.sendall(place.head("ListDatasets", 100) + b"{")
        found = answer_of(line)
    assert found.status == 400
    assert "paused" in found.said["message"]
    place.assert_well()


def test_answers_that_are_not_read_are_dropped(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HTTP_SILENCE_S", 0.3)
    with raw(place.port) as line:
        line.setsockopt(1, 8, 4096)
        line.settimeout(0.5)
        one = place.head("GetServerInfo", 2) + b"{}"
        sent = 0
        try:
            while sent < 64 * MIB:
                sent += line.send(one * 100)
        except (TimeoutError, BrokenPipeError, ConnectionResetError):
            pass
        assert sent < 64 * MIB
        wait_until(lambda: not place.running.service._http._state.connections)
    place.assert_well()


def test_connections_are_limited_by_address_and_in_all(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HTTP_HEAD_S", 600.0)  # else its end would look like a refusal
    for name, most in (("HTTP_CONNECTIONS_ADDRESS_MAX", 3), ("HTTP_CONNECTIONS_MAX", 2)):
        monkeypatch.setattr(connections, name, most)
        lines = [raw(place.port) for _ in range(most)]
        opened = [line.__enter__() for line in lines]
        wait_until(lambda most=most: len(place.running.service._http._state.connections) == most)
        with raw(place.port) as refused:
            assert rest_of(refused) == b""
        for line in lines:
            line.__exit__(None, None, None)
        assert len(opened) == most
        wait_until(lambda: not place.running.service._http._state.connections)
        place.assert_well()


def test_without_a_valid_token_no_body_is_read(place: Place) -> None:
    with raw(place.port) as line:
        line.sendall(place.head("ListDatasets", 3 * MIB, token="staddle_unknown"))
        assert b" 401 " in line.recv(4096)
    place.assert_well()


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /%2e%2e/%00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 2 * HTTP_HEAD_BYTES_MAX + b"\r\n\r\n",
        b"POST /" + b"a" * 2 * HTTP_HEAD_BYTES_MAX + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA\x00B: c\r\n\r\n",
    ],
    ids=lambda sent: repr(sent[:20]),
)
def test_what_is_no_request_of_this_service_gets_an_error(place: Place, sent: bytes) -> None:
    with raw(place.port) as line:
        line.sendall(sent)
        line.settimeout(20)
        assert re.match(rb"HTTP/1.1 4(00|04) ", line.recv(4096))
    place.assert_well()
