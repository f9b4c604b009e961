"""A directory that is hard to restore correctly, and its comparison."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path
from typing import NamedTuple

KIB = 1 << 10
MIB = 1 << 20
ODD_NAMES = (
    b"caf\xc3\xa9",
    b"cafe\xcc\x81",
    b"not \xff\xfe UTF-8",
    b"-rf",
    b"two\nlines\r",
    b"'\"\\$(x) *?",
    b" ",
    b"...",
    "☂ 備份 🗄".encode(),
    b"x" * 255,
)
# Whole seconds, none, and before 1970: all with nanoseconds but the first.
TIMES_NS = (1_500_000_000_000_000_000, 1_700_000_000_123_456_789, -86_400_000_000_001, 1)


class Found(NamedTuple):
    """The object at a path."""

    kind: str
    mode: int | None
    content: bytes


def make_tree(root: Path) -> int:
    """Fill a new directory; return the number of entries, including itself."""
    noise = random.Random(7)
    root.mkdir()
    files = {
        b"empty": b"",
        b"large": noise.randbytes(5 * MIB + 1),
        b"a message long": noise.randbytes(MIB),
        b"zeros inside": noise.randbytes(100 * KIB) + bytes(9 * MIB) + b"end",
        b"just inline": noise.randbytes(64 * KIB),
        b"just not inline": noise.randbytes(64 * KIB + 1),
        **{b"odd/" + name: name for name in ODD_NAMES},
        **{b"many/%d/%d" % (each % 7, each): b"%d\n" % each * 20 for each in range(1500)},
        b"/".join([b"deep"] * 60): b"down here",
    }
    base = os.fsencode(root)
    for path, content in files.items():
        name = os.path.join(base, path)
        os.makedirs(os.path.dirname(name), exist_ok=True)
        with open(name, "xb") as file:
            file.write(content)
    os.mkdir(os.path.join(base, b"nothing in it"))
    links = {
        b"link": b"large",
        b"dangling": b"/nowhere/\xff",
        b"odd/to a directory": b"../many",
        b"itself": b"itself",
    }
    for path, target in links.items():
        os.symlink(target, os.path.join(base, path))
    os.chmod(os.path.join(base, b"empty"), 0o400)
    os.chmod(os.path.join(base, b"large"), 0o4755)
    os.chmod(os.path.join(base, b"nothing in it"), 0o1770)
    names = [base, *_below(base)]
    for each, name in enumerate(reversed(names)):
        time = TIMES_NS[each % len(TIMES_NS)]
        os.utime(name, ns=(time, time), follow_symlinks=False)
    return len(names)


def read_tree(root: Path) -> dict[bytes, Found]:
    """Everything in a directory and itself, by path, without times."""
    base = os.fsencode(root)
    return {name[len(base) + 1 :]: _found(name) for name in [base, *_below(base)]}


def read_times(root: Path) -> dict[bytes, int]:
    """The modification times of all in a directory and itself, in ns."""
    base = os.fsencode(root)
    return {name[len(base) + 1 :]: os.lstat(name).st_mtime_ns for name in [base, *_below(base)]}


def _found(name: bytes) -> Found:
    mode = os.lstat(name).st_mode
    if stat.S_ISLNK(mode):
        # The mode of a symbolic link means nothing.
        return Found("symlink", None, os.readlink(name))
    if stat.S_ISDIR(mode):
        return Found("directory", stat.S_IMODE(mode), b"")
    with open(name, "rb") as file:
        return Found("file", stat.S_IMODE(mode), file.read())


def _below(base: bytes) -> list[bytes]:
    """All paths below a directory, a directory before what lies in it."""
    return [
        os.path.join(directory, name)
        for directory, directories, files in os.walk(base)
        for name in (*directories, *files)
    ]
