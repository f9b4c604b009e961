"""Brings what programs have written to a file system to its disk, where the operating system can do that for one file system."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable


@cache
def _syncfs() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        function = ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int]
    function.restype = ctypes.c_int
    return cast("Callable[[int], int]", function)


def sync_file_system(descriptor: int) -> None:
    """Writes the dirty pages of the file system that holds an open file.

    From then on the first write through a shared mapping to any page moves the file's times again. Does nothing where the system
    cannot do it; a failure is a failure of that disk, which its reader will meet.
    """
    function = _syncfs()
    if function is not None:
        function(descriptor)
