"""Modification times as the file system of a target keeps them: many know only whole seconds, or a part of all times."""

from __future__ import annotations

import os
from typing import Final

from staddle._fs.temporary_names import discard, open_temporary

PROBES_MAX: Final = 16
NEAR_NS: Final = 2_000_000_000
"""No file system in use rounds by more: FAT keeps every second second."""
EVERYWHERE_NS: Final = range(315_532_800 * 10**9, (2**31 - 1) * 10**9)
"""From 1980 to 2038 every file system keeps a time, rounded. Beyond that, some set another one."""
FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class KeptTimes:
    """Finds out whether a path has a time as far as its file system can keep it: it sets that time on a temporary file,
    which has no name, and looks what became of it. Close it at the end.
    """

    def __init__(self) -> None:
        self._probes: dict[int, int | None] = {}

    def close(self) -> None:
        """Closes its files."""
        for descriptor in self._probes.values():
            if descriptor is not None:
                os.close(descriptor)
        self._probes.clear()

    def match(self, dir_fd: int, status: os.stat_result, wanted_ns: int) -> bool:
        """Whether what has this stat, in an open directory, has the modification time `wanted_ns`."""
        if status.st_mtime_ns == wanted_ns:
            return True
        if wanted_ns in EVERYWHERE_NS and abs(status.st_mtime_ns - wanted_ns) > NEAR_NS:
            return False
        probe = self._probe(dir_fd, status.st_dev)
        if probe is None:
            return False
        try:
            os.utime(probe, ns=(wanted_ns, wanted_ns))
            return os.fstat(probe).st_mtime_ns == status.st_mtime_ns
        except (OSError, OverflowError):
            return False

    def _probe(self, dir_fd: int, device: int) -> int | None:
        if device not in self._probes and len(self._probes) < PROBES_MAX:
            try:
                name, self._probes[device] = open_temporary(dir_fd, FLAGS, 0o600)
                discard(dir_fd, name)
            except OSError:
                self._probes[device] = None  # nothing can be written there: the restore meets that itself
        return self._probes.get(device)
