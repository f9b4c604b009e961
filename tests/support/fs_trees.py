"""Trees to back up, and the comparison of two trees in everything that a backup keeps."""

from __future__ import annotations

import functools
import os
import random
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Node(NamedTuple):
    """The compared properties of a path. Hard links are a set of paths; holes are those of SEEK_HOLE."""

    kind: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    content: bytes
    device: int
    links: tuple[bytes, ...]
    xattrs: tuple[tuple[str, bytes], ...]
    holes: tuple[tuple[int, int], ...]


def open_below(root: Path) -> list[str]:
    """What this process has open at and below a directory: whatever a server in the same process opens does not count."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
        except FileNotFoundError:  # closed since it was listed
            continue
        if path == str(root) or path.startswith(f"{root}/"):
            found.append(path)
    return found


def clock_at_last_change(*paths: Path) -> Callable[[], int]:
    """A clock that stands where these paths were last changed, however long a busy machine takes to read them."""
    last_ns = max(path.lstat().st_ctime_ns for path in paths)
    return lambda: last_ns


def nodes_of(root: Path | bytes, *, holes: bool = True) -> dict[bytes, Node]:
    """Every path below a root (b"" is the root itself) except sockets, with its compared properties."""
    root = os.fsencode(root)
    groups: dict[tuple[int, int], list[bytes]] = {}
    found: dict[bytes, tuple[bytes, os.stat_result]] = {}
    stack = [b""]
    while stack:
        path = stack.pop()
        full = os.path.join(root, path) if path else root
        status = os.lstat(full)
        if stat.S_ISSOCK(status.st_mode):
            continue
        found[path] = full, status
        if stat.S_ISDIR(status.st_mode):
            stack.extend(os.path.join(path, name) if path else name for name in os.listdir(full))
        elif stat.S_ISREG(status.st_mode):
            groups.setdefault((status.st_dev, status.st_ino), []).append(path)
    return {
        path: _node(full, status, groups.get((status.st_dev, status.st_ino), []), holes=holes)
        for path, (full, status) in found.items()
    }


def _node(full: bytes, status: os.stat_result, links: list[bytes], *, holes: bool) -> Node:
    content, found_holes = b"", ()
    if stat.S_ISREG(status.st_mode):
        with open(full, "rb") as file:
            content = file.read()
            found_holes = tuple(_holes(file.fileno(), len(content))) if holes else ()
    elif stat.S_ISLNK(status.st_mode):
        content = os.readlink(full)
    names = sorted(os.listxattr(full, follow_symlinks=False))
    return Node(
        stat.S_IFMT(status.st_mode),
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        content,
        status.st_rdev if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode) else 0,
        tuple(sorted(links)),
        tuple((name, os.getxattr(full, name, follow_symlinks=False)) for name in names),
        found_holes,
    )


def _holes(descriptor: int, size: int):
    position = 0
    while position < size:
        start = os.lseek(descriptor, position, os.SEEK_HOLE)
        if start >= size:
            return
        try:
            position = os.lseek(descriptor, start, os.SEEK_DATA)
        except OSError:
            position = size
        yield start, position - start


def assert_same(a: Path | bytes, b: Path | bytes, *, but: frozenset[bytes] = frozenset()) -> None:
    """Fails naming the first path that differs, and how; `but` are paths whose times may differ."""
    left, right = nodes_of(a), nodes_of(b)
    assert sorted(left) == sorted(right)
    for path, node in left.items():
        other = right[path]
        if path in but:
            other = other._replace(mtime_ns=node.mtime_ns)
        assert other == node, path


@functools.lru_cache(maxsize=16)
def seeded_bytes(seed: int, size: int) -> bytes:
    """Bytes that do not compress, the same for the same seed."""
    return random.Random(seed).randbytes(size)


def plant(root: Path, seed: int = 1, *, files: int = 40) -> None:
    """A tree with every kind of object that any user can create."""
    chance = random.Random(seed)
    root.mkdir(exist_ok=True)
    directories = [root]
    for number in range(files // 4):
        directory = chance.choice(directories) / f"d{number}"
        directory.mkdir()
        directories.append(directory)
    for number in range(files):
        size = chance.choice([0, 1, 17, 4_000, 70_000, 300_000])
        path = chance.choice(directories) / f"f{number}.bin"
        path.write_bytes(chance.randbytes(size))
        path.chmod(chance.choice([0o644, 0o600, 0o755, 0o400]))
    (root / "big").write_bytes(chance.randbytes(3_000_000))
    (root / "text").write_text("the same line\n" * 100_000)
    os.link(root / "big", root / "big-too")
    (root / "to-nowhere").symlink_to("no/such/place")
    (root / "a").mkdir()
    (root / "a" / "x").write_text("below a")
    (root / "a.b").write_text("sorts behind a/x")
    os.mkfifo(root / "pipe", 0o620)
    with (root / "sparse").open("wb") as file:
        file.truncate(2_000_000)
        file.seek(1_000_000)
        file.write(b"island")
    (root / "empty-dir").mkdir()


def make_socket(path: Path) -> None:
    """A socket without a listener."""
    with socket.socket(socket.AF_UNIX) as made:
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            made.bind(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)
