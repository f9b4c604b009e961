"""A replicated S3 store for tests and tools: SeaweedFS on loopback, every part a process that can be killed and started again.

```
server = postgres_server.PostgresServer(durable=True)   # the filers' database
database = FilerDatabase(str(server.place), server.new_database(), postgres_server.USER)
with running(place, database=database) as cluster:      # 3 masters, 3 volumes, 2 filers, 2 gateways; about 6 s
    store = cluster.url("some/prefix")       # s3://…?endpoint=…&endpoint=…, of all gateways; ENVIRONMENT has the credentials
    cluster.volumes[0].kill()                # kill -9; also stop() (in order), suspend(), resume(), start(), running, log()
    cluster.volumes[0].start()               # on the same ports, with the files that it left
    cluster.wait_ready()                     # all parts answer, and the masters know all volume servers
```

What it stands for, and what was seen of it:
- Every object has two copies on different volume servers (replication 001), so one of the three may die.
- A filer knows which object is where. Filers with stores of their own copy from one another only afterwards: what one
  filer acknowledged, the other does not have at once, and never if the first dies. So two filers share a database here
  (PostgreSQL, `database`); without one there is one filer with an embedded store, and while it is dead nothing works.
- `synced` (the default) makes the volume servers call fsync before they acknowledge; SeaweedFS does not by itself.
- A gateway finds another filer when its own dies, but the next PUT took 16 s and failed (503); after a volume's death 3 s.
- A gateway forgets a filer that is dead when it looks for filers, and looks again only after 5 minutes, or when a filer joins.
- With one master (`masters=1`) it starts in 2 s instead of 6, and stops writing new volumes when that master dies.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from ports import free_ports
from seaweed import (
    BUCKET,
    READY_S,
    EndedError,
    answers,
    remove_sockets,
    require,
    write_identities,
)

REPLICATION = "001"
STOP_S = 30.0
FILER_TOML = """\
[postgres2]
enabled = true
createTable = \"\"\"
  CREATE TABLE IF NOT EXISTS "%s" (
    dirhash BIGINT, name VARCHAR(65535), directory VARCHAR(65535), meta bytea, PRIMARY KEY (dirhash, name)
  );
\"\"\"
hostname = "{host}"
port = {port}
username = "{user}"
password = ""
database = "{database}"
sslmode = "disable"
connection_max_idle = 5
connection_max_open = 10
connection_max_lifetime_seconds = 300
enableUpsert = true
upsertQuery = \"\"\"
  INSERT INTO "%[1]s" (dirhash, name, directory, meta) VALUES ($1, $2, $3, $4)
  ON CONFLICT (dirhash, name) DO UPDATE SET directory = EXCLUDED.directory, meta = EXCLUDED.meta
\"\"\"
"""


class FilerDatabase(NamedTuple):
    """An empty database of PostgreSQL that all filers keep their entries in."""

    host: str
    """A host, or the directory of a Unix socket."""
    database: str
    user: str
    port: int = 5432


class Part:
    """One process of the cluster. It keeps its ports and its directory, however often it is killed and started."""

    def __init__(self, kind: str, number: int, place: Path) -> None:
        self.kind = kind
        self.name = f"{kind}{number}"
        self.place = place / self.name
        self.place.mkdir(parents=True)
        self.port, self.grpc_port = free_ports(2)
        self.arguments: list[str] = []
        self.environ: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """How SeaweedFS writes it, with both ports."""
        return f"127.0.0.1:{self.port}.{self.grpc_port}"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Starts the process; it may take some seconds until it answers."""
        assert not self.running, self.name
        where = [f"-port={self.port}", f"-port.grpc={self.grpc_port}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        with (self.place / "log").open("ab") as log:
            # A session of its own: Ctrl-C reaches only the process that started it, which then ends it.
            self.process = subprocess.Popen(
                [require(), "-logtostderr", self.kind, *where, *self.arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.place,
                env={**os.environ, **self.environ}, start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            remove_sockets(self.kind, self.port, self.grpc_port)

    def stop(self) -> None:
        """Ends it in order, as an operator would; kill -9 if that takes too long."""
        if self.process is not None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_S)
            self.kill()

    def suspend(self) -> None:
        """SIGSTOP: it holds its connections and answers nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def log(self) -> str:
        """The end of what it wrote."""
        path = self.place / "log"
        return path.read_text(errors="backslashreplace")[-4000:] if path.exists() else ""


class SeaweedCluster:
    """Masters, volume servers, filers and S3 gateways, with one bucket."""

    def __init__(
        self, place: Path, *, database: FilerDatabase | None = None, masters: int = 3, volumes: int = 3,
        gateways: int = 2, synced: bool = True,
    ) -> None:  # fmt: skip
        """Starts it and waits until it can be written to. `database`: for two filers; without one there is one filer."""
        self._place = place
        self._database = database
        self.masters = self._parts("master", masters)
        self.volumes = self._parts("volume", volumes)
        self.filers = self._parts("filer", 1 if database is None else 2)
        self.gateways = self._parts("s3", gateways)
        self._configure()
        try:
            self._start_in_order()
            self._wait(lambda: answers(self.filers[0].port, "POST", f"/buckets/{BUCKET}/"))
            if synced:
                self.shell("fs.configure -locationPrefix=/buckets/ -fsync -apply")
        except BaseException:
            self.stop()
            raise

    @property
    def parts(self) -> list[Part]:
        """All of them, in the order in which they start."""
        return [*self.masters, *self.volumes, *self.filers, *self.gateways]

    @property
    def endpoints(self) -> list[str]:
        """The gateways' URLs."""
        return [f"http://127.0.0.1:{part.port}" for part in self.gateways]

    def url(self, prefix: str, *endpoints: str) -> str:
        """The store's URL for a prefix of the bucket; through all gateways if no endpoints are given."""
        given = "&".join(f"endpoint={endpoint}" for endpoint in endpoints or self.endpoints)
        return f"s3://{BUCKET}/{prefix}?{given}"

    def ready(self) -> bool:
        """Whether every part answers, and all volume servers are known to the leader of the masters."""
        return (
            self.leader() is not None
            and len(self.volume_servers()) == len(self.volumes)
            and all(answers(part.port, "GET", "/healthz") for part in [*self.filers, *self.gateways])
        )

    def wait_ready(self) -> None:
        """Waits until all parts work again, after those that were killed were started."""
        self._wait(self.ready)

    def volume_servers(self) -> list[str]:
        """The volume servers that the masters know to be alive, as host:port."""
        leader = self.leader()
        if leader is None:
            return []
        topology = _json(leader.port, "/dir/status").get("Topology", {})
        return [
            node["Url"]
            for center in topology.get("DataCenters") or []
            for rack in center.get("Racks") or []
            for node in rack.get("DataNodes") or []
        ]

    def shell(self, command: str) -> str:
        """Runs one command of `weed shell`, and gives what it wrote."""
        masters = ",".join(part.address for part in self.masters)
        done = subprocess.run(
            [require(), "shell", f"-master={masters}", f"-filer={self.filers[0].address}"],
            input=f"lock\n{command}\nunlock\n", capture_output=True, text=True, timeout=READY_S, check=True,
            cwd=self._place,
        )  # fmt: skip
        if "error" in (done.stdout + done.stderr).lower():
            raise AssertionError(f"{command}: {done.stdout}{done.stderr}")
        return done.stdout

    def stop(self) -> None:
        """kill -9 of everything that runs. The files stay."""
        for part in reversed(self.parts):
            part.kill()

    def _start_in_order(self) -> None:
        """Volume servers that find no leader, and gateways that miss a filer, look again only after seconds or minutes."""
        for part in self.masters:
            part.start()
        self._wait(lambda: self.leader() is not None)
        for part in [*self.volumes, *self.filers]:
            part.start()
        self._wait(lambda: all(answers(part.port, "GET", "/healthz") for part in self.filers))
        for part in self.gateways:
            part.start()
        self._wait(self.ready)

    def _parts(self, kind: str, count: int) -> list[Part]:
        return [Part(kind, number, self._place) for number in range(1, count + 1)]

    def _configure(self) -> None:
        masters = ",".join(part.address for part in self.masters)
        for part in self.masters:
            part.arguments = [
                f"-mdir={part.place}", f"-peers={masters if len(self.masters) > 1 else 'none'}",
                f"-defaultReplication={REPLICATION}", "-volumeSizeLimitMB=64", "-electionTimeout=1s",
                "-heartbeatInterval=200ms", "-telemetry=false",
            ]  # fmt: skip
            # The first write of a bucket waits for the volumes that are made.
            part.environ = {"WEED_MASTER_VOLUME_GROWTH_COPY_2": "3"}
        for part in self.volumes:
            part.arguments = [
                f"-dir={part.place}", f"-master={masters}", "-max=60", "-minFreeSpace=100MiB", "-preStopSeconds=1"
            ]  # fmt: skip
        for part in self.filers:
            part.arguments = [
                f"-master={masters}", f"-defaultStoreDir={part.place}", f"-defaultReplicaPlacement={REPLICATION}",
            ]  # fmt: skip
            if self._database is not None:
                (part.place / "filer.toml").write_text(FILER_TOML.format(**self._database._asdict()))
        identities = write_identities(self._place / "s3.json")
        for part in self.gateways:
            part.arguments = [
                f"-filer={','.join(filer.address for filer in self.filers)}", f"-config={identities}",
                "-iam=false", "-port.iceberg=0", "-port.lance=0",
            ]  # fmt: skip

    def leader(self) -> Part | None:
        """The master that leads, if there is one."""
        for part in self.masters:
            if part.running and _json(part.port, "/cluster/status").get("IsLeader"):
                return part
        return None

    def _wait(self, condition: Callable[[], bool]) -> None:
        end_s = time.monotonic() + READY_S
        while not condition():
            for part in self.parts:
                if part.process is not None and not part.running:
                    raise EndedError(f"{part.name} ended: {part.log()}")
            if time.monotonic() > end_s:
                logs = "\n".join(f"--- {part.name}\n{part.log()[-1000:]}" for part in self.parts)
                raise AssertionError(f"the storage cluster is not ready after {READY_S:.0f} s\n{logs}")
            time.sleep(0.05)


@contextmanager
def running(place: Path, **how: object) -> Iterator[SeaweedCluster]:
    """A cluster that is ended at the end; `how`: arguments of `SeaweedCluster`."""
    cluster = started(place, **how)
    try:
        yield cluster
    finally:
        cluster.stop()


def started(place: Path, **how: object) -> SeaweedCluster:
    """Another program may take a free port before the part has it: the part then ends, and other ports are tried."""
    for attempt in range(3):
        with suppress(EndedError):
            return SeaweedCluster(place / str(attempt), **how)  # type: ignore[arg-type]
    return SeaweedCluster(place / "last", **how)  # type: ignore[arg-type]


def _json(port: int, path: str) -> dict[str, object]:
    """What a master answers; nothing where it does not."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return dict(json.loads(connection.getresponse().read()))
    except (OSError, ValueError, http.client.HTTPException):
        return {}
    finally:
        connection.close()
