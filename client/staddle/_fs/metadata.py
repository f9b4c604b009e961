"""The metadata of a path on disk, as an entry holds it.

Everything is taken relative to an open directory and without following the path's own symbolic link. Extended attributes
and holes exist where the operating system has them; elsewhere an entry goes without.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
import sys
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from blake3 import blake3

from staddle._fs.found import Found, ReplacedError, ReportUnread, reason_of
from staddle._protocol.columns import READ_AGAIN, EntryRow
from staddle._protocol.convert import field_for, path_of
from staddle.v1 import resources_pb2 as pb

HAS_HOLES: Final = hasattr(os, "SEEK_HOLE") and hasattr(os, "SEEK_DATA")

XATTRS_MAX: Final = 1024
XATTR_NAME_BYTES_MAX: Final = 255
XATTR_VALUE_BYTES_MAX: Final = 64 * 1024
XATTR_BYTES_MAX: Final = 256 * 1024
"""All attributes of an entry together: with its holes they stay below what the server takes of one entry."""
HOLES_MAX: Final = 32_768
HOLES_SEEN_MAX: Final = 4 * HOLES_MAX
"""So many holes are looked at before the smallest are dropped, to keep memory flat."""
LINK_GROUP_BYTES_MAX: Final = 64
OWNER_BYTES_MAX: Final = 256
NAMES_CACHED_MAX: Final = 10_000
LINK_TARGET_BYTES_MAX: Final = 4096
FILE_BYTES_MAX: Final = 2**56
U32_MAX: Final = 2**32 - 1
U64_MAX: Final = 2**64 - 1
I64_MIN: Final = -(2**63)
I64_MAX: Final = 2**63 - 1

TYPES: Final[dict[int, pb.EntryType.ValueType]] = {
    stat.S_IFREG: pb.ENTRY_TYPE_FILE,
    stat.S_IFDIR: pb.ENTRY_TYPE_DIRECTORY,
    stat.S_IFLNK: pb.ENTRY_TYPE_SYMLINK,
    stat.S_IFIFO: pb.ENTRY_TYPE_FIFO,
    stat.S_IFCHR: pb.ENTRY_TYPE_CHAR_DEVICE,
    stat.S_IFBLK: pb.ENTRY_TYPE_BLOCK_DEVICE,
    stat.S_IFSOCK: pb.ENTRY_TYPE_SOCKET,
}

_NO_XATTRS_HERE: Final = frozenset(
    code
    for code in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, getattr(errno, "ENODATA", None))
    if code is not None
)


class OwnerNames:
    """The names of users and groups, looked up once each."""

    def __init__(self) -> None:
        self._users: dict[int, str] = {}
        self._groups: dict[int, str] = {}

    def user(self, uid: int) -> str:
        """The user's name, empty if there is none."""
        name = self._users.get(uid)
        return _cached(self._users, uid, lambda: pwd.getpwuid(uid).pw_name) if name is None else name

    def group(self, gid: int) -> str:
        """The group's name, empty if there is none."""
        name = self._groups.get(gid)
        return _cached(self._groups, gid, lambda: grp.getgrgid(gid).gr_name) if name is None else name


def _cached(cache: dict[int, str], number: int, look_up: Callable[[], str]) -> str:
    try:
        name = look_up()
    except (KeyError, OverflowError):
        name = ""
    if len(name.encode("utf-8", "surrogateescape")) > OWNER_BYTES_MAX or not _is_text(name):
        name = ""
    if len(cache) >= NAMES_CACHED_MAX:
        cache.clear()
    cache[number] = name
    return name


def _is_text(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def set_path(item: pb.Entry | pb.Remove, path: bytes) -> None:
    """Set a path in the field that can hold it."""
    setattr(item, *field_for("path", path))


def type_of(status: os.stat_result) -> pb.EntryType.ValueType | None:
    """The entry type of a path; None for what no backup can hold (a door, a whiteout)."""
    return TYPES.get(stat.S_IFMT(status.st_mode))


class Problems(Protocol):
    """Receives the problems of a path."""

    def left_out(self, path: bytes, message: str) -> None:
        """No backup can hold it."""

    def failed(self, path: bytes, error: OSError) -> None:
        """Reading it failed."""

    def altered(self, path: bytes, message: str) -> None:
        """A value does not fit into a backup."""


def entry_of(
    found: Found, names: OwnerNames, problems: Problems, status: os.stat_result | None = None
) -> pb.Entry | None:
    """The entry of a path with all metadata from its stat, its link and its directory; without content, attributes, holes.

    `status` replaces what the scan saw, where the file was opened since. A value that does not fit is the nearest one that does, or is
    left out, and is reported; such an entry is not proved unchanged by anything. None, reported, if no backup can hold the path, or the
    link cannot be read.
    """
    status = found.stat if status is None else status
    kind = type_of(status)
    if kind is None:
        problems.left_out(found.path, "it is of a type that a backup cannot hold")
        return None
    if kind == pb.ENTRY_TYPE_FILE and status.st_size > FILE_BYTES_MAX:
        problems.left_out(found.path, "it is larger than a backup can hold")
        return None
    entry = pb.Entry(
        type=kind,
        mode=stat.S_IMODE(status.st_mode),
        owner=names.user(status.st_uid),
        group=names.group(status.st_gid),
    )
    set_path(entry, found.path)
    _set_numbers(entry, found.path, status, problems)
    if kind == pb.ENTRY_TYPE_SYMLINK and not _set_target(entry, found, problems):
        return None
    if kind in (pb.ENTRY_TYPE_CHAR_DEVICE, pb.ENTRY_TYPE_BLOCK_DEVICE):
        major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
        if not (0 <= major <= U32_MAX and 0 <= minor <= U32_MAX):
            problems.left_out(found.path, f"its device number {major}:{minor} is none that a backup can hold")
            return None
        entry.device_major, entry.device_minor = major, minor
    if kind == pb.ENTRY_TYPE_FILE and status.st_nlink > 1:
        entry.link_group = link_group(status.st_ino, found.mount)
    return entry


def small_file_row(
    found: Found, names: OwnerNames, content_id: bytes, *, read_again: bool
) -> EntryRow | None:
    """The entry of a regular file that has one name and nothing beside its stat and its content, as `entry_of` has it.

    None: it has a value that does not fit, which `entry_of` deals with.
    """
    status = found.stat
    mtime_ns, ctime_ns = status.st_mtime_ns, status.st_ctime_ns
    uid, gid, inode = status.st_uid, status.st_gid, status.st_ino
    if not (
        I64_MIN <= mtime_ns <= I64_MAX
        and I64_MIN <= ctime_ns <= I64_MAX
        and 0 <= uid <= U32_MAX
        and 0 <= gid <= U32_MAX
        and 0 <= inode <= U64_MAX
        and status.st_size <= FILE_BYTES_MAX
    ):
        return None
    return EntryRow(
        found.path,
        pb.ENTRY_TYPE_FILE,
        READ_AGAIN if read_again else 0,
        status.st_mode & 0o7777,
        uid,
        gid,
        mtime_ns,
        ctime_ns,
        inode,
        names.user(uid),
        names.group(gid),
        status.st_size,
        content_id,
    )


def _set_numbers(entry: pb.Entry, path: bytes, status: os.stat_result, problems: Problems) -> None:
    """Owner, times and inode. Some file systems have times from 1601 on, or up to 2446, and 64 bits of nanoseconds do not reach so far."""
    if 0 <= status.st_uid <= U32_MAX and 0 <= status.st_gid <= U32_MAX:
        entry.uid, entry.gid = status.st_uid, status.st_gid
    else:
        problems.altered(
            path, f"its owner {status.st_uid}:{status.st_gid} does not fit into a backup and was left out"
        )
    entry.mtime_ns = min(max(status.st_mtime_ns, I64_MIN), I64_MAX)
    entry.ctime_ns = min(max(status.st_ctime_ns, I64_MIN), I64_MAX)  # no restore sets it
    if entry.mtime_ns != status.st_mtime_ns:
        nearest = "1677-09-21" if status.st_mtime_ns < 0 else "2262-04-11"
        seconds = status.st_mtime_ns // 10**9
        problems.altered(
            path,
            f"its modification time, {seconds} s from 1970, does not fit into a backup and became {nearest}",
        )
    if 0 <= status.st_ino <= U64_MAX:
        entry.inode = status.st_ino


def _set_target(entry: pb.Entry, found: Found, problems: Problems) -> bool:
    try:
        target = os.readlink(found.name, dir_fd=found.dir_fd)
    except OSError as error:
        is_replaced = error.errno == errno.EINVAL  # it is not a link any more
        problems.failed(found.path, ReplacedError(*error.args) if is_replaced else error)
        return False
    if not target:
        problems.left_out(found.path, "its link target is empty")
        return False
    if len(target) > LINK_TARGET_BYTES_MAX:
        problems.left_out(found.path, "its link target is longer than a backup can hold")
        return False
    setattr(entry, *field_for("link_target", target))
    return True


def link_group(inode: int, mount: bytes) -> bytes:
    """The name that all hard links of one file share, and no other file: inode and mount point inside the tree."""
    group = b"%d@%s" % (inode, mount)
    if len(group) <= LINK_GROUP_BYTES_MAX:
        return group
    return b"%d@#%s" % (inode, blake3(mount).hexdigest()[:40].encode())


def via_descriptor(dir_fd: int, name: bytes) -> bytes:
    """A path that leads to `name` in an open directory, for the calls that take no directory."""
    return b"/proc/self/fd/%d/%s" % (dir_fd, name)


def may_have_xattrs(descriptor: int) -> bool:
    """Whether an open file has extended attributes; True where that cannot be found out."""
    if sys.platform != "linux":
        return False
    try:
        return bool(os.listxattr(descriptor))
    except OSError as error:
        return error.errno not in _NO_XATTRS_HERE


def add_xattrs(entry: pb.Entry, target: int | bytes, report: ReportUnread) -> None:
    """Adds the extended attributes of an open file, or of a path (not following it); POSIX ACLs are among them.

    Those that cannot be read, or that no backup can hold, are reported; a file system without attributes is not an error.
    """
    if sys.platform != "linux":
        return
    follow = isinstance(target, int)
    path = path_of(entry)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError as error:
        if error.errno not in _NO_XATTRS_HERE:
            report(path, f"extended attributes: {reason_of(error)}")
        return
    size = 0
    for text in sorted(names)[:XATTRS_MAX]:
        name = os.fsencode(text)
        if not 1 <= len(name) <= XATTR_NAME_BYTES_MAX:
            report(path, f"extended attribute {text!a}: its name is empty or longer than a backup can hold")
            continue
        try:
            value = os.getxattr(target, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in _NO_XATTRS_HERE:
                report(path, f"extended attribute {text!a}: {reason_of(error)}")
            continue
        if len(value) > XATTR_VALUE_BYTES_MAX or size + len(name) + len(value) > XATTR_BYTES_MAX:
            report(path, f"extended attribute {text!a}: larger than a backup can hold")
            continue
        size += len(name) + len(value)
        setattr(entry.xattrs.add(value=value), *field_for("name", name))
    if len(names) > XATTRS_MAX:
        report(path, f"extended attributes: more than {XATTRS_MAX}")


def holes_of(descriptor: int, size: int) -> list[tuple[int, int]]:
    """The holes of an open file up to `size`, (offset, length), in order; at most 32,768, the largest.

    Leaves the file's position anywhere. A file system that cannot report holes has none.
    """
    if not HAS_HOLES:
        return []
    holes: list[tuple[int, int]] = []
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_HOLE)
            if start >= size:
                break
            end = min(_data_after(descriptor, start, size), size)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENXIO, errno.ENOTSUP):
                break
            raise
        if end <= start:
            break  # filled while we looked
        holes.append((start, end - start))
        position = end
        if len(holes) >= HOLES_SEEN_MAX:
            holes = largest(holes, HOLES_MAX)
    return largest(holes, HOLES_MAX)


def _data_after(descriptor: int, start: int, size: int) -> int:
    try:
        return os.lseek(descriptor, start, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size  # a hole up to the end
        raise


def largest(holes: Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """The largest holes, at most `count`, in order of offset. What is dropped is plain zeros to a restore."""
    if len(holes) <= count:
        return list(holes)
    return sorted(sorted(holes, key=lambda hole: hole[1], reverse=True)[:count])
