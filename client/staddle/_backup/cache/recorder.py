"""Mirrors what a backup holds, while it is made, into a file of the cache.

The sender reports for each path that was looked at what the backup now holds there. A path of which nothing was sent is not in it. A file that
changed while it was read, and one whose timestamps were too recent, are looked at again by the next backup, as the base's own `read_again` has it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from staddle._backup.cache.file import (
    ABSENT,
    CHILDREN_MAX,
    DIGEST_BYTES,
    KIND,
    LOOK,
    NO_DIGEST,
    NO_ROW,
    ROW_BYTES,
    UNTOLD,
    CacheBlock,
    CacheWriter,
    row_of,
)

if TYPE_CHECKING:
    from staddle._backup.changes import Changed

_NOWHERE: Final = -1


@dataclass(slots=True)
class ChildRows:
    """Children of a directory during the walk: a block whose rows are not final yet."""

    record: CacheRecorder
    offset: int
    """Where in the file its rows stand; _NOWHERE: the root's row."""
    rows: bytearray
    digests: bytearray
    """Of their entries; zeros: unknown."""
    next_index: int = 0
    known: bool = False
    """Rows and digests are in the file as they are."""

    @property
    def full(self) -> bool:
        """Whether a walk has come to the last of them."""
        return self.next_index * ROW_BYTES == len(self.rows)

    def at(self, index: int, status: os.stat_result) -> None:
        """The walk is at a child."""
        self.record.at(self, index, status)

    def nothing_at(self, index: int) -> None:
        """A child can no longer be read: the backup will not have it."""
        start = index * ROW_BYTES
        self.rows[start : start + ROW_BYTES] = NO_ROW

    def doubt(self, index: int) -> None:
        """Marks a directory as incomplete, because the walk is not done with its children: the next backup sends its entry again."""
        start = index * ROW_BYTES
        self.rows[start] = self.rows[start] & ~ABSENT | LOOK
        self.known = False
        if self.offset == _NOWHERE:
            self.record.writer.set_root(bytes(self.rows), bytes(self.digests))

    def end(self) -> None:
        """The walk is done with these children."""
        if not self.known:
            self.record.writer.replace(self.offset, self.rows + self.digests)


class CacheRecorder:
    """Records the content of the current backup so far, as the observer of its walk."""

    children_max: Final = CHILDREN_MAX

    def __init__(self, writer: CacheWriter, *, differential: bool) -> None:
        """`differential`: an entry that is sent may keep the metadata that the full backup has."""
        self.writer = writer
        self._differential = differential
        self._piece = self._root()
        self._index = 0
        self._status: os.stat_result
        """What stat said of the path that the walk is at: set with the first one, the root."""

    def abandon(self) -> None:
        """The backup's content is unknown: no cache file is kept."""
        self.writer.failed = True

    # --- the walk

    def at_root(self, status: os.stat_result) -> None:
        """The walk is at the root."""
        self.at(self._root(), 0, status)

    def _root(self) -> ChildRows:
        return ChildRows(self, _NOWHERE, bytearray(NO_ROW), bytearray(NO_DIGEST))

    def begin(self, path: bytes, names: Sequence[bytes], *, first: bool, more: bool) -> ChildRows:
        """The walk begins with these children of a directory, all still unknown."""
        rows = NO_ROW * len(names)
        return self.begin_with(CacheBlock(path, first, more, len(names), b"\0".join(names), rows))

    def begin_with(self, block: CacheBlock) -> ChildRows:
        """The same, with the rows as far as they are known."""
        digests = bytearray(block.digests or NO_DIGEST * block.children)
        return ChildRows(self, self.writer.add(block), bytearray(block.rows), digests)

    def add_unchanged(self, block: CacheBlock) -> ChildRows:
        """Children that are all as the base has them."""
        piece = self.begin_with(block)
        piece.known = True
        return piece

    @property
    def place(self) -> tuple[ChildRows, int]:
        """Where the walk is."""
        return self._piece, self._index

    def at(self, piece: ChildRows, index: int, status: os.stat_result) -> None:
        """The walk is at a child."""
        self._piece, self._index, self._status = piece, index, status

    # --- outcomes

    def kept(self, digest: bytes = NO_DIGEST) -> None:
        """The backup has the current path as the base has it; `digest` is that of its entry."""
        self._set(row_of(self._status), 0, digest)

    def settle(self, changed: Changed) -> None:
        """The sender is done with the current path."""
        if self._differential and (changed.in_base or changed.doubted):
            self.abandon()  # the server may have kept the metadata that its base has
        if changed.held is None:
            self._set(NO_ROW, LOOK if changed.doubted else ABSENT, NO_DIGEST)
            return
        # As of its reading, which may be later than the walk's stat.
        row = row_of(changed.held)
        flags = LOOK if changed.read_again or row[0] & UNTOLD else 0
        self._set(row, flags, changed.digest or NO_DIGEST)

    def _set(self, row: bytes, flags: int, digest: bytes) -> None:
        rows, start = self._piece.rows, self._index * ROW_BYTES
        rows[start : start + ROW_BYTES] = row
        rows[start] = row[0] & KIND | flags
        start = self._index * DIGEST_BYTES
        self._piece.digests[start : start + DIGEST_BYTES] = digest
        if self._piece.offset == _NOWHERE:
            self.writer.set_root(bytes(rows), digest)
