"""`make chaos` lets every piece of a site fail under load, one fault after another, and looks at what was promised.

Three servers on a PostgreSQL primary with a synchronous standby and a replicated SeaweedFS cluster; one server's clock is an hour ahead. Two
bundled clients, a thin one, a restorer and a collector work all the time. The seed decides the faults and what is backed up; what meets
what is the machine's. After each fault everybody must get on; in the end everything that was acknowledged must restore byte for byte.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import signal
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import chaos_site
from chaos_faults import FAULTS, SITUATIONS, Fault
from chaos_site import NAMES, Site
from chaos_work import TREES, Collecting, Loop, Restorer, ThinWriter, TreeWriter
from crash_server import check_agreement
from crash_work import LostError
from staddle_server.app.data_directory import DataDirectory

GETS_ON_S = 120.0
"""After a fault, everybody has made progress within this time."""
LEASE_ENDS_S = 240.0
"""A killed collector's lease has ended, and the next collection is done."""
LINE = 80


class Run:
    """One run, in an empty directory."""

    def __init__(self, site: Site, seed: int, only: Sequence[str] = ()) -> None:
        """`only`: the names of situations, each of which is tried at least once."""
        self._site = site
        self._only = only
        self._random = random.Random(f"chaos-{seed}")
        self.figures: Counter[str] = Counter()
        self.begun_s = time.monotonic()
        self._ends = threading.Event()
        self.trees = [TreeWriter(f"tree{number}", seed, site) for number in range(TREES)]
        self.thin = ThinWriter("thin", seed, site)
        self.writers = [*self.trees, self.thin]
        self.restorer, self.collector = Restorer(seed, site, self.writers), Collecting(site)
        working = {
            **{each.dataset: each for each in self.writers},
            "restorer": self.restorer,
            "collector": self.collector,
        }
        self._loops = [Loop(name, worker, self._ends) for name, worker in working.items()]

    def to_end(self, minutes: float) -> None:
        """Faults until that time is over, then the last look. Raises LostError."""
        for loop in self._loops:
            loop.start()
        try:
            self._say("work begins")
            for name in self._only:
                self._meet(SITUATIONS[name], f"{name}: ")
            faults = [SITUATIONS[name] for name in self._only] or FAULTS
            end_s = self.begun_s + 60 * minutes
            while time.monotonic() < end_s:
                for fault in self._random.sample(faults, len(faults)):
                    if time.monotonic() >= end_s:
                        break
                    self._meet(fault)
        finally:
            self._ends.set()
            for loop in self._loops:
                loop.join()
        self._raise_errors()
        self._last_look()

    def _meet(self, fault: Fault, name: str = "") -> None:
        self._say(name + fault(self._site, self._random))
        self.figures["faults"] += 1

    def _say(self, what: str) -> None:
        """Waits until everybody has got on, then says so."""
        at_s = time.monotonic() - self.begun_s
        try:
            text = f"{at_s:5.0f} s  {what}; all write after {self._get_on():.1f} s"
        except LostError as lost:
            raise LostError(f"{at_s:.0f} s, after: {what}: {lost}") from lost
        print(textwrap.fill(text, LINE, subsequent_indent=" " * 9, drop_whitespace=True), flush=True)

    def _get_on(self) -> float:
        """Waits until everybody has done something since now. The collector may have to wait until the lease of a killed one ends."""
        begun = time.monotonic()
        waiting = {loop.name: loop.steps for loop in self._loops if loop.worker is not self.collector}
        while late := [loop.name for loop in self._loops if loop.steps <= waiting.get(loop.name, -1)]:
            self._raise_errors()
            if time.monotonic() - begun > GETS_ON_S:
                raise LostError(
                    f"{', '.join(late)}: no progress in {GETS_ON_S:.0f} s, although nothing fails any more"
                )
            time.sleep(0.05)
        return time.monotonic() - begun

    def _raise_errors(self) -> None:
        for loop in self._loops:
            if loop.error is not None:
                raise LostError(f"{loop.name}: {loop.error!r}") from loop.error

    def _last_look(self) -> None:
        site = self._site
        for writer in self.writers:
            writer.settle_fully()
        site.wait(self._collects, "the collector does not get on", LEASE_ENDS_S)
        status, said = site.run("check", "--read-data")
        if status != 0:
            raise LostError(f"staddle-server check --read-data ended with {status}: {said}")
        for number, writer in enumerate(self.writers):
            writer.check(site.stub(number % len(NAMES)))
        self.figures["packs"] += check_agreement(DataDirectory(site.members[0].data).path)
        for writer in self.writers:
            self.figures.update(vars(writer.tally))
        self.figures["restored_beside"] += self.restorer.restored
        self.figures["collected"] += self.collector.done
        self.figures["failures"] += sum(each.worker.failures.total() for each in self._loops)

    def _collects(self) -> bool:
        status, said = self._site.run("gc", "--grace", "0s", "--yes")
        if status != 0 and "is collecting or repairing" not in said:
            raise LostError(f"staddle-server gc ended with {status}: {said}")
        return status == 0

    def summary(self) -> str:
        f = self.figures
        return (
            f"{f['faults']} faults; {f['acknowledged']} backups acknowledged, {f['resumed']} uploads resumed,\n"
            f"{f['replayed']} commits replayed, {f['failures']} calls of the thin client or collections failed;\n"
            f"{f['restored_beside']} restores and {f['collected']} collections beside the faults;\n"
            f"{f['restored']} restores compared ({f['restored_bytes']:,} bytes), check --read-data is clean."
        )


def chaos(
    place: Path, seed: int, minutes: float, *, stopped_s: float = Site.stopped_s, only: Sequence[str] = ()
) -> Run:
    """One run, with everything it starts. Raises LostError."""
    with chaos_site.running(place, ahead=random.Random(seed).randrange(len(NAMES))) as site:
        site.stopped_s = stopped_s
        run = Run(site, seed, only)
        print(f"{len(NAMES)} servers, a database pair and a storage cluster run", flush=True)
        run.to_end(minutes)
    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="how long faults are made (10)")
    parser.add_argument("--seed", type=int, default=None, help="decides faults and data (random)")
    parser.add_argument(
        "--only",
        metavar="NAME",
        nargs="+",
        choices=SITUATIONS,
        default=(),
        help="these situations: each once, then at random until the time is over; --list names them",
    )
    parser.add_argument("--list", action="store_true", help="name the situations")
    asked = parser.parse_args()
    if asked.list:
        print("\n".join(SITUATIONS))
        return
    seed = random.SystemRandom().randrange(1_000_000) if asked.seed is None else asked.seed
    place = Path(tempfile.mkdtemp(prefix="staddle-chaos-"))
    print(f"seed {seed}, {asked.minutes:g} minutes, in {place}", flush=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    logging.basicConfig(filename=place / "clients.log", format="%(asctime)s %(message)s")
    begun_s = time.monotonic()
    try:
        run = chaos(place, seed, asked.minutes, only=asked.only)
    except LostError as lost:
        only = f" --only {' '.join(asked.only)}" if asked.only else ""
        sys.exit(
            f'BROKEN: {lost}\nAgain: make chaos ARGS="--minutes {asked.minutes:g} --seed {seed}{only}"\n'
            f"Logs: {place}/[abc].log, {place}/clients.log, and those of the store below {place}/store"
        )
    except KeyboardInterrupt:
        sys.exit(f"Interrupted. The directory is kept: {place}")
    print(run.summary())
    print(f"{time.monotonic() - begun_s:.0f} s; nothing was lost (seed {seed})")
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
