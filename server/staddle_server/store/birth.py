"""Creation times of files.

The system sets them and no call changes them, so a copy never has its original's.
"""

import ctypes
import os
import struct
from typing import Final

from staddle_server.base.clock import NS

_AT_FDCWD: Final = -100
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_STATX_BTIME: Final = 0x800
_STATX_BYTES: Final = 256
_BTIME_OFFSET: Final = 80
"""Offset in `struct statx` (statx(2)) of the creation time: s64 seconds, u32 nanoseconds. The mask is the
first field.
"""


def birth_ns(path: str) -> int | None:
    """Return when the file `path` was created, in ns since 1970; None if the system or the file system does
    not say.

    Does not follow a link. Raises OSError.
    """
    statx = getattr(ctypes.CDLL(None, use_errno=True), "statx", None)
    if statx is None:
        os.stat(path, follow_symlinks=False)
        return None
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    if statx(_AT_FDCWD, os.fsencode(path), _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, buffer) != 0:
        # An old sandbox may forbid the call; a missing file still raises its own error.
        os.stat(path, follow_symlinks=False)
        return None
    (mask,) = struct.unpack_from("=I", buffer, 0)
    if not mask & _STATX_BTIME:
        return None
    seconds, nanoseconds = struct.unpack_from("=qI", buffer, _BTIME_OFFSET)
    return int(seconds * NS + nanoseconds)
