"""A file that is being written: under a temporary name, until its content is whole and it gets its own."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from staddle._fs.temporary_names import discard, open_temporary
from staddle._restore.target_directory import AppearedError, settle

if TYPE_CHECKING:
    from staddle._restore.set_metadata import Applier, ReportFault
    from staddle.v1 import resources_pb2 as pb

ZEROS: Final = bytes(1024 * 1024)
FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
WRITE_BACK_BYTES: Final = 32 * 1024 * 1024
_WRITES_BACK: Final = sys.platform == "linux"


class TemporaryFile:
    """A file in an open directory. Zeros where the entry has holes take no space."""

    def __init__(
        self,
        dir_fd: int,
        name: bytes,
        path: bytes,
        entry: pb.Entry,
        *,
        closes: bool = False,
        exclusive: bool = False,
        at_once: bool = False,
    ) -> None:
        """`dir_fd` has to stay open until `finish` or `abandon`, which close it if `closes`. `exclusive`: it replaces nothing.

        `at_once`: it has its own name and mode from the start. That is for a directory that only this restore can enter,
        and saves half of the calls for a small file.

        Raises OSError if nothing can be made there, AppearedError if `at_once` finds something.
        """
        self.path = path
        self.entry = entry
        self._dir_fd = dir_fd
        self._closes = closes
        self._exclusive = exclusive
        self._name = name
        self._is_over = False
        self._temporary = name
        try:
            if at_once:
                mode = entry.mode & 0o777 if entry.HasField("mode") else 0o666
                self._descriptor = _open_new(dir_fd, name, mode)
            else:
                mode = 0o600 if entry.HasField("mode") else 0o666
                self._temporary, self._descriptor = open_temporary(dir_fd, FLAGS, mode)
        except BaseException:
            self._close_directory()
            raise
        self._position = 0
        self._end_of_data = 0
        self._handed_over = 0
        self._holes = [(hole.offset_bytes, hole.offset_bytes + hole.length_bytes) for hole in entry.holes]
        self._holes.reverse()

    def write(self, data: bytes | memoryview) -> None:
        """The next bytes."""
        if not self._holes:
            self._put(data)
            return
        view = memoryview(data)
        while view:
            in_hole, length = self._stretch(len(view))
            piece = view[:length]
            if in_hole and _is_zeros(piece):
                self._position += length
            else:
                self._put(piece)
            view = view[length:]

    def write_zeros(self, count: int) -> None:
        """Write zero bytes."""
        while count:
            in_hole, length = self._stretch(count)
            if in_hole:
                self._position += length
            else:
                length = min(length, len(ZEROS))
                self._put(memoryview(ZEROS)[:length])
            count -= length

    def finish(self, applier: Applier, report: ReportFault, *, plain: bool = False) -> os.stat_result:
        """Sets the metadata and gives it its name; see Applier.to_descriptor for `plain`. Its stat, from before the metadata."""
        try:
            if self._end_of_data < self._position:
                os.ftruncate(self._descriptor, self._position)
            status = applier.to_descriptor(self._descriptor, self.entry, report, plain=plain)
            # The lock is held until the file has its name, so this closes a duplicate: network file systems report at
            # any close what they could not write.
            os.close(os.dup(self._descriptor))
            if self._temporary is not self._name:
                settle(self._dir_fd, self._temporary, self._name, exclusive=self._exclusive)
        except BaseException:
            self.abandon()
            raise
        self._end()
        return status

    def abandon(self) -> None:
        """Remove it completely. Does nothing the second time, and never raises: the earlier error is the one to report."""
        if not self._is_over:
            discard(self._dir_fd, self._temporary)
            self._end()

    def _end(self) -> None:
        self._is_over = True
        with suppress(OSError):
            os.close(self._descriptor)
        self._close_directory()

    def _close_directory(self) -> None:
        if self._closes:
            os.close(self._dir_fd)

    def _stretch(self, length_max: int) -> tuple[bool, int]:
        """Whether the position is in a hole, and how far that is so."""
        while self._holes and self._holes[-1][1] <= self._position:
            self._holes.pop()
        if not self._holes:
            return False, length_max
        start, end = self._holes[-1]
        if self._position < start:
            return False, min(length_max, start - self._position)
        return True, min(length_max, end - self._position)

    def _put(self, data: bytes | memoryview) -> None:
        count = os.pwrite(self._descriptor, data, self._position) if data else 0
        self._position += count
        rest = memoryview(data)[count:]
        while rest:
            count = os.pwrite(self._descriptor, rest, self._position)
            self._position += count
            rest = rest[count:]
        self._end_of_data = self._position
        if self._position - self._handed_over >= WRITE_BACK_BYTES:
            self._write_back()

    def _write_back(self) -> None:
        """Has the system begin to write what it holds: else all of a large file waits in memory, and its end is waited for."""
        start, self._handed_over = self._handed_over, self._position
        if _WRITES_BACK:
            # On Linux this begins to write dirty pages; what is dropped is a few that were written meanwhile.
            with suppress(OSError):
                os.posix_fadvise(self._descriptor, start, self._position - start, os.POSIX_FADV_DONTNEED)


def _open_new(dir_fd: int, name: bytes, mode: int) -> int:
    try:
        return os.open(name, FLAGS, mode, dir_fd=dir_fd)
    except FileExistsError as error:
        raise AppearedError from error


def _is_zeros(piece: memoryview) -> bool:
    return all(
        piece[start : start + len(ZEROS)] == memoryview(ZEROS)[: len(piece) - start]
        for start in range(0, len(piece), len(ZEROS))
    )
