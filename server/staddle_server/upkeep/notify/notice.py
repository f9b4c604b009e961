"""What targets get: an event that began or is over, as data and as text."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from typing import Final, NamedTuple

from staddle._base.figures import counted

from staddle_server.catalog import Alarm, Delivery
from staddle_server.catalog.validation import rfc3339, utc_minute
from staddle_server.upkeep.events.kinds import KINDS

BEGAN: Final = "began"
OVER: Final = "over"
TEST: Final = "test"
VERSION: Final = 1
"""Of the JSON form."""


class Notice(NamedTuple):
    """One message.

    Attributes:
        id: The same at each try, so that a receiver can ignore a double.
        state: BEGAN, OVER or TEST.
        alarm: What it is about.
        began_ns: When the event was found.
        over_ns: When it was over.

    """

    id: str
    state: str
    alarm: Alarm
    began_ns: int
    over_ns: int | None

    @property
    def title(self) -> str:
        """A few words, for a subject line."""
        kind = KINDS.get(self.alarm.key.kind)
        if self.state == TEST or kind is None:
            return "Test message" if self.state == TEST else self.alarm.key.kind
        words = kind.ends if self.state == OVER else kind.begins
        return f"{words} ({self.alarm.key.tenant})" if self.alarm.key.tenant else words

    @property
    def text(self) -> str:
        """A few lines for a person: what, since when, what to do."""
        if self.state == OVER and self.over_ns is not None:
            return (
                f"{self.title}: over since {utc_minute(self.over_ns)}.\n"
                f"It began at {utc_minute(self.alarm.since_ns or self.began_ns)}: {self.alarm.text}"
            )
        since = self.alarm.since_ns or self.began_ns
        return f"{self.alarm.text}\nSince {utc_minute(since)}.\n{self.alarm.advice}"

    def as_object(self) -> dict[str, object]:
        """Return the form that webhooks and commands get (docs/monitoring.md)."""
        key, alarm = self.alarm.key, self.alarm
        return {
            "version": VERSION,
            "id": self.id,
            "event": self.id.partition(".")[0],
            "state": self.state,
            "kind": key.kind,
            "severity": alarm.severity,
            "title": self.title,
            "text": alarm.text,
            "advice": alarm.advice,
            "tenant": key.tenant,
            "server": key.server,
            "subject": key.subject,
            "since": rfc3339(alarm.since_ns or self.began_ns),
            "began": rfc3339(self.began_ns),
            "over": None if self.over_ns is None else rfc3339(self.over_ns),
            "host": socket.gethostname(),
        }

    def as_json(self) -> bytes:
        """Return the object as UTF-8."""
        return json.dumps(self.as_object(), ensure_ascii=False, separators=(",", ":")).encode()


def notice_of(delivery: Delivery) -> Notice:
    """Return the message of a delivery."""
    event, state = delivery.event, OVER if delivery.over else BEGAN
    over_ns = event.over_ns if delivery.over else None
    return Notice(f"{event.id.hex()}.{state}", state, event.alarm, event.began_ns, over_ns)


def body_of(notices: Sequence[Notice]) -> str:
    """Return the text of messages that go together."""
    return "\n\n".join(f"{notice.title}\n{notice.text}" for notice in notices)


def subject_of(notices: Sequence[Notice]) -> str:
    """Return a subject line for messages that go together."""
    if len(notices) == 1:
        return notices[0].title
    return f"{counted(len(notices), 'event')}: {notices[0].title}, …"
