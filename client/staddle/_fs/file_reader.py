"""Reading a file that others may be writing: what was read, and whether it can be trusted to be one state of the file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from staddle._fs.found import Found, ReplacedError, WallClock
from staddle._fs.metadata import holes_of, may_have_xattrs
from staddle._fs.noatime import open_quietly

READ_BYTES: Final = 4 * 1024 * 1024
ZEROS_BYTES_MAX: Final = 1024 * 1024 * 1024
"""Longer holes are reported in pieces of this size."""
UNSIZED_BYTES_MAX: Final = 1024 * 1024 * 1024
"""So much is read of a file that has more than its size says: some have no end."""
RACY_NS: Final = 2_000_000_000
"""A timestamp this close to the moment of reading does not prove that nothing was written afterwards."""

OPEN_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class NotRegularError(ReplacedError):
    """The path was a regular file when it was listed and is something else now."""

    def __init__(self) -> None:
        super().__init__(None, "it is no longer a regular file")


def is_racy(status: os.stat_result, read_ns: int) -> bool:
    """Whether a path with these times, read at that moment, may have been changed later without a trace."""
    return max(status.st_mtime_ns, status.st_ctime_ns) > read_ns - RACY_NS


@dataclass(slots=True)
class FileReader:
    """A regular file, opened for one reading from its beginning to the size that it had then, or to its end if that size is wrong."""

    descriptor: int
    status: os.stat_result
    """As it was opened."""
    racy: bool
    holes: list[tuple[int, int]] = field(default_factory=list)
    unsized: bool = False
    """It has more bytes than its size says, as files of /proc do: it is read to its end."""
    padded: bool = False
    """It ended early, and zeros were sent in place of the rest."""
    _read_bytes: int = 0

    @property
    def _end_max(self) -> int:
        return self.status.st_size + UNSIZED_BYTES_MAX * self.unsized

    def pieces(self, position: int = 0) -> Iterator[bytes | int]:
        """The file's bytes in order from `position` on: pieces of up to 4 MiB, or a number of zero bytes where it has a hole.

        Ends early if the file has become shorter; `is_settled` then says so.
        """
        self._read_bytes = position
        for start, length in self.holes:
            end = start + length
            if end <= position:
                continue
            yield from self._data(position, start)
            if self._read_bytes < start:
                return
            position = max(position, start)
            while position < end:
                zeros = min(ZEROS_BYTES_MAX, end - position)
                position += zeros
                self._read_bytes = position
                yield zeros
        yield from self._data(position, self._end_max)

    def _data(self, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            piece = os.pread(self.descriptor, min(READ_BYTES, end - start), start)
            if not piece:
                return
            start += len(piece)
            self._read_bytes = start
            yield piece

    def is_settled(self) -> bool:
        """Whether, after all pieces, the file is as it was when it was opened, and was read whole.

        A file whose size never was right, as in /proc and /sys, and which says that nothing changed, was.
        """
        before, after = self.status, os.fstat(self.descriptor)
        return (
            before.st_size == after.st_size
            and after.st_mtime_ns == before.st_mtime_ns
            and after.st_ctime_ns == before.st_ctime_ns
            and not self.padded
            and (
                self._read_bytes < self._end_max
                if self.unsized
                else self._read_bytes == before.st_size or not before.st_blocks
            )
        )

    def size_is_wrong(self) -> bool:
        """Whether all pieces together had another size than stat said: then stat proves nothing about the file."""
        return self._read_bytes != self.status.st_size


def read_small(found: Found, size_max: int) -> bytes | None:
    """The bytes of a small file that is as the scan saw it, in as few calls as possible: what a tree has most.

    None: it is larger than `size_max`, has another name, holes, or extended attributes, or has changed since; `open_file` takes it
    as it is. Raises OSError if it cannot be opened.
    """
    seen = found.stat
    if seen.st_size > size_max or seen.st_nlink > 1 or seen.st_blocks * 512 < seen.st_size:
        return None
    descriptor = open_quietly(found.name, OPEN_FLAGS, dir_fd=found.dir_fd, owner=found.stat.st_uid)
    try:
        try:
            data = os.pread(descriptor, seen.st_size + 1, 0)
        except OSError:
            return None  # `open_file` finds out what it is, and says so
        if may_have_xattrs(descriptor):
            return None
        # Whatever it was replaced or written by since the scan, it is now what the scan saw, and so it was all the time.
        now = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return data if len(data) == seen.st_size and _identity(now) == _identity(seen) else None


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (
        status.st_mode,
        status.st_ino,
        status.st_dev,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _has_more(descriptor: int, status: os.stat_result) -> bool:
    """Whether an open file has bytes behind its size although it does not grow."""
    try:
        more = os.pread(descriptor, 1, status.st_size)
    except OSError:
        return False  # what reading it from the beginning meets is reported
    return bool(more) and os.fstat(descriptor).st_size == status.st_size


@contextmanager
def open_file(found: Found, clock: WallClock) -> Iterator[FileReader]:
    """Opens a regular file of the scan, without waiting for anything and without following a link.

    Raises OSError if it cannot be opened, NotRegularError if it is not a file any more.
    """
    descriptor = open_quietly(found.name, OPEN_FLAGS, dir_fd=found.dir_fd, owner=found.stat.st_uid)
    try:
        read_ns = min(clock(), found.seen_ns)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotRegularError
        opened = FileReader(descriptor, status, is_racy(status, read_ns))
        if status.st_blocks * 512 < status.st_size:
            opened.holes = holes_of(descriptor, status.st_size)
        opened.unsized = _has_more(descriptor, status)
        yield opened
    finally:
        os.close(descriptor)
