"""How much space the server's disks have, and when it is too little for another backup."""

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from staddle_server.base.errors import Exhausted
from staddle_server.base.limits import MIB, MIN_FREE_BYTES_AUTO_MAX, MIN_FREE_INODES_MAX, MIN_FREE_PART

LOOK_S: Final = 0.1
"""How long a measurement counts, and how much may arrive meanwhile."""

Status = Callable[[str], os.statvfs_result]


class MinFree(NamedTuple):
    """How much of a file system is reserved for deletion and garbage collection: bytes, or a share.

    Neither: 1 %, at most 1 GiB.
    """

    size_bytes: int | None = None
    part: float | None = None

    def of(self, total_bytes: int) -> int:
        """Return the bytes to reserve on a file system of that size; 0 for none."""
        if self.size_bytes is not None:
            return self.size_bytes
        if self.part is not None:
            return int(total_bytes * self.part)
        return min(int(total_bytes * MIN_FREE_PART), MIN_FREE_BYTES_AUTO_MAX)


class Free(NamedTuple):
    """The free space of one file system for this process, and how much of it is reserved."""

    path: str
    free_bytes: int
    free_inodes: int | None
    """None if the file system does not count inodes."""
    min_bytes: int
    min_inodes: int

    def room(self, missing_bytes: int, *, again: bool) -> float:
        """Return how many bytes may still arrive, negative if space is short; parameters as for `flaw`."""
        if not self.min_bytes:
            return math.inf
        return self.free_bytes - missing_bytes - self.min_bytes * (1.25 if again else 1.0)

    def flaw(self, missing_bytes: int, missing_inodes: int, *, again: bool) -> str | None:
        """Return in words what is short; None for nothing.

        `missing_bytes` and `missing_inodes` are free but already spoken for. With `again` (space was short
        before), a quarter more is required.
        """
        if not self.min_bytes:
            return None
        kept_inodes = self.min_inodes + missing_inodes
        more = self.min_inodes * 0.25 if again else 0
        if self.room(missing_bytes, again=again) < 0:
            return f"{_mib(self.free_bytes)} free, but {_mib(self.min_bytes + missing_bytes)} reserved"
        if self.free_inodes is not None and self.free_inodes < kept_inodes + more:
            return f"{self.free_inodes:,} inodes free, but {kept_inodes:,} reserved"
        return None


def look(path: str, min_free: MinFree, status: Status = os.statvfs) -> Free:
    """Measure the file system that `path` is on. Raises OSError."""
    found = status(path)
    min_bytes = min_free.of(found.f_blocks * found.f_frsize)
    counts = found.f_files > 0
    min_inodes = min(MIN_FREE_INODES_MAX, int(found.f_files * MIN_FREE_PART)) if counts and min_bytes else 0
    return Free(
        path,
        found.f_bavail * found.f_frsize,
        found.f_favail if counts else None,
        min_bytes,
        min_inodes,
    )


class Space:
    """The free space below several directories.

    Backups need more than the reserved space in each; deletion always works. Thread-safe. A directory that
    cannot be measured does not block backups: writing there reports the error.
    """

    def __init__(
        self,
        paths: Sequence[str],
        min_free: MinFree,
        *,
        missing_bytes: Callable[[], int] = lambda: 0,
        missing_inodes: Callable[[], int] = lambda: 0,
        status: Status = os.statvfs,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`missing_bytes` and `missing_inodes` are what reserves released: free, but not for backups."""
        self._missing_bytes = missing_bytes
        self._missing_inodes = missing_inodes
        self._paths = tuple(paths)
        self._min_free = min_free
        self._status = status
        self._now_s = now_s
        self._lock = threading.Lock()
        self._seen_s = -math.inf
        self._room: float = 0
        """What may arrive before the next measurement."""
        self._coming = 0
        """What is arriving: not yet included in `_unwritten`."""
        self._unwritten: Callable[[], int] = lambda: 0
        self._flaw: str | None = None

    def keep(self, min_free: MinFree) -> None:
        """Set how much is reserved from now on; the next measurement counts it."""
        with self._lock:
            if min_free != self._min_free:
                self._min_free = min_free
                # An old shortage says nothing about the new reserve.
                self._flaw, self._seen_s = None, float("-inf")

    def count_unwritten(self, unwritten: Callable[[], int]) -> None:
        """Count what `unwritten` returns, accepted bytes that are not on the disk yet, as used space."""
        self._unwritten = unwritten

    def free(self) -> list[Free]:
        """Measure each directory's file system now."""
        found = []
        for path in self._paths:
            try:
                found.append(look(path, self._min_free, self._status))
            except OSError:
                continue
        return found

    def flaw(self, more: int = 0) -> str | None:
        """Return what is short for `more` further bytes, and where; None if backups are accepted."""
        with self._lock:
            self._room -= more
            now_s = self._now_s()
            if self._flaw is not None or self._room < 0 or now_s - self._seen_s >= LOOK_S:
                self._seen_s = now_s
                self._flaw = self._look(more)
            return self._flaw

    def _look(self, more: int) -> str | None:
        again = self._flaw is not None
        missing = self._missing_bytes() + self._unwritten() + self._coming + more
        free = self.free()
        self._room = min((each.room(missing, again=again) for each in free), default=math.inf)
        missing_inodes = self._missing_inodes()
        flaws = ((each.path, each.flaw(missing, missing_inodes, again=again)) for each in free)
        return next((f"{path} has {flaw}" for path, flaw in flaws if flaw is not None), None)

    @contextmanager
    def taking(self, size: int) -> Iterator[None]:
        """Count so many bytes of a backup as arriving; when the block ends, they are written, or counted by
        `count_unwritten`.

        Raises:
            Exhausted: STORE_FULL, too little space for them beside what is accepted and not yet written.

        """
        self.check(size)
        with self._lock:
            self._coming += size
        try:
            yield
        finally:
            with self._lock:
                self._coming -= size

    def check(self, more: int = 0) -> None:
        """Raise Exhausted STORE_FULL if space is short for `more` further bytes of a backup."""
        if (flaw := self.flaw(more)) is not None:
            raise Exhausted(
                "STORE_FULL",
                f"The disk is nearly full: {flaw} for deletion and collection (--min-free). Durable data stays, and "
                "the upload can be resumed: delete backups and collect (staddle-server gc), or free space",
            )


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:,.1f} MiB"
