"""Data that looks like real data, from a seed: a disk image, a tree of files, and a little change in each.

The same parameters give the same bytes, names and times on every machine.
"""

import os
import random
import stat
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blake3 import blake3

KIB: Final = 1024
MIB: Final = 1024 * KIB
BLOCK: Final = 4 * KIB
EPOCH_NS: Final = 1_600_000_000 * 10**9
"""Files are as old as this (September 2020), or up to YOUNGER_S younger: nothing looks as if it had just been written."""
YOUNGER_S: Final = 3 * 365 * 24 * 3600

# --- bytes

WORDS: Final = 6_000
TEXT_NOISE_BYTES: Final = 128 * KIB
SYLLABLES: Final = (
    "an ar ba be bi ca ce co da de di do el en er es fa fi ga go ha he in ion is it ka la le li lo ma me mi mo "
    "na ne ni no on or pa pe pro ra re ri ro sa se si so st ta te the ti to tra un ur va ve vi"
)


class Supply:
    """Seeded bytes, as many as are asked for, never the same twice: noise that does not compress, and text that does."""

    def __init__(self, seed: str) -> None:
        self._hasher = blake3(seed.encode())
        self._at = 0
        self._words = _word_table(random.Random(seed))
        self._text = b""
        self._text_at = 0

    def noise(self, size: int) -> bytes:
        """Bytes that do not compress."""
        made = self._hasher.digest(length=size, seek=self._at)
        self._at += size
        return made

    def text(self, size: int) -> bytes:
        """Words, some more frequent than others, that compress to about a third."""
        pieces = []
        while size > 0:
            if self._text_at == len(self._text):
                numbers = array("H", self.noise(TEXT_NOISE_BYTES))
                self._text, self._text_at = b"".join(map(self._words.__getitem__, numbers)), 0
            piece = self._text[self._text_at : self._text_at + size]
            self._text_at += len(piece)
            size -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    def table(self, size: int) -> bytes:
        """Records as in databases and programs: a changing part between parts that stay."""
        record = self.noise(6) + bytes(10)
        rows = [record + noise for noise in _sliced(self.noise(size // 24 * 8 + 8), 8)]
        return b"".join(rows)[:size]


def _sliced(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def _word_table(rng: random.Random) -> list[bytes]:
    """65,536 words for as many numbers; the n-th word stands there about 1/n as often as the first."""
    syllables = SYLLABLES.split()
    words = ["".join(rng.choices(syllables, k=rng.choice((1, 1, 2, 2, 2, 3, 3, 4)))) for _ in range(WORDS)]
    weights = [1.0 / (number + 5) for number in range(WORDS)]
    ends = rng.choices(
        (" ", " ", " ", " ", " ", " ", ", ", ". ", ".\n", "\n    ", "(", ") ", " = "), k=1 << 16
    )
    chosen = rng.choices(words, weights, k=1 << 16)
    return [(word + end).encode() for word, end in zip(chosen, ends, strict=True)]


# --- an image

EXTENT_BYTES: Final = (64 * KIB, 256 * KIB, 1 * MIB, 4 * MIB)
EXTENT_KINDS: Final = ("text", "noise", "table", "zeros", "hole", "again")
EXTENT_WEIGHTS: Final = (32, 30, 12, 8, 6, 12)
IMAGE_MTIME_NS: Final = EPOCH_NS + 123_456_789


def make_image(path: Path, size: int, seed: str, *, holes: bool = True) -> None:
    """A file like a disk image: text, noise, tables, stretches of zeros (some of them holes), and blocks that come again.

    `size` in bytes. Without `holes` it takes all of its space.
    """
    supply, rng = Supply(seed), random.Random(seed)
    with path.open("wb+", buffering=0) as file:
        at = 0
        while at < size:
            wanted = min(rng.choice(EXTENT_BYTES), size - at)
            kind = rng.choices(EXTENT_KINDS, EXTENT_WEIGHTS)[0]
            if kind == "again" and at > wanted:
                data = os.pread(file.fileno(), wanted, rng.randrange(0, at - wanted, BLOCK))
            else:
                data = _extent(supply, kind, wanted)
            if kind != "hole" or not holes:
                write_all(file.fileno(), data)
            at = file.seek(at + wanted)
        file.truncate(size)
    os.utime(path, ns=(IMAGE_MTIME_NS, IMAGE_MTIME_NS))


def _extent(supply: Supply, kind: str, size: int) -> bytes:
    """The next bytes of an image."""
    if kind in {"hole", "zeros"}:
        return bytes(size)
    return {"text": supply.text, "table": supply.table}.get(kind, supply.noise)(size)


def change_image(path: Path, seed: str, stretches: int = 8) -> int:
    """Writes over a few stretches of 4 to 64 KiB, as a running machine would. Answers how many bytes."""
    supply, rng = Supply(seed), random.Random(seed)
    size = path.stat().st_size
    written = 0
    with path.open("rb+", buffering=0) as file:
        for _ in range(stretches):
            length = BLOCK * rng.randint(1, 16)
            at = rng.randrange(0, max(BLOCK, size - length), BLOCK)
            written += os.pwrite(file.fileno(), supply.noise(min(length, size - at)), at)
    return written


# --- a tree

FILES_PER_DIRECTORY: Final = 12
DEPTH_MAX: Final = 8
SIZE_MEDIAN: Final = 3.5 * KIB
SIZE_SIGMA: Final = 1.5
SIZE_MAX: Final = 4 * MIB
LARGE_BYTES: Final = (4 * MIB, 20 * MIB)
FILES_PER_LARGE: Final = 5_000
DUPLICATE_SHARE: Final = 0.03
SYMLINK_SHARE: Final = 0.01
TEXTS: Final = ("py", "c", "h", "txt", "md", "json", "html", "js", "css", "log", "xml", "csv")
NOISES: Final = ("jpg", "png", "gz", "zip", "woff2", "pdf")
TABLES: Final = ("o", "so", "db", "bin", "pyc")
MODES: Final = (0o644,) * 12 + (0o755, 0o600, 0o640, 0o444)
ODD: Final = "odd"
"""The directory of what is rare: hard links, holes, a fifo, names that are not text. `change_tree` leaves it alone."""


@dataclass(frozen=True, slots=True)
class Tree:
    """What was made."""

    files: int
    data_bytes: int


def make_tree(root: Path, files: int, seed: str, *, odd: bool = True) -> Tree:
    """A tree of so many files, most of them small, with a few large, duplicates and symlinks; `odd` adds what is rare.

    Sizes are log-normal (median 3.5 KiB, mean about 11 KiB), about twelve files lie in a directory, at most eight levels deep.
    """
    rng, supply = random.Random(seed), Supply(seed)
    names = [name.decode() for name in dict.fromkeys(supply.text(64 * KIB).split()) if name.isalpha()]
    directories = _make_directories(root, max(1, files // FILES_PER_DIRECTORY), rng, names)
    data_bytes = 0
    kept: list[bytes] = []
    # Directory by directory, which is how file systems are fastest.
    for number, directory in enumerate(sorted(rng.choices(directories, k=files))):
        stem = f"{rng.choice(names)}_{number:x}"
        if rng.random() < SYMLINK_SHARE:
            os.symlink(f"../{rng.choice(names)}/{stem}" if rng.random() < 0.5 else ".", f"{directory}/{stem}")
            _age(f"{directory}/{stem}", rng)
            continue
        large = number % FILES_PER_LARGE == FILES_PER_LARGE // 2
        data, suffix = _file_data(rng, supply, kept, large=large)
        write_file(f"{directory}/{stem}.{suffix}", data, rng)
        data_bytes += len(data)
    if odd:
        data_bytes += _make_odd(root / ODD, rng, supply)
    for directory in [*reversed(directories), *([str(root / ODD), str(root)] if odd else [])]:
        _age(directory, rng)
    return Tree(files, data_bytes)


def _make_directories(root: Path, count: int, rng: random.Random, names: list[str]) -> list[str]:
    """Each lies in one of those before it; the first is the root."""
    root.mkdir(parents=True)
    made, depths = [str(root)], [0]
    for number in range(1, count):
        parent = rng.randrange(max(0, number - 200), number)
        while depths[parent] >= DEPTH_MAX:
            parent = rng.randrange(0, number)
        made.append(f"{made[parent]}/{rng.choice(names)}-{number:x}")
        depths.append(depths[parent] + 1)
        os.mkdir(made[-1])
    return made


def _file_data(rng: random.Random, supply: Supply, kept: list[bytes], *, large: bool) -> tuple[bytes, str]:
    """The bytes of a file, and the end of its name. `kept` holds some that come again."""
    if kept and not large and rng.random() < DUPLICATE_SHARE:
        return rng.choice(kept), rng.choice(TEXTS)
    size = (
        rng.randint(*LARGE_BYTES)
        if large
        else min(SIZE_MAX, int(SIZE_MEDIAN * rng.lognormvariate(0, SIZE_SIGMA)))
    )
    kind = rng.random()
    if kind < 0.68:
        made, suffix = supply.text(size), rng.choice(TEXTS)
    elif kind < 0.88:
        made, suffix = supply.noise(size), rng.choice(NOISES)
    else:
        made, suffix = supply.table(size), rng.choice(TABLES)
    if not large and len(kept) < 200:
        kept.append(made)
    return made, suffix


def write_file(path: str, data: bytes, rng: random.Random) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        write_all(fd, data)
        os.fchmod(fd, rng.choice(MODES))
        os.utime(fd, ns=(when_ns := _moment_ns(rng), when_ns))
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _moment_ns(rng: random.Random) -> int:
    return EPOCH_NS + rng.randrange(YOUNGER_S * 10**9)


def _age(path: str, rng: random.Random) -> None:
    os.utime(path, ns=(when_ns := _moment_ns(rng), when_ns), follow_symlinks=False)


def _make_odd(root: Path, rng: random.Random, supply: Supply) -> int:
    """One of everything that a file system has; answers the bytes of its files."""
    os.mkdir(root)
    (root / "empty").touch()
    (root / "empty-directory").mkdir()
    os.mkfifo(root / "fifo", 0o640)
    os.symlink("nowhere/at all", root / "dangling")
    write_file(os.fsdecode(os.fsencode(root) + b"/not text \xff\xfe"), supply.text(5_000), rng)
    write_file(str(root / ("long-" + "n" * 250)), supply.text(300), rng)
    write_file(str(root / "two\nlines"), supply.noise(300), rng)
    write_file(str(root / "linked"), supply.noise(70_000), rng)
    os.link(root / "linked", root / "linked too")
    with (root / "sparse").open("wb") as file:
        file.write(supply.text(100_000))
        file.truncate(16 * MIB)
        file.seek(8 * MIB)
        file.write(supply.noise(100_000))
    with suppress(OSError):  # not every file system has them
        os.setxattr(root / "sparse", "user.comment", b"made by make_tree")
    os.chmod(root / "empty", 0o4711)
    for name in ("empty", "empty-directory", "fifo", "dangling", "sparse"):
        _age(str(root / name), rng)
    return 5_000 + 300 + 300 + 2 * 70_000 + 16 * MIB


# --- a change

CHANGE_KINDS: Final = ("modify", "append", "add", "remove", "rename", "touch", "mode")
CHANGE_WEIGHTS: Final = (30, 20, 15, 10, 10, 10, 5)


@dataclass(frozen=True, slots=True)
class Changed:
    """What `change_tree` did, in files; `data_bytes` is the size of all files whose content is new."""

    counts: dict[str, int]
    data_bytes: int

    def __str__(self) -> str:
        return ", ".join(f"{kind} {count}" for kind, count in self.counts.items())


def change_tree(root: Path, seed: str, share: float = 0.005) -> Changed:
    """Changes a share of the files of a tree: some of them in place, longer, gone, new, renamed, touched, with another mode.

    Files of more than 4 MiB are only appended to.
    """
    rng, supply = random.Random(seed), Supply(seed)
    files = list(files_below(os.fsencode(root), os.fsencode(root / ODD)))
    chosen = rng.sample(files, min(len(files), max(len(CHANGE_KINDS), int(len(files) * share))))
    counts = dict.fromkeys(CHANGE_KINDS, 0)
    data_bytes = 0
    for number, path in enumerate(chosen):
        kind = (
            CHANGE_KINDS[number]
            if number < len(CHANGE_KINDS)
            else rng.choices(CHANGE_KINDS, CHANGE_WEIGHTS)[0]
        )
        counts[kind] += 1
        data_bytes += _change_file(path, kind, rng, supply)
    return Changed(counts, data_bytes)


def files_below(directory: bytes, without: bytes = b"") -> Iterator[bytes]:
    """Regular files in order of their names."""
    with os.scandir(directory) as scan:
        found = sorted(scan, key=lambda entry: entry.name)
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            if entry.path != without:
                yield from files_below(entry.path, without)
        elif entry.is_file(follow_symlinks=False):
            yield entry.path


def _free_name(path: bytes, suffix: bytes) -> bytes:
    """A name beside a path that nothing has: the same file may be chosen again by a later change."""
    name = path + suffix
    while os.path.lexists(name):
        name += suffix
    return name


def _change_file(path: bytes, kind: str, rng: random.Random, supply: Supply) -> int:
    """Answers the bytes of the file whose content is new."""
    if kind == "remove":
        os.unlink(path)
        return 0
    if kind == "touch":
        os.utime(path)
        return 0
    if kind == "mode":
        os.chmod(path, os.stat(path).st_mode ^ 0o040)
        return 0
    if kind == "rename":
        renamed = _free_name(path, b".old")
        os.rename(path, renamed)
        return os.stat(renamed).st_size
    if kind == "add":
        added = _free_name(path, b".new")
        write_file(os.fsdecode(added), supply.text(rng.randint(0, 64 * KIB)), rng)
        return os.stat(added).st_size
    mode = stat.S_IMODE(os.stat(path).st_mode)
    # A file without write permission can be opened for writing by root alone.
    os.chmod(path, mode | stat.S_IWUSR)
    with open(path, "rb+", buffering=0) as file:
        os.fchmod(file.fileno(), mode)
        size = os.fstat(file.fileno()).st_size
        in_place = kind == "modify" and 0 < size <= SIZE_MAX
        at = rng.randrange(size) if in_place else size
        os.pwrite(file.fileno(), supply.noise(rng.randint(1, 2 * KIB)), at)
        return os.fstat(file.fileno()).st_size
