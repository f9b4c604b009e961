"""A disk that fails where a test says so."""

from __future__ import annotations

import errno
from staddle_server.store.directory import Files


class FailingFiles(Files):
    """The system calls of a disk that is full, or broken, wherever a test says so."""

    def __init__(self) -> None:
        self.full = False
        """Nothing can be written any more."""
        self.refused: str | None = None
        """No object whose path has this in it gets its name: the disk is full just then."""
        self.syncs_fail = False

    def write(self, descriptor: int, data: bytes | bytearray | memoryview) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "no space")
        return super().write(descriptor, data)

    def link(self, source: str, target: str) -> None:
        if self.refused is not None and self.refused in target:
            raise OSError(errno.ENOSPC, "no space")
        super().link(source, target)

    def sync(self, descriptor: int) -> None:
        if self.syncs_fail:
            raise OSError(errno.EIO, "input/output error")
        super().sync(descriptor)

    def mend(self) -> None:
        """There is room again, and syncs work."""
        self.full, self.refused, self.syncs_fail = False, None, False
