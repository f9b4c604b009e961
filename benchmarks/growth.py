"""`make bench-growth`: what becomes of time and memory when there is more of everything.

Three parts, each the same work on the same kind of data at several sizes:

- `sizes`: an image, and a tree of small files, at 1, 4 and 16 times the size, from the first backup to the restore;
- `catalog`: a fixed image and a fixed tree, with ever more chunks in the server's catalog before they come;
- `million`: tiny files, ever more of them, of which ten change.

Measured as by `make bench`: phase by phase, until it is on the disk, and what is restored is compared. Results go to
benchmarks/results/ as JSON, and `make bench-report` makes docs/performance.md of them.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks import compare
from benchmarks.data import cases, chunk_index, corpora
from benchmarks.data.cases import Case
from benchmarks.programs import machine
from benchmarks.programs.peers import Peer, Phase, Staddle, peers, usable
from benchmarks.programs.processes import BIN, MIB, Server, run
from benchmarks.tables import growth as growth_report
from benchmarks.tables import sections
from benchmarks.tables.figures import Results

PARTS: Final = ("sizes", "catalog", "million")
OTHERS: Final = ("restic", "rustic", "bupstash")
"""What `--peers` without names adds."""
SIZES_MAX: Final = 8
SIZE_MAX: Final = 10**9
TINY_PER_DIRECTORY: Final = 1_000
INDEX: Final = chunk_index.Shape(
    pack_chunks=300, segment_chunks=5, chunk_bytes=285_000, segment_bytes=967_000
)
"""What a first backup of an image made of a pack of 64 MiB."""
UNTENDED: Final = """\
# The packs of this catalog are empty files: nothing may read them.
gc_every = "0"
scrub_period = "0"
"""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    image_mib: tuple[int, ...]
    files: tuple[int, ...]
    chunks: tuple[int, ...]
    tiny: tuple[int, ...]
    fixed_mib: int
    """The image that comes to a filled catalog."""
    fixed_files: int
    """The tree that does."""


SMALL: Final = Sizes(
    (16, 64, 256), (500, 2_000, 8_000), (10_000, 100_000, 1_000_000), (1_000, 10_000, 100_000), 64, 2_000
)
FULL: Final = Sizes(
    (128, 512, 2048),
    (7_000, 28_000, 112_000),
    (100_000, 1_000_000, 10_000_000),
    (10_000, 100_000, 1_000_000),
    256,
    7_000,
)


class Filled(Staddle):
    """Staddle with a server that has had a catalog with very many chunks for long. Each repository is a copy of it."""

    def __init__(self, like: Path) -> None:
        self._like = like

    def open(self, place: Path) -> None:
        place.mkdir()
        subprocess.run(["cp", "-a", self._like, place / "server"], check=True)
        self.server = Server(place / "server")
        self.server.start()


def make_filled(directory: Path, chunks: int) -> float:
    """A data directory with so many chunks in its catalog; answers how many bytes each takes there.

    None of their packs is in the store. What a backup does with the catalog is the same, for the data that comes is new and
    has other chunks; but the server must not collect, for every pack would be absent, nor read them to check: its settings say so.
    """
    run([BIN / "staddle-server", "init", "--data", directory]).checked()
    catalog = directory / "catalog.db"
    before = catalog.stat().st_size
    chunk_index.fill(catalog, chunks, INDEX, chunk_index.digest_of)
    (directory / "server.toml").write_text(UNTENDED)
    return (catalog.stat().st_size - before) / chunks


# --- the parts


@dataclass
class Growth:
    """All measurements of one run, and of which size each case is."""

    place: Path
    programs: Sequence[Peer]
    sizes: Sizes
    rounds: int
    cold: bool = False
    results: Results = field(default_factory=Results)
    cases: list[dict[str, Any]] = field(default_factory=list)

    def part(self, name: str) -> None:
        """Measures one of PARTS."""
        # Sources stay to the end of their part: a file system that has lost many files is slow to make others.
        with ExitStack() as sources:
            {"sizes": self._sizes, "catalog": self._catalog, "million": self._million}[name](sources)
        if any(case["entries"] > compare.MANY for case in self.cases):
            os.sync()
            time.sleep(compare.REMOVED_S)

    def _sizes(self, sources: ExitStack) -> None:
        image = (Phase.FIRST, Phase.UNCHANGED, Phase.RESCAN, Phase.RESTORE)
        for mib in self.sizes.image_mib:
            case = self._made(sources, partial(cases.image, size=mib * MIB, libraries=None))
            self._measure(replace(case, phases=image, edits={}), "image", mib, self.programs)
        tree = (Phase.FIRST, Phase.UNCHANGED, Phase.RESCAN, Phase.TEN, Phase.RESTORE)
        for files in self.sizes.files:
            case = self._made(sources, partial(cases.tree, files=files, like=None))
            changed = replace(case, phases=tree, edits={Phase.TEN: corpora.change_ten})
            self._measure(changed, "tree", files, self.programs)

    def _million(self, sources: ExitStack) -> None:
        phases = (Phase.FIRST, Phase.UNCHANGED, Phase.TEN)
        for files in self.sizes.tiny:
            case = self._made(sources, partial(cases.many, files=files, per_directory=TINY_PER_DIRECTORY))
            self._measure(replace(case, phases=phases), "million", files, self.programs)

    def _catalog(self, sources: ExitStack) -> None:
        phases = (Phase.FIRST, Phase.UNCHANGED, Phase.RESCAN, Phase.RESTORE)
        image = self._made(sources, partial(cases.image, size=self.sizes.fixed_mib * MIB, libraries=None))
        tree = self._made(sources, partial(cases.tree, files=self.sizes.fixed_files, like=None))
        for chunks in self.sizes.chunks:
            filled = self.place / "filled"
            begun_s = time.monotonic()
            bytes_each = make_filled(filled, chunks)
            filled_s = time.monotonic() - begun_s
            print(f"\n{chunks:,} chunks: {bytes_each:.1f} bytes each, made in {filled_s:.0f} s", end="")
            for series, case in (("catalog", image), ("catalog-tree", tree)):
                fixed = replace(case, phases=phases, edits={})
                self._measure(fixed, series, chunks, [Filled(filled)], index_bytes=bytes_each * chunks)
            shutil.rmtree(filled)

    def _made(self, sources: ExitStack, make: Callable[[Path], Case]) -> Case:
        """A case in a separate directory that ages, and is removed with the others."""
        place = Path(tempfile.mkdtemp(prefix="source-", dir=self.place))
        sources.callback(shutil.rmtree, place)
        case = make(place)
        time.sleep(compare.SETTLE_S)
        return case

    def _measure(self, case: Case, series: str, size: int, programs: Sequence[Peer], **more: float) -> None:
        case = replace(case, name=f"{series}-{size}")
        print(f"\n{series}, {size:,}: {case.title}")
        self.results.titles[case.name] = case.title
        self.results.data_bytes[case.name] = case.data_bytes
        compare.Run(self.place, case, programs, self.results, cold=self.cold).rounds(self.rounds)
        self.cases.append(
            {
                "name": case.name,
                "title": case.title,
                "series": series,
                "size": size,
                "entries": _entries(case.source),
                "data_bytes": self.results.data_bytes[case.name],
                **more,
            }
        )


def _entries(source: Path) -> int:
    """How many entries a backup of a directory has."""
    return 1 + sum(len(directories) + len(files) for _, directories, files in os.walk(source))


# --- all of it


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-growth", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--part", action="append", choices=PARTS, help="only this one; repeatable")
    add("--full", action="store_true", help="the sizes that docs/performance.md speaks of; half an hour")
    add("--rounds", type=_count, help="how often everything is measured (1; 3 with --full)")
    add(
        "--peers",
        nargs="*",
        metavar="NAME",
        help=f"beside these programs, where they can be ({', '.join(OTHERS)})",
    )
    for name, of in (
        ("image-mib", "the images, MiB"),
        ("files", "the trees, files"),
        ("chunks", "the catalogs, chunks"),
        ("tiny", "the tiny files"),
    ):
        chosen = getattr(SMALL, name.replace("-", "_"))
        shown = " ".join(map(str, chosen))
        add(f"--{name}", type=_count, nargs="+", metavar="N", help=f"sizes of {of} ({shown})")
    add("--fixed-mib", type=_count, help=f"the image beside a filled catalog ({SMALL.fixed_mib})")
    add("--fixed-files", type=_count, help=f"the tree beside a filled catalog ({SMALL.fixed_files})")
    add("--cold", action="store_true", help="empty the system's file cache before each measurement (root)")
    add("--work", type=Path, help="where to work (the directory for temporary files)")
    given = parser.parse_args(arguments)
    given.rounds = given.rounds or (3 if given.full else 1)
    if any(len(getattr(given, name) or ()) > SIZES_MAX for name in ("image_mib", "files", "chunks", "tiny")):
        parser.error(f"at most {SIZES_MAX} sizes of each")
    return given


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= SIZE_MAX:
        raise argparse.ArgumentTypeError(f"expected a number from 1 to {SIZE_MAX:,}")
    return number


def sizes_of(given: argparse.Namespace) -> Sizes:
    """Those of the run, smallest first: what was asked for, else the usual ones."""
    usual = FULL if given.full else SMALL
    return Sizes(
        image_mib=_ordered(given.image_mib, usual.image_mib),
        files=_ordered(given.files, usual.files),
        chunks=_ordered(given.chunks, usual.chunks),
        tiny=_ordered(given.tiny, usual.tiny),
        fixed_mib=given.fixed_mib or usual.fixed_mib,
        fixed_files=given.fixed_files or usual.fixed_files,
    )


def _ordered(asked: Sequence[int] | None, usual: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(set(asked))) if asked else usual


def programs_of(given: argparse.Namespace) -> list[Peer]:
    """Staddle, and those others that were asked for and can run here."""
    asked = [] if given.peers is None else given.peers or OTHERS
    wanted = [each for each in peers() if each.name == Staddle.name or each.name in asked]
    if unknown := set(asked) - {each.name for each in wanted}:
        sys.exit(f"Unknown program {', '.join(sorted(unknown))}: --help lists the known ones.")
    able, reasons = usable(wanted)
    for reason in reasons:
        print(f"Left out: {reason}.")
    return able


def main(arguments: Sequence[str] | None = None) -> int:
    given = parsed(arguments)
    if given.cold and not machine.can_drop_caches():
        sys.exit("--cold needs root, to empty the system's file cache.")
    programs = programs_of(given)
    begun_s = time.monotonic()
    place = Path(tempfile.mkdtemp(prefix="staddle-growth-", dir=given.work))
    try:
        facts = machine.describe(place) | {
            "compared": ", ".join(dict.fromkeys(each.version() for each in programs)),
            "file cache": "emptied before each measurement" if given.cold else "the sources are in memory",
        }
        growth = Growth(place, programs, sizes_of(given), given.rounds, cold=given.cold)
        measure(growth, given.part or PARTS, facts)
    finally:
        shutil.rmtree(place)
    print(f"{time.monotonic() - begun_s:.0f} s.")
    return 0


def measure(growth: Growth, parts: Sequence[str], facts: Mapping[str, str]) -> None:
    """Measure these parts; print and keep the results, even if one fails."""
    try:
        for part in parts:
            growth.part(part)
    finally:
        if growth.cases:
            _tell(growth, facts)


def _tell(growth: Growth, facts: Mapping[str, str]) -> None:
    record = {
        "machine": dict(facts),
        "rounds": growth.rounds,
        "cold": growth.cold,
        "cases": growth.cases,
        "measurements": growth.results.to_record(),
    }
    print("\n\n" + growth_report.text([record]))
    print(f"All figures: {sections.save(growth_report.KIND, record)}")


if __name__ == "__main__":
    sys.exit(main())
