"""A directory of empty files that reserves inodes: they are released on a disk without any, so that a server
can start, delete and collect.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from staddle_server.base.limits import RESERVE_INODES_MAX, RESERVE_INODES_MIN, RESERVE_PART
from staddle_server.store.space import Free

NAME: Final = "reserve.inodes"
STORE_NAME: Final = "_reserve.inodes"
"""Its name in a store on another disk; no stored object can have it."""
_FILE: Final = re.compile("[0-9]{4}")
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class InodeReserve:
    """One such directory, with the rules of Reserve: a running server releases half of it, each start half of
    the rest, at least an eighth.

    A file system that does not count inodes has no such reserve.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def full(self) -> int:
        """Return how many files it should have. Raises OSError."""
        total = os.statvfs(self._path.parent).f_files
        wanted = max(int(total * RESERVE_PART), RESERVE_INODES_MIN)
        return min(wanted, RESERVE_INODES_MAX, total // 8)

    @property
    def held(self) -> int:
        """Return how many files it has now."""
        try:
            with self._open() as directory:
                return len(_files(directory))
        except OSError:
            return 0

    @property
    def missing(self) -> int:
        """Return how many it released, or could not create yet."""
        try:
            return max(0, self.full() - self.held)
        except OSError:
            return 0

    def give_up(self, *, at_start: bool) -> int:
        """Release inodes if they are scarce; return how many. Raises OSError."""
        full = self.full()
        if not full or os.statvfs(self._path.parent).f_favail >= max(full // 8, 1):
            return 0
        try:
            with self._open() as directory:
                files = _files(directory)
                have = len(files)
                left = max(0, have - max(full // 8, have // 2)) if at_start else min(have, full // 2)
                for name in files[left:]:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=directory)
                return have - left
        except FileNotFoundError:
            return 0

    def make(self, kept: Sequence[Free]) -> int:
        """Create the missing files if that leaves half more than what is kept free; return how many.

        Raises OSError.
        """
        full, have = self.full(), self.held
        spare = max(full, max((each.min_inodes for each in kept), default=0) * 3 // 2)
        if have >= full or os.statvfs(self._path.parent).f_favail < full - have + spare:
            return 0
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._path, 0o700)
        with self._open() as directory:
            made = set(_files(directory))
            names = (name for name in map("{:04}".format, range(full)) if name not in made)
            for name in names:
                os.close(os.open(name, _NEW_FILE, 0o600, dir_fd=directory))
        return full - have

    @contextlib.contextmanager
    def _open(self) -> Iterator[int]:
        directory = os.open(self._path, _DIRECTORY)
        try:
            yield directory
        finally:
            os.close(directory)


def _files(directory: int) -> list[str]:
    """Return the files of the reserve, in order; other files of that directory are left alone."""
    return sorted(name for name in os.listdir(directory) if _FILE.fullmatch(name))
