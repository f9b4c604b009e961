"""The faults of a run. Each does its harm, mends what a supervisor would mend, and says in a few words what it did."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, NamedTuple

from chaos_site import STOPPED_S, Member, Site
from crash_server import Plan
from crash_work import LostError
from seaweed_cluster import Part
from tcp_proxy import once

WRITING: Final = {
    "pack-put": "pack.put",
    "checkpoint": "catalog.uploads.checkpoint",
    "commit": "catalog.uploads.commit",
    "record": "record.put",
    "head": "head.put",
}
"""Between catalog.uploads.commit and record.put, a backup exists and has no record."""
COLLECTING: Final = {
    "purge": "catalog.purge.purge",
    "condemn": "catalog.marks.condemn",
    "reap": "pack.delete",
    "drop": "catalog.purge.drop_condemned",
    "record-delete": "record.delete",
}
REACHED_S = 30.0
NAMED_S = 240.0
"""A step that was asked for by name is reached within this time: the collector may have to wait for a lease."""
DOWN_S = (0.0, 2.0, 8.0, STOPPED_S)
"""How long a killed server stays away: also long enough that the others know it is dead."""

Fault = Callable[[Site, random.Random], str]


class Steps(NamedTuple):
    """Steps, at one of which a process is ended or halted. `named`: it must be there, and not elsewhere in its place."""

    names: tuple[str, ...]
    named: bool = False


def _plan(rng: random.Random, steps: Steps, number: signal.Signals) -> Plan:
    return Plan(rng.choice(steps.names), rng.choice(("before", "after")), rng.randint(1, 3), number)


def _reached(site: Site, plan: Plan, steps: Steps) -> int | None:
    """The process that came to the step; None: none did, which is no answer for a step that was asked for by name."""
    site.arm(plan)
    pid = site.wait_fired(NAMED_S if steps.named else REACHED_S)
    if pid is None and steps.named:
        raise LostError(f"within {NAMED_S:.0f} s no process came to {plan}")
    return pid


def _kill(site: Site, rng: random.Random, steps: Steps) -> str:
    plan = _plan(rng, steps, signal.SIGKILL)
    pid = _reached(site, plan, steps)
    where = f"{plan.phase} {plan.step}"
    member = None if pid is None else site.member_of(pid)
    if pid is None:
        member, where = rng.choice(site.members), "at random"
        member.signal(signal.SIGKILL)
    if member is None:
        return f"collector killed {where}"
    return f"server {member.name} killed {where}, {_back(site, member, rng.choice(DOWN_S))}"


def _back(site: Site, member: Member, down_s: float) -> str:
    member.kill()
    time.sleep(down_s)
    member.start_patiently()
    return f"back after {down_s:.0f} s"


def _halt(site: Site, rng: random.Random, steps: Steps) -> str:
    """It goes on long after the others took it for dead."""
    plan = _plan(rng, steps, signal.SIGSTOP)
    pid = _reached(site, plan, steps)
    where = f"{plan.phase} {plan.step}"
    if pid is None:
        member, where = rng.choice(site.members), "at random"
        assert member.process is not None
        pid = member.process.pid
        os.kill(pid, signal.SIGSTOP)
    member = site.member_of(pid)
    stopped_s = rng.choice((STOPPED_S, site.stopped_s))
    try:
        time.sleep(stopped_s)
    finally:
        os.kill(pid, signal.SIGCONT)
    who = "collector" if member is None else f"server {member.name}"
    return f"{who} stopped {where} for {stopped_s:.0f} s"


def _hang(site: Site, rng: random.Random, steps: Steps) -> str:
    """Its interpreter is stuck, while gRPC still accepts connections, until somebody kills it."""
    plan = _plan(rng, steps, signal.SIGUSR2)
    pid = _reached(site, plan, steps)
    while steps.named and pid is not None and site.member_of(pid) is None:
        os.kill(pid, signal.SIGKILL)  # the collector's command was first
        pid = _reached(site, plan, steps)
    where = f"{plan.phase} {plan.step}"
    member = None if pid is None else site.member_of(pid)
    if member is None:
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        member, where = rng.choice(site.members), "at random"
        member.signal(signal.SIGUSR2)
    time.sleep(site.stopped_s)
    return f"server {member.name} hung {where} for {site.stopped_s:.0f} s, {_back(site, member, 0.0)}"


def kill_writing(site: Site, rng: random.Random) -> str:
    return _kill(site, rng, Steps((*WRITING.values(),)))


def stop_writing(site: Site, rng: random.Random) -> str:
    return _halt(site, rng, Steps((*WRITING.values(),)))


def hang_writing(site: Site, rng: random.Random) -> str:
    return _hang(site, rng, Steps((*WRITING.values(),)))


def kill_collecting(site: Site, rng: random.Random) -> str:
    return _kill(site, rng, Steps((*COLLECTING.values(),)))


def stop_collecting(site: Site, rng: random.Random) -> str:
    return _halt(site, rng, Steps((*COLLECTING.values(),)))


def kill_two(site: Site, rng: random.Random) -> str:
    first, second = rng.sample(site.members, 2)
    first.kill()
    time.sleep(rng.choice((1.0, 5.0)))
    second.kill()
    time.sleep(rng.choice((1.0, STOPPED_S)))
    for member in (first, second):
        member.start_patiently()
    return f"servers {first.name} and {second.name} killed, one after the other"


def rolling_restart(site: Site, rng: random.Random) -> str:
    for member in rng.sample(site.members, len(site.members)):
        if member.stop() != 0:
            raise LostError(f"server {member.name} did not end in order: {member.log()[-1000:]}")
        member.start_patiently()
    return "all servers restarted in order, one after the other"


def _kill_part(site: Site, rng: random.Random, kind: str) -> str:
    return _part_away(site, rng, rng.choice([each for each in site.cluster.parts if each.kind == kind]))


def _part_away(site: Site, rng: random.Random, part: Part) -> str:
    part.kill()
    down_s = rng.choice((1.0, 10.0))
    time.sleep(down_s)
    part.start()
    site.wait(site.cluster.ready, f"the storage cluster is not whole again after {part.name}", 120)
    name = part.name.replace("s3", "gateway")
    return f"storage {name} killed, back after {down_s:.0f} s"


def kill_volume(site: Site, rng: random.Random) -> str:
    return _kill_part(site, rng, "volume")


def kill_filer(site: Site, rng: random.Random) -> str:
    return _kill_part(site, rng, "filer")


def kill_gateway(site: Site, rng: random.Random) -> str:
    return _kill_part(site, rng, "s3")


def kill_master(site: Site, rng: random.Random) -> str:
    return _kill_part(site, rng, "master")


def kill_leader(site: Site, rng: random.Random) -> str:
    """Of the masters: the new leader learns from the volume servers what there is before it answers, which takes 20 s."""
    leader = site.cluster.leader()
    if leader is None:
        raise LostError("the storage cluster has no leader")
    return f"the leader of the masters: {_part_away(site, rng, leader)}"


def fail_over(site: Site, rng: random.Random) -> str:
    site.fail_over(rng.choice((0.0, 10.0)))
    return "primary database killed, standby promoted"


def restart_database(site: Site, _rng: random.Random) -> str:
    site.pair.restart()
    return "primary database restarted"


def _lose_answer(site: Site, method: str, within: str) -> str:
    lost = []

    def nothing(_answer: bytes) -> bytes:
        lost.append(1)
        return b""

    for proxy in site.gateways:
        proxy.harm(once(method, nothing, containing=within))
    end_s = time.monotonic() + REACHED_S
    while not lost and time.monotonic() < end_s:
        time.sleep(0.05)
    for proxy in site.gateways:
        proxy.harm(lambda _request, _answer: None)
    return f"{'answer lost' if lost else 'no request came'}: {method} of {within.strip('/')}"


def lose_put(site: Site, rng: random.Random) -> str:
    return _lose_answer(site, "PUT", rng.choice(("/packs/", "/records/", "/heads/")))


def lose_delete(site: Site, _rng: random.Random) -> str:
    return _lose_answer(site, "DELETE", "/packs/")


def lose_put_of(where: str) -> Fault:
    """The answer to a PUT below that prefix."""
    return lambda site, _rng: _lose_answer(site, "PUT", f"/{where}/")


def lose_commit(site: Site, _rng: random.Random) -> str:
    for proxy in site.databases:
        proxy.lose_commit()
    end_s = time.monotonic() + REACHED_S
    while not any(proxy.lost.is_set() for proxy in site.databases) and time.monotonic() < end_s:
        time.sleep(0.05)
    for proxy in site.databases:
        proxy.lose_nothing()
    return "answer lost: COMMIT of the database"


def at_once(site: Site, rng: random.Random) -> str:
    """A server and something that all servers need, beside each other."""
    chosen = rng.choice((kill_writing, stop_writing, kill_two)), rng.choice(SHARED)
    with ThreadPoolExecutor(len(chosen)) as threads:
        begun = [threads.submit(fault, site, random.Random(rng.random())) for fault in chosen]
        return f"at once: {', and '.join(each.result() for each in begun)}"


SHARED: Final[tuple[Fault, ...]] = (
    kill_volume,
    kill_filer,
    kill_gateway,
    kill_master,
    fail_over,
    restart_database,
)
FAULTS: Final[tuple[Fault, ...]] = (
    kill_writing,
    fail_over,
    kill_volume,
    stop_writing,
    kill_collecting,
    lose_put,
    kill_gateway,
    lose_commit,
    kill_two,
    kill_filer,
    restart_database,
    kill_master,
    lose_delete,
    rolling_restart,
    stop_collecting,
    hang_writing,
    kill_leader,
    at_once,
)


def _at_steps(
    what: str, fault: Callable[[Site, random.Random, Steps], str], steps: dict[str, str]
) -> dict[str, Fault]:
    return {
        f"{what}-at-{name}": partial(fault, steps=Steps((step,), named=True)) for name, step in steps.items()
    }


SITUATIONS: Final[dict[str, Fault]] = {
    **_at_steps("kill", _kill, WRITING),
    **_at_steps("stop", _halt, WRITING),
    **_at_steps("hang", _hang, WRITING),
    **_at_steps("kill", _kill, COLLECTING),
    **_at_steps("stop", _halt, COLLECTING),
    **{f"lose-put-of-{where}": lose_put_of(where) for where in ("packs", "records", "heads")},
    "lose-commit": lose_commit,
    "lose-delete": lose_delete,
    "kill-two": kill_two,
    "rolling-restart": rolling_restart,
    "kill-volume": kill_volume,
    "kill-filer": kill_filer,
    "kill-gateway": kill_gateway,
    "kill-master": kill_master,
    "kill-leader": kill_leader,
    "fail-over": fail_over,
    "restart-database": restart_database,
    "at-once": at_once,
}
"""All of them by name, so that each can be run alone."""
