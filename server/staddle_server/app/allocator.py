"""Settings of the C library's allocator for this kind of program.

Bulk messages of about 1 MiB come and go. By default glibc returns each to the kernel and faults it in again,
page by page; with kept memory, one stream carries nearly three times as much. Kept memory counts as the
server's, and threads would keep it in separate arenas, so both are bounded. Without glibc nothing is done.
"""

import ctypes
import sys
from typing import Final, NamedTuple

from staddle_server.base.limits import KIB, MIB


class Parameter(NamedTuple):
    """One parameter of mallopt(3): the first of `values` that the library accepts is set."""

    name: str
    number: int
    values: tuple[int, ...]
    why: str


PARAMETERS: Final = (
    Parameter(
        "M_MMAP_THRESHOLD",
        -3,
        (64 * MIB, 32 * MIB),
        "messages and segments use kept memory instead of mappings of their own; the limit of older glibc is 32 MiB",
    ),
    Parameter("M_TRIM_THRESHOLD", -1, (32 * MIB,), "how much free memory stays at the top of the heap"),
    Parameter("M_TOP_PAD", -2, (4 * MIB,), "the step in which the heap grows, so that it grows rarely"),
    Parameter(
        "M_ARENA_MAX",
        -8,
        (1,),
        "one heap for all threads: each keeps its largest size, and two were no faster",
    ),
)
HIGHEST: Final = 2**31 - 1


def tune(parameters: tuple[Parameter, ...] = PARAMETERS) -> dict[str, int]:
    """Set the parameters in this process; return what was accepted, by name. Empty without glibc.

    Call it before threads start: existing arenas stay.
    """
    if not sys.platform.startswith("linux"):
        return {}
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return {}
    mallopt = library.mallopt
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt.restype = ctypes.c_int
    accepted = {}
    for parameter in parameters:
        value = next((value for value in parameter.values if mallopt(parameter.number, value)), None)
        if value is not None:
            accepted[parameter.name] = value
    return accepted


def describe(accepted: dict[str, int]) -> str:
    """Describe the settings for the log."""
    if not accepted:
        return "the C library's own settings"
    return ", ".join(
        f"{name} {value // KIB} KiB" if value >= KIB else f"{name} {value}"
        for name, value in accepted.items()
    )
