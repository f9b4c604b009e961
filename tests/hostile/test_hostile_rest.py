"""Hostile REST: tricks with addresses and queries, half bodies, stalled readers; nothing stays held, and no fault."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator

import pytest
from http_door import answer_of, open_http, raw, rest_of
from rest_door import RestDoor
from servers import Running
from staddle_server.api.http import connections, exchange
from staddle_server.base.limits import HTTP_HEAD_BYTES_MAX, TAGS_MAX
from thin import back_up, noise, wait_until

MIB = 1 << 20
BIG = noise(48 * MIB, 3)
WWW = "/v1/datasets/www"
FILE = f"{WWW}/backups/latest/files/big"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestDoor]:
    running = Running(tmp_path_factory.mktemp("hostile"))
    back_up(running.stub(), "www", {"a": b"1", "big": BIG})
    yield RestDoor(running, open_http(running))
    running.stop()


@pytest.fixture
def door(serving: RestDoor, caplog: pytest.LogCaptureFixture) -> Iterator[RestDoor]:
    """The door; at the end nothing is held, and no fault was logged."""
    yield serving
    gate = serving.running.service._gate
    wait_until(lambda: not gate._calls and gate.calls.idle and gate.streams.idle)
    wait_until(lambda: gate.decoded.used(serving.running.tenant) == 0)
    assert serving.get("/v1/datasets").status == 200
    faults = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert [each.getMessage() for each in faults] == []


def head(door: RestDoor, target: str | bytes, verb: str = "GET", *more: str, role: str = "admin") -> bytes:
    name, value = next(iter(door.headers(role).items()))
    target = target.encode() if isinstance(target, str) else target
    lines = ["Host: here", f"{name}: {value}", *more, "", ""]
    return b"%s %s HTTP/1.1\r\n%s" % (verb.encode(), target, "\r\n".join(lines).encode())


def status_of(door: RestDoor, target: str | bytes, verb: str = "GET") -> int:
    with raw(door.port) as line:
        line.sendall(head(door, target, verb, "Connection: close"))
        found = re.match(rb"HTTP/1.1 (\d+) ", rest_of(line))
    return int(found[1]) if found else 0


TARGETS = {
    "/v1/datasets/../datasets/www": 404,
    "/v1/datasets/%2e%2e/backups": 404,
    "/v1//datasets": 404,
    "//v1/datasets": 404,
    "/v1/datasets/www/": 404,
    "/V1/datasets": 404,
    "/v1%2Fdatasets": 404,
    "/%76%31/datasets": 404,
    "/v1/datasets;x=1": 404,
    "/v1/%64atasets": 404,
    "/v1/datasets/www%00": 400,
    "/v1/datasets/%": 400,
    "/v1/datasets/%c3%28": 400,
    "/v1/datasets/%ed%a0%80": 400,
    f"/v1/datasets/{'%61' * 256}": 400,
    f"/v1/datasets/{'a/' * 10_000}": 404,
    f"{WWW}/backups/latest/files/{'../' * 50}etc/passwd": 400,
    f"{WWW}/backups/latest/files/%2e%2e%2f%2e%2e%2fetc%2fpasswd": 400,
    f"{WWW}/backups/latest/files//etc/passwd": 400,
    f"{WWW}/backups/latest/files/a%00.txt": 400,
    f"{WWW}/backups/latest/files/{'%ff' * 16_384}": 400,
    f"{WWW}/backups/latest/files/{'a/' * 2_000}a": 400,
    f"{WWW}/backups/latest/files/a?x=1": 400,
    f"{WWW}/backups/at=9999-12-31T23:59:59.999999999Z": 200,
    f"{WWW}/backups/at=99999-01-01T00:00:00Z": 400,
    f"{WWW}/backups/at=": 400,
    f"{WWW}/backups/-1": 400,
    f"{WWW}/backups/{'0' * 33}": 400,
    "/v1/datasets?": 200,
    "/v1/datasets?&&&": 200,
    "/v1/datasets?pageSize": 400,
    "/v1/datasets?pageSize=": 400,
    "/v1/datasets?pageSize=1_0": 400,
    "/v1/datasets?pageSize=%D9%A1": 400,
    "/v1/datasets?pageSize=1;pageSize=2": 400,
    "/v1/datasets?pageSize=+1": 400,
    "/v1/datasets?=1": 400,
    "/v1/datasets?%FF=1": 400,
    "/v1/datasets?pageToken=%00": 400,
    "/v1/datasets?" + "a&" * 40_000: 400,
    "/v1/datasets?" + "pageSize=1&" * 5_000: 400,
    f"{WWW}/backups?" + "tag=a&" * TAGS_MAX: 200,
    f"{WWW}/backups?" + "tag=a&" * (TAGS_MAX + 1): 400,
    f"{WWW}/backups?tag=": 400,
    f"{WWW}/backups?tag==x": 400,
    f"{WWW}/backups?tag={'k' * 129}": 400,
    f"{WWW}/backups?tag=k={'v' * 1025}": 400,
    f"{WWW}/backups?tag=%00": 400,
    f"{WWW}/backups?tag={'%22' * 100}": 200,
    f"{WWW}/backups?host=%ff": 400,
    f"{WWW}/backups/latest/entries?path={'%ff' * 16_384}": 400,
    f"{WWW}/backups/latest/entries?path=%2e%2e": 400,
    f"{WWW}/backups/latest/changes?from=latest&from=latest": 400,
    "/v1/datasets?pageToken=" + "a" * HTTP_HEAD_BYTES_MAX: 400,
}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target[:50])
def test_an_address_means_what_it_says_or_is_refused(door: RestDoor, target: str) -> None:
    assert status_of(door, target) == TARGETS[target]


@pytest.mark.parametrize("target", [b"/v1/datasets/\xc3\xbc", b"/v1/datasets/\x01", b"/v1/data sets"])
def test_an_address_that_is_no_address_is_refused(door: RestDoor, target: bytes) -> None:
    assert status_of(door, target) == 400


@pytest.mark.parametrize("verb", ["TRACE", "OPTIONS", "CONNECT", "get", "GETX", "PROPFIND", "POST", "PATCH"])
def test_a_verb_that_an_address_does_not_have_does_nothing(door: RestDoor, verb: str) -> None:
    assert status_of(door, "/v1/datasets", verb) == 405


def test_headers_that_are_no_headers_of_ours_change_nothing(door: RestDoor) -> None:
    for more in (
        {"x_http_method_override": "DELETE"},
        {"x_forwarded_for": "1.2.3.4", "forwarded": "for=x"},
        {"range": "bytes=" + "0-1," * 3000 + "5-6"},
        {"if_none_match": '"' * 8000},
        {"if_match": "W/" * 4000},
        {"if_range": '"' + "a" * 8000},
        {"accept_encoding": "gzip;q=" + "9" * 5000},
        {"expect": "100-continue"},
    ):
        found = door.get(f"{WWW}/backups/latest/files/a", **more)
        assert found.status == (412 if "if_match" in more else 200), more


def test_a_half_body_changes_nothing(door: RestDoor) -> None:
    body = b'{"reason": "case"}'
    more = ("Content-Type: application/json", f"Content-Length: {len(body) + 1}")
    for _ in range(3):
        with raw(door.port) as line:
            line.sendall(head(door, f"{WWW}/hold", "PUT", *more) + body)
            wait_until(lambda: door.running.service._gate._calls)
    assert "hold" not in door.get(f"{WWW}/retention").said["retention"]


def test_a_body_that_pauses_is_refused(door: RestDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "HTTP_SILENCE_S", 0.2)
    with raw(door.port) as line:
        line.sendall(
            head(door, f"{WWW}/hold", "PUT", "Content-Type: application/json", "Content-Length: 9") + b"{"
        )
        found = answer_of(line)
    assert (found.status, "paused" in found.said["message"]) == (400, True)


def test_a_body_above_the_limit_is_refused(door: RestDoor) -> None:
    found = door.send("PUT", f"{WWW}/hold", {"reason": "x" * 5 * MIB})
    assert (found.status, found.said["code"]) == (429, "resource_exhausted")


def test_requests_one_after_another_on_a_connection_get_their_own_answers(door: RestDoor) -> None:
    part = head(door, f"{WWW}/backups/latest/files/a")
    with raw(door.port) as line:
        line.sendall(part + head(door, f"{WWW}/backups/latest/files/a", "HEAD") + head(door, "/v1/x") + part)
        line.sendall(head(door, "/v1/datasets", "GET", "Connection: close"))
        found = rest_of(line)
    assert re.findall(rb"HTTP/1.1 (\d+) ", found) == [b"200", b"200", b"404", b"200", b"200"]
    assert found.count(b"\r\n\r\n1") == 2


# ---------------------------------------------------------------------- readers that do not read


def stalled(door: RestDoor, role: str = "reader") -> socket.socket:
    """A connection that has asked for a large file and reads nothing but its head."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.settimeout(60)
    line.connect(("127.0.0.1", door.port))
    line.sendall(head(door, FILE, role=role))
    assert line.recv(12) == b"HTTP/1.1 200"
    return line


def test_a_reader_that_stops_reading_is_cut_off(door: RestDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HTTP_SILENCE_S", 2.0)
    with stalled(door):
        wait_until(lambda: door.running.service._gate.streams.idle)


def test_a_reader_that_leaves_ends_the_work_for_it(door: RestDoor) -> None:
    for _ in range(5):
        stalled(door).close()
    wait_until(lambda: door.running.service._gate.streams.idle)


def test_a_reader_whose_token_is_revoked_gets_no_more(door: RestDoor) -> None:
    running = door.running
    with stalled(door, "writer") as line:
        running.catalog.tokens.revoke(
            running.tenant, f"writer-{running.tenant.hex()[:6]}", running.clock.now_ns()
        )
        running.service._gate.end_invalid()  # refused at its next step
        running.service._gate.end_invalid()  # and cut off, as it takes none
        wait_until(lambda: running.service._gate.streams.idle)
        assert len(rest_of(line)) < len(BIG)


def test_downloads_count_against_the_slots_of_streams(
    door: RestDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door.running.service._gate.streams, "_slots_max", 2)
    with stalled(door), stalled(door):
        found = door.get(FILE)
        assert (found.status, found.info.reason) == (429, "TOO_MANY")
        assert found.headers["retry-after"]
        assert door.get("/v1/datasets").status == 200


def test_a_server_stops_while_a_reader_does_not_read(tmp_path) -> None:
    running = Running(tmp_path)
    back_up(running.stub(), "www", {"big": BIG})
    with stalled(RestDoor(running, open_http(running))):
        running.stop()
