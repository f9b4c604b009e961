"""Mail: all messages that are due go in one."""

from __future__ import annotations

import email.policy
import email.utils
import logging
import smtplib
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any, ClassVar, Final, cast

from staddle_server.base.clock import NS
from staddle_server.upkeep.events.kinds import printable
from staddle_server.upkeep.notify.attempt import CONNECT_S, Attempt, TargetError, reasons
from staddle_server.upkeep.notify.notice import Notice, body_of, subject_of
from staddle_server.upkeep.notify.targets import TIMEOUT_S, Filter

log = logging.getLogger(__name__)

TLS: Final = "tls"
STARTTLS: Final = "starttls"
PLAIN: Final = "none"
PORTS: Final = {TLS: 465, STARTTLS: 587, PLAIN: 25}
SUBJECT_CHARS_MAX: Final = 150


@dataclass(frozen=True)
class Smtp:
    """A mail server, and to whom it delivers."""

    kind: ClassVar[str] = "smtp"
    most: ClassVar[int] = 100
    name: str
    filter: Filter
    host: str
    port: int
    security: str
    sender: str
    to: Sequence[str]
    user: str = ""
    password: str = field(default="", repr=False)
    context: ssl.SSLContext | None = field(default=None, repr=False)
    timeout_s: float = TIMEOUT_S

    def send(self, notices: Sequence[Notice], attempt: Attempt, now_ns: int) -> None:
        """Send one mail. TargetError."""
        message = self.mail(notices, now_ns)
        with reasons(attempt, self.host):
            try:
                refused = self._deliver(message, attempt)
            except smtplib.SMTPException as error:
                if attempt.was_cut:
                    raise attempt.late() from error
                raise TargetError(_words(error, self.host)) from error
        for address in refused:
            log.warning("notification target %s: %s refuses the address %s", self.name, self.host, address)

    def mail(self, notices: Sequence[Notice], now_ns: int) -> EmailMessage:
        """Return the mail for these messages."""
        message = EmailMessage(policy=email.policy.SMTP)
        message["Subject"] = printable(f"[Staddle] {subject_of(notices)}", SUBJECT_CHARS_MAX)
        message["From"] = self.sender
        message["To"] = ", ".join(self.to)
        message["Date"] = email.utils.formatdate(now_ns / NS)
        message["Message-ID"] = f"<{notices[0].id}.{len(notices)}@staddle.invalid>"
        message["Auto-Submitted"] = "auto-generated"
        host = printable(socket.gethostname())
        message.set_content(f"{body_of(notices)}\n\n-- \nStaddle on {host}\n")
        return message

    def _deliver(self, message: EmailMessage, attempt: Attempt) -> dict[str, Any]:
        context = _Watched(self.context or ssl.create_default_context(), attempt)
        with _Session(self, context, attempt) as session:
            if self.security == STARTTLS:
                session.starttls(context=cast("ssl.SSLContext", context))  # it only wraps the socket
            if self.user:
                session.login(self.user, self.password)
            return session.send_message(message, from_addr=_address(self.sender), to_addrs=list(self.to))


class _Watched:
    """Wraps sockets as a context does, and lets the attempt watch them before the handshake."""

    def __init__(self, context: ssl.SSLContext, attempt: Attempt) -> None:
        self._context = context
        self._attempt = attempt

    def wrap_socket(self, plain: socket.socket, server_hostname: str) -> ssl.SSLSocket:
        """Return the connection with TLS."""
        return self._attempt.secured(plain, self._context, server_hostname)


class _Session(smtplib.SMTP):
    """A session over connections that the attempt watches."""

    def __init__(self, target: Smtp, context: _Watched, attempt: Attempt) -> None:
        self._attempt = attempt
        self._tls = context if target.security == TLS else None
        # Without a name of its own, smtplib asks the name service for one.
        super().__init__(target.host, target.port, local_hostname=socket.gethostname(), timeout=CONNECT_S)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:  # noqa: ARG002 - the attempt has one
        made = self._attempt.connect(host, port)
        return made if self._tls is None else self._tls.wrap_socket(made, host)


def _address(text: str) -> str:
    return email.utils.parseaddr(text)[1]


def _words(error: smtplib.SMTPException, host: str) -> str:
    """Return in words why a mail server refused."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        reason = next(iter(error.recipients.values()))[1]
        return f"{host} refuses every address: {reason.decode('utf-8', 'replace')}"
    if isinstance(error, smtplib.SMTPAuthenticationError):
        return f"{host} refuses the user or password ({error.smtp_code})"
    if isinstance(error, smtplib.SMTPResponseException):
        text = error.smtp_error
        said = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
        return f"{host} answers {error.smtp_code}: {said}"
    return f"{host}: {error}"
