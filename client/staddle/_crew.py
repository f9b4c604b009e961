"""Threads that write files while the next ones arrive, a bounded number of them ahead.

Small files go in batches, so that what one costs is its system calls. They are whole and checked before they come here. What a
batch did is taken in by the one thread that hands over, in the order in which it handed over.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from staddle._apply import Applier, inherits_acl
from staddle._opened import OpenedFile
from staddle._tally import WriteTally
from staddle._types import ProblemKind

if TYPE_CHECKING:
    from staddle.v1 import resources_pb2 as pb

WRITERS: Final = 2
"""More did not make it faster: the calls are short, and between them every thread waits for the interpreter."""
BATCH_FILES: Final = 64
BATCH_BYTES: Final = 1024 * 1024
BATCHES_AHEAD: Final = 6
PIECES_AHEAD: Final = 3
"""Of a large file, each about 1 MiB."""


class SmallFile(NamedTuple):
    """A file whose bytes have all come, and were checked."""

    path: bytes
    name: bytes
    entry: pb.Entry
    pieces: tuple[bytes, ...]


@dataclass(slots=True)
class _Batch:
    """Files by the directory that they go into, which is held open here."""

    directories: list[tuple[int, list[SmallFile]]] = field(default_factory=list)
    files: int = 0
    data_bytes: int = 0

    def write(self, applier: Applier) -> WriteTally:
        """Writes all of them. Raises TargetFullError; any other failure is noted, and the next one goes on."""
        tally = WriteTally()
        try:
            for dir_fd, files in self.directories:
                plain = not inherits_acl(dir_fd)
                for file in files:
                    _write(dir_fd, file, applier, tally, plain=plain)
        finally:
            self.close()
        return tally

    def close(self) -> None:
        for dir_fd, _ in self.directories:
            os.close(dir_fd)


def _write(dir_fd: int, file: SmallFile, applier: Applier, tally: WriteTally, *, plain: bool) -> None:
    try:
        opened = OpenedFile(dir_fd, file.name, file.entry)
        try:
            for piece in file.pieces:
                opened.write(piece)
        except BaseException:
            opened.abandon()
            raise
        status = opened.finish(
            applier, partial(tally.note, ProblemKind.NOT_WRITTEN, file.path), plain=plain
        )
    except OSError as error:
        tally.not_written(file.path, error)
        return
    tally.written += 1
    tally.data_bytes += status.st_size


class Crew:
    """Writes for one thread, which calls all methods; into `tally` and `applier`."""

    def __init__(self, tally: WriteTally, applier: Applier) -> None:
        self._tally = tally
        self._applier = applier
        self._pool = ThreadPoolExecutor(WRITERS, thread_name_prefix="staddle-write")
        self._lane = ThreadPoolExecutor(1, thread_name_prefix="staddle-write-large")
        self._batch = _Batch()
        self._parent: bytes | None = None
        """Of the files that were added last to the batch."""
        self._under_way: deque[tuple[_Batch, Applier, Future[WriteTally]]] = deque()
        self._handed = 0
        self.written = 0
        """Batches of which everything is written."""

    @property
    def mark(self) -> int:
        """What was added so far is written when `written` is at least this."""
        return self._handed + bool(self._batch.files)

    def takes(self, parent: bytes) -> bool:
        """Whether the directory is the one of the last file, so that `add` needs no descriptor for it."""
        return parent == self._parent

    def enter(self, parent: bytes, dir_fd: int) -> None:
        """The next files go into this directory."""
        self._batch.directories.append((os.dup(dir_fd), []))
        self._parent = parent

    def add(self, file: SmallFile) -> None:
        """Hands a file over. Raises TargetFullError for an earlier one."""
        batch = self._batch
        batch.directories[-1][1].append(file)
        batch.files += 1
        batch.data_bytes += sum(map(len, file.pieces))
        if batch.files >= BATCH_FILES or batch.data_bytes >= BATCH_BYTES:
            self._hand_over()

    def drain(self) -> None:
        """Waits until all is written. Raises TargetFullError."""
        self._hand_over()
        while self._under_way:
            self._take_in()

    def close(self) -> None:
        """Ends what is under way; what has not begun is not written."""
        self._batch.close()
        self._batch = _Batch()
        for batch, _, future in self._under_way:
            if future.cancel():
                batch.close()
        self._pool.shutdown()
        self._lane.shutdown()

    def large(self, path: bytes, name: bytes, dir_fd: int, entry: pb.Entry) -> LargeFile:
        """Begins a file whose bytes are still to come. Raises OSError."""
        return LargeFile(path, name, dir_fd, entry, self._lane)

    def _hand_over(self) -> None:
        batch, self._batch, self._parent = self._batch, _Batch(), None
        if not batch.files:
            batch.close()
            return
        applier = Applier(self._applier.is_root)
        self._under_way.append((batch, applier, self._pool.submit(batch.write, applier)))
        self._handed += 1
        while self._under_way and (len(self._under_way) > BATCHES_AHEAD or self._under_way[0][2].done()):
            self._take_in()

    def _take_in(self) -> None:
        _, applier, future = self._under_way.popleft()
        self._tally.take_in(future.result())
        self._applier.owners_kept += applier.owners_kept
        self._applier.xattrs_kept += applier.xattrs_kept
        self.written += 1


class LargeFile:
    """A file whose bytes are written by another thread while the next ones come."""

    def __init__(
        self, path: bytes, name: bytes, dir_fd: int, entry: pb.Entry, lane: ThreadPoolExecutor
    ) -> None:
        self.path = path
        self.entry = entry
        self._lane = lane
        self._pieces: deque[Future[None]] = deque()
        self._dir_fd = os.dup(dir_fd)
        try:
            self._opened = OpenedFile(self._dir_fd, name, entry)
        except BaseException:
            os.close(self._dir_fd)
            raise

    def write(self, data: bytes) -> None:
        """The next bytes. Raises OSError for these or earlier ones."""
        self._pieces.append(self._lane.submit(self._opened.write, data))
        self._wait(PIECES_AHEAD)

    def write_zeros(self, count: int) -> None:
        """So many zero bytes. Raises OSError as write does."""
        self._pieces.append(self._lane.submit(self._opened.write_zeros, count))
        self._wait(PIECES_AHEAD)

    def finish(self, applier: Applier, tally: WriteTally) -> os.stat_result:
        """Ends it, with its metadata and its name. Raises OSError; nothing is left of it then."""
        try:
            try:
                self._wait(0)
            except BaseException:
                self._stop()
                self._opened.abandon()
                raise
            return self._opened.finish(applier, partial(tally.note, ProblemKind.NOT_WRITTEN, self.path))
        finally:
            os.close(self._dir_fd)

    def abandon(self) -> None:
        """Leaves nothing of it."""
        try:
            self._stop()
            self._opened.abandon()
        finally:
            os.close(self._dir_fd)

    def _wait(self, under_way_max: int) -> None:
        while len(self._pieces) > under_way_max:
            self._pieces.popleft().result()

    def _stop(self) -> None:
        """Nothing is written any more."""
        for piece in self._pieces:
            piece.cancel()
        while self._pieces:
            piece = self._pieces.popleft()
            if not piece.cancelled():
                piece.exception()  # what the first one failed with was raised, or nobody wants it
