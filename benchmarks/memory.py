"""`make bench-memory`: how much memory the server takes while many clients are at work, one phase after another on one server.

Each client has its own image and tree of small files. The server may have 250 MiB with eight, and 10 MiB more for each further
one; exit code 1 if it had more in any phase.
"""

import argparse
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks.data import files as data
from benchmarks.programs import machine
from benchmarks.programs.processes import MIB, Program, Server, staddle

BOUND_MIB: Final = 250
STREAMS: Final = 8
FURTHER_MIB: Final = 10


def bound_mib(streams: int) -> int:
    """What the server may have resident with so many streams."""
    return BOUND_MIB + FURTHER_MIB * max(0, streams - STREAMS)


def all_at_once(server: Server, commands: list[list[str | Path]]) -> None:
    """Runs commands beside one another. Raises ProgramError if one fails."""
    with ExitStack() as running:
        programs = [running.enter_context(Program(argv, env=server.environment)) for argv in commands]
        for program in programs:
            program.wait().checked()


def measure(place: Path, streams: int, image_bytes: int, files: int) -> list[tuple[str, int]]:
    """The phases, and the most MiB that the server had resident in each."""
    numbers = range(streams)
    for number in numbers:
        data.make_tree(place / f"tree{number}", files, f"{number}", odd=False)
        (place / f"image{number}").mkdir()
        data.make_image(place / f"image{number}" / "disk.img", image_bytes, f"{number}", holes=False)
    measured: list[tuple[str, int]] = []
    with Server(place / "server") as server:
        # As in daily use: it was started before, and has a catalog.
        server.kill()
        server.reset_peak()
        server.start()
        measured.append(("idle", server.peak_bytes // MIB))
        for kind in ("image", "tree"):
            for way in ("source", "thin"):
                server.reset_peak()
                options = ["--thin"] if way == "thin" else []
                all_at_once(
                    server,
                    [
                        staddle("backup", place / f"{kind}{n}", "--dataset", f"{kind}{n}-{way}", *options)
                        for n in numbers
                    ],
                )
                measured.append((f"{kind}, backup, {way}", server.peak_bytes // MIB))
            server.reset_peak()
            all_at_once(
                server,
                [
                    staddle("restore", f"{kind}{n}-source", "--target", place / f"out-{kind}{n}")
                    for n in numbers
                ],
            )
            measured.append((f"{kind}, restore", server.peak_bytes // MIB))
    return measured


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1: the server had more than it may."""
    parser = argparse.ArgumentParser(prog="make bench-memory", description=__doc__)
    parser.add_argument("--streams", type=int, default=STREAMS, help="clients at once (%(default)s)")
    parser.add_argument("--image", type=int, default=300, help="MiB of each image (%(default)s)")
    parser.add_argument("--files", type=int, default=12_000, help="files of each tree (%(default)s)")
    parser.add_argument("--work", type=Path, help="where the data is made (a temporary directory)")
    chosen = parser.parse_args(arguments)
    place = Path(tempfile.mkdtemp(prefix="staddle-memory-", dir=chosen.work))
    try:
        measured = measure(place, chosen.streams, chosen.image * MIB, chosen.files)
        there = machine.describe(place)
    finally:
        shutil.rmtree(place)
    most = bound_mib(chosen.streams)
    print(f"{there['system']}, {there['processor']}. {chosen.streams} clients at once, each with an image of")
    print(
        f"{chosen.image} MiB and a tree of {chosen.files:,} files. Peak resident memory of the server, at most {most} MiB:\n"
    )
    for phase, mib in measured:
        print(f"{'ok  ' if mib <= most else 'OVER'}  {mib:4} MiB  {phase}")
    return int(any(mib > most for _, mib in measured))


if __name__ == "__main__":
    sys.exit(main())
