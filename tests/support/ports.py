"""Ports for servers that must know theirs before they listen, or that end and listen at the same one again."""

from __future__ import annotations

import itertools
import os
import random
import re
import socket
from pathlib import Path

FIRST = 10_240
WORKERS = 16
"""Workers of one run choose from different ports."""


def _last() -> int:
    """The system chooses ports for others from a range above this one: for connections, and for servers that name none."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]) - 1
    except OSError:
        return 32_767


def _candidates() -> itertools.cycle[int]:
    worker = int("".join(re.findall(r"\d+", os.environ.get("PYTEST_XDIST_WORKER", "0"))))
    ports = [port for port in range(FIRST, max(_last(), FIRST + 1_000)) if port % WORKERS == worker % WORKERS]
    random.SystemRandom().shuffle(ports)
    return itertools.cycle(ports)


_next = _candidates()


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        try:
            tried.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on, and that the system gives to no one else meanwhile."""
    return list(itertools.islice(filter(_is_free, _next), count))


def free_port() -> int:
    """One of them."""
    return free_ports(1)[0]
