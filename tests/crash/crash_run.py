"""`make crash` kills real servers at every durable step and at random times, and checks what must be true afterwards.

One line for each kill: the run, where the server died, and what was found. The seed decides data, operations and plans;
which of several workers comes first is the machine's. Exit code 1, with the directory kept, if a promise was broken.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from crash_server import CrashServer, Plan, check_agreement, check_swept
from crash_tree import TreeWorker
from crash_work import LostError, Place, Worker
from staddle import StaddleError

WORKERS = 4
OPERATIONS = 3
RUNS_PER_DIRECTORY = 10
FIRST_STARTS = 3
"""How often the first start on a directory is cut off."""
SAMPLE = 4
"""Backups that are restored of each worker after each kill; all are in the end."""
RANDOM_SHARE = 0.2
START_SHARE = 0.25
DIES_S = 30.0


@dataclass
class Seen:
    """Steps that may be taken in one phase of a server, and how often it was killed at each."""

    counts: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)

    def learn(self, steps: Counter[str]) -> None:
        for name, count in steps.items():
            self.counts[name] = max(self.counts[name], count)

    def choose(self, rng: random.Random) -> Plan:
        """One of the steps with the fewest kills."""
        fewest = min(self.kills[name] for name in self.counts)
        name = rng.choice(sorted(name for name in self.counts if self.kills[name] == fewest))
        self.kills[name] += 1
        return Plan(name, rng.choice(("before", "after")), rng.randint(1, self.counts[name]))

    def choose_in_order(self, rng: random.Random, count: int) -> list[Plan]:
        """So many, the first that comes first: a start that goes on where the last was cut off takes no step twice."""
        order = list(self.counts)
        return sorted((self.choose(rng) for _ in range(count)), key=lambda plan: order.index(plan.step))


@dataclass
class Figures:
    """The totals of all runs."""

    kills: Counter[str] = field(default_factory=Counter)
    """By step."""
    checks: Counter[str] = field(default_factory=Counter)

    def text(self) -> str:
        by_step = ", ".join(f"{name} {count}" for name, count in sorted(self.kills.items()))
        c = self.checks
        return (
            f"{sum(self.kills.values())} kills: {by_step}\n"
            f"{c['acknowledged']} backups acknowledged, {c['restored']} times restored whole ({c['restored_bytes']:,} bytes); "
            f"{c['replayed']} commits replayed; {c['resumed']} uploads resumed ({c['resumed_durable_bytes']:,} bytes were durable, "
            f"{c['resumed_sent_bytes']:,} sent for the rest); {c['packs']} times a pack looked at"
        )


class Crashes:
    """Runs on one data directory after another."""

    def __init__(self, place: Path, seed: int, figures: Figures) -> None:
        self._place = place
        self._seed = seed
        self._first, self._start, self._work = Seen(), Seen(), Seen()
        self.figures = figures

    def learn(self) -> None:
        """Find the steps: a first start, work to its end, a second start."""
        place = self._place / "learn"
        place.mkdir()
        server = CrashServer(place)
        workers = self._workers(server, 0)
        try:
            server.start()
            self._first.learn(server.steps())
            Working(server, workers).join()
            self._work.learn(server.steps())
            server.kill()
            server.start()
            self._start.learn(server.steps())
        finally:
            server.kill()
        shutil.rmtree(place)

    def directory(self, number: int, runs: range) -> None:
        """So many kills of servers on a new directory, then everything is looked at once more."""
        place = self._place / f"{number}"
        place.mkdir()
        server = CrashServer(place)
        workers = self._workers(server, number + 1)
        try:
            for run in runs:
                self._run(server, workers, run, fresh=run == runs.start)
            server.start()
            self._look(server, workers, sample=None)
        finally:
            server.kill()
            for worker in workers:
                self.figures.checks.update(vars(worker.tally))
        shutil.rmtree(place)

    def _workers(self, server: CrashServer, number: int) -> list[Worker]:
        shared = Place(server.data, server.command("gc", "--grace", "0s", "--yes"))
        seed = self._seed * 1000 + number
        return [
            *(Worker(f"set{index}", seed, shared) for index in range(WORKERS)),
            TreeWorker("tree", seed, shared),
        ]

    def _run(self, server: CrashServer, workers: Sequence[Worker], run: int, *, fresh: bool) -> None:
        rng = random.Random(f"{self._seed}-{run}")
        begun = time.monotonic()
        died: list[str] = []
        try:
            if fresh:
                plans = self._first.choose_in_order(rng, FIRST_STARTS)
                died += [self._die_starting(server, plan) for plan in plans]
            elif rng.random() < START_SHARE:
                died.append(self._die_starting(server, self._start.choose(rng)))
            server.start()
            check_swept(server.data)
            check_agreement(server.data)  # owed work is done before a client asks for it
            self._look(server, workers, sample=SAMPLE)
            server.steps()
            died.append(self._die_working(server, workers, rng))
            self._work.learn(server.steps())
        except Exception as error:
            raise LostError(
                f"seed {self._seed}, run {run}, after {died}, last steps {server.last_steps()}: {error!r}"
            ) from error
        kept = sum(len(worker.kept) for worker in workers)
        print(
            f"run {run}: died {', '.join(died)}; {kept} backups; {time.monotonic() - begun:.1f} s", flush=True
        )

    def _die_starting(self, server: CrashServer, plan: Plan) -> str:
        if server.start(plan):
            # The step had been taken by an earlier start.
            server.kill()
            self.figures.kills["a random time"] += 1
            return "started"
        self.figures.kills[plan.step] += 1
        return f"starting {plan}"

    def _die_working(self, server: CrashServer, workers: Sequence[Worker], rng: random.Random) -> str:
        plan = None if rng.random() < RANDOM_SHARE else self._work.choose(rng)
        if plan is not None:
            server.arm(plan)
        threads = Working(server, workers)
        if plan is None:
            threads.ended.wait(rng.uniform(0.0, 1.5))
            server.strike()
        threads.join()
        reached = plan is not None and server.has_died()
        server.kill()
        self.figures.kills[plan.step if plan is not None and reached else "a random time"] += 1
        if plan is None:
            return "at a random time"
        return str(plan) if reached else f"at the end ({plan} did not come)"

    def _look(self, server: CrashServer, workers: Sequence[Worker], sample: int | None) -> None:
        stub = server.stub
        for worker in workers:
            worker.settle(stub)
            worker.check(stub, sample)
        self.figures.checks["packs"] += check_agreement(server.data)


class Working:
    """All workers at once, each on a thread, until they are done or the server is dead."""

    def __init__(self, server: CrashServer, workers: Sequence[Worker]) -> None:
        self._server = server
        self._errors: list[Exception] = []
        self.ended = threading.Event()
        stub = server.stub
        self._threads = [threading.Thread(target=self._work, args=(worker, stub)) for worker in workers]
        for thread in self._threads:
            thread.start()

    def _work(self, worker: Worker, stub: object) -> None:
        try:
            worker.work(stub, OPERATIONS)
        except Exception as error:
            self._errors.append(error)
            self.ended.set()

    def join(self) -> None:
        """Waits for all. An error is one only if the server lived on."""
        for thread in self._threads:
            thread.join()
        for error in self._errors:
            if not isinstance(error, grpc.RpcError | StaddleError) or not self._server.has_died(DIES_S):
                raise error


def crash(place: Path, seed: int, runs: int, figures: Figures) -> None:
    """So many runs. Raises LostError."""
    crashes = Crashes(place, seed, figures)
    crashes.learn()
    for number, start in enumerate(range(0, runs, RUNS_PER_DIRECTORY)):
        crashes.directory(number, range(start, min(start + RUNS_PER_DIRECTORY, runs)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=int, default=100, help="how often a server is killed while it works (100)"
    )
    parser.add_argument("--seed", type=int, default=None, help="decides data, operations and plans (random)")
    asked = parser.parse_args()
    seed = random.SystemRandom().randrange(1_000_000) if asked.seed is None else asked.seed
    place = Path(tempfile.mkdtemp(prefix="staddle-crash-"))
    print(f"seed {seed}, {asked.runs} runs, in {place}", flush=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    begun, figures = time.monotonic(), Figures()
    try:
        crash(place, seed, asked.runs, figures)
    except LostError as lost:
        sys.exit(f"BROKEN: {lost}\nThe directory is kept: {place}")
    except KeyboardInterrupt:
        print("Interrupted; so far:")
    print(figures.text())
    print(f"{time.monotonic() - begun:.0f} s; nothing was lost (seed {seed})")
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
