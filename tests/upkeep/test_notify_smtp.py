"""Mail: a real mail server on loopback."""

from __future__ import annotations

import datetime
import email
import email.policy
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from receivers import misbehaving
from staddle_server.app import certificates
from staddle_server.catalog import Alarm, AlarmKey
from staddle_server.upkeep.notify.attempt import TargetError, Watchdog
from staddle_server.upkeep.notify.notice import BEGAN, OVER, Notice
from staddle_server.upkeep.notify.smtp import PLAIN, STARTTLS, TLS, Smtp
from staddle_server.upkeep.notify.targets import Filter

aiosmtpd = pytest.importorskip("aiosmtpd")
from aiosmtpd.controller import Controller  # noqa: E402
from aiosmtpd.smtp import AuthResult  # noqa: E402

# aiosmtpd uses what newer versions of Python deprecate.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Requiring AUTH:UserWarning")

NOW_NS = 1_796_040_962 * 10**9
PASSWORD = "p4ss word"
EVIL = "x\r\nBcc: eve@example.com\r\n\r\n.\r\nMAIL FROM:<eve@example.com>\r\n"


def notice(number: int, text: str = "Stored data is damaged: 2 packs.", state: str = BEGAN) -> Notice:
    alarm = Alarm(AlarmKey("damage", "acme", "", str(number)), "critical", text, "Do `x`.", NOW_NS)
    return Notice(f"{number:02x}.{state}", state, alarm, NOW_NS, NOW_NS if state == OVER else None)


class Box:
    """Keeps the mails; refuses recipients at `refused`."""

    def __init__(self, refused: str = "") -> None:
        self.envelopes: list[Any] = []
        self._refused = refused

    async def handle_RCPT(  # noqa: N802 - as aiosmtpd calls it
        self, _server: Any, _session: Any, envelope: Any, address: str, _options: Any
    ) -> str:
        if self._refused and address.endswith(self._refused):
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802 - as above
        self.envelopes.append(envelope)
        return "250 OK"

    def mail(self) -> EmailMessage:
        (envelope,) = self.envelopes
        parsed = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(parsed, EmailMessage)
        return parsed


@contextmanager
def mail_server(box: Box, **options: Any) -> Iterator[int]:
    class OnAnyPort(Controller):
        def _trigger_server(self) -> None:
            self.port = self.server.sockets[0].getsockname()[1]
            super()._trigger_server()

    controller = OnAnyPort(box, hostname="127.0.0.1", port=0, **options)
    controller.start()
    try:
        yield controller.port
    finally:
        controller.stop()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls")
    certificates.make(path, ("localhost",), (), 30, datetime.datetime.now(datetime.UTC))
    return path


def server_context(tls: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls / "server.crt", tls / "server.key")
    return context


def target(port: int, security: str = PLAIN, **fields: Any) -> Smtp:
    given = {"sender": "Staddle <staddle@example.com>", "to": ["ops@example.com"], **fields}
    return Smtp("t", Filter(), given.pop("host", "127.0.0.1"), port, security, **given)


def send(to: Smtp, *notices: Notice, timeout_s: float = 20.0) -> None:
    with Watchdog() as watchdog, watchdog.attempt(timeout_s) as attempt:
        to.send(notices, attempt, NOW_NS)


def test_a_mail_says_what_since_when_and_what_to_do() -> None:
    box = Box()
    with mail_server(box) as port:
        send(target(port, to=["ops@example.com", "dev@example.com"]), notice(1))
    mail = box.mail()
    assert box.envelopes[0].rcpt_tos == ["ops@example.com", "dev@example.com"]
    assert box.envelopes[0].mail_from == "staddle@example.com"
    assert mail["Subject"] == "[Staddle] Stored data is damaged (acme)"
    assert mail["Date"] == "Mon, 30 Nov 2026 12:16:02 -0000"
    assert mail["Message-ID"] == "<01.began.1@staddle.invalid>"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert (
        mail.get_content()
        .replace("\r\n", "\n")
        .startswith(
            "Stored data is damaged (acme)\nStored data is damaged: 2 packs.\nSince 2026-11-30 12:16 UTC.\nDo `x`.\n"
        )
    )


def test_messages_that_are_due_together_go_in_one_mail() -> None:
    box = Box()
    with mail_server(box) as port:
        send(target(port), *[notice(number, f"Text {number}.") for number in range(100)])
    mail = box.mail()
    assert mail["Subject"] == "[Staddle] 100 events: Stored data is damaged (acme), …"
    assert all(f"Text {number}." in mail.get_content() for number in range(100))


def test_no_text_becomes_a_header_or_a_command() -> None:
    """Texts are made printable where alarms are made; here they are not."""
    box = Box()
    evil = notice(1, EVIL)
    alarm = evil.alarm._replace(key=evil.alarm.key._replace(tenant=EVIL, subject=EVIL), advice=EVIL)
    with mail_server(box) as port:
        send(target(port), evil._replace(alarm=alarm))
    mail = box.mail()
    assert box.envelopes[0].rcpt_tos == ["ops@example.com"]
    assert mail["Bcc"] is None
    assert mail["Subject"].startswith("[Staddle] Stored data is damaged (x Bcc: eve@example.com")


@pytest.mark.parametrize("security", [STARTTLS, TLS])
def test_mail_goes_over_tls_with_a_verified_certificate_and_a_password(tls: Path, security: str) -> None:
    given = []

    def authenticate(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
        given.append((data.login, data.password))
        return AuthResult(success=data.password == PASSWORD.encode(), handled=False)

    box = Box()
    options: dict[str, Any] = {"authenticator": authenticate, "auth_required": True}
    if security == TLS:
        options |= {"ssl_context": server_context(tls), "auth_require_tls": False}
    else:
        options |= {"tls_context": server_context(tls), "require_starttls": True}
    trust = ssl.create_default_context(cafile=tls / "ca.crt")
    with mail_server(box, **options) as port:
        to = {"host": "localhost", "user": "staddle"}
        send(target(port, security, password=PASSWORD, context=trust, **to), notice(1))
        with pytest.raises(TargetError, match=r"localhost refuses the user or password \(535\)"):
            send(target(port, security, password="wrong", context=trust, **to), notice(1))
        with pytest.raises(TargetError, match="the certificate of localhost is not trusted"):
            send(target(port, security, password=PASSWORD, **to), notice(1))
    assert box.mail()["To"] == "ops@example.com"
    assert {password for _, password in given} == {PASSWORD.encode(), b"wrong"}
    assert [password for _, password in given].count(PASSWORD.encode()) == 1, "none without trust"


def test_a_server_without_starttls_gets_no_mail() -> None:
    box = Box()
    with mail_server(box) as port, pytest.raises(TargetError, match="STARTTLS"):
        send(target(port, STARTTLS), notice(1))
    assert box.envelopes == []


def test_one_refused_address_does_not_stop_the_others_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    box = Box(refused="gone.example.com")
    with mail_server(box) as port:
        send(target(port, to=["a@gone.example.com", "b@example.com"]), notice(1))
        assert box.envelopes[0].rcpt_tos == ["b@example.com"]
        assert "refuses the address a@gone.example.com" in caplog.text
        with pytest.raises(TargetError, match="refuses every address: no such user"):
            send(target(port, to=["a@gone.example.com"]), notice(1))


@pytest.mark.parametrize(
    ("greeting", "drop"),
    [(b"", b""), (b"220 ", b"x"), (b"220-a\r\n", b"220-a\r\n"), (b"220 hello\r\n", b"250-A\r\n")],
    ids=["silence", "a slow greeting", "a greeting without end", "extensions without end"],
)
def test_a_mail_server_that_never_ends_its_answer_is_left_in_time(greeting: bytes, drop: bytes) -> None:
    def behave(connection: Any, over: Any) -> None:
        connection.sendall(greeting)
        while not over.wait(0.05):
            connection.sendall(drop)

    with misbehaving(behave) as port, pytest.raises(TargetError, match="no complete answer within 1 s"):
        send(target(port), notice(1), timeout_s=1)


def test_another_protocol_is_named() -> None:
    with (
        misbehaving(lambda connection, _: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port,
        pytest.raises(TargetError, match=r"127\.0\.0\.1"),
    ):
        send(target(port), notice(1))
