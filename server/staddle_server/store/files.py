"""Local files: every system call that durability depends on, in one place."""

import contextlib
import errno
import fcntl
import os
from typing import Final

from staddle_server.store.blobs import Buffer

FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of a write that has no room: on the disk, in a quota, or below a limit of file sizes."""


class Files:
    """The system calls that durability depends on, one method each, so that tests can make each of them fail.

    Every method raises OSError as the system does. docs/safety.md names the steps built from them.
    """

    def open(self, path: str, flags: int) -> int:
        return os.open(path, flags | os.O_CLOEXEC, FILE_MODE)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def lock(self, descriptor: int) -> bool:
        """Take the file's lock if it is free, until the descriptor is closed."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def write(self, descriptor: int, data: Buffer) -> int:
        return os.write(descriptor, data)

    def write_back(self, descriptor: int, offset: int, length: int) -> None:
        """Start writing this range to the disk, without waiting. Promises nothing."""
        # On Linux DONTNEED starts write-back of the range's dirty pages (mm/fadvise.c).
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)

    def read(self, descriptor: int, length: int, offset: int) -> bytes:
        return os.pread(descriptor, length, offset)

    def sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def sync_directory(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def link(self, source: str, target: str) -> None:
        """Give a file a second name; unlike a rename, never replaces an existing file."""
        os.link(source, target, follow_symlinks=False)

    def replace(self, source: str, target: str) -> None:
        """Rename a file, replacing any file that has the new name."""
        os.replace(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def make_directory(self, path: str) -> None:
        os.mkdir(path, DIRECTORY_MODE)

    def status(self, path: str) -> os.stat_result:
        return os.stat(path, follow_symlinks=False)

    def status_of(self, descriptor: int) -> os.stat_result:
        return os.fstat(descriptor)

    def scan(self, path: str) -> "list[os.DirEntry[str]]":
        with os.scandir(path) as entries:
            return list(entries)


def write_synced(files: Files, path: str, data: bytes) -> None:
    """Create the file `path` with `data` and sync it, but not its name. A failure leaves no file.

    Raises OSError.
    """
    descriptor = files.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[files.write(descriptor, rest) :]
        files.sync(descriptor)
    except OSError:
        files.unlink(path)
        raise
    finally:
        files.close(descriptor)


def sync_directory(files: Files, path: str) -> None:
    """Make the names in the directory `path` durable. Raises OSError."""
    descriptor = files.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        files.sync_directory(descriptor)
    finally:
        files.close(descriptor)


def make_durable(path: str) -> None:
    """Make a directory and those above it that are missing, each name synced into its parent.

    The name of one that is there already is synced too, where that can be done: a start that was cut off may
    have made it. Raises OSError.
    """
    files, parent = Files(), os.path.dirname(path) or "."
    if os.path.isdir(path):
        try:
            sync_directory(files, parent)
        except OSError as error:
            # The directory above may be somebody else's, or of a file system that syncs no directories.
            if error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL}:
                raise
        return
    make_durable(parent)
    with contextlib.suppress(FileExistsError):
        files.make_directory(path)
    sync_directory(files, parent)
