"""`make bench-entries`: processor time for each tiny file, in client and server, and the bytes of the list of entries.

First backup, rescan (FULL, everything is read again), a comparison without a cache, and restore of many tiny files, by the command.
Beside other work only processor time says something: it is the system's count, user and kernel, of each process.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.data import cases
from benchmarks.programs import machine
from benchmarks.programs.peers import Staddle
from benchmarks.programs.processes import ProgramError, Server, run, staddle
from benchmarks.tables import sections

FILES: Final = 50_000
US: Final = 1_000_000


class Step(NamedTuple):
    """What one command took, in seconds of processor time."""

    name: str
    client_s: float
    server_s: float


def measure(place: Path, source: Path) -> Iterator[Step]:
    """All steps on one new store. Raises ProgramError."""
    peer = Staddle()
    peer.open(place / "peer")
    with closing(peer):
        server = peer.server
        assert server is not None
        full = peer.backup(source, read_all=True).argv
        yield _step("first", server, full)
        yield _step("rescan", server, full)
        yield _step("compare", server, [*peer.backup(source, read_all=False).argv, "--no-cache"])
        yield _step("list", server, staddle("ls", "data", "-R"))
        target = place / "restored"
        target.mkdir()
        yield _step("restore", server, peer.restore(target, ()).argv)


def _step(name: str, server: Server, argv: Sequence[str | Path]) -> Step:
    before_s = server.cpu_s
    finished = run(argv, env=server.environment, cwd=server.data).checked()
    return Step(name, finished.cpu_s, server.cpu_s - before_s)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make bench-entries", description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=FILES, help="how many (%(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often everything is measured (%(default)s)"
    )
    parser.add_argument("--work", type=Path, help="where to work (the directory for temporary files)")
    given = parser.parse_args(arguments)
    if min(given.files, given.rounds) < 1:
        parser.error("files and rounds are at least 1")
    place = Path(tempfile.mkdtemp(prefix="staddle-entries-", dir=given.work))
    steps: dict[str, list[Step]] = {}
    try:
        print(f"{machine.describe(place)['system']}, load {os.getloadavg()[0]:.1f}", flush=True)
        source = cases.many(place, given.files).source
        for number in range(given.rounds):
            here = place / str(number)
            here.mkdir()
            for step in measure(here, source):
                steps.setdefault(step.name, []).append(step)
            shutil.rmtree(here)
    except ProgramError as error:
        sys.exit(f"Nothing was measured: {error}")
    finally:
        shutil.rmtree(place)
    head = [f"µs a file, {given.files:,} files", "client", "server"]
    rows = [
        [
            name,
            *(
                f"{statistics.median(side) * US / given.files:.1f}"
                for side in zip(*((s[1], s[2]) for s in made), strict=True)
            ),
        ]
        for name, made in steps.items()
    ]
    print(sections.in_columns(head, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
