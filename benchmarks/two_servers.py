"""`make bench-servers`: the same uploads at once against one server, and divided between several.

Each server here has its own directory, and so shares no lock, no catalog and no log of packs with the others: several processes that
served one directory on one port could not be faster than that. What this machine's cores leave to be had is seen before such a thing is built.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from benchmarks import compare
from benchmarks.data import corpora
from benchmarks.programs import machine
from benchmarks.programs.processes import MIB, Program, ProgramError, Server, staddle
from benchmarks.tables import sections

KIND: Final = "servers"
COUNTS: Final = (1, 2)
UPLOADS: Final = 4
UPLOADS_MAX: Final = 32
WAYS: Final[dict[str, tuple[str, ...]]] = {"cut by the client": (), "cut by the server": ("--thin",)}
HEAD: Final = ["uploads at once", "servers", "wall s", "MiB/s", "servers' CPU s", "clients' CPU s"]


def make_sources(place: Path, uploads: int, size: int, libraries: Path | None) -> list[Path]:
    """A directory for each upload, with its part of an image."""
    sources = []
    for number in range(uploads):
        source = place / f"source-{number}"
        source.mkdir()
        corpora.make_blocks(source / "image", size // uploads, f"servers {number}", libraries)
        machine.read_once(source)
        sources.append(source)
    return sources


def measure(place: Path, count: int, sources: Sequence[Path], options: tuple[str, ...]) -> dict[str, float]:
    """Back up all sources, each in its own process, to the servers by turns. Raises ProgramError."""
    place.mkdir()
    with ExitStack() as running:
        servers = [running.enter_context(Server(place / f"server-{number}")) for number in range(count)]
        machine.touch_free_memory(compare.touched_bytes(sum(map(size_of, sources))))
        os.sync()
        before_s, begun_s = sum(server.cpu_s for server in servers), time.monotonic()
        programs = [
            running.enter_context(
                Program(
                    staddle("backup", source, "--dataset", source.name, *options),
                    env=servers[number % count].environment,
                )
            )
            for number, source in enumerate(sources)
        ]
        clients_cpu_s = sum(program.wait().checked().cpu_s for program in programs)
        os.sync()
        ended_s = time.monotonic()
        if not all(server.pack_bytes for server in servers):
            raise ProgramError("a server got nothing")
        found = {
            "seconds": ended_s - begun_s,
            "servers_cpu_s": sum(server.cpu_s for server in servers) - before_s,
            "clients_cpu_s": clients_cpu_s,
        }
    shutil.rmtree(place)
    return found


def size_of(source: Path) -> int:
    return (source / "image").stat().st_size


# --- what comes of it


def title(record: Mapping[str, Any]) -> str:
    return f"{record['uploads']} first backups at once, {record['data_bytes'] // MIB:,} MiB in all"


def rows(record: Mapping[str, Any]) -> list[list[str]]:
    """A line for each way and number of servers, medians of all rounds."""
    found = []
    for case in record["cases"]:
        middle = {
            name: statistics.median(each[name] for each in case["rounds"]) for name in case["rounds"][0]
        }
        found.append(
            [
                case["way"],
                str(case["servers"]),
                f"{middle['seconds']:.2f}",
                f"{record['data_bytes'] / MIB / middle['seconds']:,.0f}",
                f"{middle['servers_cpu_s']:.2f}",
                f"{middle['clients_cpu_s']:.2f}",
            ]
        )
    return found


def section(record: Mapping[str, Any]) -> list[str]:
    """The lines of docs/performance.md, from what `main` wrote."""
    rounds = len(record["cases"][0]["rounds"])
    how = f"Medians of {rounds} rounds. Each server has its own directory, and each upload its own process."
    return [
        f"### {title(record)}",
        "",
        how,
        "",
        f"![Wall time by number of servers](performance/{KIND}.svg)",
        "",
        *sections.table(HEAD, rows(record)),
    ]


def draw(record: Mapping[str, Any], to: Path) -> None:
    """The time of each way, by number of servers."""
    figure = sections.figure(6, 3)
    axes = figure.subplots()
    for way in WAYS:
        found = [case for case in record["cases"] if case["way"] == way]
        seconds = [statistics.median(each["seconds"] for each in case["rounds"]) for case in found]
        axes.plot([case["servers"] for case in found], seconds, "o-", label=way)
    axes.set_xticks(sorted({case["servers"] for case in record["cases"]}))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("servers")
    axes.set_ylabel("seconds")
    axes.legend()
    sections.keep(figure, to)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make bench-servers", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--count", type=int, action="append", help="so many servers; repeatable (1, 2)")
    add("--uploads", type=int, default=UPLOADS, help="uploads at once (%(default)s)")
    add("--mib", type=int, default=2048, help="data of all uploads together (%(default)s)")
    add("--rounds", type=int, default=3, help="how often everything is measured (%(default)s)")
    add("--libraries", type=Path, metavar="DIR", help="the data has the bytes of the libraries below it")
    add("--work", type=Path, help="where to work (the directory for temporary files)")
    given = parser.parse_args(arguments)
    counts = given.count or list(COUNTS)
    if not 1 <= min(counts) <= max(counts) <= given.uploads <= UPLOADS_MAX:
        parser.error(f"there are 1 to {UPLOADS_MAX} uploads, and at most as many servers")
    if given.rounds < 1 or given.mib < given.uploads:
        parser.error("there is at least one round, and a MiB for each upload")
    place = Path(tempfile.mkdtemp(prefix="staddle-servers-", dir=given.work))
    cases = [{"way": way, "servers": count, "rounds": []} for way in WAYS for count in dict.fromkeys(counts)]
    try:
        facts = machine.describe(place)
        sources = make_sources(place, given.uploads, given.mib * MIB, given.libraries)
        for number in range(given.rounds):
            for case in cases if number % 2 == 0 else reversed(cases):
                found = measure(place / "work", case["servers"], sources, WAYS[case["way"]])
                case["rounds"].append(found)
                print(f"  {case['way']}, servers: {case['servers']}  {found['seconds']:.2f} s", flush=True)
        data_bytes = sum(map(size_of, sources))
    except ProgramError as error:
        sys.exit(f"Nothing was measured: {error}")
    finally:
        shutil.rmtree(place)
    record = {"uploads": given.uploads, "data_bytes": data_bytes, "cases": cases}
    print(f"\n{title(record)}\n{sections.in_columns(HEAD, rows(record))}")
    print(f"All figures: {sections.save(KIND, {'machine': facts, **record})}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
