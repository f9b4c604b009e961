"""The values of a walk: what it finds at a path, what it says of what it leaves out, and what becomes of a path it gave out."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from staddle._types.reports import ProblemKind

ReportUnread = Callable[[bytes, str], None]
"""Takes a path and why it could not be read."""
Note = Callable[[ProblemKind, bytes, str], None]
"""Takes a path that is left out by intention, and the reason."""
WallClock = Callable[[], int]
"""Nanoseconds since 1970, as time.time_ns gives them."""
Skip = Callable[[bytes], bool]
"""Whether a directory and all below it need not be looked at."""

_REPLACED: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE})


class Found(NamedTuple):
    """One path of the tree. `dir_fd` is open until the next one is asked for; `name` is relative to it."""

    path: bytes
    name: bytes
    dir_fd: int
    stat: os.stat_result
    mount: bytes
    """The path of the directory on which this path's file system is mounted; empty for the root's own."""
    seen_ns: int
    """Later changes may have left no trace in its times: the time of its stat, or of the last sync of its file system before."""
    late: bool = False
    """It comes out of order: it was missing at its turn, and has been created again since."""

    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.stat.st_mode)

    def is_directory(self) -> bool:
        """Whether it is a directory; a symbolic link to one is not."""
        return stat.S_ISDIR(self.stat.st_mode)


class Marked(NamedTuple):
    """A directory, once more, because something in it is left out: its entry has to say so. It comes out of order."""

    found: Found


class ReplacedError(OSError):
    """A path is something else than when the scan saw it."""


@dataclass(slots=True)
class Unsent:
    """What came of the path that the walk gave out last, where it was not sent. The walk takes it when it continues."""

    left_out: bool = False
    """It exists and is not in the backup."""
    replaced: OSError | None = None
    """It disappeared or became something else, and is worth another look."""


def was_replaced(error: OSError) -> bool:
    """Whether a path that was there a moment ago cannot be read because it disappeared or became something else."""
    return isinstance(error, ReplacedError) or error.errno in _REPLACED


def ignored(_kind: ProblemKind, _path: bytes, _why: str) -> None:
    """Ignores a note."""


def identity_of(status: os.stat_result) -> tuple[int, int]:
    """The device and inode, which identify a file while it is open."""
    return status.st_dev, status.st_ino


def reason_of(error: OSError) -> str:
    """An error of the operating system in words, without the path."""
    return error.strerror or type(error).__name__
