"""Two names of a backup that the target's file system takes for one: it ignores case, or changes names."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from staddle._restore.target_directory import BlockedError, is_in, look

MET_MAX: Final = 100_000
"""The number of names that are remembered until one has a letter that shows whether the directory ignores case."""

NAMES_ASKED: Final = 64
"""So many names of a target are looked at for one with a letter."""


@dataclass(slots=True)
class _Directory:
    path: bytes
    ignores_case: bool | None = None
    """None: no name with a letter has come yet."""
    met: dict[int, bytes] = field(default_factory=dict)
    """The names that were found so far, by inode. Empty where case counts."""


class FoldedError(BlockedError):
    """The target's file system takes two names of the backup for one; what the first one led to is kept."""

    def __init__(self, other: bytes) -> None:
        super().__init__(
            f"the target's file system takes it for {os.fsdecode(other)!a}, which the backup has, too"
        )


class Folding:
    """Knows which names in the target lead to what an earlier name of the backup led to. Paths come in the backup's order."""

    def __init__(self) -> None:
        self._above: list[_Directory] = []
        self._merged: tuple[bytes, bytes] | None = None
        """A directory that is also an earlier one of the backup, and that one."""

    def check(self, dir_fd: int, path: bytes, status: os.stat_result) -> None:
        """Takes what was found in the target at a path of the backup. Raises FoldedError if it was found at an earlier one, OSError."""
        other = self._other_name(dir_fd, path, status) if path else None
        if other is None:
            return
        if stat.S_ISDIR(status.st_mode):
            self._merged = path, other
        raise FoldedError(other)

    def check_replaced(self, path: bytes) -> None:
        """Raises FoldedError if what is to be replaced lies in a directory that an earlier one of the backup led to."""
        if self._merged is not None and is_in(path, self._merged[0]):
            raise FoldedError(self._merged[1] + path[len(self._merged[0]) :])

    def _other_name(self, dir_fd: int, path: bytes, status: os.stat_result) -> bytes | None:
        parent, _, name = path.rpartition(b"/")
        while self._above and not is_in(parent, self._above[-1].path):
            self._above.pop()
        if not self._above or self._above[-1].path != parent:
            self._above.append(_Directory(parent))
        directory = self._above[-1]
        if directory.ignores_case is None:
            directory.ignores_case = _ignores_case(dir_fd, name, status)
        if directory.ignores_case is None and len(directory.met) >= MET_MAX:
            directory.ignores_case = False
        if directory.ignores_case is False:
            directory.met.clear()
            return None
        known = directory.met.setdefault(status.st_ino, name)
        if known == name or _are_listed(dir_fd, known, name):
            return None
        return parent + b"/" + known if parent else known


def target_ignores_case(target: bytes) -> bool:
    """Whether a target, or the nearest existing directory above it, ignores case in names."""
    path = os.path.abspath(target)
    while not os.path.isdir(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    above, name = os.path.split(path)
    if os.path.ismount(path):
        name = b""
    with suppress(OSError):
        with os.scandir(path) as listing:
            names = [os.fsencode(item.name) for item in islice(listing, NAMES_ASKED)]
        for place, asked in [*((path, each) for each in names), *([(above, name)] if name else [])]:
            answer = _asked(place, asked)
            if answer is not None:
                return answer
    return False


def _asked(place: bytes, name: bytes) -> bool | None:
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = look(descriptor, name)
        return None if status is None else _ignores_case(descriptor, name, status)
    finally:
        os.close(descriptor)


def _ignores_case(dir_fd: int, name: bytes, status: os.stat_result) -> bool | None:
    """Whether the directory takes a name in other letters for this one; None: the name has no letters."""
    swapped = name.swapcase()
    if swapped == name:
        return None
    found = look(dir_fd, swapped)
    return found is not None and os.path.samestat(found, status)


def _are_listed(dir_fd: int, *names: bytes) -> bool:
    """Whether a directory lists all of these names: then they are hard links, or were made meanwhile."""
    return {os.fsencode(each) for each in os.listdir(dir_fd)}.issuperset(names)
