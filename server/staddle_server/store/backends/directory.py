"""Blobs in a local directory: written to tmp/, synced, linked under their name; then the
directory is synced.
"""

import contextlib
import errno
import logging
import os
import re
import stat
import threading
from collections.abc import Iterator
from typing import Final

from staddle_server.base.errors import Exhausted, StaddleError, Unavailable
from staddle_server.base.limits import MIB
from staddle_server.store.blobs import (
    TEMPORARY,
    BlobExists,
    BlobMissing,
    BlobShort,
    BlobUnreadable,
    Buffer,
    check_name,
    check_prefix,
    check_range,
    is_component,
)
from staddle_server.store.files import NO_ROOM, Files

_log = logging.getLogger(__name__)

WRITE_BACK_BYTES: Final = 8 * MIB
DURABLE_DIRECTORIES_MAX: Final = 65_536
_RETRY_AFTER_S: Final = 30.0
_TEMPORARY_NAME: Final = re.compile("[0-9a-f]{32}")


class DirectoryBlobs:
    """Blobs below the directory `root`, which must exist. Several processes may share one.

    Attributes:
        failed: What failed, after a failed sync. Nothing is written from then on: after such a failure the
            system may have dropped pages that it considers clean. Check the disk and restart the server.

    """

    def __init__(self, root: str, files: Files | None = None) -> None:
        self._root = os.path.abspath(root)
        self._temporary = os.path.join(self._root, TEMPORARY)
        self._files = files or Files()
        self._durable: set[str] = set()
        self._durable_lock = threading.Lock()
        self.failed: str | None = None
        with translated("open the store"):
            self._identity = self._root_identity()

    def create(self) -> "DirectoryWriter":
        self.check_writable()
        with translated("create a temporary file"):
            self._check_root()
            self._make_directories(self._temporary)
            with self._remembering_directories():
                path, descriptor = self._new_temporary()
        try:
            return DirectoryWriter(self, self._files, path, descriptor)
        except BaseException:
            self._drop_temporary(path, descriptor)
            raise

    def put(self, name: str, data: bytes) -> None:
        check_name(name)
        writer = self.create()
        try:
            writer.write(data)
            writer.commit(name)
        finally:
            writer.abort()

    def read(self, name: str, offset: int, length: int) -> bytes:
        check_range(offset, length)
        path = self._path(name)
        with translated(f"read {name}"), self._missing(name):
            self._check_root()
            descriptor = self._files.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                return self._read(descriptor, name, offset, length)
            except OSError as error:
                if error.errno == errno.EIO:
                    raise BlobUnreadable(name, "EIO") from error
                raise
            finally:
                self._files.close(descriptor)

    def size(self, name: str) -> int:
        path = self._path(name)
        with translated(f"stat {name}"), self._missing(name):
            self._check_root()
            status = self._files.status(path)
        if not stat.S_ISREG(status.st_mode):
            raise BlobMissing(name)
        return status.st_size

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        check_prefix(prefix)
        with translated("list the store"):
            self._check_root()
        return self._walk(prefix)

    def delete(self, name: str) -> None:
        path = self._path(name)
        self.check_writable()
        with translated(f"delete {name}"), self._missing(name):
            self._check_root()
            self._files.unlink(path)
        self._sync_directory(os.path.dirname(path))

    def sweep(self) -> int:
        """Remove the files that dead writers left behind, and return how many.

        Files of live writers are locked and stay. Files that writers would not name so stay too: tmp/ may be
        a link to a directory with other users.
        """
        self.check_writable()
        swept = 0
        with translated("sweep temporary files"):
            try:
                entries = self._files.scan(self._temporary)
            except FileNotFoundError:
                return 0
            for entry in entries:
                if _TEMPORARY_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    swept += self._sweep(entry.path)
        return swept

    def check_writable(self) -> None:
        if self.failed is not None:
            raise Unavailable(
                "STORE_UNAVAILABLE",
                f"the store refuses writes since a sync failed ({self.failed}); "
                "check the disk, then restart the server",
                retry_after_s=_RETRY_AFTER_S,
            )

    # --- what writers share

    def publish(self, temporary: str, descriptor: int, name: str) -> None:
        """Sync the file, link it under `name`, sync the directory. Raises as BlobWriter.commit does."""
        path = self._sync_for(descriptor, name)
        with translated(f"name {name}"), self._remembering_directories():
            try:
                self._files.link(temporary, path)
            except FileExistsError as error:
                # Another writer may have linked it just now: a caller that counts that as success needs it
                # durable.
                self._sync_name(path)
                raise BlobExists(name) from error
        self._sync_name(path)

    def replace(self, temporary: str, descriptor: int, name: str) -> None:
        """Sync the file, rename it to `name`, sync the directory. Raises as BlobWriter.replace does."""
        path = self._sync_for(descriptor, name)
        with translated(f"replace {name}"), self._remembering_directories():
            self._files.replace(temporary, path)
        self._sync_name(path)

    def _sync_for(self, descriptor: int, name: str) -> str:
        """Sync the file that will be called `name`, create that name's directory, and return the path."""
        self.check_writable()
        path = os.path.join(self._root, check_name(name))
        with translated(f"name {name}"):
            self._check_root()
        self._make_directories(os.path.dirname(path))
        self._sync(descriptor, name)
        return path

    def _sync_name(self, path: str) -> None:
        """Make a new name durable. Raise if the root was replaced meanwhile: a copy has files of the same names."""
        self._sync_directory(os.path.dirname(path))
        with translated(f"name {os.path.relpath(path, self._root)}"):
            self._check_root()

    def _sync(self, descriptor: int, name: str) -> None:
        with translated(f"sync {name}"), self._failing(f"sync {name}"):
            self._files.sync(descriptor)

    def _sync_directory(self, path: str) -> None:
        action = f"sync the directory {os.path.relpath(path, self._root)}"
        with translated(action):
            descriptor = self._files.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                with self._failing(action):
                    self._files.sync_directory(descriptor)
            finally:
                self._files.close(descriptor)

    @contextlib.contextmanager
    def _failing(self, action: str) -> Iterator[None]:
        """Refuse further writes if the body, a sync, fails."""
        try:
            yield
        except OSError as error:
            if self.failed is None:
                self.failed = _store_error(action, error).message
                _log.error(
                    "%s: the store refuses writes from now on and stays readable; check the disk, then restart the server",
                    self.failed,
                )
            raise

    # --- parts

    def _path(self, name: str) -> str:
        return os.path.join(self._root, check_name(name))

    def _check_root(self) -> None:
        """Raise OSError if the root is not the directory that was opened: an unmounted one would look empty,
        and a copy complete.
        """
        if self._root_identity() != self._identity:
            raise OSError(errno.ESTALE, "another directory is mounted there")

    def _root_identity(self) -> tuple[int, int]:
        # The directory itself: a link to it stays the same when the directory is unmounted or replaced.
        found = self._files.status(os.path.join(self._root, os.curdir))
        return found.st_dev, found.st_ino

    @contextlib.contextmanager
    def _missing(self, name: str) -> Iterator[None]:
        """Raise BlobMissing if the file does not exist below the right root."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            self._check_root()
            raise BlobMissing(name) from error

    @contextlib.contextmanager
    def _remembering_directories(self) -> Iterator[None]:
        """Forget the known directories if one no longer exists, so that the next attempt creates it again."""
        try:
            yield
        except FileNotFoundError:
            with self._durable_lock:
                self._durable.clear()
            raise

    def _new_temporary(self) -> tuple[str, int]:
        """Create a temporary file, locked by this process."""
        while True:
            path = os.path.join(self._temporary, os.urandom(16).hex())
            descriptor = self._files.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                # A sweep may run between open and lock: then it holds the lock, or the file has lost its
                # name.
                kept = self._files.lock(descriptor) and self._files.status_of(descriptor).st_nlink > 0
            except BaseException:
                self._drop_temporary(path, descriptor)
                raise
            if kept:
                return path, descriptor
            self._files.close(descriptor)

    def _drop_temporary(self, path: str, descriptor: int) -> None:
        """Discard a file without a writer: it would stay locked for the life of this process."""
        with contextlib.suppress(OSError):
            self._files.unlink(path)
        with contextlib.suppress(OSError):
            self._files.close(descriptor)

    def _sweep(self, path: str) -> int:
        try:
            descriptor = self._files.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return 0
        try:
            if not self._files.lock(descriptor):
                return 0
            self._files.unlink(path)
        except FileNotFoundError:
            return 0
        finally:
            self._files.close(descriptor)
        return 1

    def _make_directories(self, path: str) -> None:
        """Create `path` below the root, and sync each new name.

        An existing directory counts only once this instance has synced its parent: another thread or process
        may have created it just now.
        """
        if path == self._root:
            return
        with self._durable_lock:
            if path in self._durable:
                return
        parent = os.path.dirname(path)
        self._make_directories(parent)
        with (
            translated(f"make the directory {os.path.relpath(path, self._root)}"),
            contextlib.suppress(FileExistsError),
        ):
            self._files.make_directory(path)
        self._sync_directory(parent)
        with self._durable_lock:
            if len(self._durable) >= DURABLE_DIRECTORIES_MAX:
                self._durable.clear()
            self._durable.add(path)

    def _read(self, descriptor: int, name: str, offset: int, length: int) -> bytes:
        status = self._files.status_of(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BlobMissing(name)
        size = status.st_size
        if offset + length > size:
            raise BlobShort(name, offset, length, size)
        parts: list[bytes] = []
        have = 0
        while have < length:
            part = self._files.read(descriptor, length - have, offset + have)
            if not part:
                raise BlobShort(name, offset, length, offset + have)
            parts.append(part)
            have += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _walk(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Walk depth first. A directory sorts as if it ended in "/", so that names come in string order."""
        found: list[tuple[str, bool, int]] = []
        with translated(f"list {prefix or 'the store'}"):
            try:
                entries = self._files.scan(os.path.join(self._root, prefix))
            except (FileNotFoundError, NotADirectoryError):
                self._check_root()
                return
            for entry in entries:
                if not is_component(entry.name) or (not prefix and entry.name == TEMPORARY):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    found.append((f"{entry.name}/", True, 0))
                elif entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        found.append((entry.name, False, entry.stat(follow_symlinks=False).st_size))
        found.sort()
        for tail, is_directory, size in found:
            name = f"{prefix}/{tail}" if prefix else tail
            if is_directory:
                yield from self._walk(name[:-1])
            else:
                yield name, size


class DirectoryWriter:
    """An object of DirectoryBlobs in writing: a locked file in tmp/."""

    def __init__(self, blobs: DirectoryBlobs, files: Files, path: str, descriptor: int) -> None:
        self._blobs = blobs
        self._files = files
        self._path = path
        self._descriptor: int | None = descriptor
        self._size = 0
        self._started = 0
        self._broken = False

    def write(self, data: Buffer) -> None:
        descriptor = self._open()
        self._blobs.check_writable()
        rest = memoryview(data).cast("B")
        self._broken = True
        with translated("write to the store"):
            while rest:
                written = self._files.write(descriptor, rest)
                self._size += written
                rest = rest[written:]
            if self._size - self._started >= WRITE_BACK_BYTES:
                self._files.write_back(descriptor, self._started, self._size - self._started)
                self._started = self._size
        self._broken = False

    def commit(self, name: str) -> None:
        descriptor = self._open()
        try:
            self._blobs.publish(self._path, descriptor, name)
        finally:
            self.abort()

    def replace(self, name: str) -> None:
        descriptor = self._open()
        try:
            self._blobs.replace(self._path, descriptor, name)
        finally:
            self.abort()

    def abort(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        # A failure here leaves an unlocked file behind, which the next sweep removes.
        try:
            with contextlib.suppress(OSError):
                self._files.unlink(self._path)
        finally:
            with contextlib.suppress(OSError):
                self._files.close(descriptor)

    def _open(self) -> int:
        if self._descriptor is None or self._broken:
            raise ValueError("this writer is finished or has failed")
        return self._descriptor


@contextlib.contextmanager
def translated(action: str) -> Iterator[None]:
    """Translate OSError: no space left becomes Exhausted, anything else Unavailable."""
    try:
        yield
    except OSError as error:
        raise _store_error(action, error) from error


def _store_error(action: str, error: OSError) -> StaddleError:
    cause = errno.errorcode.get(error.errno or 0, "unknown error")
    if error.errno in NO_ROOM:
        return Exhausted("STORE_FULL", f"could not {action}: no space left in the store ({cause})")
    return Unavailable(
        "STORE_UNAVAILABLE",
        f"could not {action}: the store does not answer ({cause})",
        retry_after_s=_RETRY_AFTER_S,
    )
