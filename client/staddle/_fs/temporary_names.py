"""Names of files that a restore has not finished, shared by all who write, sweep or skip them.

A temporary file of a live restore is locked (flock) from its creation until it has its final name. One that is not
locked belongs to a restore that was killed. The next restore into that directory removes it; a backup leaves it out.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import re
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Final

TEMPORARY_NAME: Final = re.compile(rb"\.staddle-restore-[0-9a-f]{16}-[0-9]{1,18}")
"""Matches a whole file name. Nothing else in a directory is ever swept."""
TRIES: Final = 16

_own = secrets.token_hex(8).encode()
_numbers: Final = itertools.count()
_NO_LOCKS: Final = frozenset({errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK})


def _own_again() -> None:
    """A forked process takes another name: what carries the name of this process is never swept."""
    global _own  # noqa: PLW0603  one a process
    _own = secrets.token_hex(8).encode()


os.register_at_fork(after_in_child=_own_again)


def is_temporary(name: bytes) -> bool:
    """Whether a file name (not a path) is one that an unfinished restore gives."""
    return TEMPORARY_NAME.fullmatch(name) is not None


def make_temporary(make: Callable[[bytes], None]) -> bytes:
    """Let `make` create something other than a regular file under a new temporary name; return the name. Raises OSError."""
    for _ in range(TRIES):
        name = _next_name()
        with suppress(FileExistsError):
            make(name)
            return name
    raise FileExistsError(errno.EEXIST, "no temporary name was free")


def open_temporary(dir_fd: int, flags: int, mode: int) -> tuple[bytes, int]:
    """Makes and locks a regular file under a new temporary name; returns its name and descriptor. Raises OSError."""
    for _ in range(TRIES):
        name = _next_name()
        with suppress(FileExistsError):
            descriptor = os.open(name, flags, mode, dir_fd=dir_fd)
            try:
                if _lock(descriptor) is not False and os.fstat(descriptor).st_nlink:
                    return name, descriptor
            except BaseException:
                os.close(descriptor)
                discard(dir_fd, name)
                raise
            os.close(descriptor)  # another restore sweeps it at this moment
    raise FileExistsError(errno.EEXIST, "no temporary name was free")


def discard(dir_fd: int, temporary: bytes) -> None:
    """Removes a temporary name if it is still there. Never raises: the error that led here is the one to report."""
    with suppress(OSError):
        os.unlink(temporary, dir_fd=dir_fd)


def sweep(dir_fd: int) -> int:
    """Removes what killed restores left in a directory; returns how many. Files of live restores stay."""
    try:
        with os.scandir(dir_fd) as listing:
            names = [name for item in listing if is_temporary(name := os.fsencode(item.name))]
    except OSError:
        return 0  # the write there fails with the same error, which is reported
    return sum(_sweep_one(dir_fd, name) for name in names)


def _sweep_one(dir_fd: int, name: bytes) -> bool:
    if name.startswith(b".staddle-restore-%s-" % _own):
        return False
    with suppress(OSError):
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            return False
        if not stat.S_ISREG(status.st_mode):
            # Links and special files cannot be locked; a restore that still makes one makes it again.
            os.unlink(name, dir_fd=dir_fd)
            return True
        flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(name, os.O_RDONLY | flags, dir_fd=dir_fd)
        except PermissionError:
            descriptor = os.open(name, os.O_WRONLY | flags, dir_fd=dir_fd)
        try:
            if _lock(descriptor):
                os.unlink(name, dir_fd=dir_fd)
                return True
        finally:
            os.close(descriptor)
    return False


def _lock(descriptor: int) -> bool | None:
    """Locks a file for this process; False if another process has it, None where this file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def _next_name() -> bytes:
    return b".staddle-restore-%s-%d" % (_own, next(_numbers))
