"""The decision about an existing path in the place of an entry, for the restore and for its dry run."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from staddle._protocol.restore_reader import is_file
from staddle._types.options import Overwrite
from staddle.v1 import resources_pb2 as pb

LINKS_MAX: Final = 100_000
"""The number of remembered groups of hard links; files of further groups are restored separately."""
LINKS_BYTES_MAX: Final = 64 * 1024 * 1024
"""Their paths together."""


class There(Enum):
    """What exists in the place of a path."""

    NOTHING = auto()
    OTHER = auto()
    """Something that is to be replaced."""
    KEPT = auto()
    """Something that nothing may replace."""
    SAME = auto()
    """What the backup has, except for its metadata."""
    COMPARE = auto()
    """A file of the right size, whose content has to be compared."""
    STAYS = auto()
    """What stays, and is dealt with."""


def decide(
    entry: pb.Entry,
    status: os.stat_result | None,
    *,
    overwrite: Overwrite,
    verify: bool,
    links: Links,
    is_same: Callable[[os.stat_result], bool],
) -> There:
    """What is in the place of an entry other than a directory. `is_same` compares it by stat and readlink."""
    if status is None:
        return There.NOTHING
    if overwrite == "always":
        return There.OTHER
    if overwrite == "never":
        return There.KEPT
    if links.are_elsewhere(entry, status) or not is_same(status):
        return There.OTHER
    return There.COMPARE if verify and is_file(entry) else There.SAME


class Links:
    """Files of which other names were dealt with: where each group of hard links lies in the target, or will."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[bytes, bytes], tuple[bytes, tuple[int, int]] | None] = OrderedDict()
        """None: it is still to be written."""
        self._bytes = 0

    def find(self, entry: pb.Entry) -> tuple[bytes, tuple[int, int]] | None:
        """The path and identity of a file of the same group, if it exists."""
        return self._known.get(_key(entry)) if entry.link_group else None

    def knows(self, entry: pb.Entry) -> bool:
        """Whether a file of the same group exists, or will."""
        return bool(entry.link_group) and _key(entry) in self._known

    def are_elsewhere(self, entry: pb.Entry, status: os.stat_result) -> bool:
        """Whether what has this stat is not the file that the others of the entry's group are or will be."""
        if not self.knows(entry):
            return False
        known = self.find(entry)
        return known is None or known[1] != (status.st_dev, status.st_ino)

    def remember(self, path: bytes, entry: pb.Entry, status: os.stat_result) -> None:
        """A file exists there."""
        self._keep(entry, (path, (status.st_dev, status.st_ino)))

    def expect(self, entry: pb.Entry) -> None:
        """A file will be written."""
        if not self.knows(entry):
            self._keep(entry, None)

    def forget(self, entry: pb.Entry) -> None:
        """No other can be linked to it."""
        self._drop(self._known.pop(_key(entry), None))

    def _keep(self, entry: pb.Entry, known: tuple[bytes, tuple[int, int]] | None) -> None:
        if not entry.link_group:
            return
        self._drop(self._known.get(_key(entry)))
        self._known[_key(entry)] = known
        self._bytes += len(known[0]) if known else 0
        while len(self._known) > LINKS_MAX or self._bytes > LINKS_BYTES_MAX:
            self._drop(self._known.popitem(last=False)[1])

    def _drop(self, known: tuple[bytes, tuple[int, int]] | None) -> None:
        self._bytes -= len(known[0]) if known else 0


def _key(entry: pb.Entry) -> tuple[bytes, bytes]:
    return entry.link_group, entry.content.content_id
