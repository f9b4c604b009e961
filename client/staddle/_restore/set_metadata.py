"""Metadata from an entry onto what a restore has made, or found the same.

The order matters: the owner first (changing it clears setuid and capabilities), then extended attributes, which need permission to write,
then the mode, then the ACLs, which refine it, and the times last. Nothing here follows a symbolic link.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from staddle._fs.found import reason_of
from staddle._fs.metadata import via_descriptor
from staddle._restore.target_directory import chmod_name
from staddle.v1 import resources_pb2 as pb

KEPT_XATTRS: Final = (b"security.selinux", b"security.ima", b"security.evm", b"trusted.overlay.")
"""What belongs to the machine that restores: neither taken away nor, unless the entry has it, set."""
ACL_PREFIX: Final = b"system.posix_acl_"
_OWNER_RW: Final = stat.S_IRUSR | stat.S_IWUSR

ReportFault = Callable[[str], None]
"""Takes what could not be set, and why."""


@dataclass(slots=True)
class Applier:
    """Sets metadata as far as this process may. Owners that only root could set are counted, not reported."""

    is_root: bool = field(default_factory=lambda: os.geteuid() == 0)
    owners_kept: int = 0
    xattrs_kept: int = 0

    def to_descriptor(
        self, descriptor: int, entry: pb.Entry, report: ReportFault, *, plain: bool = False
    ) -> os.stat_result:
        """Onto an open file or directory. What is right already is not touched. Its stat, from before.

        `plain` says of a new file that it has no extended attributes that it should not have.
        """
        before = status = os.fstat(descriptor)
        if self._owner(descriptor, None, entry, status, report):
            status = os.fstat(descriptor)
        changes = _Changes() if plain and not entry.xattrs else self._xattrs(descriptor, entry, report)
        mode = stat.S_IMODE(status.st_mode)
        if changes.plain and not self.is_root and mode & _OWNER_RW != _OWNER_RW:
            with suppress(OSError):  # then the attributes say why
                os.fchmod(descriptor, mode | _OWNER_RW)
                status = os.fstat(descriptor)
        self._change_xattrs(changes.plain, report)
        wanted = mode_for(entry, status, report)
        wanted = mode if wanted is None else wanted
        if stat.S_IMODE(status.st_mode) != wanted:
            _try(report, "mode", lambda: os.fchmod(descriptor, wanted))
        self._change_xattrs(changes.acls, report)
        if entry.HasField("mtime_ns") and status.st_mtime_ns != entry.mtime_ns:
            times = (status.st_atime_ns, entry.mtime_ns)
            _try(report, "modification time", lambda: os.utime(descriptor, ns=times))
        return before

    def begin_directory(self, descriptor: int, entry: pb.Entry) -> None:
        """Gives a new directory its owner and mode, with what its owner needs to fill it. What fails is left to `to_descriptor`."""
        with suppress(OSError, OverflowError):
            if entry.HasField("uid") or entry.HasField("gid"):
                os.chown(
                    descriptor,
                    entry.uid if entry.HasField("uid") else -1,
                    entry.gid if entry.HasField("gid") else -1,
                )
        with suppress(OSError):
            if entry.HasField("mode"):
                os.fchmod(descriptor, (entry.mode & 0o1777) | stat.S_IRWXU)

    def to_name(self, dir_fd: int, name: bytes, entry: pb.Entry, report: ReportFault) -> None:
        """Onto a symlink, fifo or device in an open directory. What is right already is not touched."""
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        if self._owner(name, dir_fd, entry, status, report):
            status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        changes = self._xattrs(via_descriptor(dir_fd, name), entry, report)
        self._change_xattrs(changes.plain, report)
        wanted = None if stat.S_ISLNK(status.st_mode) else mode_for(entry, status, report)
        if wanted is not None and stat.S_IMODE(status.st_mode) != wanted:
            _try(report, "mode", lambda: chmod_name(dir_fd, name, wanted))
        self._change_xattrs(changes.acls, report)
        if entry.HasField("mtime_ns") and status.st_mtime_ns != entry.mtime_ns:
            times = (status.st_atime_ns, entry.mtime_ns)
            _try(
                report,
                "modification time",
                lambda: os.utime(name, ns=times, dir_fd=dir_fd, follow_symlinks=False),
            )

    def _owner(
        self,
        target: int | bytes,
        dir_fd: int | None,
        entry: pb.Entry,
        status: os.stat_result,
        report: ReportFault,
    ) -> bool:
        """Whether the owner was changed, and with it perhaps the mode."""
        uid = entry.uid if entry.HasField("uid") else status.st_uid
        gid = entry.gid if entry.HasField("gid") else status.st_gid
        if (uid, gid) == (status.st_uid, status.st_gid):
            return False
        try:
            if isinstance(target, int):
                os.chown(target, uid, gid)
            else:
                os.chown(target, uid, gid, dir_fd=dir_fd, follow_symlinks=False)
        except OSError as error:
            if error.errno == errno.EPERM and not self.is_root:
                self.owners_kept += 1
            else:
                report(f"owner: {reason_of(error)}")
            return False
        except OverflowError:
            report("owner: it is out of the range of this system")
            return False
        return True

    def _xattrs(self, target: int | bytes, entry: pb.Entry, report: ReportFault) -> _Changes:
        """What makes the extended attributes those of the entry, as far as this process may see and set them."""
        changes = _Changes()
        wanted = {xattr.raw_name or xattr.name.encode(): xattr.value for xattr in entry.xattrs}
        if sys.platform != "linux":
            self.xattrs_kept += len(wanted)
            return changes
        follow = isinstance(target, int)
        try:
            present = {os.fsencode(name) for name in os.listxattr(target, follow_symlinks=follow)}
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.ENOSYS) or wanted:
                report(f"extended attributes: {reason_of(error)}")
            return changes
        for name in sorted(present - wanted.keys()):
            if not name.startswith(KEPT_XATTRS):
                changes.add(name, partial(os.removexattr, target, name, follow_symlinks=follow))
        for name, value in wanted.items():
            if name not in present or _xattr(target, name, follow=follow) != value:
                changes.add(name, partial(os.setxattr, target, name, value, follow_symlinks=follow))
        return changes

    def _change_xattrs(self, changes: list[tuple[bytes, Callable[[], None]]], report: ReportFault) -> None:
        for name, change in changes:
            try:
                change()
            except OSError as error:
                if (
                    error.errno == errno.EPERM
                    and not self.is_root
                    and not name.startswith((b"user.", ACL_PREFIX))
                ):
                    self.xattrs_kept += 1
                else:
                    report(f"extended attribute {name!r}: {reason_of(error)}")


@dataclass(slots=True)
class _Changes:
    """Changes of extended attributes: `plain` ones need the right to write, `acls` come after the mode, which they refine."""

    plain: list[tuple[bytes, Callable[[], None]]] = field(default_factory=list)
    acls: list[tuple[bytes, Callable[[], None]]] = field(default_factory=list)

    def add(self, name: bytes, change: Callable[[], None]) -> None:
        """Adds one."""
        (self.acls if name.startswith(ACL_PREFIX) else self.plain).append((name, change))


def _xattr(target: int | bytes, name: bytes, *, follow: bool) -> bytes | None:
    """The value that an attribute has; None if it cannot be read, so that it is set."""
    try:
        return os.getxattr(target, name, follow_symlinks=follow)
    except OSError:
        return None


def mode_for(entry: pb.Entry, status: os.stat_result, report: ReportFault) -> int | None:
    """The mode that something with this owner may get; None: the entry says none.

    Setuid and setgid give the rights of the owner. Where that is not the owner that the entry says, they would give
    the rights of another user, so they are dropped, and reported.
    """
    if not entry.HasField("mode"):
        return None
    mode = entry.mode & 0o7777
    dropped = []
    if mode & stat.S_ISUID and entry.HasField("uid") and status.st_uid != entry.uid:
        mode &= ~stat.S_ISUID
        dropped.append("setuid")
    if mode & stat.S_ISGID and entry.HasField("gid") and status.st_gid != entry.gid:
        mode &= ~stat.S_ISGID
        dropped.append("setgid")
    if dropped:
        report(f"mode: {' and '.join(dropped)} dropped, because its owner could not be set")
    return mode


def inherits_acl(dir_fd: int) -> bool:
    """Whether a file that is made in this directory may get an ACL from it."""
    if sys.platform != "linux":
        return False
    try:
        return "system.posix_acl_default" in os.listxattr(dir_fd)
    except OSError as error:
        return error.errno not in (errno.ENOTSUP, errno.ENOSYS)


def _try(report: ReportFault, what: str, work: Callable[[], None]) -> None:
    try:
        work()
    except OSError as error:
        report(f"{what}: {reason_of(error)}")
    except OverflowError:
        report(f"{what}: it is out of the range of this system")
