"""Three servers on one catalog and one store, each piece a process that can be killed, stopped and started again.

The catalog is a PostgreSQL primary with a synchronous standby; the store is a replicated SeaweedFS cluster. Between them and the servers
are proxies that can lose an answer. Servers run under the launcher of tests/crash, which ends or stops them at a named durable step.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import forked
import grpc
import pytest
import seaweed_cluster
from crash_server import LAUNCHER, Plan, Stub
from crash_work import LostError
from ports import free_ports
from postgres_pair import PostgresPair
from postgres_proxy import PostgresProxy
from postgres_server import USER, PostgresServer
from seaweed import ENVIRONMENT
from seaweed_cluster import FilerDatabase
from servers import ServerProcess
from staddle_server.app.data_directory import read_client_config
from staddle_server.store.keys import create_master_key
from tcp_proxy import Proxy
from thin import wait_until

NAMES = ("a", "b", "c")
CALL_S = 25.0
STOPPED_S = 22.0
"""A server that is silent this long is dead for the others."""
START_S = 90.0
UPKEEP = ("--gc-every", "15s", "--scrub-period", "0", "--retention-every", "0", "--drain", "5s")


class Member(ServerProcess):
    """One of the servers, always at the same address."""

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def start_patiently(self) -> float:
        """Starts it as a supervisor does, again and again while something that it needs is missing; the seconds that took."""
        begun = time.monotonic()
        while True:
            try:
                self.start()
                return time.monotonic() - begun
            except AssertionError:
                if time.monotonic() - begun > START_S:
                    raise LostError(f"server {self.name} does not start: {self.log()[-2000:]}") from None
                time.sleep(0.5)


class Servers:
    """Three servers that share a catalog and a store, started at once.

    Attributes:
        plan: Where the next server, or collector, to reach a step is killed or stopped.

    """

    def __init__(
        self, place: Path, stopping: ExitStack, catalog: str, store: str, *, upkeep: tuple[str, ...] = UPKEEP,
        ahead: int | None = None,
    ) -> None:  # fmt: skip
        """`stopping` ends what is started here. `upkeep`: flags of each server. `ahead`: the clock of this server is an hour ahead."""
        self.place = place
        self.plan, self._steps = place / "plan", place / "steps"
        self.members = self._members((*upkeep, "--catalog", catalog, "--store", store), ahead)
        for member in self.members:
            stopping.callback(member.kill)
        with ThreadPoolExecutor(len(NAMES)) as threads:  # at once, on an empty database and an empty bucket
            list(threads.map(Member.start, self.members))
        self.token = self._token()
        self.addresses = [member.address for member in self.members]
        self._channels = {
            address: grpc.insecure_channel(
                address,
                options=[("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 1000)],
            )
            for address in self.addresses
        }
        for channel in self._channels.values():
            stopping.callback(channel.close)

    def _members(self, flags: tuple[str, ...], ahead: int | None) -> list[Member]:
        key = self.place / "key"
        create_master_key(str(key))
        command = (sys.executable, str(LAUNCHER), str(self.plan), str(self._steps))
        return [
            Member(
                self.place / name,
                flags=(*flags, "--master-key", str(key)),
                command=command,
                listen=f"127.0.0.1:{port}",
                environment={"CRASH_CLOCK_AHEAD_S": "3600"} if number == ahead else {},
            )
            for number, (name, port) in enumerate(zip(NAMES, free_ports(len(NAMES)), strict=True))
        ]

    def _token(self) -> str:
        """The one that the first server to start was given."""
        found = [read_client_config(each.config).get("token") for each in self.members]
        (token,) = [token for token in found if token]
        return str(token)

    def stub(self, number: int) -> Stub:
        """The generated client at one of the servers."""
        return Stub(self._channels[self.addresses[number % len(NAMES)]], self.token, CALL_S)

    def run(self, *words: str, timeout_s: float = 300.0) -> tuple[int, str]:
        """`staddle-server` on a server's directory, with the same plan; its exit status and what it wrote."""
        launched = [sys.executable, LAUNCHER, self.plan, self._steps, *words, "--data", self.members[0].data]
        done = forked.run([*map(str, launched)], capture_output=True, text=True, timeout=timeout_s)
        return done.returncode, done.stdout + done.stderr

    # --- plans

    def arm(self, plan: Plan) -> None:
        self.fired.unlink(missing_ok=True)
        plan.write(self.plan)

    def disarm(self) -> bool:
        """Takes the plan back; False: a process was faster."""
        try:
            self.plan.unlink()
        except FileNotFoundError:
            return False
        return True

    @property
    def fired(self) -> Path:
        """Has the id of the process that followed the plan."""
        return self.place / "plan.done"

    def wait_fired(self, within_s: float) -> int | None:
        """The process that followed the plan; None: none did, and the plan is taken back."""
        end_s = time.monotonic() + within_s
        while not self.fired.exists():
            if time.monotonic() > end_s and self.disarm():
                return None
            time.sleep(0.02)
        return int(self.fired.read_text())

    def member_of(self, pid: int) -> Member | None:
        return next((each for each in self.members if each.process and each.process.pid == pid), None)

    def wait(self, true: Callable[[], object], what: str, within_s: float) -> None:
        try:
            wait_until(true, within_s)
        except AssertionError:
            raise LostError(f"within {within_s:.0f} s {what}") from None


class Site(Servers):
    """Servers with all that they need: a pair of databases, a storage cluster, and proxies before both."""

    stopped_s = 60.0
    """The longest time that a process is suspended."""

    def __init__(self, place: Path, stopping: ExitStack, *, ahead: int | None = None) -> None:
        self.filers_database = stopping.enter_context(_removed(PostgresServer(durable=True)))
        self.pair = stopping.enter_context(_removed(PostgresPair()))
        database = FilerDatabase(str(self.filers_database.place), self.filers_database.new_database(), USER)
        self.cluster = stopping.enter_context(seaweed_cluster.running(place / "store", database=database))
        self.gateways = [Proxy(part.port) for part in self.cluster.gateways]
        self.databases = [PostgresProxy(real) for real in self.pair.places]
        for stop in (*(each.stop for each in self.gateways), *(each.close for each in self.databases)):
            stopping.callback(stop)
        catalog = self.pair.url(self.pair.primary.new_database(), *(each.place for each in self.databases))
        store = self.cluster.url("chaos", *(proxy.endpoint for proxy in self.gateways))
        super().__init__(place, stopping, catalog, store, ahead=ahead)

    def fail_over(self, down_s: float) -> None:
        """The primary database is killed, the standby promoted, and after a time the other one is its standby."""
        number = self.pair.places.index(self.pair.primary.place)
        self.databases[number].refuse()
        self.pair.fail_over()
        time.sleep(down_s)
        self.pair.rejoin()
        self.databases[number].accept()


@contextmanager
def _removed(server: PostgresServer | PostgresPair) -> Iterator[PostgresServer | PostgresPair]:
    try:
        yield server
    finally:
        server.remove()


@contextmanager
def environment(cache: Path) -> Iterator[None]:
    """The store's credentials for everything that is started in the context, and a cache of their own for the clients."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "XDG_CACHE_HOME": str(cache)}.items():
            patch.setenv(name, value)
        yield


@contextmanager
def running(place: Path, *, ahead: int | None = None) -> Iterator[Site]:
    """A site that is ended at the end. `place` keeps the logs, and the clients' cache."""
    with environment(place / "cache"), ExitStack() as stopping:
        yield Site(place, stopping, ahead=ahead)
