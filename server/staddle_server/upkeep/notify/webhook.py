"""A webhook: each message is a POST of JSON, signed if there is a secret."""

from __future__ import annotations

import hashlib
import hmac
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

from staddle_server.base.clock import NS
from staddle_server.upkeep.notify.attempt import Attempt
from staddle_server.upkeep.notify.http_post import HttpUrl, post
from staddle_server.upkeep.notify.notice import Notice
from staddle_server.upkeep.notify.targets import TIMEOUT_S, Filter

SIGNATURE: Final = "Staddle-Signature"
ID: Final = "Staddle-Id"


@dataclass(frozen=True)
class Webhook:
    """A URL that takes messages as JSON."""

    kind: ClassVar[str] = "webhook"
    most: ClassVar[int] = 1
    name: str
    filter: Filter
    url: HttpUrl
    secret: bytes = field(default=b"", repr=False)
    context: ssl.SSLContext | None = field(default=None, repr=False)
    timeout_s: float = TIMEOUT_S

    def send(self, notices: Sequence[Notice], attempt: Attempt, now_ns: int) -> None:
        """Post each message. TargetError."""
        for notice in notices:
            body = notice.as_json()
            headers = {"Content-Type": "application/json; charset=utf-8", ID: notice.id}
            if self.secret:
                headers[SIGNATURE] = signature(self.secret, now_ns // NS, body)
            post(self.url, body, headers, self.context, attempt)


def signature(secret: bytes, time_s: int, body: bytes) -> str:
    """Return the value of the header: the time, and HMAC-SHA256 over the time, a dot and the body."""
    made = hmac.new(secret, b"%d." % time_s + body, hashlib.sha256).hexdigest()
    return f"t={time_s},v1={made}"
