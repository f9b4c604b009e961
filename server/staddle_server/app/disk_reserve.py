"""A file that reserves disk space: part of it is released on a full disk, so that a server can start, delete
and collect.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from staddle_server.app import inode_reserve as inodes
from staddle_server.app.inode_reserve import InodeReserve
from staddle_server.base.limits import (
    CATALOG_CHANGE_BYTES_MAX,
    KIB,
    MIB,
    RESERVE_BYTES_MAX,
    RESERVE_BYTES_MIN,
    RESERVE_PART,
)
from staddle_server.base.threads import Background
from staddle_server.store.files import NO_ROOM
from staddle_server.store.space import Free, Space

_log = logging.getLogger(__name__)

NAME: Final = "reserve"
STORE_NAME: Final = "_reserve"
"""Its name in a store on another disk; no stored object can have it."""
CATALOG: Final = "catalog.db"
LOG_BYTES: Final = 4 * MIB
"""SQLite merges its log into the catalog at this size."""
STEP_BYTES: Final = 64 * KIB
LOOK_S: Final = 1.0


class Reserve:
    """One such file.

    A running server releases half of it; each start half of the rest, at least an eighth.
    """

    def __init__(self, path: Path, catalog: Path | None = None) -> None:
        """`catalog`: the file of a catalog on the same disk, whose largest transaction must fit."""
        self._path = path
        self._catalog = catalog

    @property
    def size_bytes(self) -> int:
        """Its current size."""
        try:
            return self._path.stat().st_size
        except OSError:
            return 0

    def full_bytes(self) -> int:
        """Return its full size: a share of the file system, or twice the catalog's largest transaction.

        Raises OSError.
        """
        found = os.statvfs(self._path.parent)
        part = min(RESERVE_BYTES_MAX, int(found.f_blocks * found.f_frsize * RESERVE_PART))
        size = max(part, 2 * self._largest_change(), RESERVE_BYTES_MIN)
        return size - size % STEP_BYTES

    def _largest_change(self) -> int:
        try:
            size = 0 if self._catalog is None else self._catalog.stat().st_size
        except OSError:
            size = 0
        # The log may have LOG_BYTES of earlier transactions, and has a head before each page.
        return min(CATALOG_CHANGE_BYTES_MAX, size + size // 64) + min(LOG_BYTES, size)

    @property
    def missing_bytes(self) -> int:
        """Return what it released, or could not get yet."""
        try:
            return max(0, self.full_bytes() - self.size_bytes)
        except OSError:
            return 0

    def is_needed(self) -> bool:
        """Return whether the disk is almost full. Raises OSError."""
        found = os.statvfs(self._path.parent)
        return found.f_bavail * found.f_frsize < max(self.full_bytes() // 8, self._largest_change())

    def give_up(self, *, at_start: bool) -> int:
        """Release space on a full disk; return how many bytes. Raises OSError."""
        have = self.size_bytes
        if not have or not self.is_needed():
            return 0
        full = self.full_bytes()
        left = max(0, have - max(full // 8, have // 2)) if at_start else min(have, full // 2)
        if left == have:
            return 0
        os.truncate(self._path, left)
        return have - left

    def make(self, kept: Sequence[Free]) -> int:
        """Fill it up if the disk has space for that plus half more than what is kept free; return the added
        bytes. Raises OSError.
        """
        have, full = self.size_bytes, self.full_bytes()
        spare_bytes = max(full, max((each.min_bytes for each in kept), default=0) * 3 // 2)
        found = os.statvfs(self._path.parent)
        if have >= full or found.f_bavail * found.f_frsize < full - have + spare_bytes:
            return 0
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, full)
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, have)
            raise
        finally:
            os.close(descriptor)
        return full - have


class Reserves(NamedTuple):
    """The reserves of a data directory: one of each kind, or two if the store is on another disk."""

    room: Sequence[Reserve]
    inodes: Sequence[InodeReserve] = ()

    @property
    def missing_bytes(self) -> int:
        """Return what all of them released, or could not get yet."""
        return sum(reserve.missing_bytes for reserve in self.room)

    @property
    def missing_inodes(self) -> int:
        """Return the same in inodes."""
        return sum(reserve.missing for reserve in self.inodes)


class Released(NamedTuple):
    """What a start released."""

    size_bytes: int
    inodes: int


def reserves_of(path: Path, store: Path) -> Reserves:
    """Return the reserves of a data directory."""
    reserves = Reserves([Reserve(path / NAME, path / CATALOG)], [InodeReserve(path / inodes.NAME)])
    with contextlib.suppress(OSError):
        if path.stat().st_dev != store.stat().st_dev:
            return Reserves(
                [*reserves.room, Reserve(store / STORE_NAME)],
                [*reserves.inodes, InodeReserve(store / inodes.STORE_NAME)],
            )
    return reserves


def give_up_at_start(path: Path, store: Path) -> Released:
    """Free space for a command that is about to open a data directory on a full disk.

    Never raises OSError.
    """
    reserves = reserves_of(path, store)
    return Released(_give_up_all(reserves.room), _give_up_all(reserves.inodes))


def _give_up_all(reserves: Sequence[Reserve | InodeReserve]) -> int:
    released = 0
    for reserve in reserves:
        with contextlib.suppress(OSError):
            released += reserve.give_up(at_start=True)
    return released


class Keeper:
    """Checks the disk space every second: logs when it gets scarce, and releases or fills up the reserves."""

    def __init__(self, space: Space, reserves: Reserves) -> None:
        self._space = space
        self._reserves = reserves
        self._reported: str | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Check while the context lasts."""
        self.look()
        thread = Background("space", LOOK_S, self.look)
        thread.start()
        try:
            yield
        finally:
            thread.stop()

    def look(self) -> None:
        """Check once. Never raises OSError."""
        flaw = self._space.flaw()
        free = self._space.free()
        facts = {
            "free_bytes": [each.free_bytes for each in free],
            "free_inodes": [each.free_inodes for each in free],
        }
        if flaw is not None and self._reported is None:
            _log.warning(
                "the disk is nearly full, and backups are refused: %s; delete backups and collect, or free space",
                flaw,
                extra={"fields": facts},
            )
        elif flaw is None and self._reported is not None:
            _log.info("the disk has space again, and backups are accepted", extra={"fields": facts})
        self._reported = flaw
        for reserve in self._reserves.room:
            self._keep(reserve, free, "bytes")
        for inode_reserve in self._reserves.inodes:
            self._keep(inode_reserve, free, "inodes")

    def _keep(self, reserve: Reserve | InodeReserve, kept: Sequence[Free], unit: str) -> None:
        try:
            released = reserve.give_up(at_start=False)
            if released:
                _log.warning(
                    "the disk is full: released %d %s of the reserve for deletion and collection",
                    released,
                    unit,
                )
            elif reserve.make(kept):
                _log.info("the reserve of %s is complete: it is released when the disk is full", unit)
        except OSError as error:
            if error.errno not in NO_ROOM:
                _log.warning("the reserve of %s cannot be kept: %s", unit, error)
