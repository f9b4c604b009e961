"""Extras, paths of a target that the backup does not have: found before a restore changes anything, removed after it succeeded.

Only paths that were found, and still are what they were then, are removed, one by one. Every directory is opened from the one above
it, starting from one descriptor of the target and never through a symbolic link, and no mounted file system is entered.
"""

from __future__ import annotations

import errno
import os
import stat
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from staddle._base.figures import counted
from staddle._fs.found import reason_of
from staddle._fs.omissions import is_server_directory
from staddle._fs.temporary_names import is_temporary
from staddle._fs.walk import DIRECTORY_FLAGS
from staddle._restore.selection import Choice, Selection
from staddle._restore.stats import RestoreTally
from staddle._restore.target_directory import OWNER_BITS, is_in, look
from staddle._types.reports import ProblemKind
from staddle.v1 import resources_pb2 as pb

DESCRIPTORS_MAX: Final = 64
DEEP: Final = 64
"""Directories deeper than this are not reopened from the target for each directory above them: that is quadratic."""
INCOMPLETE: Final = (
    "the backup could not read everything in this directory, so what only the target has in it stays"
)
SERVER: Final = (
    "it is the data directory of a Staddle server, so what only the target has in it stays: delete it by hand"
)
CHANGED: Final = "it changed or was replaced after it was found"
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


class OtherMountError(OSError):
    """A directory on another file system than the target."""


@dataclass(slots=True)
class _ExtrasLevel:
    """A directory of the backup that is above the last entry, or is it."""

    path: bytes
    keeps_time: bool
    """The backup says its modification time, which a removal in it must not change."""
    names: set[bytes]
    """Those in the target that have not been seen in the backup."""
    incomplete: bool
    """The backup does not know everything in it."""
    aliases: set[int] = field(default_factory=set)
    """Inodes that names of the backup lead to although they are listed in other letters."""
    stays: bool = False
    """It is, or lies in, a server's data directory."""
    keeps_extras: bool = False
    """Something that stays for that reason is not in the backup."""
    directories: set[int] = field(default_factory=set)
    """Inodes of the target's directories that directories of the backup in this one lead to."""


@dataclass(slots=True)
class _Inside:
    """A directory that is not in the backup, while it is looked through."""

    path: bytes
    names: list[bytes]
    """Those still to be looked at, the next one last."""
    group: _Group
    stays: bool = False
    """Something in it stays, and so does it."""


@dataclass(slots=True)
class _Group:
    """Names to remove from one directory. Compact, for there may be millions."""

    path: bytes
    keeps_time: bool = False
    names: bytearray = field(default_factory=bytearray)
    """Each ends with a slash."""
    inodes: array[int] = field(default_factory=lambda: array("Q"))
    times_ns: array[int] = field(default_factory=lambda: array("q"))

    def add(self, name: bytes, status: os.stat_result) -> None:
        """Adds a name."""
        self.names += name + b"/"
        self.inodes.append(status.st_ino)
        self.times_ns.append(_time_of(status))

    def __iter__(self) -> Iterator[tuple[bytes, int, int]]:
        return zip(bytes(self.names).split(b"/"), self.inodes, self.times_ns, strict=False)


FAILURES: Final = frozenset({ProblemKind.DAMAGED, ProblemKind.NOT_WRITTEN})
"""After them nothing is deleted."""
MERGED: Final = (
    "the target's file system takes it for another directory of the backup, so nothing was deleted"
)


class Extras:
    """Extras of one target. Close it at the end."""

    def __init__(self, target: bytes, selection: Selection) -> None:
        """Excluded names, and those that are not included, are not extras. Raises OSError if the target exists and cannot be opened."""
        self._target = target
        self._selection = selection
        self._root: int | None = None
        self._open: OrderedDict[bytes, int] = OrderedDict()
        self._groups: list[_Group] = []
        self._levels: list[_ExtrasLevel] = []
        self._failed: list[tuple[bytes, str]] = []
        self.count = 0
        """Paths to remove."""
        self.mounts = 0
        """Directories that stay because a file system is mounted there."""
        self.sure = True
        """All entries of the backup have come: none of what was found can be one of them."""
        self.merged: bytes | None = None
        """A directory that is the same in the target as another one of the backup."""
        try:
            self._root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._mount = _mount_of(self._root)
        except FileNotFoundError:
            pass

    def close(self) -> None:
        """Close everything."""
        self._forget()
        if self._root is not None:
            os.close(self._root)
            self._root = None

    # --- finding

    def add(self, path: bytes, entry: pb.Entry) -> None:
        """Takes the next entry of the backup, of which all have to come, in order."""
        if self._root is None:
            return
        while self._levels and not is_in(path, self._levels[-1].path):
            self._leave(self._levels.pop())
        parent, _, name = path.rpartition(b"/")
        is_directory = entry.type == pb.ENTRY_TYPE_DIRECTORY
        if path and self._levels and self._levels[-1].path == parent:
            self._seen(self._levels[-1], name)
            if is_directory:
                self._check_merged(self._levels[-1], path, name)
        choice = self._selection.choose(path, is_directory=is_directory)
        if is_directory and choice is not Choice.LEFT_OUT:
            keeps_time = choice is Choice.TAKEN and entry.HasField("mtime_ns")
            names = self._names_in(path)
            level = _ExtrasLevel(path, keeps_time, set(names), entry.incomplete)
            level.stays = bool(self._levels and self._levels[-1].stays) or self._is_server(path, names)
            self._levels.append(level)

    def end(self) -> None:
        """All entries have come."""
        while self._levels:
            self._leave(self._levels.pop())

    def paths(self) -> Iterator[bytes]:
        """The paths to remove, each directory after its content."""
        for group in self._groups:
            for name, _, _ in group:
                yield _joined(group.path, name)

    def _seen(self, level: _ExtrasLevel, name: bytes) -> None:
        if name in level.names:
            level.names.remove(name)
        elif level.names:
            try:
                status = look(self._directory(level.path), name)
            except OSError:
                return
            if status is not None:
                level.aliases.add(status.st_ino)

    def _check_merged(self, level: _ExtrasLevel, path: bytes, name: bytes) -> None:
        """Two directories of the backup that are one in the target: what one lacks the other may have, so nothing is deleted."""
        try:
            status = look(self._directory(level.path), name)
        except OSError:
            return
        if status is None or not stat.S_ISDIR(status.st_mode):
            return
        if status.st_ino in level.directories and self.merged is None:
            self.merged = path
            self.sure = False
        level.directories.add(status.st_ino)

    def _names_in(self, path: bytes) -> list[bytes]:
        """The names in a directory of the target; none, if the restore has to make it."""
        try:
            return [os.fsencode(name) for name in os.listdir(self._directory(path))]
        except OtherMountError:
            self.mounts += 1
        except OSError as error:
            if error.errno not in _ABSENT:
                self._failed.append((path, reason_of(error)))
        return []

    def _is_server(self, path: bytes, names: list[bytes]) -> bool:
        """Whether a directory of the target holds a server's master key and backups: no restore may delete them."""
        return bool(names) and is_server_directory(self._directory(path), names)

    def _leave(self, level: _ExtrasLevel) -> None:
        """Gathers what is left of a directory of the backup."""
        if level.stays:
            level.keeps_extras = level.keeps_extras or any(self._may_go(level, name) for name in level.names)
            above = self._levels[-1] if self._levels else None
            if above is not None and above.stays:
                above.keeps_extras = above.keeps_extras or level.keeps_extras
            elif level.keeps_extras:
                self._failed.append((level.path, SERVER))
            return
        if level.incomplete:
            if any(self._may_go(level, name) for name in level.names):
                self._failed.append((level.path, INCOMPLETE))
            return
        group = _Group(level.path, level.keeps_time)
        for name in sorted(level.names):
            self._gather(group, name, level.aliases)
        self._keep(group)

    def _may_go(self, level: _ExtrasLevel, name: bytes) -> bool:
        """Whether a name that only the target has would be removed from a directory that the backup knows completely."""
        try:
            status = look(self._directory(level.path), name)
        except OSError:
            return True
        if status is None or is_temporary(name) or status.st_ino in level.aliases:
            return False
        return not self._selection.excludes(_joined(level.path, name), stat.S_ISDIR(status.st_mode))

    def _gather(self, group: _Group, name: bytes, aliases: set[int]) -> None:
        """Adds a name to the group of its directory, and what lies in it to groups before that, unless something of it stays."""
        top = _Inside(group.path, [name], group)
        way = [top]
        while way[-1] is not top or top.names:
            inside = way[-1]
            if not inside.names:
                way.pop()
                self._keep(inside.group)
                above, name = way[-1], inside.path.rpartition(b"/")[2]
                self._add(above, name, stays=inside.stays)
                continue
            name = inside.names.pop()
            path = _joined(inside.path, name)
            try:
                status = look(self._directory(inside.path), name)
                if status is None:
                    continue
                is_directory = stat.S_ISDIR(status.st_mode)
                if (
                    is_temporary(name)
                    or status.st_ino in aliases
                    or self._selection.excludes(path, is_directory)
                ):
                    inside.stays = True
                elif is_directory:
                    names = sorted(map(os.fsencode, os.listdir(self._directory(path))), reverse=True)
                    if self._is_server(path, names):
                        self._failed.append((path, SERVER))
                        inside.stays = True
                    else:
                        way.append(_Inside(path, names, _Group(path)))
                else:
                    self._add(inside, name, status)
            except OtherMountError:
                self.mounts += 1
                inside.stays = True
            except OSError as error:
                self._failed.append((path, reason_of(error)))
                inside.stays = True

    def _add(
        self, inside: _Inside, name: bytes, status: os.stat_result | None = None, *, stays: bool = False
    ) -> None:
        """Adds a path all below which goes, if it is included; without `status` it is a directory."""
        path = _joined(inside.path, name)
        if not stays and self._selection.includes(path, status is None):
            status = status or look(self._directory(inside.path), name)
            if status is not None:
                inside.group.add(name, status)
                return
        inside.stays = True

    def _keep(self, group: _Group) -> None:
        if group.inodes:
            self._groups.append(group)
            self.count += len(group.inodes)

    # --- removing

    def remove(self, tally: RestoreTally) -> None:
        """Removes what was found, and notes what could not be removed."""
        self.tell_failed(tally)
        if self._root is None or not self._groups:
            return
        if not _is_still(self._target, self._root):
            tally.note(ProblemKind.NOT_DELETED, b"", "the target was replaced by another directory meanwhile")
            return
        self._forget()
        for group in self._groups:
            if group.path.count(b"/") < DEEP:
                self._forget()  # what was opened before may have been moved out of the target meanwhile
            try:
                self._remove_group(group, tally)
            except OSError as error:
                if error.errno not in _ABSENT:
                    tally.note(ProblemKind.NOT_DELETED, group.path, reason_of(error))

    def tell_failed(self, tally: RestoreTally) -> None:
        """Notes the paths that could not be looked at."""
        for path, why in self._failed:
            tally.note(ProblemKind.NOT_DELETED, path, why)

    def _remove_group(self, group: _Group, tally: RestoreTally) -> None:
        descriptor = self._directory(group.path)
        before = os.fstat(descriptor)
        mode = stat.S_IMODE(before.st_mode)
        opens = before.st_uid == os.geteuid() != 0 and mode & OWNER_BITS != OWNER_BITS
        if opens:
            os.fchmod(descriptor, mode | OWNER_BITS)
        try:
            for name, inode, time_ns in group:
                path = _joined(group.path, name)
                try:
                    removed = _remove(descriptor, name, inode, time_ns)
                except OSError as error:
                    tally.note(ProblemKind.NOT_DELETED, path, reason_of(error))
                    continue
                if removed:
                    tally.deleted(path)
        finally:
            if opens:
                os.fchmod(descriptor, mode)
            if group.keeps_time:
                os.utime(descriptor, ns=(before.st_atime_ns, before.st_mtime_ns))

    # --- directories

    def _forget(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def _directory(self, path: bytes) -> int:
        """The directory at `path`, opened; good until the next call. Raises OSError, OtherMountError among them."""
        if self._root is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        missing = []
        while path and path not in self._open:
            missing.append(path)
            path = path.rpartition(b"/")[0]
        descriptor = self._open[path] if path else self._root
        for each in reversed(missing):
            below = os.open(each.rpartition(b"/")[2], DIRECTORY_FLAGS, dir_fd=descriptor)
            try:
                if _mount_of(below) != self._mount:
                    raise OtherMountError(errno.EXDEV, "another file system is mounted there")
            except BaseException:
                os.close(below)
                raise
            self._open[each] = descriptor = below
            if len(self._open) > DESCRIPTORS_MAX:
                os.close(self._open.popitem(last=False)[1])
        return descriptor


def _remove(dir_fd: int, name: bytes, inode: int, time_ns: int) -> bool:
    """Removes a name if it still is what was found; whether it was there."""
    status = look(dir_fd, name)
    if status is None:
        return False
    is_directory = stat.S_ISDIR(status.st_mode)
    if (status.st_ino, _time_of(status)) != (inode, time_ns):
        raise OSError(None, CHANGED)
    if is_directory:
        os.rmdir(name, dir_fd=dir_fd)
    else:
        os.unlink(name, dir_fd=dir_fd)
    return True


def _time_of(status: os.stat_result) -> int:
    """The modification time, within 63 bits; -1 for a directory, which has another one once it is emptied."""
    return -1 if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns & (2**63 - 1)


def _joined(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def _is_still(path: bytes, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _mount_of(descriptor: int) -> tuple[int, bytes]:
    """Identifies the mount of an open directory, also where the same file system is mounted twice."""
    mount = b""
    try:
        with open(f"/proc/self/fdinfo/{descriptor}", "rb") as info:
            mount = next((line for line in info if line.startswith(b"mnt_id:")), b"")
    except OSError:
        pass  # not Linux: there the number of the device has to do
    return os.fstat(descriptor).st_dev, mount


def delete_extras(extras: Extras, tally: RestoreTally, *, dry_run: bool) -> list[str]:
    """Deletes what was found, or counts it in a dry run, if everything else was restored. Returns what the report has to warn of."""
    if (
        not extras.sure
        or tally.problems_dropped
        or any(problem.kind in FAILURES for problem in tally.problems)
    ):
        if extras.merged is not None:
            tally.note(ProblemKind.NOT_DELETED, extras.merged, MERGED)
        if not extras.count:
            return []
        kept = (
            f"Kept {counted(extras.count, 'path')} that were not found in the backup, because not everything in the backup could be "
            "read and restored."
        )
        return [kept]
    warnings = []
    if extras.mounts:
        warnings.append(
            f"Deleted nothing in {counted(extras.mounts, 'directory', 'directories')} on which another file system is mounted."
        )
    if dry_run:
        extras.tell_failed(tally)
        for path in extras.paths():
            tally.deleted(path)
    else:
        extras.remove(tally)
    return warnings
