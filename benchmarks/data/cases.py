"""What is backed up, and what happens to it: each case is a directory, the phases it goes through, and the edits between them.

Everything is made from a seed. Only a tree may be a copy of one that exists (`--tree`), for figures from files that people really have.
"""

import os
import random
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.data import corpora
from benchmarks.data import files as data
from benchmarks.data.files import MIB
from benchmarks.programs.peers import Phase

SCATTERED_SHARE: Final = 100
"""One file in so many."""
CHANGED_SHARE: Final = 0.01
CHANGED_PLACES: Final = 100

Edit = Callable[[Path, str], object]
"""Changes a source, in place; the string is a seed."""


@dataclass(frozen=True, slots=True)
class Case:
    """One of the sources, in a separate directory."""

    name: str
    title: str
    source: Path
    phases: tuple[Phase, ...]
    edits: dict[Phase, Edit] = field(default_factory=dict)
    """What happens to the source before a phase."""
    keeps: bool = False
    """Repositories stay from round to round, and FIRST is measured in the first one only: they take long to make."""

    @property
    def files(self) -> list[str]:
        """Paths of its regular files, in order."""
        root = os.fsencode(self.source)
        return [os.fsdecode(path[len(root) + 1 :]) for path in data.files_below(root)]

    @property
    def data_bytes(self) -> int:
        """The sizes of its regular files."""
        return sum((self.source / path).stat().st_size for path in self.files)

    def chosen(self, phase: Phase, seed: str) -> Sequence[str]:
        """The paths that a phase restores; none: all."""
        if phase not in {Phase.SCATTERED, Phase.ONE}:
            return ()
        files = self.files
        count = max(1, len(files) // SCATTERED_SHARE) if phase is Phase.SCATTERED else 1
        # Some of these programs take paths as patterns: only such as mean themselves.
        plain = [path for path in files if not set(path) & set("*?[]{}\\!,\n")]
        return sorted(random.Random(seed).sample(plain, count))


def image(place: Path, size: int, libraries: Path | None) -> Case:
    """One large file of blocks of 64 MiB, random and library bytes by turns; then one per cent changed, then a MiB inserted."""
    source = place / "image"
    source.mkdir()
    corpora.make_blocks(source / "disk.img", size, "bench", libraries)
    edits: dict[Phase, Edit] = {
        Phase.CHANGED: lambda root, seed: corpora.change_bytes(
            root / "disk.img", seed, int(size * CHANGED_SHARE), CHANGED_PLACES
        ),
        Phase.INSERTED: lambda root, seed: corpora.insert_bytes(root / "disk.img", seed, MIB),
    }
    phases = (Phase.FIRST, Phase.UNCHANGED, Phase.RESCAN, Phase.CHANGED, Phase.INSERTED, Phase.RESTORE)
    return Case("image", f"an image of {size // MIB:,} MiB", source, phases, edits)


def tree(place: Path, files: int, like: Path | None) -> Case:
    """Many small files: made, or a copy of a directory that exists."""
    source = place / "tree"
    if like is None:
        made = data.make_tree(source, files, "bench", odd=False)
        title = f"{made.files:,} small files, {made.data_bytes / MIB:,.0f} MiB"
    else:
        subprocess.run(["cp", "-a", f"{like}/.", source], check=True)
        count = sum(1 for _ in data.files_below(os.fsencode(source)))
        size = sum(os.lstat(path).st_size for path in data.files_below(os.fsencode(source)))
        title = f"an installed tree of {count:,} files, {size / MIB:,.0f} MiB"
    edits: dict[Phase, Edit] = {Phase.CHANGED: lambda root, seed: data.change_tree(root, seed, CHANGED_SHARE)}
    phases = tuple(phase for phase in Phase if phase not in {Phase.INSERTED, Phase.TEN})
    return Case("tree", title, source, phases, edits)


def _directory(place: Path, name: str, title: str, size: int) -> Case:
    """A few large files of one kind, that kind's change, and the way back."""
    source = place / name
    make, change = corpora.KINDS[name]
    make(source, size, "bench")
    phases = (Phase.FIRST, Phase.CHANGED, Phase.RESTORE)
    return Case(name, f"{title}, {size // MIB:,} MiB", source, phases, {Phase.CHANGED: change})


def text(place: Path, size: int) -> Case:
    """Logs: what is new is appended."""
    return _directory(place, "text", "logs that grow", size)


def media(place: Path, size: int) -> Case:
    """Files that do not compress; a few are new, a few renamed."""
    return _directory(place, "media", "media files, some new and some renamed", size)


def pages(place: Path, size: int) -> Case:
    """Databases: pages of 8 KiB, of which some are written over, many of them near one another."""
    return _directory(place, "pages", "database files, pages written over", size)


def many(place: Path, files: int, per_directory: int = corpora.PER_DIRECTORY) -> Case:
    """So many files that looking at them is the work: ten changes each time."""
    source = place / "many"
    corpora.make_many(source, files, "bench", per_directory)
    edits: dict[Phase, Edit] = {Phase.TEN: corpora.change_ten}
    return Case("many", f"{files:,} tiny files", source, (Phase.FIRST, Phase.TEN), edits, keeps=True)
