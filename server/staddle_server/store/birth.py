"""When a file was made, which a copy of it cannot have: the system sets that time, and nobody can change it."""

import ctypes
import os
import struct
from typing import Final

NS: Final = 1_000_000_000
_AT_FDCWD: Final = -100
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_STATX_BTIME: Final = 0x800
_STATX_BYTES: Final = 256
_BTIME_OFFSET: Final = 80
"""In `struct statx` (statx(2)): the mask is its first field, the time of birth a s64 of seconds and a u32 of nanoseconds here."""


def birth_ns(path: str) -> int | None:
    """When the file `path` was made, in ns since 1970; None where the system or the file system does not tell.

    A link is not followed. Raises OSError.
    """
    statx = getattr(ctypes.CDLL(None, use_errno=True), "statx", None)
    if statx is None:
        os.stat(path, follow_symlinks=False)
        return None
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    if statx(_AT_FDCWD, os.fsencode(path), _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, buffer) != 0:
        # A system that forbids the call (an old sandbox) tells nothing; a file that is not there is an error of its own.
        os.stat(path, follow_symlinks=False)
        return None
    (mask,) = struct.unpack_from("=I", buffer, 0)
    if not mask & _STATX_BTIME:
        return None
    seconds, nanoseconds = struct.unpack_from("=qI", buffer, _BTIME_OFFSET)
    return int(seconds * NS + nanoseconds)
