"""`staddle-server` that can be put short of threads or memory while it runs: python scarce_launcher.py SERVER-ARGUMENTS…

SIGUSR1: the system gives it no more threads. SIGUSR2: no further memory but a little. SIGRTMIN: all that it had.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

UID = 64321
"""Whose threads count, where root runs the tests: root has no limit of threads."""
MEMORY_LEFT = 24 << 20
SYS_ADMIN, SYS_RESOURCE = 21, 24


class _Capabilities(ctypes.Structure):
    _fields_ = [
        (f"{kind}{half}", ctypes.c_uint32)
        for half in (0, 1)
        for kind in ("effective", "permitted", "inheritable")
    ]


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


def drop_privileges() -> None:
    """Takes root's freedom from limits away, and leaves it its files."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, held = _Header(0x20080522, 0), _Capabilities()
    assert libc.capget(ctypes.byref(header), ctypes.byref(held)) == 0
    for kind in ("effective0", "permitted0", "inheritable0"):
        setattr(held, kind, getattr(held, kind) & ~(1 << SYS_ADMIN | 1 << SYS_RESOURCE))
    assert libc.capset(ctypes.byref(header), ctypes.byref(held)) == 0
    os.setresuid(UID, 0, 0)


def _limit(which: int, soft: int) -> None:
    resource.setrlimit(which, (soft, resource.getrlimit(which)[1]))


def no_threads(*_: object) -> None:
    _limit(resource.RLIMIT_NPROC, 1)


def _no_memory(*_: object) -> None:
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + MEMORY_LEFT)


def _plenty(*_: object) -> None:
    for which in (resource.RLIMIT_NPROC, resource.RLIMIT_AS):
        _limit(which, resource.getrlimit(which)[1])


if __name__ == "__main__":
    from staddle_server.cli import main

    drop_privileges()
    for number, handler in (
        (signal.SIGUSR1, no_threads),
        (signal.SIGUSR2, _no_memory),
        (signal.SIGRTMIN, _plenty),
    ):
        signal.signal(number, handler)
    sys.argv = ["staddle-server", *sys.argv[1:]]
    main()
