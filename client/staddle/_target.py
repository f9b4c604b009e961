"""The directory that a restore writes into, so that nothing it does can reach outside.

Every directory below it is opened from the one above, never through a symbolic link; every write, link and rename names one component
in an open directory. Who swaps a directory for a link meanwhile gains nothing.
"""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import stat
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from staddle._scan import DIRECTORY_FLAGS

TEMPORARY_PREFIX: Final = b".staddle-"
DESCRIPTORS_MAX: Final = 64
TEMPORARY_TRIES: Final = 16

_OWN: Final = secrets.token_hex(4).encode()
_numbers: Final = itertools.count()


class BlockedError(OSError):
    """Something that may not be replaced lies where a path has to go."""

    def __init__(self, message: str) -> None:
        super().__init__(None, message)


class Target:
    """A directory, made if it is not there. `is_fresh` says that it was made, or was empty."""

    def __init__(self, path: bytes, *, replace: bool) -> None:
        """`replace`: what lies in the way of a directory, and is none, is taken away; otherwise that is BlockedError.

        Raises OSError if the directory cannot be made or opened.
        """
        os.makedirs(path, exist_ok=True)
        self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._replace = replace
        self._open: OrderedDict[bytes, int] = OrderedDict()
        with os.scandir(self._root) as listing:
            self.is_fresh = next(listing, None) is None

    def close(self) -> None:
        """Closes all directories."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
        os.close(self._root)

    def directory(self, path: bytes) -> int:
        """The directory at `path`, opened; missing ones are made plain. The descriptor stays this object's own, and
        is good until the next call.

        Raises OSError, BlockedError among them.
        """
        descriptor = self._known(path)
        if descriptor is not None:
            return descriptor
        missing = [path]
        while (above := os.path.dirname(missing[-1])) and self._known(above) is None:
            missing.append(above)
        for each in reversed(missing):
            parent, name = os.path.split(each)
            known = self._known(parent)
            assert known is not None  # it was found or opened just before
            self._keep(each, self._enter(known, name))
        return self._open[path]

    def make_directory(self, path: bytes, *, private: bool) -> bool:
        """Makes the directory at `path`; `private`: only for this user, until its metadata says otherwise. Whether it is new."""
        if not path:
            return False
        parent, name = os.path.split(path)
        parent_fd = self.directory(parent)
        made = _make(parent_fd, name, 0o700 if private else 0o777, replace=self._replace)
        if made:
            self._forget(path)
        return made

    def _known(self, path: bytes) -> int | None:
        if not path:
            return self._root
        descriptor = self._open.get(path)
        if descriptor is not None:
            self._open.move_to_end(path)
        return descriptor

    def _enter(self, parent_fd: int, name: bytes) -> int:
        try:
            return os.open(name, DIRECTORY_FLAGS, dir_fd=parent_fd)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
        _make(parent_fd, name, 0o777, replace=self._replace)
        return os.open(name, DIRECTORY_FLAGS, dir_fd=parent_fd)

    def _keep(self, path: bytes, descriptor: int) -> None:
        self._open[path] = descriptor
        if len(self._open) > DESCRIPTORS_MAX:
            _, oldest = self._open.popitem(last=False)
            os.close(oldest)

    def _forget(self, path: bytes) -> None:
        """What was opened at a path, and below it, is something else now."""
        for stale in [each for each in self._open if each == path or each.startswith(path + b"/")]:
            os.close(self._open.pop(stale))


def _make(parent_fd: int, name: bytes, mode: int, *, replace: bool) -> bool:
    """Makes a directory where none is; answers whether it had to."""
    status = look(parent_fd, name)
    if status is not None and stat.S_ISDIR(status.st_mode):
        return False
    if status is not None:
        if not replace:
            raise BlockedError("something that is no directory is in its place")
        os.unlink(name, dir_fd=parent_fd)
    os.mkdir(name, mode, dir_fd=parent_fd)
    return True


def look(dir_fd: int, name: bytes) -> os.stat_result | None:
    """The stat of a name, not following it; None if there is nothing."""
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def make_temporary(make: Callable[[bytes], int | None]) -> tuple[bytes, int]:
    """Has `make` make something under a new temporary name; the name, and what `make` answered (0 for None)."""
    name = b"%s%s-%d" % (TEMPORARY_PREFIX, _OWN, next(_numbers))
    for _ in range(TEMPORARY_TRIES):
        try:
            return name, make(name) or 0
        except FileExistsError:
            name = TEMPORARY_PREFIX + secrets.token_hex(8).encode()
    raise FileExistsError(errno.EEXIST, "no temporary name was free")


def settle(dir_fd: int, temporary: bytes, name: bytes) -> None:
    """Gives what lies under a temporary name its real one, in place of what was there.

    Raises BlockedError if that is a directory with something in it; the temporary name is gone then too.
    """
    try:
        try:
            os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        except IsADirectoryError:
            _take_away_directory(dir_fd, name)
            os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        discard(dir_fd, temporary)
        raise


def _take_away_directory(dir_fd: int, name: bytes) -> None:
    try:
        os.rmdir(name, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise BlockedError("a directory that is not empty is in its place") from error
        raise


def discard(dir_fd: int, temporary: bytes) -> None:
    """Takes a temporary name away, if it is still there."""
    try:
        os.unlink(temporary, dir_fd=dir_fd)
    except FileNotFoundError:
        return
