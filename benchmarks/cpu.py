"""`make bench-profile`: where the processor time of a backup and a restore goes, stage by stage, in client and server.

First backup, rescan and restore of an image and of a tree, by the command. Each is run twice: alone, which says how much processor
time client and server take (by the system's counters), and sampled (benchmarks/profiling/sampling.py), which says how it is divided
(benchmarks/profiling/stages.py); so the stages sum to what was used. Beside them stands what one core needs for the same work alone
(benchmarks/programs/library_speed.py), measured in the same run. Seconds are for each GiB of data.
"""

import argparse
import errno
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks import compare
from benchmarks.data import cases
from benchmarks.data.cases import Case
from benchmarks.profiling import sampling, stages
from benchmarks.programs import library_speed, machine
from benchmarks.programs.peers import Command, Phase, Staddle
from benchmarks.programs.processes import MIB, Program, ProgramError, Server, run
from benchmarks.tables import sections

GIB: Final = 1024 * MIB
KIND: Final = "profile"
PHASES: Final = (Phase.FIRST, Phase.RESCAN, Phase.RESTORE)
SIDES: Final = ("client", "server")
GATED: Final = """
import runpy, sys
gate, program = sys.argv[1:3]
open(gate).read()
sys.argv = sys.argv[2:]
runpy.run_path(program, run_name="__main__")
"""
"""Runs a Python program once the gate is open, so that the sampler sees it from the start."""


@dataclass(slots=True)
class Side:
    """Client or server in one phase, over all rounds. Seconds are of the whole data."""

    cpu_s: list[float] = field(default_factory=list)
    """Alone, by the system's counters."""
    kernel_s: list[float] = field(default_factory=list)
    """The part of it in the system."""
    sampled_cpu_s: list[float] = field(default_factory=list)
    """While it was sampled."""
    samples: int = 0
    stages: dict[str, float] = field(default_factory=dict)

    def add(self, sampled: sampling.Sampled) -> None:
        self.samples += sampled.samples
        self.sampled_cpu_s.append(sampled.cpu_s)
        for stage, seconds in sampled.stages.items():
            self.stages[stage] = self.stages.get(stage, 0.0) + seconds

    def figures(self) -> dict[str, Any]:
        """The stages, made to sum to the time that was used alone."""
        cpu_s, seen_s = statistics.median(self.cpu_s), sum(self.stages.values())
        return {
            "cpu_s": cpu_s,
            "kernel_s": statistics.median(self.kernel_s),
            "sampled_cpu_s": statistics.median(self.sampled_cpu_s),
            "samples": self.samples,
            "stages": {name: cpu_s * self.stages.get(name, 0.0) / (seen_s or 1.0) for name in stages.STAGES},
        }


@dataclass(slots=True)
class Measured:
    """One phase over all rounds."""

    wall_s: list[float] = field(default_factory=list)
    client: Side = field(default_factory=Side)
    server: Side = field(default_factory=Side)


class Round:
    """Two stores: the phases go through one of them alone, and through the other sampled."""

    def __init__(self, place: Path, case: Case, rate: int) -> None:
        self._place = place
        self._case = case
        self._rate = rate

    def measure(self, into: Mapping[Phase, Measured]) -> None:
        """All phases. Raises ProgramError."""
        with ExitStack() as opened:
            peers = [Staddle(), Staddle()]
            for peer, name in zip(peers, ("alone", "sampled"), strict=True):
                peer.open(self._place / name)
                opened.callback(peer.close)
                _server(peer).pause()
            for phase in PHASES:
                self._alone(peers[0], phase, into[phase])
                self._sampled(peers[1], phase, into[phase])
        for name in ("alone", "sampled", "restored-alone", "restored-sampled"):
            shutil.rmtree(self._place / name)

    def _command(self, peer: Staddle, phase: Phase, name: str) -> Command:
        machine.touch_free_memory(compare.touched_bytes(self._case.data_bytes))
        if not phase.restores:
            return peer.backup(self._case.source, read_all=True)
        target = self._place / f"restored-{name}"
        target.mkdir()
        return peer.restore(target, ())

    def _alone(self, peer: Staddle, phase: Phase, measured: Measured) -> None:
        command = self._command(peer, phase, "alone")
        os.sync()
        server = _server(peer)
        server.go_on()
        before_s, before_kernel_s = server.cpu_s, server.kernel_s
        finished = run(command.argv, env=command.env, cwd=command.cwd).checked()
        measured.server.cpu_s.append(server.cpu_s - before_s)
        measured.server.kernel_s.append(server.kernel_s - before_kernel_s)
        server.pause()
        measured.client.cpu_s.append(finished.cpu_s)
        measured.client.kernel_s.append(finished.kernel_s)
        measured.wall_s.append(finished.seconds)

    def _sampled(self, peer: Staddle, phase: Phase, measured: Measured) -> None:
        command = self._command(peer, phase, "sampled")
        os.sync()
        server = _server(peer)
        server.go_on()
        gate = self._place / "gate"
        os.mkfifo(gate)
        argv = [sys.executable, "-c", GATED, gate, *command.argv]
        with (
            Program(argv, env=command.env, cwd=command.cwd) as program,
            sampling.Sampling(server.pid, self._rate) as at_server,
            sampling.Sampling(program.pid, self._rate) as at_client,
        ):
            program.watch(lambda: opened(gate))
            finished = program.wait()
        gate.unlink()
        finished.checked()
        server.pause()
        measured.client.add(at_client.sampled)
        measured.server.add(at_server.sampled)


def opened(gate: Path) -> bool:
    """Opens the gate if somebody stands before it."""
    try:
        os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return False
    return True


def _server(peer: Staddle) -> Server:
    assert peer.server is not None
    return peer.server


def measure(place: Path, made: Sequence[Case], rounds: int, rate: int) -> list[dict[str, Any]]:
    """All cases; what the record says of each."""
    found = []
    for case in made:
        alone = library_speed.measure(case.source)
        measured = {phase: Measured() for phase in PHASES}
        many = len(case.files) > compare.MANY
        for number in range(rounds):
            if number and many:
                os.sync()
                time.sleep(compare.REMOVED_S)
            Round(place, case, rate).measure(measured)
            walls = ", ".join(f"{phase} {measured[phase].wall_s[-1]:.2f}" for phase in PHASES)
            print(f"  {case.name}, round {number + 1}, wall s: {walls}", flush=True)
        found.append(
            {
                "name": case.name,
                "title": case.title,
                "data_bytes": case.data_bytes,
                "limits": alone,
                "phases": [
                    {
                        "phase": phase.value,
                        "wall_s": statistics.median(each.wall_s),
                        "client": each.client.figures(),
                        "server": each.server.figures(),
                    }
                    for phase, each in measured.items()
                ],
            }
        )
    return found


# --- what comes of it


def _head(case: Mapping[str, Any]) -> list[str]:
    columns = [f"{each['phase']}, {side}" for each in case["phases"] for side in SIDES]
    return ["core-seconds a GiB", *columns, "one core alone"]


def _rows(case: Mapping[str, Any]) -> list[list[str]]:
    """The stages that somebody spent time on, and the sums."""
    gib = case["data_bytes"] / GIB
    sides = [each[side] for each in case["phases"] for side in SIDES]
    rows = []
    for stage in stages.STAGES:
        spent = [side["stages"][stage] / gib for side in sides]
        alone = case["limits"].get(stages.LIMITS.get(stage, ""))
        if any(f"{each:.2f}" != "0.00" for each in spent):
            last = "" if alone is None else f"{alone / gib:.2f}"
            rows.append([stage, *(f"{each:.2f}" for each in spent), last])
    rows.append(["all", *(f"{side['cpu_s'] / gib:.2f}" for side in sides), ""])
    rows.append(["of it in the kernel", *(f"{side['kernel_s'] / gib:.2f}" for side in sides), ""])
    rows.append(["samples", *(f"{side['samples']:,}" for side in sides), ""])
    more = [f"{side['sampled_cpu_s'] / (side['cpu_s'] or 1.0):.2f}" for side in sides]
    rows.append(["sampled / alone, CPU", *more, ""])
    return rows


def section(record: Mapping[str, Any]) -> list[str]:
    """The lines of docs/performance.md, from what `main` wrote."""
    how = (
        "Sums are the system's count of processor time, of runs without a sampler; the division is from "
        f"{record['rate']} samples a second, rounds: {record['rounds']}."
    )
    lines = ["### Where the processor time goes", ""]
    lines += [
        how,
        "",
        f"![Processor time by stage](performance/{KIND}.svg)",
        "",
    ]
    for case in record["cases"]:
        title = case["title"]
        lines += [f"{title[:1].upper()}{title[1:]}:", "", *sections.table(_head(case), _rows(case)), ""]
    return lines[:-1]


def draw(record: Mapping[str, Any], to: Path) -> None:
    """A bar for each command and side, divided into its stages."""
    bars = [
        (f"{case['name']}, {each['phase']}, {side}", each[side]["stages"], case["data_bytes"] / GIB)
        for case in record["cases"]
        for each in case["phases"]
        for side in SIDES
    ]
    figure = sections.figure(10, 1.8 + 0.28 * len(bars))
    axes = figure.subplots()
    left = [0.0] * len(bars)
    for number, stage in enumerate(stages.STAGES):
        widths = [spent[stage] / gib for _, spent, gib in bars]
        color = "0.8" if stage in {stages.OTHER, stages.UNSEEN} else f"C{number % 10}"
        hatch = "//" if number >= 10 else None
        axes.barh([name for name, _, _ in bars], widths, left=left, label=stage, color=color, hatch=hatch)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("core-seconds a GiB")
    figure.legend(loc="outside lower center", ncols=5, fontsize="small")
    sections.keep(figure, to)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make bench-profile", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--case", action="append", choices=("image", "tree"), help="only this one; repeatable")
    add("--mib", type=int, default=512, help="size of the image (%(default)s)")
    add("--files", type=int, default=20_000, help="files of the tree (%(default)s)")
    add("--rounds", type=int, default=3, help="how often everything is measured (%(default)s)")
    add("--rate", type=int, default=sampling.RATE, help="samples a second (%(default)s)")
    add("--tree", type=Path, metavar="DIR", help="a copy of this directory is the tree")
    add("--libraries", type=Path, metavar="DIR", help="the image has the bytes of the libraries below it")
    add("--work", type=Path, help="where to work (the directory for temporary files)")
    given = parser.parse_args(arguments)
    if min(given.mib, given.files, given.rounds) < 1 or not 1 <= given.rate <= 1000:
        parser.error("sizes and rounds are at least 1, the rate is 1 to 1000")
    if sampling.sampler() is None:
        sys.exit("py-spy is not installed: make bench-profile installs it.")
    place = Path(tempfile.mkdtemp(prefix="staddle-profile-", dir=given.work))
    try:
        facts = machine.describe(place)
        wanted = given.case or ["image", "tree"]
        made = [cases.image(place, given.mib * MIB, given.libraries)] if "image" in wanted else []
        made += [cases.tree(place, given.files, given.tree)] if "tree" in wanted else []
        record = {
            "rate": given.rate,
            "rounds": given.rounds,
            "cases": measure(place, made, given.rounds, given.rate),
        }
    except ProgramError as error:
        sys.exit(f"Nothing was measured: {error}")
    finally:
        shutil.rmtree(place)
    for case in record["cases"]:
        print(f"\n{case['title']}\n{sections.in_columns(_head(case), _rows(case))}")
    print(f"\nAll figures: {sections.save(KIND, {'machine': facts, **record})}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
