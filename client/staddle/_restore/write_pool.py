"""Small files, written in batches by another thread, while the next files arrive; where the target makes one wait, by several.

On a disk of this machine the calls are so short that several threads only take the interpreter from each other: one was as fast as
two to four. Over a network every call waits, and threads wait side by side.

The files are whole and checked before they come here. What a batch did is taken in by the one thread that hands over, in the
order in which it handed over.
"""

from __future__ import annotations

import os
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from staddle._base.threads import Threads
from staddle._restore.set_metadata import Applier, inherits_acl
from staddle._restore.stats import RestoreTally
from staddle._restore.temporary_file import TemporaryFile
from staddle._types.reports import ProblemKind

if TYPE_CHECKING:
    from staddle.v1 import resources_pb2 as pb

WRITERS: Final = 8
WAITING: Final = 4.0
"""A batch that took so many times as long as it worked says that the target makes its writers wait."""
BATCH_FILES: Final = 64
BATCH_BYTES: Final = 1024 * 1024
BATCH_DIRECTORIES: Final = 8
"""Each is a descriptor, of which a process may have few."""
BATCHES_AHEAD: Final = {1: 1, WRITERS: 12}
"""By the number of writers: each batch holds its directories open."""


class SmallFile(NamedTuple):
    """A file whose bytes have all come, and were checked."""

    path: bytes
    name: bytes
    entry: pb.Entry
    pieces: tuple[bytes | memoryview, ...]
    exclusive: bool
    """It replaces nothing."""


class _OpenDirectory(NamedTuple):
    """Files for one directory, which is held open; `ours`: only this restore can enter it."""

    descriptor: int
    files: list[SmallFile]
    ours: bool


@dataclass(slots=True)
class _FileBatch:
    """Files by the directory that they go into, which is held open here."""

    directories: list[_OpenDirectory] = field(default_factory=list)
    files: int = 0
    data_bytes: int = 0

    def write(self, applier: Applier, tally: RestoreTally) -> RestoreTally:
        """Writes all of them, and counts them in the tally, which it returns. Raises TargetFullError; any other failure is noted, and the file skipped."""
        try:
            for directory in self.directories:
                plain = not inherits_acl(directory.descriptor)
                for file in directory.files:
                    _write(directory, file, applier, tally, plain=plain)
        finally:
            self.close()
        return tally

    def close(self) -> None:
        while self.directories:
            os.close(self.directories.pop().descriptor)


def _write(
    directory: _OpenDirectory, file: SmallFile, applier: Applier, tally: RestoreTally, *, plain: bool
) -> None:
    at_once = directory.ours and file.exclusive
    try:
        opened = TemporaryFile(
            directory.descriptor, file.name, file.path, file.entry, exclusive=file.exclusive, at_once=at_once
        )
        try:
            for piece in file.pieces:
                opened.write(piece)
        except BaseException:
            opened.abandon()
            raise
        status = opened.finish(applier, partial(tally.note, ProblemKind.NOT_WRITTEN, file.path), plain=plain)
    except OSError as error:
        tally.not_written(file.path, error)
        return
    tally.written += 1
    tally.data_bytes += status.st_size


class Crew:
    """Writes for one thread, which calls all methods; into `tally` and `applier`."""

    def __init__(self, tally: RestoreTally, applier: Applier) -> None:
        self._tally = tally
        self._applier = applier
        self._pool: Threads | None = None
        """From the second batch on."""
        self._ahead = 0
        self._batch = _FileBatch()
        self._parent: bytes | None = None
        """Of the files that were added last to the batch."""
        self._under_way: deque[tuple[_FileBatch, Applier, Future[RestoreTally]]] = deque()
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

    def enter(self, parent: bytes, dir_fd: int, *, ours: bool) -> None:
        """The next files go into this directory. `ours`: only this restore can enter it."""
        if len(self._batch.directories) >= BATCH_DIRECTORIES:
            self._hand_over()
        self._batch.directories.append(_OpenDirectory(os.dup(dir_fd), [], ours))
        self._parent = parent

    def add(self, file: SmallFile) -> None:
        """Hands a file over. Raises TargetFullError, perhaps for an earlier one."""
        batch = self._batch
        batch.directories[-1].files.append(file)
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
        """Stop after the running batches; the others are not written."""
        self._batch.close()
        self._batch = _FileBatch()
        for batch, _, future in self._under_way:
            if future.cancel():
                batch.close()
        if self._pool is not None:
            self._pool.shutdown()

    def _hand_over(self) -> None:
        batch, self._batch, self._parent = self._batch, _FileBatch(), None
        if not batch.files:
            batch.close()
            return
        self._handed += 1
        if self._pool is None:
            self._write(batch)
            return
        applier = Applier(self._applier.is_root)
        self._under_way.append(
            (batch, applier, self._pool.submit(partial(batch.write, applier, self._tally.another())))
        )
        while self._under_way and (len(self._under_way) > self._ahead or self._under_way[0][2].done()):
            self._take_in()

    def _write(self, batch: _FileBatch) -> None:
        """Writes the first batch at once; the next ones are written by another thread, or by several if this one had to wait."""
        begun_s, worked_s = time.monotonic(), time.thread_time()
        self._tally.take_in(batch.write(self._applier, self._tally.another()))
        self.written += 1
        waited = time.monotonic() - begun_s > WAITING * (time.thread_time() - worked_s)
        writers = WRITERS if waited else 1
        self._ahead = BATCHES_AHEAD[writers]
        self._pool = Threads(writers, thread_name_prefix="staddle-write")

    def _take_in(self) -> None:
        _, applier, future = self._under_way.popleft()
        self._tally.take_in(future.result())
        self._applier.owners_kept += applier.owners_kept
        self._applier.xattrs_kept += applier.xattrs_kept
        self.written += 1
