"""How pages write figures: ages, sizes, commands."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime, timedelta
from typing import Final

from markupsafe import Markup
from staddle._base.figures import counted, size
from staddle._base.printable import printable

from staddle_server.base.clock import NS

_UNITS: Final = (
    ("day", 86_400),
    ("hour", 3600),
    ("minute", 60),
    ("second", 1),
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
PATH_HEAD_CHARS: Final = 120
PATH_TAIL_CHARS: Final = 270
PATH_CHARS_MAX: Final = PATH_HEAD_CHARS + PATH_TAIL_CHARS + 3
_TWO_UNTIL: Final = 2
"""Fewer of the larger unit are written in the next smaller one: 36 hours, not 1 day."""


def span(seconds: float) -> str:
    """Return a duration in whole units of one kind: 40 seconds, 5 hours, 3 days."""
    for unit, unit_s in _UNITS:
        if seconds >= _TWO_UNTIL * unit_s or unit == "second":
            return counted(int(seconds // unit_s), unit)
    raise AssertionError(seconds)


def moment(ns: int) -> datetime:
    """Return a time; one that no calendar has is the nearest one that it has."""
    try:
        return _EPOCH + timedelta(microseconds=ns // 1000)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC) if ns > 0 else datetime.min.replace(tzinfo=UTC)


def path_words(path: bytes) -> str:
    """Return a path, or a part of one, as printable text. Of a long one the middle is left out: its end is its name."""
    text = printable(path.decode("utf-8", "surrogateescape"))
    return text if len(text) <= PATH_CHARS_MAX else f"{text[:PATH_HEAD_CHARS]} … {text[-PATH_TAIL_CHARS:]}"


def quoted(word: str | bytes) -> str:
    """Return a word for a shell. One with something that cannot be printed is in the form $'…' of bash and others."""
    raw = word if isinstance(word, bytes) else word.encode("utf-8", "surrogateescape")
    text = raw.decode("utf-8", "surrogateescape")
    if text.isprintable():
        return shlex.quote(text)
    letters = [each if each.isprintable() and each not in "'\\" else _shell_bytes(each) for each in text]
    return f"$'{''.join(letters)}'"


def _shell_bytes(letter: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", "surrogateescape"))


class Words:
    """Writes figures as of one moment."""

    span = staticmethod(span)
    size = staticmethod(size)
    count = staticmethod(counted)

    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns

    def ago(self, ns: int) -> Markup:
        """Return how long ago a time was, or in how long it will be; the time itself shows under the pointer."""
        seconds = (self.now_ns - ns) / NS
        text = f"{span(seconds)} ago" if seconds >= 0 else f"in {span(-seconds)}"
        return self._time(ns, "just now" if 0 <= seconds < 1 else text)

    def lasting(self, ns: int) -> Markup:
        """Return for how long something has been so: for 5 hours."""
        return self._time(ns, f"for {span(max(0.0, (self.now_ns - ns) / NS))}")

    def at(self, ns: int) -> Markup:
        """Return a time to the minute."""
        return self._time(ns, f"{moment(ns):%Y-%m-%d %H:%M}")

    def date(self, ns: int) -> Markup:
        """Return a day."""
        return self._time(ns, f"{moment(ns):%Y-%m-%d}")

    @staticmethod
    def exact(ns: int) -> str:
        """Return a time for machines."""
        return f"{moment(ns):%Y-%m-%dT%H:%M:%SZ}"

    @staticmethod
    def clock(ns: int) -> str:
        """Return a time to the second."""
        return f"{moment(ns):%Y-%m-%d %H:%M:%S}"

    @classmethod
    def _time(cls, ns: int, text: str) -> Markup:
        return Markup('<time datetime="{}" title="{} UTC">{}</time>').format(
            cls.exact(ns), cls.clock(ns), text
        )

    @staticmethod
    def marked(text: str) -> Markup:
        """Return a text whose words in backticks, as in messages for terminals, are shown as code."""
        plain, code = Markup("{}"), Markup("<code>{}</code>")
        parts = [(code if place % 2 else plain).format(part) for place, part in enumerate(text.split("`"))]
        return Markup("").join(parts)

    @staticmethod
    def command(*words: str | bytes) -> str:
        """Return a command for a shell: what people and machines named is quoted."""
        return " ".join(map(quoted, words))

    path = staticmethod(path_words)
