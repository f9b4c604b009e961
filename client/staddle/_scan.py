"""A tree on disk as a sequence of entries, in Staddle's order, with flat memory at any depth.

Directories are opened relative to the directory above them and never through a symbolic link, so the scan stays in the tree
whatever others rename meanwhile, and paths longer than the system's limit work. What cannot be read is reported, and the rest
goes on.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from staddle._excludes import Excludes, no_excludes

PATH_BYTES_MAX: Final = 16 * 1024
COMPONENT_BYTES_MAX: Final = 1024
DESCRIPTORS_MAX: Final = 64
"""So many directories stay open; those further up are opened again through ".." on the way back."""

DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Report = Callable[[bytes, str], None]
"""Takes a path and why it could not be read."""
Clock = Callable[[], int]
"""Nanoseconds since 1970, as time.time_ns gives them."""
Skip = Callable[[bytes], bool]
"""Whether a directory and all below it need not be looked at."""


class Found(NamedTuple):
    """One path of the tree. `dir_fd` is open until the next one is asked for; `name` is relative to it."""

    path: bytes
    name: bytes
    dir_fd: int
    stat: os.stat_result
    mount: bytes
    """The path of the directory on which this path's file system is mounted; empty for the root's own."""
    seen_ns: int
    """When it was looked at, or a little before."""

    def is_file(self) -> bool:
        return stat.S_ISREG(self.stat.st_mode)

    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.stat.st_mode)


@dataclass(slots=True)
class _Level:
    """A directory on the way to where the scan is. `names` are those still to come, the next one last."""

    path: bytes
    mount: bytes
    identity: tuple[int, int]
    names: list[bytes]
    descriptor: int | None


@dataclass(slots=True)
class Scan:
    """Walks the tree at `root`, which may also be a single file: then its base name is the only path.

    Raises OSError, when walked, if the root itself cannot be opened.
    """

    root: bytes
    report: Report
    excluded: Excludes = no_excludes
    one_file_system: bool = False
    skip: Skip | None = None
    """Paths that a resumed backup has behind it: those directories are not opened."""
    clock: Clock = time.time_ns
    excluded_count: int = 0
    _levels: list[_Level] = field(default_factory=list)

    def __iter__(self) -> Iterator[Found]:
        try:
            root_fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except NotADirectoryError:
            yield from self._single()
            return
        try:
            yield from self._walk(root_fd)
        finally:
            for level in self._levels:
                if level.descriptor is not None:
                    os.close(level.descriptor)
            self._levels.clear()

    def _single(self) -> Iterator[Found]:
        parent, name = os.path.split(os.path.abspath(self.root))
        parent_fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            seen_ns = self.clock()
            status = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
            yield Found(name, name, parent_fd, status, b"", seen_ns)
        finally:
            os.close(parent_fd)

    def _walk(self, root_fd: int) -> Iterator[Found]:
        seen_ns = self.clock()
        root_stat = os.fstat(root_fd)
        self._push(b"", b"", root_stat, root_fd)
        yield Found(b"", b".", root_fd, root_stat, b"", seen_ns)
        while self._levels:
            level = self._levels[-1]
            if not level.names:
                self._pop()
                continue
            name = level.names.pop()
            found = self._look(level, name)
            if found is None:
                continue
            yield found
            if found.is_directory():
                self._enter(level, found, root_stat.st_dev)

    def _look(self, level: _Level, name: bytes) -> Found | None:
        path = level.path + b"/" + name if level.path else name
        if len(name) > COMPONENT_BYTES_MAX or len(path) > PATH_BYTES_MAX:
            self.report(path[:PATH_BYTES_MAX], "the path is longer than a backup can hold")
            return None
        if level.descriptor is None:
            self.report(path, "a directory above it was moved while it was read")
            return None
        seen_ns = self.clock()
        try:
            status = os.stat(name, dir_fd=level.descriptor, follow_symlinks=False)
        except OSError as error:
            self.report(path, reason_of(error))
            return None
        is_directory = stat.S_ISDIR(status.st_mode)
        if self.excluded(path, is_directory):
            self.excluded_count += 1
            return None
        mounted_here = is_directory and status.st_dev != level.identity[0]
        return Found(path, name, level.descriptor, status, path if mounted_here else level.mount, seen_ns)

    def _enter(self, level: _Level, found: Found, root_device: int) -> None:
        if self.one_file_system and found.stat.st_dev != root_device:
            return
        if self.skip is not None and self.skip(found.path):
            return
        assert level.descriptor is not None
        try:
            descriptor = os.open(found.name, DIRECTORY_FLAGS, dir_fd=level.descriptor)
        except OSError as error:
            self.report(found.path, reason_of(error))
            return
        self._push(found.path, found.mount, os.fstat(descriptor), descriptor)

    def _push(self, path: bytes, mount: bytes, status: os.stat_result, descriptor: int) -> None:
        try:
            with os.scandir(descriptor) as listing:
                names = sorted((os.fsencode(item.name) for item in listing), reverse=True)
        except OSError as error:
            self.report(path, reason_of(error))
            names = []
        self._levels.append(_Level(path, mount, (status.st_dev, status.st_ino), names, descriptor))
        if len(self._levels) > DESCRIPTORS_MAX:
            far = self._levels[-1 - DESCRIPTORS_MAX]
            if far.descriptor is not None:
                os.close(far.descriptor)
                far.descriptor = None

    def _pop(self) -> None:
        level = self._levels.pop()
        above = self._levels[-1] if self._levels else None
        if above is not None and above.descriptor is None and level.descriptor is not None:
            above.descriptor = self._open_above(level.descriptor, above)
        if level.descriptor is not None:
            os.close(level.descriptor)

    def _open_above(self, descriptor: int, above: _Level) -> int | None:
        try:
            opened = os.open(b"..", DIRECTORY_FLAGS, dir_fd=descriptor)
        except OSError as error:
            self.report(above.path, f"the way back to the directory was lost: {reason_of(error)}")
            return None
        status = os.fstat(opened)
        if (status.st_dev, status.st_ino) == above.identity:
            return opened
        os.close(opened)
        return None


def reason_of(error: OSError) -> str:
    """An error of the operating system in words, without the path."""
    return error.strerror or type(error).__name__
