"""One directory on the way to where a walk is, and the names in it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final, cast

from staddle._fs.observer import ObservedChildren

NAMES_AT_ONCE: Final = 10_000
"""So many names are turned into bytes in one go."""


@dataclass(slots=True)
class Level:
    """A directory on the way to where the walk is. `names` are those still to come, the next one last."""

    path: bytes
    mount: bytes
    identity: tuple[int, int]
    names: list[bytes]
    descriptor: int | None
    everything: bool = True
    """All of it is taken; otherwise it is on the way to what was named."""
    home: int = 0
    """The device of the file system in which a walk stays that leaves no file system."""
    piece: ObservedChildren | None = None
    """Those of its children that the observer is at."""
    status: os.stat_result | None = None
    """As it was entered."""
    place: tuple[ObservedChildren, int] | None = None
    """Where the observer has it."""
    lacks: bool = False
    """Something in it is left out."""
    marked: bool = False
    """Its entry says so."""
    vanished: list[tuple[bytes, OSError]] = field(default_factory=list)
    """Names that were listed and then led nowhere or to something else, and how that was found."""
    looks: int = 0
    """How often names of it were looked at again."""
    late: bool = False
    """What is found in it comes out of order."""


def names_of(descriptor: int) -> list[bytes]:
    """The names in an open directory, the first one in order last."""
    names = os.listdir(descriptor)
    if 0 < len(names) <= NAMES_AT_ONCE and (joined := "\0".join(names)).isascii():
        encoded = joined.encode().split(b"\0")
    else:
        encoded = cast("list[bytes]", names)
        for index, name in enumerate(names):  # in place: of a huge directory there is one list at a time
            encoded[index] = os.fsencode(name)
    encoded.sort(reverse=True)
    return encoded
