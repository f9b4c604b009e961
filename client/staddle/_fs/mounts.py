"""Where file systems are mounted, bind mounts too: device numbers do not show those."""

from __future__ import annotations

import os
import re

_ESCAPED = re.compile(rb"\\([0-7]{3})")


def mounts_below(root: bytes) -> frozenset[bytes]:
    """The paths, relative to a directory, on which something is mounted. Empty where the system does not report them (other than Linux)."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return frozenset()
    above = os.path.realpath(root).rstrip(b"/") + b"/"
    points = (
        _ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), line.split(b" ")[4])
        for line in lines
        if line.count(b" ") >= 4
    )
    return frozenset(point[len(above) :] for point in points if point.startswith(above) and point != above)
