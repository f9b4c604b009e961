"""`make bench-pages`: how long pages of the dashboard take with many backups.

A service in this process has `--datasets` datasets with `--backups` backups between them, one a day, each with its run; an eighth of the
datasets is late, and a quarter of a percent of the runs failed. The rows are written to the catalog as commits write them, over one backup of a
small tree that is stored. Each page is asked for `--count` times over HTTP, one after the other; times are medians, with the slowest beside each, and the processor time of service and client together.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from http_door import open_http
from pages_client import Visitor
from servers import Running
from sqlalchemy import insert, select, update
from staddle.v1 import service_pb2 as sv
from staddle_server.base.clock import NS
from staddle_server.base.types import RunOutcome
from staddle_server.catalog import schema
from thin import back_up

from benchmarks.programs import machine

DAY_NS: Final = 86_400 * NS
LIMIT_MS: Final = 300.0
NAME: Final = "host-0001/srv"
PAGES: Final = {
    "Now": "/",
    "Datasets": "/datasets",
    "Datasets, filtered": "/datasets?named=99&state=troubled",
    "A dataset": f"/dataset?name={NAME}",
    "A directory": f"/browse?dataset={NAME}",
    "A file": f"/file?dataset={NAME}&path=a/file-3.txt",
    "Runs": "/runs",
    "Runs that failed": "/runs?outcome=failed",
    "Events": "/events",
    "Store": "/store",
    "Access": "/access",
}
AT_ONCE: Final = 5_000


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make bench-pages", description=__doc__.partition("\n")[0])
    parser.add_argument("--backups", type=int, default=10_000)
    parser.add_argument("--datasets", type=int, default=500)
    parser.add_argument("--count", type=int, default=15, help="requests of each page")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        running = Running(Path(place))
        try:
            fill(running, given.datasets, given.backups)
            return report(running, given.count)
        finally:
            running.stop()


def fill(running: Running, datasets: int, backups: int) -> None:
    """Make the datasets, and share the backups among them."""
    files = {f"a/file-{number}.txt": b"text %d\n" % number * 100 for number in range(50)}
    back_up(running.stub(), NAME, files, host="host")
    running.stub().SetRetention(sv.SetRetentionRequest(dataset=NAME, policy={"keep_daily": 14}))
    with running.catalog.database.read() as connection:
        dataset, backup, run = (
            dict(connection.execute(select(table)).mappings().one())
            for table in (schema.datasets, schema.backups, schema.runs)
        )
    names = [NAME, *(f"host-{number:04}/srv" for number in range(2, datasets + 1))]
    expected = {"expect_every_s": 86_400, "expect_grace_s": 7200, "expect_ns": 1}
    now_ns = running.clock.now_ns()
    with running.catalog.database.write() as connection:
        first = dataset.pop("row")
        connection.execute(
            insert(schema.datasets), [dataset | expected | {"name": name} for name in names[1:]]
        )
        numbers = select(schema.datasets.c.name, schema.datasets.c.row)
        rows = {name: row for name, row in connection.execute(numbers)}  # noqa: C416 - rows are no pairs for mypy
        assert rows[NAME] == first
        made: list[dict[str, Any]] = []
        runs: list[dict[str, Any]] = []
        for number, name in enumerate(names):
            for each in _runs(number, backups // datasets, now_ns):
                runs.append(run | each | {"dataset": rows[name]})
                if each["outcome"] == RunOutcome.DONE.value:
                    ids = {"id": os.urandom(16), "upload": each["id"], "number": 10 + len(made)}
                    times = {"begin_ns": each["begin_ns"], "commit_ns": each["end_ns"]}
                    made.append(
                        backup | ids | times | {"dataset": rows[name], "stored_bytes": each["stored_bytes"]}
                    )
        for table, values in ((schema.backups, made), (schema.runs, runs)):
            for start in range(0, len(values), AT_ONCE):
                connection.execute(insert(table), values[start : start + AT_ONCE])
        for number, name in enumerate(names):
            days = 3 if number % 8 == 7 else 0
            this = update(schema.datasets).where(schema.datasets.c.row == rows[name])
            connection.execute(this.values(success_ns=now_ns - days * DAY_NS, last_number=10**6))


def _runs(seed: int, count: int, now_ns: int) -> Iterator[dict[str, Any]]:
    """Yield the runs of one dataset, one a day."""
    chance = random.Random(seed)
    for age in range(count, 0, -1):
        begin_ns = now_ns - age * DAY_NS + chance.randrange(3600) * NS
        outcome = RunOutcome.FAILED if chance.random() < 0.0025 else RunOutcome.DONE
        yield {
            "id": os.urandom(16),
            "begin_ns": begin_ns,
            "end_ns": begin_ns + 60 * NS,
            "stored_bytes": chance.randrange(10**6, 10**8),
            "outcome": outcome.value,
            "reason": "why" if outcome is RunOutcome.FAILED else "",
        }


def report(running: Running, count: int) -> int:
    """Ask for each page, and print what it took. Returns 1 if a median is over the limit."""
    visitor = Visitor(open_http(running), running.token("admin"))
    slow = 0
    print(f"{'page':<20} {'median':>9} {'slowest':>9} {'processor':>9} {'size':>9}")
    for title, path in PAGES.items():
        took_ms, used_ms = [], []
        for _ in range(count):
            start_s, used_s = time.perf_counter(), time.process_time()
            page = visitor.page(path)
            took_ms.append((time.perf_counter() - start_s) * 1e3)
            used_ms.append((time.process_time() - used_s) * 1e3)
        median = statistics.median(took_ms)
        slow += median > LIMIT_MS
        print(
            f"{title:<20} {median:>6.0f} ms {max(took_ms):>6.0f} ms {statistics.median(used_ms):>6.0f} ms {len(page) / 1024:>5.0f} KiB"
        )
    about = machine.describe(running.root)
    print(f"{about['processor']}; load {os.getloadavg()[0]:.0f} (beside it, other work slows all pages)")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
