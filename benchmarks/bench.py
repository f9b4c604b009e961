"""`make bench`: Staddle against restic and borg, on the same data in the same run.

An image file and a tree of small files; first backup, unchanged, rescan, restore. Rounds are interleaved, the figures are medians. What is
restored in the first round is compared with the source, byte for byte. Results go to benchmarks/results/ as JSON, too.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from benchmarks import data, listing, machine
from benchmarks.peers import Command, Peer, Phase, peers, usable
from benchmarks.processes import MIB, ProgramError, run

RESULTS: Final = Path(__file__).parent / "results"
SETTLE_S: Final = 3.0
"""Files that were changed shortly before are read again by all these programs: let them get old."""
OURS: Final = "staddle"


@dataclass(frozen=True, slots=True)
class Figures:
    """One measurement. Memory is the peak, of client and server apart; a peer without a server has 0 there."""

    seconds: float
    cpu_s: float
    client_bytes: int
    server_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Case:
    """One of the sources."""

    name: str
    source: Path
    data_bytes: int
    files: int

    @property
    def title(self) -> str:
        """In words, for the tables."""
        files = "an image file" if self.files == 1 else f"a tree of {self.files:,} files"
        return f"{files}, {self.data_bytes / MIB:,.0f} MiB"


Key = tuple[str, Phase, str]
"""Case, phase, peer."""


@dataclass
class Run:
    """All measurements of one run."""

    place: Path
    peers: Sequence[Peer]
    rounds: int
    cold: bool
    figures: dict[Key, list[Figures]] = field(default_factory=dict)

    def measure_all(self, cases: Sequence[Case]) -> None:
        """Round by round, in each another peer first."""
        for number in range(self.rounds):
            for case in cases:
                turn = number % len(self.peers)
                for peer in [*self.peers[turn:], *self.peers[:turn]]:
                    self._measure_peer(number, case, peer)

    def _measure_peer(self, number: int, case: Case, peer: Peer) -> None:
        label = f"round {number + 1}/{self.rounds}  {case.name:<6}  {peer.name:<15}"
        print(label, end="", flush=True)
        repository = self.place / "repository"
        target = self.place / "restored" / f"{number}-{case.name}-{peer.name.replace(' ', '')}"
        target.mkdir(parents=True)
        peer.open(repository)
        try:
            for phase in peer.phases:
                figures = self._measure(peer, phase, peer.command(phase, case.source, target))
                self.figures.setdefault((case.name, phase, peer.name), []).append(figures)
                print(f"  {phase} {figures.seconds:.1f} s", end="", flush=True)
            if number == 0 and Phase.RESTORE in peer.phases:
                check_restored(case, peer, target, self.place)
        finally:
            peer.close()
        print(flush=True)
        shutil.rmtree(repository)
        # Trees stay until the end: ext4 is slow to make files for half a minute after many were removed.
        for large in target.glob("*.img"):
            large.unlink()

    def _measure(self, peer: Peer, phase: Phase, command: Command) -> Figures:
        if self.cold:
            machine.drop_caches()
        else:
            os.sync()  # what was written before is not paid for here
        server = peer.server
        before_s = 0.0
        if server is not None:
            server.reset_peak()
            before_s = server.cpu_s
        finished = run(command.argv, env=command.env, cwd=command.cwd).checked()
        if fault := peer.fault(phase, finished.out):
            raise ProgramError(f"{peer.name}, {phase}: {fault}")
        return Figures(
            finished.seconds,
            finished.cpu_s + (server.cpu_s - before_s if server is not None else 0.0),
            finished.peak_bytes,
            server.peak_bytes if server is not None else 0,
            peer.stored_bytes(),
        )

    def median(self, key: Key, of: Callable[[Figures], float]) -> float | None:
        """None: it was not measured."""
        found = self.figures.get(key)
        return statistics.median(map(of, found)) if found else None


def check_restored(case: Case, peer: Peer, target: Path, place: Path) -> None:
    """Ends the run if what a peer gave back is not what it got: types, sizes and every byte."""
    listing.write_listing(target, place / "restored.listing")
    expected = ((line.path, line.what) for line in listing.read_listing(place / f"{case.name}.listing"))
    actual = ((line.path, line.what) for line in listing.read_listing(place / "restored.listing"))
    if list(expected) != list(actual):
        sys.exit(f"\n{peer.name} did not give back what it got: nothing here can be compared.")


# --- the tables

MEASURES: Final[tuple[tuple[str, Callable[[Figures], float], str], ...]] = (
    ("wall s", lambda figures: figures.seconds, ".2f"),
    ("CPU s", lambda figures: figures.cpu_s, ".2f"),
    ("client MiB", lambda figures: figures.client_bytes / MIB, ".0f"),
    ("server MiB", lambda figures: figures.server_bytes / MIB, ".0f"),
    ("stored MiB", lambda figures: figures.stored_bytes / MIB, ".1f"),
)
RATIOS: Final[tuple[tuple[str, Callable[[Figures], float]], ...]] = (
    ("wall", lambda figures: figures.seconds),
    ("CPU", lambda figures: figures.cpu_s),
    ("memory", lambda figures: figures.client_bytes + figures.server_bytes),
    ("stored", lambda figures: figures.stored_bytes),
)


def tables(done: Run, cases: Sequence[Case]) -> str:
    """Everything, to be read."""
    return "\n".join(line for case in cases for line in (*_figures(done, case), "", *_ratios(done, case), ""))


def _figures(done: Run, case: Case) -> Iterable[str]:
    yield f"{case.title}; medians of {done.rounds}"
    yield f"  {'':<14}{'':<16}" + "".join(f"{name:>12}" for name, _, _ in MEASURES) + f"{'MiB/s':>10}"
    for phase in Phase:
        for peer in done.peers:
            key = (case.name, phase, peer.name)
            if key not in done.figures:
                continue
            cells = [_cell(done.median(key, of), form) for _, of, form in MEASURES]
            wall = done.median(key, lambda figures: figures.seconds)
            rate = _cell(case.data_bytes / MIB / wall if wall else None, ",.0f")
            yield f"  {phase:<14}{peer.name:<16}" + "".join(f"{cell:>12}" for cell in cells) + f"{rate:>10}"


def _ratios(done: Run, case: Case) -> Iterable[str]:
    others = [peer.name for peer in done.peers if not peer.name.startswith(OURS)]
    ours = [peer.name for peer in done.peers if peer.name.startswith(OURS)]
    if not others:
        return
    yield "  how many times as much the other one takes (over 1: Staddle takes less)"
    yield f"  {'':<14}{'':<26}" + "".join(f"{name:>10}" for name, _ in RATIOS)
    for phase in Phase:
        for one in ours:
            for other in others:
                keys = (case.name, phase, one), (case.name, phase, other)
                cells = [ratio(done, *keys, of) for _, of in RATIOS]
                if any(cell is not None for cell in cells):
                    yield f"  {phase:<14}{other + ' / ' + one:<26}" + "".join(
                        f"{_cell(c, '.2f'):>10}" for c in cells
                    )


def ratio(done: Run, one: Key, other: Key, of: Callable[[Figures], float]) -> float | None:
    """What `other` takes, divided by what `one` takes. None: one of them was not measured."""
    ours, theirs = done.median(one, of), done.median(other, of)
    return theirs / ours if ours and theirs else None


def _cell(value: float | None, form: str) -> str:
    return "-" if not value else format(value, form)


def write_results(done: Run, cases: Sequence[Case], facts: dict[str, str]) -> Path:
    """All single measurements, medians and ratios can be had from them."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}.json"
    record = {
        "machine": facts,
        "rounds": done.rounds,
        "cold": done.cold,
        "cases": [{"name": case.name, "data_bytes": case.data_bytes, "files": case.files} for case in cases],
        "measurements": [
            {"case": case, "phase": phase.value, "peer": peer, "rounds": [asdict(each) for each in found]}
            for (case, phase, peer), found in done.figures.items()
        ],
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


# --- all of it


def make_cases(place: Path, image_mib: int, files: int) -> list[Case]:
    """The data, and listings of it."""
    image, tree = place / "image", place / "tree"
    cases = []
    if image_mib:
        image.mkdir()
        data.make_image(image / "disk.img", image_mib * MIB, "bench", holes=False)
        cases.append(Case("image", image, image_mib * MIB, 1))
    if files:
        made = data.make_tree(tree, files, "bench", odd=False)
        cases.append(Case("tree", tree, made.data_bytes, made.files))
    for case in cases:
        listing.write_listing(case.source, place / f"{case.name}.listing")
    time.sleep(SETTLE_S)
    return cases


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--image-mib", type=int, default=1024, help="size of the image file (1024; 0: none)")
    parser.add_argument("--files", type=int, default=20_000, help="files of the tree (20,000; 0: none)")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured (3)")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="one of the programs: staddle, restic, borg"
    )
    parser.add_argument(
        "--cold", action="store_true", help="empty the system's file cache before each measurement (root)"
    )
    parser.add_argument("--work", type=Path, help="where to work (the directory for temporary files)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    given = parsed(arguments)
    if given.cold and not machine.can_drop_caches():
        sys.exit("--cold needs root: nobody else may empty the system's file cache.")
    wanted = [peer for peer in peers() if not given.only or peer.name.partition(" ")[0] in given.only]
    able, reasons = usable(wanted)
    for reason in reasons:
        print(f"Left out: {reason}.")
    place = Path(tempfile.mkdtemp(prefix="staddle-bench-", dir=given.work))
    try:
        facts = machine.describe(place) | {
            "compared": ", ".join(dict.fromkeys(peer.version() for peer in able))
        }
        facts["settings"] = "all compress and encrypt with authentication; benchmarks/peers.py says how"
        facts["file cache"] = (
            "emptied before each measurement"
            if given.cold
            else "not emptied: the sources are in memory (--cold empties it)"
        )
        for name, words in facts.items():
            print(f"{name:>12}: {words}")
        return measure(Run(place, able, given.rounds, given.cold), given.image_mib, given.files, facts)
    finally:
        shutil.rmtree(place)


def measure(done: Run, image_mib: int, files: int, facts: dict[str, str]) -> int:
    begun_s = time.monotonic()
    print(
        f"{'memory':>12}: {machine.touch_free_memory() / MIB:,.0f} MiB of it used once, so that no measurement is the first"
    )
    cases = make_cases(done.place, image_mib, files)
    print(f"{'data':>12}: {'; '.join(case.title for case in cases)}\n")
    for case in cases:
        machine.read_once(case.source)
    done.measure_all(cases)
    print("\n" + tables(done, cases))
    print(f"All figures: {write_results(done, cases, facts)}   ({time.monotonic() - begun_s:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
