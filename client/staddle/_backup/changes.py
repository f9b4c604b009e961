"""What differs between a directory and the base: the values that go from the comparison to the senders and to the cache."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NamedTuple

from staddle._fs.found import Found, Marked


@dataclass(slots=True)
class Changed:
    """A path that must be looked at. The sender reports with `holds` what the backup then has there; otherwise it has nothing."""

    found: Found
    in_base: bool
    """The base has this path, and can be relied on: what is not sent must be removed."""
    doubted: bool = False
    """The base has something there, but cannot be relied on."""
    sent: bool = False
    """A part of it was sent, whether or not the sender comes to its end."""
    known: bytes = b""
    """The digest of the base's entry, which need not be sent if it is the same now; empty: unknown, or to be sent whatever it is."""
    held: os.stat_result | None = None
    read_again: bool = False
    digest: bytes = b""
    """That of the entry that the backup has; empty: unknown."""

    def holds(self, status: os.stat_result, *, read_again: bool, digest: bytes = b"") -> None:
        """The backup has an entry with this stat and digest, with or without the mark for rereading."""
        self.held, self.read_again, self.digest = status, read_again, digest


class Removed(NamedTuple):
    """A path of the base that no longer exists, with everything below it."""

    path: bytes
    sent: bool = False
    """An earlier run of this backup has sent it, whatever the base has."""


Difference = Changed | Removed | Marked
"""What a sender receives. A mark is sent as an entry of its directory."""
