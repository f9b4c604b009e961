"""`make bench-clients`: 1, 8, 64 and 256 uploads at once against one server, and a small call beside them.

However many there are, together they have the same bytes: each sends its part to a separate dataset. Two ways (benchmarks/programs/upload_driver.py):
the library, which cuts here, and the thin stream of the generated stub. A few driver processes have a thread for each upload. Every
upload has to become a backup: a client that finds the server full waits as the answer says, and retries. One backup is restored and compared.
Each measurement has a separate server and store. Exit code 1: an upload failed.
"""

import argparse
import filecmp
import multiprocessing
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from staddle import Client

from benchmarks import compare
from benchmarks.data.files import KIB, Supply
from benchmarks.programs import machine, upload_driver
from benchmarks.programs.processes import MIB, ProgramError, Server, thread_count
from benchmarks.programs.upload_driver import Asked, Driven, Outcome, Share
from benchmarks.tables import sections

KIND: Final = "clients"
COUNTS: Final = (1, 8, 64, 256)
DRIVERS: Final = 4
COUNT_MAX: Final = 512
STRIPE_BYTES: Final = 64 * KIB
IDLE_S: Final = 2.0
"""So long the bystander calls before there is anything beside it."""
LOOK_S: Final = 0.05
DEADLINE_S: Final = 900.0
_SPAWN: Final = multiprocessing.get_context("spawn")  # a fork would take gRPC's state along


# --- data


def make_data(path: Path, size: int, seed: str) -> None:
    """Noise and text by turns, 64 KiB each: any part of it is as much work as any other of its size."""
    supply = Supply(seed)
    with path.open("wb") as file:
        for at in range(0, size, 2 * STRIPE_BYTES):
            stripe = supply.noise(STRIPE_BYTES) + supply.text(STRIPE_BYTES)
            file.write(stripe[: size - at])


def split(data: Path, sources: Path, count: int) -> int:
    """Gives each upload its part of the data; answers how large that is."""
    size = data.stat().st_size // count
    with data.open("rb") as file:
        for number in range(count):
            directory = upload_driver.source_of(sources, number)
            directory.mkdir(parents=True)
            (directory / upload_driver.NAME).write_bytes(file.read(size))
    return size


# --- one measurement


@contextmanager
def _process(target: Any, *arguments: object) -> Iterator[Connection]:
    """A process that talks over a pipe; nothing is left running."""
    here, there = _SPAWN.Pipe()
    process = _SPAWN.Process(target=target, args=(*arguments, there), daemon=True)
    process.start()
    there.close()
    try:
        yield here
        process.join(DEADLINE_S)
    finally:
        if process.is_alive():
            process.kill()
        process.join()
        here.close()


def _told(connection: Connection, server: Server, threads: list[int]) -> Any:
    """The report of a process; meanwhile the server's threads are counted. Raises ProgramError if none comes."""
    until_s = time.monotonic() + DEADLINE_S
    try:
        threads.append(thread_count(server.pid))
        while not connection.poll(LOOK_S):
            threads.append(thread_count(server.pid))
            if time.monotonic() > until_s:
                raise ProgramError(f"a process of clients had not ended after {DEADLINE_S:.0f} s")
        return connection.recv()
    except EOFError as error:
        raise ProgramError("a client process ended without a report; its last output is above") from error


class Measurement:
    """So many uploads at once on a server that has nothing else to do."""

    def __init__(
        self, place: Path, way: str, count: int, drivers: int, options: tuple[str, ...] = ()
    ) -> None:
        """`options` are the server's."""
        self._place = place
        self._way = way
        self._count = count
        self._drivers = min(drivers, count)
        self._options = options

    def run(self, data: Path) -> dict[str, Any]:
        """What the record says of it. Raises ProgramError."""
        sources = self._place / "sources"
        size = split(data, sources, self._count)
        machine.touch_free_memory(compare.touched_bytes(size * self._count))
        os.sync()
        with Server(self._place / "server", options=self._options) as server:
            # As in daily use: it was started before, and has a catalog.
            server.stop()
            server.reset_peak()
            server.start()
            found = self._load(server, sources, size)
            found["failures"] += self._faults(server, sources, size)
        shutil.rmtree(sources)
        shutil.rmtree(self._place / "server")
        (self._place / "server.log").unlink()  # the next server's refusals are its own
        return found

    def _load(self, server: Server, sources: Path, size: int) -> dict[str, Any]:
        config = server.data / "client.toml"
        threads: list[int] = []
        with ExitStack() as running:
            bystander = running.enter_context(_process(upload_driver.stand_by, config))
            drivers = [
                running.enter_context(
                    _process(upload_driver.drive, Share(config, self._way, sources, numbers))
                )
                for numbers in self._shares()
            ]
            for each in (bystander, *drivers):
                _told(each, server, threads)
            time.sleep(IDLE_S)
            threads.clear()
            server.reset_peak()
            before_s = server.cpu_s
            for driver in drivers:
                driver.send("go")
            driven: list[Driven] = [_told(driver, server, threads) for driver in drivers]
            server_cpu_s = server.cpu_s - before_s
            bystander.send("stop")
            asked: list[Asked] = _told(bystander, server, [])
        outcomes = [outcome for each in driven for outcome in each.outcomes]
        return {
            "way": self._way,
            "count": self._count,
            "drivers": self._drivers,
            "bytes_each": size,
            **of_uploads(outcomes, size),
            **of_bystander(asked, outcomes),
            "server_bytes": server.peak_bytes,
            "server_threads": max(threads),
            "server_cpu_s": server_cpu_s,
            "clients_cpu_s": sum(each.cpu_s for each in driven),
            "refusals": [
                {"method": method, "detail": detail, "times": times}
                for (method, detail), times in server.refusals().items()
            ],
            "failures": [
                f"{upload_driver.dataset_of(each.number)}: {each.error}" for each in outcomes if each.error
            ],
        }

    def _shares(self) -> list[range]:
        """Which uploads each driver makes: neighbours are made by different ones."""
        return [range(first, self._count, self._drivers) for first in range(self._drivers)]

    def _faults(self, server: Server, sources: Path, size: int) -> list[str]:
        """What is wrong with the backups that were made: each has to be there, and one, by chance, to come back."""
        faults, good = [], []
        with Client.from_config(server.data / "client.toml") as client:
            there = {dataset.name for dataset in client.datasets()}
            for number in range(self._count):
                name = upload_driver.dataset_of(number)
                sizes = [backup.data_bytes for backup in client.backups(name)] if name in there else []
                if sizes == [size]:
                    good.append(number)
                else:
                    faults.append(f"{name}: backups of {sizes} bytes, and not one of {size}")
            if good:
                chosen = random.Random(f"{self._way} {self._count}").choice(good)
                target = self._place / "restored"
                client.restore(upload_driver.dataset_of(chosen), target)
                source = upload_driver.source_of(sources, chosen) / upload_driver.NAME
                if not filecmp.cmp(source, target / upload_driver.NAME, shallow=False):
                    faults.append(f"{upload_driver.dataset_of(chosen)}: what came back is not what was sent")
                shutil.rmtree(target)
        return faults


# --- figures


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that is at least as large as such a share of them; 0 of none."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)] if ordered else 0.0


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness (Jain, Chiu, Hawe 1984): 1 if all have the same, 1/n if one has everything; 0 of nothing."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 0.0


def handed_over(outcome: Outcome, at_s: float, size: int) -> float:
    """How many bytes an upload had handed over at a moment, between what was noted before it and after it."""
    before = (outcome.begun_s, 0)
    for after in [*outcome.progress, (outcome.ended_s, size)]:
        if after[0] > at_s:
            passed = (at_s - before[0]) / (after[0] - before[0])
            return before[1] + max(0.0, passed) * (after[1] - before[1])
        before = after
    return float(size)


def of_uploads(outcomes: Sequence[Outcome], size: int) -> dict[str, Any]:
    """Times from the moment when the first upload began."""
    begun_s = min(each.begun_s for each in outcomes)
    finishes = sorted(each.ended_s - begun_s for each in outcomes)
    first_end_s = min(each.ended_s for each in outcomes)
    together = [handed_over(each, first_end_s, size) for each in outcomes]
    return {
        "seconds": finishes[-1],
        "mib_per_s": size * len(outcomes) / MIB / finishes[-1],
        "finish_s": finishes,
        "together_s": first_end_s - begun_s,
        "jain_together": jain(together),
        "jain": jain([1.0 / finish for finish in finishes]),
        "slowest_to_fastest": finishes[-1] / finishes[0],
    }


def of_bystander(asked: Sequence[Asked], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Latencies before the load, and beside it."""
    begun_s, ended_s = min(each.begun_s for each in outcomes), max(each.ended_s for each in outcomes)
    idle = [each.seconds for each in asked if each.begun_s < begun_s - upload_driver.EVERY_S]
    beside = [each for each in asked if begun_s <= each.begun_s <= ended_s]
    answered = [each.seconds for each in beside if each.code == "OK"]
    return {
        "idle_ms": _latencies(idle),
        "beside_ms": _latencies(answered),
        "beside_failed": len(beside) - len(answered),
    }


def _latencies(seconds: Sequence[float]) -> dict[str, float]:
    return {
        "count": len(seconds),
        "p50": 1000 * percentile(seconds, 0.5),
        "p99": 1000 * percentile(seconds, 0.99),
        "max": 1000 * max(seconds, default=0.0),
    }


# --- what comes of it

HEAD: Final = [
    "uploads at once", "MiB/s", "finish s: median", "p95", "max", "Jain, all at work", "Jain, to the end",
    "slowest / fastest", "small call ms: p50", "p99", "max", "server MiB", "threads", "server CPU s", "refused",
]  # fmt: skip


def _row(case: Mapping[str, Any]) -> list[str]:
    finish_s, beside = case["finish_s"], case["beside_ms"]
    return [
        f"{case['count']}, {case['way']}",
        f"{case['mib_per_s']:,.0f}",
        f"{statistics.median(finish_s):.2f}",
        f"{percentile(finish_s, 0.95):.2f}",
        f"{finish_s[-1]:.2f}",
        f"{case['jain_together']:.2f}",
        f"{case['jain']:.2f}",
        f"{case['slowest_to_fastest']:.1f}",
        *(f"{beside[name]:.1f}" for name in ("p50", "p99", "max")),
        f"{case['server_bytes'] / MIB:,.0f}",
        f"{case['server_threads']:,}",
        f"{case['server_cpu_s']:.2f}",
        f"{sum(each['times'] for each in case['refusals']):,}",
    ]


def _notes(record: Mapping[str, Any]) -> list[str]:
    """What the tables have no room for."""
    cases = record["cases"]
    idle = [case["idle_ms"] for case in cases]
    p50, most = statistics.median(each["p50"] for each in idle), max(each["max"] for each in idle)
    notes = [f"The small call with nothing beside it: p50 {p50:.1f} ms, max {most:.1f} ms."]
    for case in cases:
        refusals = ", ".join(
            f"{each['method']} {each['times']} ({each['detail']})" for each in case["refusals"]
        )
        if refusals:
            notes.append(f"{case['count']}, {case['way']}: refused and tried again: {refusals}.")
        if case["beside_failed"]:
            notes.append(f"{case['count']}, {case['way']}: {case['beside_failed']} small calls failed.")
        notes += [f"{case['count']}, {case['way']}: FAILED: {each}." for each in case["failures"]]
    return notes


def title(record: Mapping[str, Any]) -> str:
    return f"Many clients at once, {record['data_bytes'] // MIB:,} MiB in all"


def section(record: Mapping[str, Any]) -> list[str]:
    """The lines of docs/performance.md, from what `main` wrote."""
    failed = sum(len(case["failures"]) for case in record["cases"])
    ended = "Every upload became a backup, and" if not failed else f"{failed} uploads failed (below);"
    how = (
        f"Up to {record['drivers']} processes with a thread for each upload; `source` is the library, `thin` the Backup stream of the "
        f"generated stub. {ended} one of each line was restored and compared."
    )
    return [
        f"### {title(record)}",
        "",
        how,
        "",
        f"![Throughput and latency by number of clients](performance/{KIND}.svg)",
        "",
        *sections.table(HEAD, [_row(case) for case in record["cases"]]),
        "",
        *(f"- {note}" for note in _notes(record)),
    ]


def draw(record: Mapping[str, Any], to: Path) -> None:
    """Throughput, and the latency of the small call, by number of clients."""
    figure = sections.figure(10, 3.6)
    throughput, latency = figure.subplots(1, 2)
    for number, way in enumerate(upload_driver.WAYS):
        found = [case for case in record["cases"] if case["way"] == way]
        counts, color = [case["count"] for case in found], f"C{number}"
        throughput.plot(counts, [case["mib_per_s"] for case in found], "o-", color=color, label=way)
        for name, style in (("p50", "o-"), ("p99", "s--"), ("max", "^:")):
            latency.plot(
                counts,
                [case["beside_ms"][name] for case in found],
                style,
                color=color,
                label=f"{way}, {name}",
            )
    for axes in (throughput, latency):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({case["count"] for case in record["cases"]}))
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_xlabel("uploads at once")
        axes.legend(fontsize="small")
    throughput.set_ylim(bottom=0)
    throughput.set_title("all uploads together, MiB/s")
    latency.set_yscale("log")
    latency.set_title("a small call beside them, ms")
    sections.keep(figure, to)


def measure(
    place: Path,
    ways: Sequence[str],
    counts: Sequence[int],
    *,
    data_bytes: int,
    drivers: int,
    options: tuple[str, ...] = (),
) -> list[dict[str, Any]]:
    """All measurements, one after another. Raises ProgramError."""
    data = place / "data"
    make_data(data, data_bytes, "clients")
    found = []
    for way in ways:
        for count in counts:
            case = Measurement(place, way, count, drivers, options).run(data)
            found.append(case)
            print(f"  {way:<8}{count:>4} at once  {case['mib_per_s']:>6,.0f} MiB/s", flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1: an upload did not become a backup."""
    parser = argparse.ArgumentParser(prog="make bench-clients", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--count", type=int, action="append", help="so many uploads at once; repeatable (1, 8, 64, 256)")
    add("--way", choices=upload_driver.WAYS, action="append", help="only this one; repeatable")
    add("--mib", type=int, default=512, help="data of all uploads together (%(default)s)")
    add("--drivers", type=int, default=DRIVERS, help="processes that the clients are in (%(default)s)")
    add("--streams-max", type=int, help="the server's limit of streams (its default)")
    add("--work", type=Path, help="where to work (the directory for temporary files)")
    given = parser.parse_args(arguments)
    counts = given.count or list(COUNTS)
    if min(counts) < 1 or max(counts) > COUNT_MAX or not 1 <= given.drivers <= 64 or given.mib < 1:
        parser.error(f"there are 1 to {COUNT_MAX} uploads, 1 to 64 drivers, and at least 1 MiB")
    place = Path(tempfile.mkdtemp(prefix="staddle-clients-", dir=given.work))
    try:
        facts = machine.describe(place)
        options = ("--streams-max", str(given.streams_max)) if given.streams_max else ()
        cases = measure(
            place,
            given.way or upload_driver.WAYS,
            counts,
            data_bytes=given.mib * MIB,
            drivers=given.drivers,
            options=options,
        )
    except ProgramError as error:
        sys.exit(f"Nothing was measured: {error}")
    finally:
        shutil.rmtree(place)
    record = {"data_bytes": given.mib * MIB, "drivers": given.drivers, "cases": cases}
    print(f"\n{title(record)}\n{sections.in_columns(HEAD, [_row(case) for case in cases])}")
    print("\n".join(_notes(record)))
    print(f"All figures: {sections.save(KIND, {'machine': facts, **record})}")
    return int(any(case["failures"] for case in cases))


if __name__ == "__main__":
    sys.exit(main())
