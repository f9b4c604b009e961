"""`make bench`: Staddle against restic, borg, rustic and bupstash, on the same data in the same run.

Phase by phase, and in each the programs one after another, another one first in each round; the figures are medians. The time of a phase
ends when what it wrote is on the disk. What is restored in the first round is compared with the source, byte for byte. Results go to
benchmarks/results/ as JSON, too; `python -m benchmarks.report` makes docs/performance.md of them.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.data import cases, listing
from benchmarks.data.cases import Case
from benchmarks.programs import library_speed, machine
from benchmarks.programs.peers import LIMIT, Peer, Phase, peers, usable
from benchmarks.programs.processes import MIB, ProgramError, run
from benchmarks.tables import sections
from benchmarks.tables.figures import Figures, Results, tables

SETTLE_S: Final = 3.0
"""Files that were changed shortly before are read again by all these programs: let them get old."""
REMOVED_S: Final = 70.0
"""So long making files may be slow after many were removed; see machine.remembers_removed_files."""
MANY: Final = 10_000
TOUCHED_BYTES_MAX: Final = 4 * machine.GIB
TOUCHED_BYTES_MIN: Final = machine.GIB // 2


class Run:
    """All measurements of one case, in rounds."""

    def __init__(
        self, place: Path, case: Case, able: Sequence[Peer], results: Results, *, cold: bool
    ) -> None:
        self._place = place / f"{case.name}-work"
        self._case = case
        self._peers = able
        self._results = results
        self._cold = cold
        self._touched_bytes = touched_bytes(results.data_bytes[case.name])
        self._place.mkdir()

    def rounds(self, count: int) -> None:
        """Measures everything so many times."""
        try:
            for number in range(count):
                if number == 0 or not self._case.keeps:
                    self._open(number)
                self._round(number)
                if not self._case.keeps:
                    self._close()
        finally:
            self._close()

    def _open(self, number: int) -> None:
        for peer in self._peers:
            peer.open(self._place / f"{number}-{_file_name(peer)}")
            _pause(peer)

    def _close(self) -> None:
        for peer in self._peers:
            _go_on(peer)
            peer.close()
        for each in self._place.iterdir():
            shutil.rmtree(each)

    def _round(self, number: int) -> None:
        case = self._case
        for phase in case.phases:
            if phase is Phase.FIRST and number and case.keeps:
                continue
            if (edit := case.edits.get(phase)) is not None:
                edit(case.source, f"{phase.name} {number}")
                time.sleep(SETTLE_S)
            if phase is Phase.FIRST or not case.keeps:  # so many files stay in memory, and take long to read
                machine.read_once(case.source)
            print(f"  round {number + 1}  {phase:<14}", end="", flush=True)
            turn = number % len(self._peers)
            for peer in [*self._peers[turn:], *self._peers[:turn]]:
                if phase in peer.phases:
                    self._measure_peer(number, phase, peer)
            print(flush=True)
            if phase.restores:
                self._clear_restored()

    def _measure_peer(self, number: int, phase: Phase, peer: Peer) -> None:
        target = self._place / f"restored-{_file_name(peer)}"
        paths = self._case.chosen(phase, f"{phase.name} {number}")
        _go_on(peer)
        try:
            figures = self._measure(phase, peer, target, paths)
        finally:
            _pause(peer)
        self._results.add(self._case.name, phase, peer.name, figures)
        print(f"  {peer.name} {figures.seconds:.2f}", end="", flush=True)
        if phase.restores and number == 0:
            self._check(peer, target, paths)

    def _measure(self, phase: Phase, peer: Peer, target: Path, paths: Sequence[str]) -> Figures:
        if phase.restores:
            target.mkdir()
            command = peer.restore(target, paths)
        else:
            command = peer.backup(self._case.source, read_all=phase.reads_all)
        machine.touch_free_memory(self._touched_bytes)
        if self._cold:
            machine.drop_caches()
        os.sync()  # what was written before is not paid for here
        server = peer.server
        before_s = 0.0
        if server is not None:
            server.reset_peak()
            before_s = server.cpu_s
        wire_bytes = machine.loopback_bytes()
        finished = run(command.argv, env=command.env, cwd=command.cwd).checked()
        wire_bytes = machine.loopback_bytes() - wire_bytes
        begun_s = time.monotonic()
        os.sync()
        sync_s = time.monotonic() - begun_s
        if fault := peer.fault(phase, finished.out):
            raise ProgramError(f"{peer.name}, {phase}: {fault}")
        return Figures(
            seconds=finished.seconds + sync_s,
            sync_s=sync_s,
            client_cpu_s=finished.cpu_s,
            server_cpu_s=server.cpu_s - before_s if server is not None else 0.0,
            client_bytes=finished.peak_bytes,
            server_bytes=server.peak_bytes if server is not None else 0,
            stored_bytes=peer.stored_bytes(),
            wire_bytes=wire_bytes if server is not None else 0,
            catalog_bytes=server.catalog_bytes if server is not None else 0,
        )

    def _check(self, peer: Peer, target: Path, paths: Sequence[str]) -> None:
        """Ends the run if what a peer gave back is not what it got: types, sizes and every byte."""
        root = restored_root(target, self._case.source)
        expected, actual = self._place / "expected.listing", self._place / "actual.listing"
        listing.write_listing(self._case.source, expected)
        listing.write_listing(root, actual)
        chosen = set(paths)
        wanted = {(line.path, line.what) for line in listing.read_listing(expected) if _wanted(line, chosen)}
        found = {(line.path, line.what) for line in listing.read_listing(actual) if _wanted(line, chosen)}
        expected.unlink()
        actual.unlink()
        if wanted != found:
            shown = ", ".join(path for path, _ in sorted(wanted ^ found)[:3])
            sys.exit(f"\n{peer.name} did not give back what it got ({shown}): nothing here can be compared.")

    def _clear_restored(self) -> None:
        many = False
        for each in self._place.glob("restored-*"):
            many = many or sum(1 for _ in each.rglob("*")) > MANY
            shutil.rmtree(each)
        if many and machine.remembers_removed_files(self._place):
            os.sync()
            time.sleep(REMOVED_S)


def touched_bytes(data_bytes: int) -> int:
    """How much memory is used once before a measurement, so that the measurement itself uses none for the first time."""
    return min(TOUCHED_BYTES_MAX, TOUCHED_BYTES_MIN + 2 * data_bytes)


def _wanted(line: listing.Line, chosen: set[str]) -> bool:
    return line.path in chosen if chosen else bool(line.path)


def restored_root(target: Path, source: Path) -> Path:
    """Where what was restored begins: some write the whole path of the source below the target."""
    nested = target / source.relative_to("/")
    return nested if nested.is_dir() else target


def _file_name(peer: Peer) -> str:
    return peer.name.replace(" ", "")


def _pause(peer: Peer) -> None:
    """A server that waits does nothing beside the others, not even now and then."""
    if peer.server is not None:
        peer.server.pause()


def _go_on(peer: Peer) -> None:
    if peer.server is not None:
        peer.server.go_on()


# --- all of it


def make_cases(place: Path, given: argparse.Namespace) -> Iterable[Case]:
    """The cases that were asked for, each made when its turn has come."""
    wanted = given.case or [name for name in CASES if name != "many" or given.many]
    makers = {
        "image": lambda: cases.image(place, given.image_mib * MIB, given.libraries),
        "tree": lambda: cases.tree(place, given.files, given.tree),
        "text": lambda: cases.text(place, given.kind_mib * MIB),
        "media": lambda: cases.media(place, given.kind_mib * MIB),
        "pages": lambda: cases.pages(place, given.kind_mib * MIB),
        "many": lambda: cases.many(place, given.many or 1_000_000),
    }
    for name in CASES:
        if name in wanted:
            yield makers[name]()


CASES: Final = ("image", "tree", "text", "media", "pages", "many")


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--case", action="append", choices=CASES, help="only this one; repeatable")
    add(
        "--only",
        action="append",
        metavar="NAME",
        help="only this program, of staddle, restic, borg, …; repeatable",
    )
    add("--rounds", type=int, default=3, help="how often everything is measured (%(default)s)")
    add("--image-mib", type=int, default=512, help="size of the image (%(default)s)")
    add("--files", type=int, default=20_000, help="files of the tree (%(default)s)")
    add("--kind-mib", type=int, default=128, help="size of logs, media and databases (%(default)s each)")
    add("--many", type=int, default=0, help="tiny files of the case `many` (none)")
    add("--tree", type=Path, metavar="DIR", help="a copy of this directory is the tree")
    add("--libraries", type=Path, metavar="DIR", help="the image has the bytes of the libraries below it")
    add("--full", action="store_true", help="the sizes that docs/performance.md speaks of; an hour or two")
    add("--cold", action="store_true", help="empty the system's file cache before each measurement (root)")
    add("--work", type=Path, help="where to work (the directory for temporary files)")
    given = parser.parse_args(arguments)
    if given.full:
        given.image_mib, given.files, given.kind_mib = 2048, 110_000, 512
        given.rounds = max(5, given.rounds)
        given.many = given.many or 1_000_000
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    given = parsed(arguments)
    if given.cold and not machine.can_drop_caches():
        sys.exit("--cold needs root, to empty the system's file cache.")
    wanted = [peer for peer in peers() if not given.only or peer.name.partition(" ")[0] in given.only]
    able, reasons = usable(wanted)
    for reason in reasons:
        print(f"Left out: {reason}.")
    place = Path(tempfile.mkdtemp(prefix="staddle-bench-", dir=given.work))
    try:
        facts = machine.describe(place) | {
            "compared": ", ".join(dict.fromkeys(peer.version() for peer in able)),
            "settings": "all but cp compress and encrypt with authentication; benchmarks/programs/peers.py says how",
            "file cache": "emptied before each measurement" if given.cold else "the sources are in memory",
        }
        for name, words in facts.items():
            print(f"{name:>12}: {words}")
        return measure(place, able, given, facts)
    finally:
        shutil.rmtree(place)


def measure(place: Path, able: Sequence[Peer], given: argparse.Namespace, facts: Mapping[str, str]) -> int:
    """Measure all cases; print and keep the results, even if one fails."""
    begun_s = time.monotonic()
    results = Results()
    try:
        _measure_cases(place, able, given, results)
    finally:
        if results.figures:
            results.leave_out_unmeasured()
            print("\n" + tables(results, [peer.name for peer in able]))
            path = sections.save(sections.PEERS, record_of(results, given, facts))
            print(f"All figures: {path}   ({time.monotonic() - begun_s:.0f} s)")
    return 0


def _measure_cases(place: Path, able: Sequence[Peer], given: argparse.Namespace, results: Results) -> None:
    for case in make_cases(place, given):
        results.titles[case.name] = case.title
        results.data_bytes[case.name] = case.data_bytes
        time.sleep(SETTLE_S)
        print(f"\n{case.name}: {case.title}")
        machine.touch_free_memory(touched_bytes(results.data_bytes[case.name]))
        results.limits[case.name] = library_speed.measure(case.source)
        Run(place, case, able, results, cold=given.cold).rounds(given.rounds)
        shutil.rmtree(case.source)


def record_of(results: Results, given: argparse.Namespace, facts: Mapping[str, str]) -> dict[str, Any]:
    """What is written of a run."""
    return {
        "machine": dict(facts),
        "rounds": given.rounds,
        "cold": given.cold,
        "limit": LIMIT,
        "cases": [
            {
                "name": name,
                "title": title,
                "data_bytes": results.data_bytes[name],
                "limits": results.limits[name],
            }
            for name, title in results.titles.items()
        ],
        "measurements": results.to_record(),
    }


if __name__ == "__main__":
    sys.exit(main())
