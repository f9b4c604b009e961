"""A ping service such as Healthchecks: it is told regularly that all is well, and raises the alarm when it is
not told.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

from staddle_server.upkeep.notify.attempt import Attempt
from staddle_server.upkeep.notify.http_post import HttpUrl, post
from staddle_server.upkeep.notify.notice import Notice
from staddle_server.upkeep.notify.targets import TIMEOUT_S, Filter

EVERY_S: Final = 300.0
SHOWN_MAX: Final = 50
"""Events that a body lists."""
FAIL: Final = "fail"


@dataclass(frozen=True)
class Ping:
    """The URL of one check. Events that pass the filter make it fail, until they are over."""

    kind: ClassVar[str] = "ping"
    name: str
    filter: Filter
    url: HttpUrl = field(repr=False)
    every_s: float = EVERY_S
    context: ssl.SSLContext | None = field(default=None, repr=False)
    timeout_s: float = TIMEOUT_S

    def tell(self, notices: Sequence[Notice], attempt: Attempt) -> None:
        """Post to the URL, or to URL/fail with what is wrong. TargetError."""
        texts = [notice.text for notice in notices[:SHOWN_MAX]]
        body = "\n\n".join(texts) or "All is well."
        url = self.url.below(FAIL) if notices else self.url
        headers = {"Content-Type": "text/plain; charset=utf-8"}
        post(url, body.encode(), headers, self.context, attempt)
