"""What a backup leaves out because of what it is, and not because of its name: caches, marked directories, large files, a server's data."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from staddle._fs.noatime import open_quietly

CACHE_TAG: Final = b"CACHEDIR.TAG"
CACHE_TAG_SIGNATURE: Final = b"Signature: 8a477f597d28d172789f06886806bc55"
"""What such a file begins with: https://bford.info/cachedir/."""
CACHE_TAG_TEXT: Final = (
    CACHE_TAG_SIGNATURE
    + b"\n# This directory is a cache of staddle. Backups may leave it out: see https://bford.info/cachedir/\n"
)
MASTER_KEY: Final = b"master.key"
MASTER_KEY_BEGIN: Final = b"staddle-master-key-1"
STORE: Final = b"store"

IS_CACHE: Final = "it is marked as a cache by CACHEDIR.TAG"
IS_SERVER: Final = "it is the data directory of a Staddle server, with its master key"

_OPEN_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Omissions:
    """Which of these a backup leaves out."""

    caches: bool = False
    """The contents of directories marked by CACHEDIR.TAG, and of data directories of a Staddle server."""
    if_present: tuple[bytes, ...] = ()
    """The contents of directories that hold a file with one of these names."""
    larger_than_bytes: int | None = None
    """Regular files that are larger."""

    def of_directory(
        self, descriptor: int, names: list[bytes], *, named: bool
    ) -> tuple[list[bytes], str] | None:
        """Of a directory whose contents are left out: the names that stay, and why; None: it is an ordinary one.

        `named`: it is a PATH, which is backed up although it is a cache.
        """
        for mark in self.if_present:
            if mark in names:
                return [mark], f"it holds {os.fsdecode(mark)!a}"
        if named or not self.caches:
            return None
        if CACHE_TAG in names and begins_with(descriptor, CACHE_TAG, CACHE_TAG_SIGNATURE):
            return [CACHE_TAG], IS_CACHE
        if is_server_directory(descriptor, names):
            return [], IS_SERVER
        return None


NOTHING: Final = Omissions()


def is_server_directory(descriptor: int, names: list[bytes]) -> bool:
    """Whether an open directory holds a Staddle server's master key and store."""
    return MASTER_KEY in names and STORE in names and begins_with(descriptor, MASTER_KEY, MASTER_KEY_BEGIN)


def begins_with(directory_fd: int, name: bytes, beginning: bytes) -> bool:
    """Whether a regular file in an open directory begins with these bytes; False if it cannot be read."""
    try:
        descriptor = open_quietly(name, _OPEN_FLAGS, dir_fd=directory_fd)
    except OSError:
        return False
    try:
        return os.pread(descriptor, len(beginning), 0) == beginning
    except OSError:
        return False
    finally:
        os.close(descriptor)
