"""What a tree is, line by line in a file: all metadata and a digest of every byte. Two such listings can be compared.

This is independent of Staddle, because it judges the restored trees. Memory does not grow with the tree.
"""

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from blake3 import blake3

READ_BYTES: Final = 1024 * 1024
HOLES_FROM_BYTES: Final = 64 * 1024


class Line(NamedTuple):
    """One path. Text stands for bytes as os.fsdecode has it."""

    path: str
    type: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    content: str
    """BLAKE3 of a file, the target of a symlink, the number of a device."""
    linked: str
    """The first path that is the same file; empty if it is the only one, or the first."""
    xattrs: list[list[str]]
    holes: bool

    @property
    def order(self) -> list[str]:
        """Component by component, as directories are walked."""
        return self.path.split("/")

    @property
    def what(self) -> tuple[str, int, str]:
        """What a differential backup calls content."""
        return self.type, self.size, self.content


class Sum(NamedTuple):
    """A listing, in two numbers."""

    entries: int
    data_bytes: int


def write_listing(root: Path, to: Path) -> Sum:
    """Lists a directory with all below it, itself first."""
    entries = data_bytes = 0
    first_paths: dict[tuple[int, int], str] = {}
    with to.open("w", encoding="ascii") as file:
        for path, name, status in _walk(os.fsencode(root)):
            line = _line(path, name, status, first_paths)
            file.write(json.dumps(line) + "\n")
            entries += 1
            data_bytes += line.size
    return Sum(entries, data_bytes)


def _walk(root: bytes) -> Iterator[tuple[str, bytes, os.stat_result]]:
    """Path inside the tree, name to open it by, status; a directory before what lies in it, names in order."""
    yield "", root, os.lstat(root)
    yield from _walk_below(root, "")


def _walk_below(directory: bytes, path: str) -> Iterator[tuple[str, bytes, os.stat_result]]:
    with os.scandir(directory) as scan:
        found = sorted(scan, key=lambda entry: os.fsdecode(entry.name))
    for entry in found:
        inside = f"{path}/{os.fsdecode(entry.name)}" if path else os.fsdecode(entry.name)
        yield inside, entry.path, entry.stat(follow_symlinks=False)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk_below(entry.path, inside)


def _line(path: str, name: bytes, status: os.stat_result, first_paths: dict[tuple[int, int], str]) -> Line:
    mode = status.st_mode
    content, holes, linked = "", False, ""
    if stat.S_ISREG(mode):
        content, holes = _read(name, status.st_size)
    elif stat.S_ISLNK(mode):
        content = os.fsdecode(os.readlink(name))
    elif stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        content = str(status.st_rdev)
    if status.st_nlink > 1 and not stat.S_ISDIR(mode):
        first = first_paths.setdefault((status.st_dev, status.st_ino), path)
        linked = "" if first == path else first
    return Line(
        path,
        stat.filemode(mode)[0],
        stat.S_IMODE(mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        status.st_size if stat.S_ISREG(mode) else 0,
        content,
        linked,
        _xattrs(name),
        holes,
    )


def _read(name: bytes, size: int) -> tuple[str, bool]:
    """The digest of a file, and whether it has holes."""
    hasher = blake3()
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        while data := os.read(fd, READ_BYTES):
            hasher.update(data)
        holes = size >= HOLES_FROM_BYTES and os.lseek(fd, 0, os.SEEK_HOLE) < size
    finally:
        os.close(fd)
    return hasher.hexdigest(), holes


def _xattrs(name: bytes) -> list[list[str]]:
    names = sorted(os.listxattr(name, follow_symlinks=False))
    return [[each, os.getxattr(name, each, follow_symlinks=False).hex()] for each in names]


# --- comparing


def read_listing(file: Path) -> Iterator[Line]:
    """The lines of a listing."""
    with file.open(encoding="ascii") as lines:
        for line in lines:
            yield Line(*json.loads(line))


def differences(expected: Path, actual: Path, only: Callable[[Line], bool] = lambda _line: True) -> list[str]:
    """What differs between two listings, in words, the first few; `only` says which lines count. Empty: nothing."""
    found: list[str] = []
    for one, other in _side_by_side(filter(only, read_listing(expected)), filter(only, read_listing(actual))):
        if one is None and other is not None:
            found.append(f"{other.path!r} should not be there")
        elif one is not None and other is None:
            found.append(f"{one.path!r} is missing")
        elif one is not None and other is not None and one != other:
            fields = [name for name, a, b in zip(Line._fields, one, other, strict=True) if a != b]
            found.append(
                f"{one.path!r}: "
                + ", ".join(
                    f"{name} is {getattr(other, name)!r}, not {getattr(one, name)!r}" for name in fields
                )
            )
        if len(found) >= 5:
            return [*found, "and perhaps more"]
    return found


def below(*paths: str) -> Callable[[Line], bool]:
    """Lines at these paths, and below them."""
    return lambda line: any(line.path == path or line.path.startswith(path + "/") for path in paths)


def write_differential(full: Path, live: Path, to: Path) -> None:
    """What a differential backup of `live` holds: what differs from the full one in nothing but metadata is as in that."""
    with to.open("w", encoding="ascii") as file:
        for old, new in _side_by_side(read_listing(full), read_listing(live)):
            if new is not None:
                same = old is not None and old.what == new.what
                file.write(json.dumps(old if same else new) + "\n")


def _side_by_side(one: Iterator[Line], other: Iterator[Line]) -> Iterator[tuple[Line | None, Line | None]]:
    """Both in one order, by path; None where one lacks it."""
    a, b = next(one, None), next(other, None)
    while a is not None or b is not None:
        if b is None or (a is not None and a.order < b.order):
            yield a, None
            a = next(one, None)
        elif a is None or b.order < a.order:
            yield None, b
            b = next(other, None)
        else:
            yield a, b
            a, b = next(one, None), next(other, None)
