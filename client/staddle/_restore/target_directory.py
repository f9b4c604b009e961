"""The directory that a restore writes into, so that nothing it does can reach outside.

Every directory below it is opened from the one above, never through a symbolic link; every write, link and rename names one component
in an open directory. Swapping a directory for a link meanwhile gains nothing.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections import OrderedDict
from contextlib import suppress
from typing import Final, Protocol

from staddle._fs.rename_exclusive import rename_new
from staddle._fs.temporary_names import discard, sweep
from staddle._fs.walk import DIRECTORY_FLAGS

DESCRIPTORS_MAX: Final = 64
NO_DIRECTORY: Final = "something other than a directory is in its place"
FILLED: Final = "a directory that is not empty is in its place"
OWNER_BITS: Final = stat.S_IRWXU


class OnTheWay(Protocol):
    """Decides about directories that are made only for paths below them."""

    def mode_of(self, path: bytes) -> int:
        """The mode to make one with."""

    def made(self, path: bytes, descriptor: int) -> None:
        """One was made."""


class _Private:
    """Makes them for this user alone."""

    def mode_of(self, _path: bytes) -> int:
        return 0o700

    def made(self, _path: bytes, _descriptor: int) -> None:
        pass


class BlockedError(OSError):
    """A path is blocked by something that may not be replaced."""

    def __init__(self, message: str) -> None:
        super().__init__(None, message)


class AppearedError(BlockedError):
    """Something appeared at a path at which nothing was; it is kept."""

    def __init__(self) -> None:
        super().__init__("something appeared in its place while the restore ran, and was kept")


class Target:
    """A directory, made if it is not there. `is_fresh` says that it was made, or was empty; `was_made` that it was made.

    As an ordinary user it adds the owner's permissions to directories that need them for the work, and puts them back.
    """

    def __init__(self, path: bytes, *, replace: bool, on_the_way: OnTheWay | None = None) -> None:
        """`replace`: a non-directory in the way of a directory is removed; otherwise that is BlockedError.

        Raises OSError if the directory cannot be made or opened.
        """
        above = os.path.dirname(path.rstrip(b"/"))
        if above:
            os.makedirs(above, exist_ok=True)
        self.was_made = False
        with suppress(FileExistsError):
            os.mkdir(path)
            self.was_made = True
        self._replace = replace
        self._on_the_way = on_the_way or _Private()
        self._euid = os.geteuid()
        self._open: OrderedDict[bytes, int] = OrderedDict()
        self._closed_to_writing: set[bytes] = set()
        """Directories in `_open` in which this user, who owns them, may not write yet."""
        self._added: dict[bytes, int] = {}
        """Directories with temporary permissions for this work, and their previous modes."""
        self.replaceable = b""
        """A path that this restore wrote and may replace by a directory, even where nothing else may be replaced."""
        self._root = self._open_root(path)
        try:
            with os.scandir(self._root) as listing:
                self.is_fresh = next(listing, None) is None
        except BaseException:
            os.close(self._root)
            raise

    def _open_root(self, path: bytes) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags)
        except PermissionError:
            status = os.stat(path)
            if not self._may_add(status):
                raise
            os.chmod(path, stat.S_IMODE(status.st_mode) | OWNER_BITS)
            self._added[b""] = stat.S_IMODE(status.st_mode)
            descriptor = os.open(path, flags)
        self._note_mode(b"", descriptor)
        return descriptor

    def close(self) -> None:
        """Puts permissions back that were added, and closes all directories."""
        self.put_back(b"")
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
        os.close(self._root)

    def put_back(self, path: bytes, *, itself: bool = True) -> None:
        """Puts back the permissions that were added below the directory at `path`, and its own if `itself`."""
        while inside := [each for each in self._added if is_in(each, path) and (itself or each != path)]:
            each = max(inside, key=lambda each: (each.count(b"/") + bool(each), each))
            mode = self._added.pop(each)
            with suppress(OSError):  # it was moved or removed meanwhile: nothing is left to put back
                os.fchmod(self.existing(each), mode)
                if each:
                    self._forget(each)

    def keep_mode(self, path: bytes) -> None:
        """Says that the mode that the directory at `path` has now is the one that it is to have."""
        self._added.pop(path, None)

    def directory(self, path: bytes, *, writing: bool = False) -> int:
        """The directory at `path`, opened; missing ones are made as `on_the_way` says. The descriptor remains
        this object's own, and is good until the next call. `writing`: something will be made or removed in it.

        Raises OSError, BlockedError among them.
        """
        descriptor = self._known(path)
        if descriptor is None:
            missing = [path]
            while (above := os.path.dirname(missing[-1])) and self._known(above) is None:
                missing.append(above)
            for each in reversed(missing):
                parent, name = os.path.split(each)
                known = self._known(parent)
                assert known is not None  # it was found or opened just before
                self._keep(each, self._enter(known, each, parent, name))
            descriptor = self._open[path]
        if writing and path in self._closed_to_writing:
            self._add_permissions(path, descriptor)
        return descriptor

    def existing(self, path: bytes) -> int:
        """The directory at `path`, opened; good until the next call. Makes and changes nothing. Raises OSError."""
        descriptor = self._known(path)
        if descriptor is not None:
            return descriptor
        descriptor = os.dup(self._root)
        for name in path.split(b"/"):
            try:
                below = os.open(name, DIRECTORY_FLAGS, dir_fd=descriptor)
            finally:
                os.close(descriptor)
            descriptor = below
        self._keep(path, descriptor)
        return descriptor

    def make_directory(self, path: bytes, *, private: bool) -> bool:
        """Makes the directory at `path`; `private`: only for this user, until its metadata says otherwise. Whether it is new."""
        if not path:
            return False
        parent, name = os.path.split(path)
        made = self._make(self.directory(parent), path, parent, name, 0o700 if private else 0o777)
        if made:
            self._forget(path)
        return made

    def sweep(self, path: bytes) -> None:
        """Removes what killed restores left in an existing directory. Raises OSError if it cannot be opened."""
        sweep(self.directory(path))

    def _known(self, path: bytes) -> int | None:
        if not path:
            return self._root
        descriptor = self._open.get(path)
        if descriptor is not None:
            self._open.move_to_end(path)
        return descriptor

    def _enter(self, parent_fd: int, path: bytes, parent: bytes, name: bytes) -> int:
        try:
            return self._opened(parent_fd, path, name)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
        made = self._make(parent_fd, path, parent, name, self._on_the_way.mode_of(path))
        descriptor = self._opened(parent_fd, path, name)
        if made:
            self._on_the_way.made(path, descriptor)
        return descriptor

    def _opened(self, parent_fd: int, path: bytes, name: bytes) -> int:
        try:
            descriptor = os.open(name, DIRECTORY_FLAGS, dir_fd=parent_fd)
        except PermissionError:
            status = look(parent_fd, name)
            if status is None or not stat.S_ISDIR(status.st_mode) or not self._may_add(status):
                raise
            chmod_name(parent_fd, name, stat.S_IMODE(status.st_mode) | OWNER_BITS)
            self._added.setdefault(path, stat.S_IMODE(status.st_mode))
            descriptor = os.open(name, DIRECTORY_FLAGS, dir_fd=parent_fd)
        self._note_mode(path, descriptor)
        return descriptor

    def _make(self, parent_fd: int, path: bytes, parent: bytes, name: bytes, mode: int) -> bool:
        """Make a directory unless it exists; returns whether it was made."""
        status = look(parent_fd, name)
        if status is not None and stat.S_ISDIR(status.st_mode):
            return False
        if parent in self._closed_to_writing:
            self._add_permissions(parent, parent_fd)
        if status is not None:
            if not self._replace and path != self.replaceable:
                raise BlockedError(NO_DIRECTORY)
            os.unlink(name, dir_fd=parent_fd)
        os.mkdir(name, mode, dir_fd=parent_fd)
        return True

    def _may_add(self, status: os.stat_result) -> bool:
        return self._euid != 0 and status.st_uid == self._euid

    def _note_mode(self, path: bytes, descriptor: int) -> None:
        """Remembers whether permissions have to be added before something is written to a directory."""
        if self._euid == 0:
            return
        status = os.fstat(descriptor)
        if status.st_mode & OWNER_BITS == OWNER_BITS or not self._may_add(status):
            self._closed_to_writing.discard(path)
            return
        if not status.st_mode & stat.S_IXUSR:
            self._add_permissions(path, descriptor)  # without it nothing in it can even be looked at
        else:
            self._closed_to_writing.add(path)

    def _add_permissions(self, path: bytes, descriptor: int) -> None:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        os.fchmod(descriptor, mode | OWNER_BITS)
        self._added.setdefault(path, mode)
        self._closed_to_writing.discard(path)

    def _keep(self, path: bytes, descriptor: int) -> None:
        self._open[path] = descriptor
        if len(self._open) > DESCRIPTORS_MAX:
            oldest, its = self._open.popitem(last=False)
            self._closed_to_writing.discard(oldest)
            os.close(its)

    def _forget(self, path: bytes) -> None:
        """The directory opened at a path, and those below it, were replaced."""
        for stale in [each for each in self._open if each == path or each.startswith(path + b"/")]:
            self._closed_to_writing.discard(stale)
            os.close(self._open.pop(stale))


def is_in(path: bytes, directory: bytes) -> bool:
    """Whether a path is a directory or below it."""
    return path == directory or not directory or path.startswith(directory + b"/")


def look(dir_fd: int, name: bytes) -> os.stat_result | None:
    """The stat of a name, not following it; None if it does not exist."""
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def chmod_name(dir_fd: int, name: bytes, mode: int) -> None:
    """Set the mode of a name; never follows a symlink, even one that has just appeared. Raises OSError."""
    if os.chmod in os.supports_follow_symlinks:
        os.chmod(name, mode, dir_fd=dir_fd, follow_symlinks=False)
        return
    if sys.platform != "linux":
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        if stat.S_ISLNK(os.fstat(descriptor).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        os.chmod(b"/proc/self/fd/%d" % descriptor, mode)
    finally:
        os.close(descriptor)


def settle(dir_fd: int, temporary: bytes, name: bytes, *, exclusive: bool = False) -> None:
    """Gives what lies under a temporary name its real one, in place of what was there; `exclusive`: only if nothing is.

    Raises OSError: AppearedError if something exists that may not be replaced, BlockedError if that is a directory
    with something in it. The temporary name is gone then too.
    """
    try:
        if exclusive:
            _settle_new(dir_fd, temporary, name)
            return
        try:
            os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        except IsADirectoryError:
            _take_away_directory(dir_fd, name)
            os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        discard(dir_fd, temporary)
        raise


def _settle_new(dir_fd: int, temporary: bytes, name: bytes) -> None:
    try:
        rename_new(dir_fd, temporary, name)
    except FileExistsError as error:
        raise AppearedError from error


def _take_away_directory(dir_fd: int, name: bytes) -> None:
    try:
        os.rmdir(name, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise BlockedError(FILLED) from error
        raise
