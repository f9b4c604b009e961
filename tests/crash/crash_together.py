"""Clock, disk, network and clients fail together: `make together` runs one simulation after another, each by its seed.

A service (its handlers, called without gRPC, so that one step follows another as the seed says) on a disk that fails, fills up, writes
short and loses what was not synced; on a clock that jumps; with clients whose calls are cut off, come twice, come late, or are never
answered; beside collections, scrubs, policies, checks and repairs. After each episode the faults end, every client finds out what
became of its work, and what was promised is looked at.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from crash_disk import VARIANTS, Disk, Recorder
from crash_steps import watched
from crash_work import LostError
from direct import Failed, Stub, open_door
from google.protobuf.timestamp_pb2 import Timestamp
from servers import MASTER
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.app.service import Service
from staddle_server.app.settings import ServiceSettings
from staddle_server.base.errors import StaddleError
from staddle_server.base.types import TokenRole
from staddle_server.catalog import open_catalog
from staddle_server.store.backends.directory import DirectoryBlobs
from staddle_server.store.keys import KeyStore
from staddle_server.store.records import TenantRecord, encode_record
from staddle_server.tenancy.clock_guard import JUMP_S
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.integrity.check import Check, CheckPlan
from staddle_server.upkeep.integrity.findings import Finding, Kept
from staddle_server.upkeep.integrity.repair import Repair
from together_client import Client
from together_faults import (
    ACTIONS,
    DAY_S,
    EPISODES,
    ERRORS,
    EVERY_S,
    HOUR_S,
    KEEP_LAST,
    POLICY,
    STEPS_THAT_FAIL,
    Clock,
    FailingFiles,
    Machine,
    Network,
)


class Simulation:
    """One machine, its service, and three clients with two tokens."""

    def __init__(self, place: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.machine, self.clock = Machine(), Clock()
        self.figures: Counter[str] = Counter()
        self.loss = 0.0
        self.late: list[tuple[str, Any, Any]] = []
        self.log: list[str] = []
        """The actions so far, reported on a failure."""
        self._place = place
        self._epoch = 0
        self.root = place / "0"
        (self.root / "store").mkdir(parents=True)
        self._random_bytes = random.Random(2026)
        self._open()
        self.tokens = [self._token(name, TokenRole.ADMIN) for name in ("one", "two")]
        self.intruder = self._token("other", TokenRole.WRITER)
        self._close()
        self._open()
        self.clients = [Client(f"set{index}", seed, self) for index in range(3)]
        self.stub = Stub(self.tokens[0])

    # --- the server

    def _token(self, name: str, role: TokenRole) -> str:
        (tenant,) = self.catalog.tenants.list_all()
        return self.catalog.tokens.create(tenant.id, name, role, self.clock.now_ns())

    def _open(self) -> None:
        """A server starts."""
        base = self._place / "before"
        shutil.rmtree(base, ignore_errors=True)
        shutil.copytree(self.root, base)
        self.catalog = open_catalog(str(self.root / "catalog.db"))
        recorder = self.machine.recorder = Recorder(self._place)
        self._before = base, recorder._copy(str(self.root / "catalog.db"))
        self.blobs = DirectoryBlobs(str(self.root / "store"), FailingFiles(self.machine))
        self.keys = KeyStore(self.blobs, MASTER, self._random_bytes.randbytes)
        if not self.catalog.tenants.list_all():
            now_ns = self.clock.now_ns()
            made = self.keys.create("default", now_ns)
            record = encode_record(TenantRecord("default", now_ns))
            self.catalog.tenants.create(made.tenant, "default", now_ns, record=record)
        self.blobs.sweep()
        self.service = Service(
            self.catalog,
            self.blobs,
            self.keys,
            ServiceSettings(
                streams_max=8,
                lease_s=300,
                retention_every_s=EVERY_S,
                gc_every_s=EVERY_S,
                scrub_period_s=DAY_S,
                scrub_bytes_per_s=1e12,
            ),
            clock=self.clock,
        )
        # The simulation runs the work of background threads when the seed says so.
        self.service._uploads._keeper.stop()
        self.service._integrity.look_for_lost(lambda: False)
        self.service._integrity.compare(lambda: False)

    def _close(self) -> None:
        """End it: cleanly, or as far as possible on a dead machine."""
        with contextlib.suppress(OSError):
            self.service.drain(0.0)
        self.catalog.close()

    def _start_again(self, variant: str | None) -> None:
        """In order; or after a kill ("everything") or a power cut, with what that may leave."""
        self.figures[f"restart {variant or 'in order'}"] += 1
        events = list(self.machine.recorder.events) if self.machine.recorder else []
        if variant is not None:
            self.machine.dead = True
        self._close()
        if variant is not None:
            old, self._epoch = self.root, self._epoch + 1
            self.root = self._place / f"{self._epoch}"
            disk = Disk(old, events, before=self._before)
            disk.cut(self.root, variant, self.random, "catalog.db")
            shutil.rmtree(old)
        self.machine.mend()
        self.machine.dead = False
        self._open()
        self.stub = Stub(self.tokens[0])
        self.late.clear()

    @property
    def is_in_doubt(self) -> bool:
        """Whether the server must doubt the clock."""
        return abs(self.clock.jump_s) > JUMP_S

    # --- episodes

    def run(self, episodes: int) -> None:
        """Run the episodes. Raises LostError."""
        with watched(self.machine):
            try:
                for episode in range(episodes):
                    self._episode(episode)
                self._last_look()
            except LostError:
                raise
            except Exception as error:
                where = "".join(traceback.format_exception(error)[-6:])
                raise LostError(where) from error
            finally:
                self._close()

    def _set_policy(self) -> None:
        """As soon as the dataset is there."""
        if any(client.kept for client in self.clients if client.dataset == POLICY):
            policy = pb.RetentionPolicy(keep_last=KEEP_LAST)
            self.stub.SetRetention(sv.SetRetentionRequest(dataset=POLICY, policy=policy))

    def _episode(self, episode: int) -> None:
        rng, machine = self.random, self.machine
        self.loss = rng.choice((0.0, 0.15, 0.4))
        for _ in range(ACTIONS):
            self._break_something()
            action = rng.choice(ACTIONS_OF)
            self._say(f"{episode}: {action.__name__}, {self._broken()}")
            try:
                action(self)
            except (Failed, OSError, StaddleError) as failed:
                self._say(f"  {failed}")
            except LostError:
                raise
            except Exception as error:  # how a command would end on a dead machine
                if not machine.dead:
                    raise
                self._say(f"  {error!r}")
            if machine.dead:
                self._start_again(rng.choice(VARIANTS))
            elif self.blobs.failed is not None:
                machine.mend()
                self._start_again(None)
            machine.mend()
        self.loss = 0.0
        self.look(sample=3)

    def _break_something(self) -> None:
        rng, machine = self.random, self.machine
        machine.short = rng.random() < 0.2
        if rng.random() < 0.25:
            machine.steps_left = rng.choice((1, 3, 8, 20, 50, 120))
        if rng.random() < 0.3:
            machine.failing, machine.number = re.compile(rng.choice(STEPS_THAT_FAIL)), rng.choice(ERRORS)
            machine.failures = rng.choice((1, 1, 2, 20))
        machine.unreadable = rng.random() < 0.05

    def _broken(self) -> str:
        machine = self.machine
        disk = f"{machine.failing.pattern} {errno.errorcode[machine.number]}" if machine.failures else "well"
        return (
            f"disk {disk}, power for {machine.steps_left}, jump {self.clock.jump_s:.0f} s, loss {self.loss}"
        )

    def _say(self, text: str) -> None:
        self.log.append(text)

    def look(self, sample: int | None) -> None:
        """After the faults: every client finds out the outcome of its work, and all promises are checked."""
        self.machine.mend()
        for number, client in enumerate(self.clients):
            self._as(number)
            while client.in_doubt:
                client.operate(self.stub)
            client.check(self.stub, sample)
        self._set_policy()
        self.figures["looks"] += 1

    def _last_look(self) -> None:
        self._start_again("nothing")
        self.look(sample=None)
        found = self.checked(read=True)
        if found:
            raise LostError(f"check finds damage where nothing was damaged: {found}")
        for client in self.clients:
            self.figures["acknowledged"] += client.tally.acknowledged
            self.figures["restored"] += client.tally.restored
            self.figures["resumed"] += client.tally.resumed
            self.figures["replayed"] += client.tally.replayed

    def _as(self, number: int) -> None:
        """The clients take turns with two tokens; each keeps its own."""
        self.stub = Stub(self.tokens[number % 2])

    def again(self, name: str, request: Any, answer: Any) -> None:
        """The same call once more: it changes nothing, and a backup is not made twice."""
        try:
            second = getattr(self.stub, name)(request)
        except Failed:
            return
        if name in {"Backup", "CommitUpload"} and answer.backup.id and second.backup.id != answer.backup.id:
            raise LostError(f"a replay of {name} made {second.backup.id}, the first {answer.backup.id}")

    # --- actions

    def work(self) -> None:
        number = self.random.randrange(len(self.clients))
        self._as(number)
        self.clients[number].operate(Network(self))

    def repeat_late(self) -> None:
        """Repeat a call that was answered long ago."""
        if self.late:
            name, request, answer = self.late.pop(self.random.randrange(len(self.late)))
            self.again(name, request, answer)

    def intrude(self) -> None:
        """Another token writes, aborts or commits an upload of a client that has its lease, and is refused."""
        owner = next((client for client in self.clients if client.pending is not None), None)
        if owner is None or owner.pending is None:
            return
        self._as(self.clients.index(owner))
        upload = self.stub.GetUpload(sv.GetUploadRequest(request_id=owner.pending.request_id)).upload
        mine = {"upload_id": upload.id, "epoch": upload.epoch}
        intruder = Stub(self.intruder)
        for call in (
            lambda: intruder.AbortUpload(sv.AbortUploadRequest(**mine)),
            lambda: intruder.PutEntries(sv.PutEntriesRequest(**mine, number=1_000)),
            lambda: intruder.CommitUpload(sv.CommitUploadRequest(**mine)),
        ):
            try:
                call()
            except Failed:
                continue
            if upload.state == pb.UPLOAD_STATE_OPEN:
                raise LostError(f"a token that does not hold {owner.pending.request_id} changed it")

    def protect(self) -> None:
        """A hold, the end of one, or a time until which a backup stays."""
        client = self.random.choice(self.clients)
        shown = [attempt for attempt in client.kept if not attempt.deleted and attempt.backup]
        if not shown or client.in_doubt:
            return
        backup = self.random.choice(shown).backup
        of = {"dataset": client.dataset, "backup": backup}
        # An answer that does not come leaves it open; what may be protected is not counted on, what may not be is.
        if client.held and self.random.random() < 0.4:
            backup = self.random.choice(sorted(client.held))
            client.held.discard(backup)
            self.stub.ReleaseHold(sv.ReleaseHoldRequest(dataset=client.dataset, backup=backup))
            if not self.machine.dead:
                client.may_be_held.discard(backup)
        elif self.random.random() < 0.5 or self.is_in_doubt:
            client.may_be_held.add(backup)
            self.stub.SetHold(sv.SetHoldRequest(**of, reason="case"))
            if not self.machine.dead:
                client.held.add(backup)
        else:
            until_s = self.clock.ahead_s + self.random.choice((2, 20)) * DAY_S
            stamp = Timestamp()
            stamp.FromNanoseconds(self.clock.now_ns() + int((until_s - self.clock.ahead_s) * 1e9))
            latest_s = max(client.may_be_retained_s.get(backup, 0.0), until_s + JUMP_S)
            client.may_be_retained_s[backup] = latest_s
            self.stub.RetainBackup(sv.RetainBackupRequest(**of, until_time=stamp))
            if not self.machine.dead:
                client.retained_s[backup] = max(client.retained_s.get(backup, 0.0), until_s - JUMP_S)

    def time_passes(self) -> None:
        self.clock.ahead_s += self.random.choice((60.0, 400.0, HOUR_S, DAY_S, 3 * DAY_S))
        self._hourly()

    def clock_jumps(self) -> None:
        """Forward, back, or back to the right time."""
        jumps = (0.0, HOUR_S, -HOUR_S, 5 * DAY_S, -5 * DAY_S, 400 * DAY_S, -400 * DAY_S)
        self.clock.jump_s = self.random.choice(jumps)
        self._hourly()

    def _hourly(self) -> None:
        """Run the due background tasks of a server."""
        for client in self.clients:
            if client.dataset == POLICY and not self.is_in_doubt:
                shown = [attempt.backup for attempt in client.kept if not attempt.deleted]
                # An upload in doubt may have become the newest one.
                newest = shown[-KEEP_LAST + bool(client.in_doubt) :]
                client.may_go |= {
                    each for each in shown if each not in newest and not client.is_protected(each)
                }
        service = self.service
        service.clock_watch.look()
        service._uploads._keep_house()
        service._integrity.look()
        service._schedule.look()

    def upkeep(self) -> None:
        self.clock.ahead_s += EVERY_S + 1
        self._hourly()

    def check(self) -> None:
        found = self.checked(read=self.random.random() < 0.3)
        if any(client.in_doubt for client in self.clients):
            # A record, or the head that counts it, is owed by a call that failed; the client's next call writes it.
            found = [each for each in found if not each.startswith(("head:", "record:"))]
        if found and not self.machine.dead and not self.machine.unreadable:
            raise LostError(f"check finds damage where nothing was damaged: {found}")

    def repair(self) -> None:
        kept = self._kept()
        Repair(kept, lambda _: None, dry_run=False).run(self.catalog.tenants.list_all())

    def restart(self) -> None:
        self._start_again(None)

    def kill(self) -> None:
        self._start_again("everything")

    def checked(self, *, read: bool) -> list[str]:
        """The damage found by a check."""
        found: list[Finding] = []
        plan = CheckPlan(read=read, random=self.random)
        Check(self._kept(), plan, found.append).run(self.catalog.tenants.list_all(), all_tenants=True)
        return [f"{each.kind}: {each.message}" for each in found if each.severity == "damage"]

    def _kept(self) -> Kept:
        return Kept(
            self.catalog, self.blobs, self.keys, Tenants(self.blobs, self.catalog, self.keys), self.clock
        )


ACTIONS_OF: Final[list[Callable[[Simulation], None]]] = [
    *[Simulation.work] * 12,
    *[Simulation.upkeep] * 2,
    Simulation.repeat_late,
    Simulation.intrude,
    *[Simulation.protect] * 2,
    *[Simulation.time_passes] * 2,
    Simulation.clock_jumps,
    Simulation.check,
    Simulation.repair,
    Simulation.restart,
    Simulation.kill,
]


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Silence the service's log here, and restore it for later tests."""
    logger = logging.getLogger("staddle_server")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def simulate(place: Path, seed: int, episodes: int = EPISODES) -> Counter[str]:
    """One simulation in an empty directory; its figures. Raises LostError, which says how to run it again."""
    with silence(), open_door():
        simulation = Simulation(place, seed)
        try:
            simulation.run(episodes)
        except LostError as lost:
            last = "\n".join(simulation.log[-30:])
            raise LostError(
                f'seed {seed}: {lost}\nAgain: make together ARGS="--seed {seed} --runs 1 --episodes {episodes}"\n{last}'
            ) from lost
    return simulation.figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=50, help="simulations, each with the next seed (50)")
    parser.add_argument("--episodes", type=int, default=EPISODES, help=f"of each ({EPISODES})")
    parser.add_argument("--seed", type=int, default=None, help="of the first one (random)")
    asked = parser.parse_args()
    first = random.SystemRandom().randrange(1_000_000) if asked.seed is None else asked.seed
    begun, figures = time.monotonic(), Counter[str]()
    for seed in range(first, first + asked.runs):
        place = Path(tempfile.mkdtemp(prefix="staddle-together-"))
        try:
            figures += simulate(place, seed, asked.episodes)
        except LostError as lost:
            sys.exit(f"BROKEN: {lost}\nThe directory is kept: {place}")
        shutil.rmtree(place)
        print(f"seed {seed}; {time.monotonic() - begun:.0f} s", flush=True)
    print(", ".join(f"{name} {count:,}" for name, count in sorted(figures.items())))


if __name__ == "__main__":
    main()
