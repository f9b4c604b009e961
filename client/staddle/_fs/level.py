"""One directory above the walk's position, and the names in it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final, cast

from staddle._fs.observer import ObservedChildren

NAMES_AT_ONCE: Final = 10_000
"""The number of names that are encoded at once."""


@dataclass(slots=True)
class Level:
    """A directory above the walk's position. `names` are the remaining ones, the next one last."""

    path: bytes
    mount: bytes
    identity: tuple[int, int]
    names: list[bytes]
    descriptor: int | None
    everything: bool = True
    """All of it is backed up; otherwise it leads to a named path."""
    home: int = 0
    """The device of the file system that a walk with `one_file_system` stays in."""
    piece: ObservedChildren | None = None
    """The children that the observer is at."""
    status: os.stat_result | None = None
    """Its stat when it was entered."""
    place: tuple[ObservedChildren, int] | None = None
    """Its place in the observer."""
    lacks: bool = False
    """A path in it is left out."""
    marked: bool = False
    """Its entry says so."""
    vanished: list[tuple[bytes, OSError]] = field(default_factory=list)
    """Names that were listed but then missing or replaced, with the error that showed it."""
    looks: int = 0
    """How often its names were read again."""
    late: bool = False
    """Its paths come out of order."""


def names_of(descriptor: int) -> list[bytes]:
    """The names in an open directory, the first one in order last."""
    names = os.listdir(descriptor)
    if 0 < len(names) <= NAMES_AT_ONCE and (joined := "\0".join(names)).isascii():
        encoded = joined.encode().split(b"\0")
    else:
        encoded = cast("list[bytes]", names)
        for index, name in enumerate(names):  # in place: a huge directory needs only one list
            encoded[index] = os.fsencode(name)
    encoded.sort(reverse=True)
    return encoded
