"""How much room the disks of a server have, and when they have too little for another backup."""

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
"""A look is good for so long, and for what arrives meanwhile as far as it fits into the room that was seen."""

Status = Callable[[str], os.statvfs_result]


class MinFree(NamedTuple):
    """How much of a file system is kept for deleting and collecting: bytes, or a part of it. Neither: a hundredth, at most 1 GiB."""

    size_bytes: int | None = None
    part: float | None = None

    def of(self, total_bytes: int) -> int:
        """The bytes for a file system of that size; 0: nothing is kept."""
        if self.size_bytes is not None:
            return self.size_bytes
        if self.part is not None:
            return int(total_bytes * self.part)
        return min(int(total_bytes * MIN_FREE_PART), MIN_FREE_BYTES_AUTO_MAX)


class Free(NamedTuple):
    """What one file system has left for this process, and what is kept of it."""

    path: str
    free_bytes: int
    free_inodes: int | None
    """None: the file system does not count them."""
    min_bytes: int
    min_inodes: int

    def room(self, missing_bytes: int, *, again: bool) -> float:
        """The bytes that may come, below 0 where there are too few; `missing_bytes` and `again` as for `flaw`."""
        if not self.min_bytes:
            return math.inf
        return self.free_bytes - missing_bytes - self.min_bytes * (1.25 if again else 1.0)

    def flaw(self, missing_bytes: int, missing_inodes: int, *, again: bool) -> str | None:
        """What there is too little of, in words.

        `missing_bytes` and `missing_inodes` of what is free are to be a reserve, or are spoken for; `again`: once there was too little, a quarter more is needed.
        """
        if not self.min_bytes:
            return None
        kept_inodes = self.min_inodes + missing_inodes
        more = self.min_inodes * 0.25 if again else 0
        if self.room(missing_bytes, again=again) < 0:
            return f"{_mib(self.free_bytes)} free, where {_mib(self.min_bytes + missing_bytes)} are kept"
        if self.free_inodes is not None and self.free_inodes < kept_inodes + more:
            return f"{self.free_inodes:,} inodes free, where {kept_inodes:,} are kept"
        return None


def look(path: str, min_free: MinFree, status: Status = os.statvfs) -> Free:
    """The room of the file system that `path` is on. Raises OSError."""
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
    """The room below several directories. Backups are taken while each has more than what is kept; deleting always goes on.

    Safe for many threads. What cannot be looked at is not held against anybody: writing there will say what is wrong.
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
        """`missing_bytes` and `missing_inodes` are what reserves released: free, and not for backups."""
        self._missing_bytes = missing_bytes
        self._missing_inodes = missing_inodes
        self._paths = tuple(paths)
        self._min_free = min_free
        self._status = status
        self._now_s = now_s
        self._lock = threading.Lock()
        self._seen_s = -math.inf
        self._room: float = 0
        """What may come before the next look."""
        self._coming = 0
        """What is being taken: not yet in what `_unwritten` says."""
        self._unwritten: Callable[[], int] = lambda: 0
        self._flaw: str | None = None

    def keep(self, min_free: MinFree) -> None:
        """How much is kept from now on; the next look counts it."""
        with self._lock:
            if min_free != self._min_free:
                self._min_free = min_free
                # What there was too little of by another measure says nothing by this one.
                self._flaw, self._seen_s = None, float("-inf")

    def count_unwritten(self, unwritten: Callable[[], int]) -> None:
        """From now on, what `unwritten` says was taken and is not on the disk yet counts as if it were."""
        self._unwritten = unwritten

    def free(self) -> list[Free]:
        """What each directory's file system has now."""
        found = []
        for path in self._paths:
            try:
                found.append(look(path, self._min_free, self._status))
            except OSError:
                continue
        return found

    def flaw(self, more: int = 0) -> str | None:
        """What there is too little of for so many bytes more, and where; None while backups are taken."""
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
        """Takes so many bytes of a backup; they are written, or counted by `count_unwritten`, when the block ends.

        Raises:
            Exhausted: STORE_FULL, there is too little room for them beside what was taken and is not written yet.

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
        """Raises Exhausted STORE_FULL while there is too little room for so many bytes more of a backup."""
        if (flaw := self.flaw(more)) is not None:
            raise Exhausted(
                "STORE_FULL",
                f"The disk is nearly full: {flaw} for deleting and collecting (--min-free). What is durable stays, and "
                "the upload can be resumed: delete backups and collect (staddle-server gc), or make room",
            )


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:,.1f} MiB"
