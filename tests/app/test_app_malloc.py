"""The allocator is tuned if the system allows it, and keeps freed memory within bounds."""

import platform
import subprocess
import sys

import pytest
from staddle_server.app import allocator

GLIBC = platform.libc_ver()[0] == "glibc"

# 16 blocks of 1 MiB are allocated and freed repeatedly, as messages are.
PROGRAM = """
import ctypes, sys
from staddle_server.app import allocator
accepted = allocator.tune() if sys.argv[1:] else {}
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = (ctypes.c_size_t,)
libc.free.argtypes = (ctypes.c_void_p,)

def faults():
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def rounds(count):
    for _ in range(count):
        blocks = [libc.malloc(1 << 20) for _ in range(16)]
        for block in blocks:
            ctypes.memset(block, 1, 1 << 20)
        for block in blocks:
            libc.free(block)

rounds(2)
before = faults()
rounds(10)
print(len(accepted), faults() - before)
"""


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc: there is nothing to tune")
def test_freed_blocks_of_message_size_are_reused_without_page_faults() -> None:
    accepted, faults = measured("tuned")
    assert accepted == len(allocator.PARAMETERS)
    assert faults < 100
    assert measured()[1] > 1000, "the measurement shows nothing: it does not differ without the settings"


def measured(*arguments: str) -> tuple[int, int]:
    """How many settings were taken, and how many pages were faulted in by 160 blocks of 256 pages."""
    words = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    accepted, faults = map(int, done.stdout.split())
    return accepted, faults


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc: there is nothing to tune")
def test_if_the_library_refuses_a_value_the_next_one_is_tried() -> None:
    parameter = allocator.Parameter(
        "M_MXFAST", 1, (1 << 20, 64), "small blocks end at 160 bytes: glibc takes no more"
    )
    code = f"from staddle_server.app import allocator; print(allocator.tune((allocator.{parameter!r},)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "{'M_MXFAST': 64}\n"


def test_the_settings_are_reported_with_units() -> None:
    assert (
        allocator.describe({"M_TOP_PAD": 16 << 20, "M_ARENA_MAX": 2}) == "M_TOP_PAD 16384 KiB, M_ARENA_MAX 2"
    )
    assert allocator.describe({}) == "the C library's own settings"


def test_every_value_fits_a_c_int() -> None:
    assert all(
        0 < value <= allocator.HIGHEST for parameter in allocator.PARAMETERS for value in parameter.values
    )
