"""Opens what is read without moving its access time, where the operating system has that and allows it."""

from __future__ import annotations

import errno
import os
from typing import Final

_FLAG: Final = getattr(os, "O_NOATIME", 0)
_REFUSALS: Final = frozenset({errno.EPERM, errno.EINVAL})
_OWNERS_MAX: Final = 10_000
_refused: set[tuple[int, int]] = set()
"""By this process's user: the owners whose files it may not open so. Linux allows it to a file's owner and to root."""


def open_quietly(
    name: str | bytes, flags: int, *, dir_fd: int | None = None, owner: int | None = None
) -> int:
    """As os.open for reading. `owner`, of the file, spares the attempt where it was refused before. Raises OSError."""
    who = None if owner is None else (os.geteuid(), owner)
    if not _FLAG or who in _refused:
        return os.open(name, flags, dir_fd=dir_fd)
    try:
        return os.open(name, flags | _FLAG, dir_fd=dir_fd)
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
    descriptor = os.open(name, flags, dir_fd=dir_fd)
    if who is not None:
        if len(_refused) >= _OWNERS_MAX:
            _refused.clear()
        _refused.add(who)
    return descriptor
