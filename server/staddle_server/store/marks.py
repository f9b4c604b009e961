"""Generation marks: each start of a server leaves one in the store, to reveal a copied or outdated store or
catalog.

A mark has a rising number and a random part, so that two servers that start from the same state never share a
name.
"""

from __future__ import annotations

import json
import secrets
from typing import Final, NamedTuple

from staddle_server.base.errors import StaddleError
from staddle_server.store.blobs import Blobs, ReadableBlobs, WritableBlobs

MARKS: Final = "marks"
MARK_FIRST: Final = b"staddle mark 1\n"
MARK_BYTES_MAX: Final = 1024
HOST_CHARS_MAX: Final = 64
NUMBER_DIGITS: Final = 12
_RANDOM_BYTES: Final = 8


class GenerationMark(NamedTuple):
    """A mark, parsed from its name: its number, and a random part that distinguishes marks of one number."""

    number: int
    random: str

    @property
    def text(self) -> str:
        """How the catalog names the mark."""
        return f"{self.number:0{NUMBER_DIGITS}}-{self.random}"

    @property
    def name(self) -> str:
        """The name of the mark's object."""
        return f"{MARKS}/{self.text}"

    @classmethod
    def parse(cls, text: str) -> GenerationMark | None:
        """Return the mark with that text; None if the text is not a mark."""
        number, dash, random = text.partition("-")
        shape = len(number) == NUMBER_DIGITS and number.isascii() and number.isdigit()
        if not (
            shape and dash and len(random) == 2 * _RANDOM_BYTES and not set(random) - set("0123456789abcdef")
        ):
            return None
        return cls(int(number), random)

    @classmethod
    def after(cls, number: int) -> GenerationMark:
        """Return a new mark with the next number."""
        return cls(number + 1, secrets.token_hex(_RANDOM_BYTES))


class Began(NamedTuple):
    """What a mark tells an operator: on which machine a server began, and when (RFC 3339).

    Empty if unreadable.
    """

    host: str
    at: str


def is_mark_name(name: str) -> bool:
    """Return whether an object of that name is a mark."""
    kind, _, text = name.partition("/")
    return kind == MARKS and GenerationMark.parse(text) is not None


def marks_in(blobs: Blobs) -> set[GenerationMark]:
    """Return all marks in the store; skip other names. Raises Unavailable."""
    found = (GenerationMark.parse(name.removeprefix(f"{MARKS}/")) for name, _ in blobs.list(MARKS))
    return {mark for mark in found if mark is not None}


def put_mark(blobs: WritableBlobs, mark: GenerationMark, began: Began) -> None:
    """Write the mark durably. Raises what the blobs raise."""
    content = {"host": began.host[:HOST_CHARS_MAX], "began": began.at}
    blobs.put(mark.name, MARK_FIRST + json.dumps(content).encode() + b"\n")


def read_mark(blobs: ReadableBlobs, mark: GenerationMark) -> Began:
    """Return the mark's content. It is informative only: an unreadable mark gives empty values."""
    try:
        size = min(blobs.size(mark.name), MARK_BYTES_MAX)
        content = json.loads(blobs.read(mark.name, 0, size).removeprefix(MARK_FIRST))
    except (StaddleError, ValueError, RecursionError):
        return Began("", "")
    if not isinstance(content, dict):
        return Began("", "")
    host, at = (str(content.get(key, ""))[:HOST_CHARS_MAX] for key in ("host", "began"))
    return Began(*(text if text.isprintable() else "" for text in (host, at)))
