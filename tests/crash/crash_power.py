"""Power cuts: `make power` cuts the power after every single step of a recorded run, and looks at what is left.

A server, its first start included, is recorded while two clients back up, resume, delete and take back. Then, for every
prefix of the record and several variants of what a disk may have left of it (crash_disk.py), a new server starts on
that: whatever had been answered by then must be there, byte for byte.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
from crash_disk import VARIANTS, Disk, Event, Recorder
from crash_server import Stub, check_agreement, check_swept
from crash_steps import watched
from crash_work import (
    OPERATIONS,
    Attempt,
    LostError,
    Operation,
    Place,
    Worker,
    collect,
    decide,
    delete,
    undelete,
)
from staddle_server.app import bootstrap, generation, run
from staddle_server.app import settings_reading as config
from staddle_server.app.addresses import Address
from staddle_server.app.data_directory import DataDirectory, read_client_config, write_client_config
from staddle_server.app.service import Service
from staddle_server.app.settings import ServiceSettings

WORKERS = 2
SIZES = (0, 10, 3_000, 70_000, 400_000)
"""Small, so that many cuts can be looked at; the largest has several chunks."""
DATA = "above/data"
"""Where the data directory lies: the first start makes the directory above it, too."""
CATALOG = f"{DATA}/catalog.db"


@contextmanager
def served(data: Path, *, copied: bool = False) -> Iterator[Stub]:
    """A server in this process that starts as `staddle-server serve` does, and makes what is missing.

    With `copied`, the files were made by this harness, not by the disk that they stand for, and may be of another time.
    """
    directory = DataDirectory(data)
    settings = config.load({"data": str(data), "listen": "127.0.0.1:0"}, {})
    with directory.claimed():
        if not directory.is_complete():
            run.initialise(directory, settings)
        with directory.store_locked(), bootstrap.open_rooms(directory) as opened:
            if copied:
                opened.catalog.generation.forget_birth()
            generation.leave_mark(directory, opened.blobs, opened.catalog, time.time_ns())
            opened.blobs.sweep()
            service = Service(
                opened.catalog,
                opened.blobs,
                opened.keys,
                ServiceSettings(streams_max=8),
            )
            port = service.start("127.0.0.1:0", None)
            token = run.local_token(opened, directory)
            address = Address("127.0.0.1", port)
            write_client_config(directory.client_toml, run.local_client(settings, address, token))
            channel = grpc.insecure_channel(str(address), options=[("grpc.use_local_subchannel_pool", 1)])
            try:
                yield Stub(channel, token)
            finally:
                channel.close()
                service.drain(0.0)


@dataclass(frozen=True)
class Answered:
    """What clients may rely on: the backups of each dataset, and the master key that opens them."""

    master_key: bytes
    kept: dict[str, tuple[Attempt, ...]]


def record(place: Path, seed: int, operations: int) -> list[Event]:
    """A first start, and work one operation after another; then a second start, and a little more."""
    data = place / DATA
    recorder = Recorder(place)
    workers = [Worker(f"set{index}", seed, Place(data)) for index in range(WORKERS)]

    for worker in workers:
        worker.sizes = SIZES

    def answered() -> None:
        kept = {worker.dataset: tuple(replace(attempt) for attempt in worker.kept) for worker in workers}
        recorder.answered(Answered((data / "master.key").read_bytes(), kept))

    with watched(recorder):
        for most in (operations, 1):
            with served(data) as stub:
                answered()
                for worker in workers:
                    for operation in _order(worker, most):
                        operation(worker, stub)
                        answered()
    return recorder.events


def _order(worker: Worker, most: int) -> list[Operation]:
    """Every operation once at least, in an order of the worker's own, if there is time for all."""
    mine = [operation for operation in OPERATIONS if operation is not collect]  # that runs in another process
    chosen = list(dict.fromkeys(mine))
    worker.random.shuffle(chosen)
    # A deletion needs a backup to delete.
    chosen.sort(key=lambda operation: (operation is undelete, operation is delete))
    return (
        chosen[:most] if most < len(chosen) else [*chosen, *worker.random.choices(mine, k=most - len(chosen))]
    )


class Cuts:
    """Power cuts at chosen places of one record, in a scratch directory."""

    def __init__(
        self, events: Sequence[Event], root: Path, scratch: Path, lying: Collection[str] = ()
    ) -> None:
        self._events = events
        self._root = root
        self._scratch = scratch
        self._lying = lying
        self._next = [
            next((event.answer for event in events[index:] if event.answer is not None), None)
            for index in range(len(events) + 1)
        ]
        self.figures: Counter[str] = Counter()

    def answers(self) -> list[int]:
        """The prefixes that end with an answer."""
        return [index + 1 for index, event in enumerate(self._events) if event.answer is not None]

    def check(self, prefix: int, variant: str, seed: int = 0) -> None:
        """Cut the power after the n-th event. Raises LostError."""
        disk = Disk(self._root, self._events[:prefix], self._lying)
        left = self._scratch / "left"
        shutil.rmtree(left, ignore_errors=True)
        disk.cut(left, variant, random.Random(f"{seed}-{prefix}"), CATALOG)
        try:
            self._look(left / DATA, disk.answer, self._next[prefix])
        except Exception as error:
            before = self._events[prefix - 1].step.name if prefix else "nothing"
            raise LostError(f"cut after event {prefix} ({before}), variant {variant}: {error!r}") from error
        self.figures[variant] += 1

    def _look(self, data: Path, before: Answered | None, after: Answered | None) -> None:
        # Until the next answer, the current operation may have happened or not.
        after = after or before
        with served(data, copied=True) as stub:
            check_swept(data)
            if before is not None and (data / "master.key").read_bytes() != before.master_key:
                raise LostError("the master key is another one")
            if read_client_config(data / "client.toml").get("token") is None:
                raise LostError("there is no token for this machine")
            if after is not None:
                for dataset in after.kept:
                    self._look_at(stub, dataset, before.kept[dataset] if before else (), after.kept[dataset])
            check_agreement(data)

    def _look_at(self, stub: Stub, dataset: str, before: Sequence[Attempt], after: Sequence[Attempt]) -> None:
        worker = Worker(dataset, 0, Place(self._root))
        old = {attempt.backup: attempt for attempt in before}
        new = {attempt.backup: attempt for attempt in after}
        shown = {backup.id: backup for backup in worker._listed(stub)}
        if not set(old) <= set(shown) <= set(new):
            raise LostError(f"{dataset} has {sorted(shown)}; answered {sorted(old)}, asked {sorted(new)}")
        for backup, listed in shown.items():
            hidden = listed.HasField("delete_time")
            if hidden not in {each[backup].deleted for each in (old, new) if backup in each}:
                raise LostError(f"{dataset}: whether {backup} is deleted is forgotten")
            if hidden:
                decide(worker, stub, replace(new[backup]), delete=False)
            worker.check_restore(stub, new[backup])
            self.figures["restored"] += 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--operations", type=int, default=12, help="of each of two clients (12)")
    parser.add_argument("--random", type=int, default=2, help="random variants of each prefix (2)")
    parser.add_argument(
        "--seed", type=int, default=None, help="decides data, operations and variants (random)"
    )
    asked = parser.parse_args()
    seed = random.SystemRandom().randrange(1_000_000) if asked.seed is None else asked.seed
    place = Path(tempfile.mkdtemp(prefix="staddle-power-"))
    root = place / "recorded"
    root.mkdir()
    begun = time.monotonic()
    events = record(root, seed, asked.operations)
    print(f"seed {seed}, {len(events)} events, in {place}", flush=True)
    cuts = Cuts(events, root, place)
    variants = [*VARIANTS[:-1], *["random"] * asked.random]
    for prefix in range(len(events) + 1):
        for number, variant in enumerate(variants):
            try:
                cuts.check(prefix, variant, seed + number)
            except LostError as lost:
                sys.exit(f"BROKEN: seed {seed}: {lost}\nThe directory is kept: {place}")
        if prefix % 50 == 0:
            print(f"{prefix} of {len(events)} events; {time.monotonic() - begun:.0f} s", flush=True)
    restored = cuts.figures.pop("restored")
    print(
        f"{cuts.figures.total()} power cuts ({', '.join(f'{n} {c}' for n, c in cuts.figures.items())}), {restored} restores"
    )
    print(f"{time.monotonic() - begun:.0f} s; nothing was lost (seed {seed})")
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
