"""Metadata from an entry onto what a restore has made, or found the same.

The order matters: the owner first (changing it clears setuid and capabilities), then the mode, then extended attributes with the ACLs
among them, and the times last. Nothing here follows a symbolic link.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from staddle._metadata import via_descriptor
from staddle._scan import reason_of
from staddle.v1 import resources_pb2 as pb

KEPT_XATTRS: Final = (b"security.selinux", b"security.ima", b"security.evm", b"trusted.overlay.")
"""What belongs to the machine that restores: neither taken away nor, unless the entry has it, set."""
ACL_PREFIX: Final = b"system.posix_acl_"

Report = Callable[[str], None]
"""Takes what could not be set, and why."""


@dataclass(slots=True)
class Applier:
    """Sets metadata as far as this process may. Owners that only root could set are counted, not reported."""

    is_root: bool = field(default_factory=lambda: os.geteuid() == 0)
    owners_kept: int = 0
    xattrs_kept: int = 0

    def to_descriptor(
        self, descriptor: int, entry: pb.Entry, report: Report, *, plain: bool = False
    ) -> os.stat_result:
        """Onto an open file or directory. What is right already is not touched. Its stat, from before.

        `plain` says of a new file that it has no extended attributes that it should not have.
        """
        before = status = os.fstat(descriptor)
        if self._owner(descriptor, None, entry, status, report):
            status = os.fstat(descriptor)
        if entry.HasField("mode") and stat.S_IMODE(status.st_mode) != entry.mode & 0o7777:
            _try(report, "mode", lambda: os.fchmod(descriptor, entry.mode & 0o7777))
        if not plain or entry.xattrs:
            self._xattrs(descriptor, entry, report)
        if entry.HasField("mtime_ns") and status.st_mtime_ns != entry.mtime_ns:
            times = (status.st_atime_ns, entry.mtime_ns)
            _try(report, "modification time", lambda: os.utime(descriptor, ns=times))
        return before

    def to_name(self, dir_fd: int, name: bytes, entry: pb.Entry, report: Report) -> None:
        """Onto a symlink, fifo or device in an open directory. What is right already is not touched."""
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        if self._owner(name, dir_fd, entry, status, report):
            status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        wanted = entry.mode & 0o7777
        if (
            entry.HasField("mode")
            and not stat.S_ISLNK(status.st_mode)
            and stat.S_IMODE(status.st_mode) != wanted
        ):
            _try(report, "mode", lambda: _chmod_name(dir_fd, name, wanted))
        self._xattrs(via_descriptor(dir_fd, name), entry, report)
        if entry.HasField("mtime_ns") and status.st_mtime_ns != entry.mtime_ns:
            times = (status.st_atime_ns, entry.mtime_ns)
            _try(
                report,
                "modification time",
                lambda: os.utime(name, ns=times, dir_fd=dir_fd, follow_symlinks=False),
            )

    def _owner(
        self, target: int | bytes, dir_fd: int | None, entry: pb.Entry, status: os.stat_result, report: Report
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

    def _xattrs(self, target: int | bytes, entry: pb.Entry, report: Report) -> None:
        """Makes the extended attributes those of the entry, as far as this process may see and set them."""
        wanted = {xattr.raw_name or xattr.name.encode(): xattr.value for xattr in entry.xattrs}
        if sys.platform != "linux":
            self.xattrs_kept += len(wanted)
            return
        follow = isinstance(target, int)
        try:
            present = {os.fsencode(name) for name in os.listxattr(target, follow_symlinks=follow)}
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.ENOSYS) or wanted:
                report(f"extended attributes: {reason_of(error)}")
            return
        for name in sorted(present - wanted.keys()):
            if not name.startswith(KEPT_XATTRS):
                self._change_xattr(
                    name, report, partial(os.removexattr, target, name, follow_symlinks=follow)
                )
        for name, value in wanted.items():
            if name not in present or os.getxattr(target, name, follow_symlinks=follow) != value:
                self._change_xattr(
                    name, report, partial(os.setxattr, target, name, value, follow_symlinks=follow)
                )

    def _change_xattr(self, name: bytes, report: Report, change: Callable[[], None]) -> None:
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


def inherits_acl(dir_fd: int) -> bool:
    """Whether a file that is made in this directory may get an ACL from it."""
    if sys.platform != "linux":
        return False
    try:
        return "system.posix_acl_default" in os.listxattr(dir_fd)
    except OSError as error:
        return error.errno not in (errno.ENOTSUP, errno.ENOSYS)


def _try(report: Report, what: str, work: Callable[[], None]) -> None:
    try:
        work()
    except OSError as error:
        report(f"{what}: {reason_of(error)}")
    except OverflowError:
        report(f"{what}: it is out of the range of this system")


def _chmod_name(dir_fd: int, name: bytes, mode: int) -> None:
    """Sets the mode of a name that is no symlink, and is not followed should it have become one."""
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
