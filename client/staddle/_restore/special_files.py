"""Anything but regular files and directories: whether it already is as in the backup, and how it is made."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

from staddle._fs.metadata import type_of
from staddle._protocol.convert import link_target_of
from staddle.v1 import resources_pb2 as pb

DEVICES: Final = {
    pb.ENTRY_TYPE_CHAR_DEVICE: stat.S_IFCHR,
    pb.ENTRY_TYPE_BLOCK_DEVICE: stat.S_IFBLK,
}


def is_same_special(dir_fd: int, name: bytes, status: os.stat_result, entry: pb.Entry) -> bool:
    """Whether a special file or link has the entry's type, target or number."""
    if type_of(status) != entry.type:
        return False
    if entry.type == pb.ENTRY_TYPE_SYMLINK:
        return os.readlink(name, dir_fd=dir_fd) == link_target_of(entry)
    if entry.type in DEVICES:
        return (os.major(status.st_rdev), os.minor(status.st_rdev)) == (
            entry.device_major,
            entry.device_minor,
        )
    return True


def make_special(dir_fd: int, name: bytes, entry: pb.Entry) -> None:
    """Makes a symlink, fifo or device, without its metadata. Raises OSError."""
    if entry.type == pb.ENTRY_TYPE_SYMLINK:
        os.symlink(link_target_of(entry), name, dir_fd=dir_fd)
        return
    mode = 0o600 if entry.HasField("mode") else 0o666
    make = os.mkfifo if entry.type == pb.ENTRY_TYPE_FIFO else os.mknod
    if make not in os.supports_dir_fd:
        raise OSError(errno.ENOTSUP, "this system cannot make it safely")
    if entry.type == pb.ENTRY_TYPE_FIFO:
        os.mkfifo(name, mode, dir_fd=dir_fd)
    elif entry.type in DEVICES:
        device = _device_of(entry)
        os.mknod(name, mode | DEVICES[entry.type], device, dir_fd=dir_fd)
    else:
        raise OSError(errno.ENOTSUP, f"an entry of type {entry.type} cannot be made by this client")


def _device_of(entry: pb.Entry) -> int:
    try:
        return os.makedev(entry.device_major, entry.device_minor)
    except OverflowError as error:
        raise OSError(errno.EINVAL, "the device number is out of the range of this system") from error
