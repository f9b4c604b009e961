"""Webhooks and ping services: real receivers, and receivers that misbehave."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from receivers import misbehaving, receiving
from staddle_server.app import certificates
from staddle_server.catalog import Alarm, AlarmKey
from staddle_server.upkeep.notify.attempt import TargetError, Watchdog
from staddle_server.upkeep.notify.http_post import HttpUrl, parse_http_url, post
from staddle_server.upkeep.notify.notice import BEGAN, OVER, Notice
from staddle_server.upkeep.notify.ping import Ping
from staddle_server.upkeep.notify.targets import Filter
from staddle_server.upkeep.notify.webhook import Webhook, signature

NOW_NS = 1_796_040_962 * 10**9
ALARM = Alarm(
    AlarmKey("damage", "acme", "", "stored data"),
    "critical",
    "Stored data of tenant acme is damaged: 2 packs.",
    "Run `staddle-server check`.",
    NOW_NS - 60 * 10**9,
)
BEGUN = Notice("ab.began", BEGAN, ALARM, NOW_NS, None)
ENDED = Notice("ab.over", OVER, ALARM, NOW_NS, NOW_NS + 600 * 10**9)
SECRET = b"shared secret"


def send(target: Webhook, *notices: Notice, timeout_s: float = 20.0) -> None:
    with Watchdog() as watchdog, watchdog.attempt(timeout_s) as attempt:
        target.send(notices, attempt, NOW_NS)


def hook(url: HttpUrl, **fields: object) -> Webhook:
    return Webhook("t", Filter(), url, **fields)  # type: ignore[arg-type]


def test_a_webhook_gets_what_when_and_what_to_do_with_a_signature_that_it_can_check() -> None:
    with receiving() as receiver:
        send(hook(receiver.parsed("/a?b=c"), secret=SECRET), BEGUN)
        send(hook(receiver.parsed()), ENDED)
        signed, plain = receiver.next(), receiver.next()
    assert signed.path == "/a?b=c"
    assert signed.headers["Host"] == f"127.0.0.1:{receiver.port}"
    assert signed.headers["Staddle-Id"] == "ab.began"
    stamp, _, made = signed.headers["Staddle-Signature"].partition(",v1=")
    expected = hmac.new(SECRET, stamp.removeprefix("t=").encode() + b"." + signed.body, hashlib.sha256)
    assert made == expected.hexdigest()
    assert stamp == f"t={NOW_NS // 10**9}"
    value = signed.value
    host = value.pop("host")
    assert host == socket.gethostname()
    assert value == {
        "version": 1,
        "id": "ab.began",
        "event": "ab",
        "state": "began",
        "kind": "damage",
        "severity": "critical",
        "title": "Stored data is damaged (acme)",
        "text": "Stored data of tenant acme is damaged: 2 packs.",
        "advice": "Run `staddle-server check`.",
        "tenant": "acme",
        "server": "",
        "subject": "stored data",
        "since": "2026-11-30T12:15:02Z",
        "began": "2026-11-30T12:16:02Z",
        "over": None,
    }
    assert "Staddle-Signature" not in plain.headers
    assert (plain.value["state"], plain.value["over"]) == ("over", "2026-11-30T12:26:02Z")
    assert plain.value["title"] == "No damage is left (acme)"


def test_a_signature_binds_the_time_and_the_body() -> None:
    made = signature(SECRET, 5, b"body")
    assert made != signature(SECRET, 6, b"body")
    assert made.partition("v1=")[2] != signature(SECRET, 5, b"bodz").partition("v1=")[2]
    assert made.partition("v1=")[2] != signature(b"other", 5, b"body").partition("v1=")[2]


def test_a_ping_service_hears_that_all_is_well_or_what_is_not() -> None:
    with receiving() as receiver, Watchdog() as watchdog:
        target = Ping("t", Filter(), receiver.parsed("/uuid?rid=1"))
        for notices in ((), (BEGUN,)):
            with watchdog.attempt(20) as attempt:
                target.tell(notices, attempt)
        well, bad = receiver.next(), receiver.next()
    assert (well.path, well.body) == ("/uuid?rid=1", b"All is well.")
    assert bad.path == "/uuid/fail?rid=1"
    assert bad.body.decode() == (
        "Stored data of tenant acme is damaged: 2 packs.\nSince 2026-11-30 12:15 UTC.\nRun `staddle-server check`."
    )


@pytest.mark.parametrize("status", [201, 204])
def test_every_status_of_success_takes_the_message(status: int) -> None:
    with receiving() as receiver:
        receiver.status = status
        send(hook(receiver.parsed()), BEGUN)
        assert receiver.next().value["id"] == "ab.began"


@pytest.mark.parametrize("status", [400, 401, 404, 410, 429, 500, 503])
def test_a_refusal_says_what_the_receiver_said_on_one_line(status: int) -> None:
    with receiving() as receiver:
        receiver.status, receiver.said = status, b"no\r\n\x1b[31msuch\x00 hook" + b"!" * 10_000
        with pytest.raises(
            TargetError, match=rf"127\.0\.0\.1 answers {status}: no \[31msuch hook!"
        ) as caught:
            send(hook(receiver.parsed("/path-is-secret")), BEGUN)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200
    assert "path-is-secret" not in str(caught.value)


def test_a_redirect_is_not_followed() -> None:
    with receiving() as other, receiving() as receiver:
        receiver.status, receiver.location = 307, other.url("/elsewhere")
        with pytest.raises(TargetError, match="answers 307, a redirect, which is not followed"):
            send(hook(receiver.parsed()), BEGUN)
        receiver.location = receiver.url()
        with pytest.raises(TargetError, match="a redirect"):
            send(hook(receiver.parsed()), BEGUN)
        assert len(receiver.all()) == 2
        assert other.all() == []


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls")
    certificates.make(path, ("localhost",), (), 30, datetime.datetime.now(datetime.UTC))
    return path


def test_a_certificate_is_verified_against_the_given_authority_and_for_the_name(
    tls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust = ssl.create_default_context(cafile=tls / "ca.crt")
    with receiving((tls / "server.crt", tls / "server.key")) as receiver:
        named = receiver.parsed(host="localhost")
        send(hook(named, context=trust), BEGUN)
        assert receiver.next().value["id"] == "ab.began"
        with pytest.raises(TargetError, match="the certificate of localhost is not trusted"):
            send(hook(named), BEGUN)
        address = socket.getaddrinfo("127.0.0.1", receiver.port, type=socket.SOCK_STREAM)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: address)
        with pytest.raises(TargetError, match=r"not trusted: Hostname mismatch"):
            send(hook(receiver.parsed(host="other.example.com"), context=trust), BEGUN)
        assert receiver.all() == []


def test_a_target_that_does_not_speak_tls_is_refused() -> None:
    with receiving() as receiver:
        url = parse_http_url(receiver.url().replace("http:", "https:"))
        with pytest.raises(TargetError, match=r"no TLS connection|no connection"):
            send(hook(url), BEGUN)
        assert receiver.all() == []


def test_a_host_or_port_where_nobody_is_has_a_reason() -> None:
    with pytest.raises(TargetError, match=r"no connection with 127\.0\.0\.1: Connection refused"):
        send(hook(parse_http_url("http://127.0.0.1:1/")), BEGUN)
    with pytest.raises(TargetError, match=r"the host x\.invalid is unknown|no connection|no answer"):
        send(hook(parse_http_url("http://x.invalid/")), BEGUN)


# --- receivers that misbehave

IN_TIME_S = 45.0
"""A busy machine delays an end; a receiver is silent for 60 s."""
Behave = Callable[[socket.socket, threading.Event], None]


def silent(connection: socket.socket, over: threading.Event) -> None:
    connection.recv(65_536)
    over.wait(60)


def deaf(_: socket.socket, over: threading.Event) -> None:
    over.wait(60)


def dripping(first: bytes, drop: bytes) -> Behave:
    def drip(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(65_536)
        connection.sendall(first)
        while not over.wait(0.05):
            connection.sendall(drop)

    return drip


def flooding(first: bytes, wave: bytes) -> Behave:
    def flood(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(65_536)
        connection.sendall(first)
        while not over.is_set():
            connection.sendall(wave)

    return flood


LATE = r"no complete answer within 1 s"
HOSTILE: dict[str, tuple[Behave, str]] = {
    "silence": (silent, LATE),
    "no reading": (deaf, LATE),
    "a slow status line": (dripping(b"HTTP/1.1 2", b"0"), LATE),
    "slow headers": (dripping(b"HTTP/1.1 200 OK\r\nX: ", b"a"), LATE),
    "a slow refusal": (
        dripping(b"HTTP/1.1 500 No\r\nContent-Length: 1000\r\n\r\n", b"a"),
        "answers 500",
    ),
    "continuations without end": (dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), LATE),
    "headers without end": (flooding(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1000), "does not answer as HTTP"),
    "a line without end": (flooding(b"HTTP/1.1 200 OK\r\nX: ", b"y" * 65_536), "does not answer as HTTP"),
    "another protocol": (flooding(b"", b"220 mail.example.com ESMTP\r\n" * 100), "does not answer as HTTP"),
    "a refusal with a bad chunk": (
        flooding(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n", b"zz\r\n" * 1000),
        "answers 500",
    ),
    "a refusal without end": (flooding(b"HTTP/1.1 500 No\r\n\r\n", b"y" * 65_536), "answers 500: yyy"),
    "a hang-up": (lambda connection, _: connection.close(), r"does not answer as HTTP|no connection"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_receiver_that_misbehaves_is_left_in_time(name: str) -> None:
    behave, says = HOSTILE[name]
    with misbehaving(behave) as port:
        begun_s = time.monotonic()
        with pytest.raises(TargetError, match=says):
            send(hook(parse_http_url(f"http://127.0.0.1:{port}/")), BEGUN, timeout_s=1 if says == LATE else 4)
        assert time.monotonic() - begun_s < IN_TIME_S


@pytest.mark.parametrize("drop", [b"", b"\x16"])
def test_a_tls_handshake_that_never_ends_is_left_in_time(drop: bytes) -> None:
    behave = dripping(b"\x16\x03\x03\x40\x00", drop) if drop else silent
    with misbehaving(behave) as port, pytest.raises(TargetError, match=LATE):
        send(hook(parse_http_url(f"https://127.0.0.1:{port}/")), BEGUN, timeout_s=1)


@pytest.mark.parametrize(
    "behave",
    [
        dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"a"),
        dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
        flooding(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65_536),
    ],
    ids=["slow", "slow chunks", "without end"],
)
def test_a_success_counts_whatever_body_follows(behave: Behave) -> None:
    with misbehaving(behave) as port:
        begun_s = time.monotonic()
        send(hook(parse_http_url(f"http://127.0.0.1:{port}/")), BEGUN)
        assert time.monotonic() - begun_s < IN_TIME_S


def test_a_stop_of_the_server_cuts_a_try_at_once() -> None:
    with misbehaving(silent) as port, Watchdog() as watchdog:
        begun_s = time.monotonic()
        stopper = threading.Timer(0.3, watchdog.cut_all)
        stopper.start()
        url = parse_http_url(f"http://127.0.0.1:{port}/")
        with watchdog.attempt(60) as attempt, pytest.raises(TargetError, match="the server stopped"):
            post(url, b"x", {}, None, attempt)
        stopper.join()
        assert time.monotonic() - begun_s < IN_TIME_S
