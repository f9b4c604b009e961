"""More data to measure with: an image of blocks, logs, media, databases, and very many tiny files; and what happens to each.

As in `data`: the same seed gives the same bytes. Only `make_blocks` may be given a directory with files that people really have.
"""

import itertools
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from benchmarks.data.files import EPOCH_NS, KIB, MIB, SIZE_MAX, Supply, files_below, write_all, write_file

BLOCK_BYTES: Final = 64 * MIB
PIECE_BYTES: Final = 4 * MIB
LIBRARIES: Final = (b".so", b".a", b".pyc", b".py", b".h")

# --- one large file


def make_blocks(path: Path, size: int, seed: str, libraries: Path | None = None) -> None:
    """A file of blocks of 64 MiB, by turns noise and what programs consist of: the files of a directory, or tables and text."""
    supply = Supply(seed)
    library = _real_bytes(libraries) if libraries else _made_bytes(supply)
    with path.open("wb", buffering=0) as file:
        for at in range(0, size, PIECE_BYTES):
            length = min(PIECE_BYTES, size - at)
            is_noise = at // BLOCK_BYTES % 2 == 0
            write_all(file.fileno(), supply.noise(length) if is_noise else take(library, length))
    os.utime(path, ns=(EPOCH_NS, EPOCH_NS))


def _made_bytes(supply: Supply) -> Iterator[bytes]:
    while True:
        yield supply.table(192 * KIB)
        yield supply.text(64 * KIB)


def _real_bytes(directory: Path) -> Iterator[bytes]:
    """The files of a directory that programs consist of, one behind the other, and then again from the front."""
    found = [path for path in files_below(os.fsencode(directory)) if path.endswith(LIBRARIES)]
    for path in itertools.cycle(found):
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(SIZE_MAX):
                yield piece


def take(source: Iterator[bytes], size: int) -> bytes:
    """The next bytes of a source of pieces. The rest of the last piece is lost."""
    pieces = []
    while size > 0:
        piece = next(source)[:size]
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def change_bytes(path: Path, seed: str, size: int, places: int) -> None:
    """Writes over so many bytes of a file, in so many places."""
    supply, rng = Supply(seed), random.Random(seed)
    length = max(1, size // places)
    with path.open("rb+", buffering=0) as file:
        end = max(1, os.fstat(file.fileno()).st_size - length)
        for _ in range(places):
            os.pwrite(file.fileno(), supply.noise(length), rng.randrange(end))


def insert_bytes(path: Path, seed: str, size: int) -> None:
    """Puts so many bytes before those of a file."""
    new = path.with_name(path.name + ".new")
    with path.open("rb", buffering=0) as old, new.open("wb", buffering=0) as file:
        write_all(file.fileno(), Supply(seed).noise(size))
        while piece := old.read(PIECE_BYTES):
            write_all(file.fileno(), piece)
    new.replace(path)


# --- directories of a few large files

FILE_BYTES: Final = 16 * MIB
PAGE_BYTES: Final = 8 * KIB
Make = Callable[[Path, int, str], None]
Change = Callable[[Path, str], None]


def _make(root: Path, size: int, seed: str, suffix: str, content: Callable[[Supply, int], bytes]) -> None:
    root.mkdir()
    supply, rng = Supply(seed), random.Random(seed)
    for number in range(max(1, size // FILE_BYTES)):
        write_file(f"{root}/{number:04}.{suffix}", content(supply, min(size, FILE_BYTES)), rng)


def make_text(root: Path, size: int, seed: str) -> None:
    """Logs of 16 MiB: lines that begin with a moment."""
    _make(root, size, seed, "log", _log)


def _log(supply: Supply, size: int) -> bytes:
    lines = supply.text(size).splitlines(keepends=True)
    return b"".join(b"2026-05-01T%012d %s" % (at, line) for at, line in enumerate(lines))[:size]


def grow(root: Path, seed: str) -> None:
    """Appends one per cent to each file."""
    supply = Supply(seed)
    for path in files_below(os.fsencode(root)):
        with open(path, "ab", buffering=0) as file:
            write_all(file.fileno(), supply.text(os.fstat(file.fileno()).st_size // 100))


def make_media(root: Path, size: int, seed: str) -> None:
    """Files of 16 MiB that do not compress."""
    _make(root, size, seed, "mp4", Supply.noise)


def shuffle(root: Path, seed: str) -> None:
    """Renames one file in eight, and adds one more."""
    rng = random.Random(seed)
    found = list(files_below(os.fsencode(root)))
    for path in rng.sample(found, max(1, len(found) // 8)):
        os.rename(path, path + b".renamed")
    write_file(f"{root}/new-{seed}.mp4", Supply(seed).noise(FILE_BYTES // 4), rng)


def make_pages(root: Path, size: int, seed: str) -> None:
    """Database files of 16 MiB: pages of 8 KiB, each with a header, rows, and free space."""
    _make(root, size, seed, "db", _pages)


def _pages(supply: Supply, size: int) -> bytes:
    pages = []
    for number in range(size // PAGE_BYTES):
        rows = supply.table(5 * KIB) + supply.text(KIB)
        pages.append((b"page%012d" % number + supply.noise(16) + rows).ljust(PAGE_BYTES, b"\0"))
    return b"".join(pages)


def write_pages(root: Path, seed: str) -> None:
    """Writes over one per cent of the pages, in runs: what a busy database does."""
    supply, rng = Supply(seed), random.Random(seed)
    for path in files_below(os.fsencode(root)):
        with open(path, "rb+", buffering=0) as file:
            pages = os.fstat(file.fileno()).st_size // PAGE_BYTES
            for _ in range(max(1, pages // 400)):
                first = rng.randrange(max(1, pages - 4))
                os.pwrite(file.fileno(), _pages(supply, 4 * PAGE_BYTES), first * PAGE_BYTES)


KINDS: Final[dict[str, tuple[Make, Change]]] = {
    "text": (make_text, grow),
    "media": (make_media, shuffle),
    "pages": (make_pages, write_pages),
}

# --- very many tiny files

PER_DIRECTORY: Final = 250


def make_many(root: Path, files: int, seed: str, per_directory: int = PER_DIRECTORY) -> None:
    """So many files of about 40 bytes, a hundred directories to one above them."""
    rng = random.Random(seed)
    root.mkdir()
    for first in range(0, files, per_directory):
        number = first // per_directory
        directory = f"{root}/{number // 100:04}/{number:06}"
        os.makedirs(directory)
        for each in range(first, min(files, first + per_directory)):
            write_file(f"{directory}/{each:08}.txt", b"file %d holds %d\n" % (each, rng.getrandbits(64)), rng)


CHANGED_FILES: Final = 10
DESCENTS_MAX: Final = 10_000
"""So often it is tried to come upon them: a tree may have empty directories, and files that are not ours to write."""


def change_ten(root: Path, seed: str) -> None:
    """Writes over ten files of a tree, wherever they are; over all if it has fewer. Raises ValueError if it comes upon none."""
    rng = random.Random(seed)
    chosen: dict[str, None] = {}
    for _ in range(DESCENTS_MAX):
        path = _descend(str(root), rng)
        if os.path.isfile(path) and not os.path.islink(path) and os.access(path, os.W_OK):
            chosen[path] = None
        if len(chosen) == CHANGED_FILES:
            break
    if not chosen:
        raise ValueError(f"{root} has no file to change")
    for number, path in enumerate(chosen):
        with open(path, "wb") as file:
            file.write(f"changed by {seed}, {number}\n".encode())


def _descend(path: str, rng: random.Random) -> str:
    """What a way down ends with that takes any entry of each directory: a tree of a million files is not listed for ten."""
    while os.path.isdir(path) and not os.path.islink(path):
        names = sorted(os.listdir(path))
        if not names:
            break
        path = f"{path}/{rng.choice(names)}"
    return path
