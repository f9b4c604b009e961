"""A service in this process, and a server in a separate one, for all tests."""

from __future__ import annotations

import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import forked
import grpc
import pytest
import statements  # noqa: F401  for what it does
from sqlalchemy import func, insert, select
from staddle.v1 import service_pb2_grpc
from staddle_server.app.service import Service
from staddle_server.app.settings import ServiceSettings
from staddle_server.base.clock import SystemClock
from staddle_server.base.observer import NOTHING, Observer
from staddle_server.base.types import TokenRole
from staddle_server.catalog import Catalog, open_catalog
from staddle_server.catalog.schema import metadata
from staddle_server.store.backends.directory import DirectoryBlobs
from staddle_server.store.blobs import Blobs
from staddle_server.store.keys import KeyStore
from staddle_server.store.records import TenantRecord, encode_record
from staddle_server.tenancy.records import finish_all
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.replication.site import SitePlace

Stub = service_pb2_grpc.StaddleServiceStub
MASTER = bytes(range(32))


class MovedClock(SystemClock):
    """The machine's clock, moved by `ahead_s`."""

    ahead_s = 0.0

    def now_ns(self) -> int:
        return super().now_ns() + int(self.ahead_s * 1e9)

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.ahead_s


@functools.cache
def empty_catalog() -> bytes:
    """A new catalog: a copy takes a fraction of the time that making its tables does."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "catalog.db"
        open_catalog(str(path)).close()
        return path.read_bytes()


class Ready(NamedTuple):
    """A directory after the first start of a service, with one tenant, `default`."""

    store: Path
    catalog: bytes
    tenant: bytes
    random: tuple[Any, ...]
    """Where the randomness stands from which the tenant's secrets came."""


_kept: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def _ready() -> Ready:
    """Made once, as a copy of it takes a fraction of the time."""
    _kept.append(tempfile.TemporaryDirectory())
    store = Path(_kept[0].name) / "store"
    store.mkdir()
    path = store.with_name("catalog.db")
    path.write_bytes(empty_catalog())
    catalog = open_catalog(str(path))
    blobs = DirectoryBlobs(str(store))
    # The same secrets in every run, so chunks and pages always have the same boundaries.
    seeded = random.Random(2026)
    keys = KeyStore(blobs, MASTER, seeded.randbytes)
    tenant = _make_tenant(catalog, keys, "default")
    finish_all(Tenants(blobs, catalog, keys), catalog)
    catalog.close()
    return Ready(store, path.read_bytes(), tenant, seeded.getstate())


def _fill(url: str) -> None:
    """Copies the catalog of `_ready` into an empty database of PostgreSQL."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "catalog.db"
        path.write_bytes(_ready().catalog)
        source, target = open_catalog(str(path)), open_catalog(url)
        with source.database.read() as old, target.database.write() as new:
            for table in metadata.sorted_tables:
                if rows := [dict(row) for row in old.execute(select(table)).mappings()]:
                    new.execute(insert(table), rows)
            for table in (each for each in metadata.sorted_tables if each.autoincrement_column is not None):
                column = table.autoincrement_column.name
                sequence = func.pg_get_serial_sequence(table.name, column)
                new.execute(select(func.setval(sequence, func.max(table.c[column]))))
        source.close()
        target.close()


def _make_tenant(catalog: Catalog, keys: KeyStore, name: str) -> bytes:
    now_ns = time.time_ns()
    made = keys.create(name, now_ns)
    catalog.tenants.create(made.tenant, name, now_ns, record=encode_record(TenantRecord(name, now_ns)))
    return made.tenant


@dataclass
class Running:
    """A service in this process: call it as a client, look at its parts, restart it, move its clock."""

    root: Path
    wrap: Callable[[Blobs], Blobs] = lambda blobs: blobs
    streams_max: int = 128
    lease_s: float = 300.0
    upload_life_s: float = 7 * 24 * 3600.0
    retention_every_s: float = 0.0
    parity_percent: int = 0
    beat_every_s: float = 0.0
    listen: str = "127.0.0.1:0"
    metrics: str = "token"
    metrics_datasets: int = 10_000
    observer: Observer = NOTHING
    clock: MovedClock = field(default_factory=MovedClock)
    catalog_options: dict[str, float] = field(default_factory=dict)
    second: SitePlace | None = None
    """Where the service says that it copies its store to."""
    catalog_url: str = ""
    """An empty database for the catalog; "": a file of SQLite."""

    def __post_init__(self) -> None:
        self._random = random.Random()
        self._random.setstate(_ready().random)
        if not (self.root / ("store" if self.catalog_url else "catalog.db")).exists():
            shutil.copytree(_ready().store, self.root / "store", dirs_exist_ok=True)
            if self.catalog_url:
                _fill(self.catalog_url)
            else:
                (self.root / "catalog.db").write_bytes(_ready().catalog)
        self._channels: list[grpc.Channel] = []
        self.tokens: dict[str, str] = {}
        self.start()

    def start(self) -> None:
        """Opens the directory and serves it."""
        self.catalog: Catalog = open_catalog(self.catalog_place, **self.catalog_options)
        self.blobs = self.wrap(DirectoryBlobs(str(self.root / "store")))
        self.keys = KeyStore(self.blobs, MASTER, self._random.randbytes)
        self.tenant = _ready().tenant
        self.service = Service(
            self.catalog,
            self.blobs,
            self.keys,
            ServiceSettings(
                streams_max=self.streams_max,
                lease_s=self.lease_s,
                upload_life_s=self.upload_life_s,
                retention_every_s=self.retention_every_s,
                parity_percent=self.parity_percent,
                metrics=self.metrics,
                metrics_datasets=self.metrics_datasets,
            ),
            clock=self.clock,
            second=self.second,
            integrity_every_s=0.0,
            beat_every_s=self.beat_every_s,
            observer=self.observer,
        )
        self.port = self.service.start(self.listen, None)
        self.service.join(self.address)

    def only_by_hand(self, patch: pytest.MonkeyPatch) -> None:
        """From now on only the test ends calls that are idle or whose token is invalid.

        The service looks for them every few seconds: it may be first, or end a call that the test has only refused.
        """
        patch.setattr(self.service._wire, "_end_invalid", lambda: None)
        patch.setattr(self.service._wire, "_slots", ())

    @property
    def catalog_place(self) -> str:
        """What opens the catalog."""
        return self.catalog_url or str(self.root / "catalog.db")

    def make_tenant(self, name: str) -> bytes:
        """A further tenant, by its id."""
        return _make_tenant(self.catalog, self.keys, name)

    def stop(self) -> None:
        """Drains the service and closes what it held."""
        for channel in self._channels:
            channel.close()
        self._channels.clear()
        self.service.drain(2.0)
        self.catalog.close()

    def restart(self) -> None:
        """Restart as an operator would: drain, then serve again."""
        self.stop()
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def token(self, role: str = "admin", tenant: bytes | None = None, name: str | None = None) -> str:
        """A token; the same one for the same name."""
        tenant = tenant or self.tenant
        name = name or f"{role}-{tenant.hex()[:6]}"
        if name not in self.tokens:
            self.tokens[name] = self.catalog.tokens.create(
                tenant, name, TokenRole[role.upper()], time.time_ns()
            )
        return self.tokens[name]

    def stub(self, role: str = "admin", tenant: bytes | None = None, name: str | None = None) -> Stub:
        """The generated client, with a token."""
        return self.stub_with(self.token(role, tenant, name))

    def stub_with(self, token: str | None) -> Stub:
        """The generated client, with this token or without any."""
        channel = grpc.insecure_channel(
            self.address,
            options=[("grpc.max_receive_message_length", 4 << 20), ("grpc.use_local_subchannel_pool", 1)],
        )
        self._channels.append(channel)
        return Stub(channel if token is None else grpc.intercept_channel(channel, _Bearer(token)))


class _Details(grpc.ClientCallDetails):
    def __init__(self, details: grpc.ClientCallDetails, metadata: list[tuple[str, str]]) -> None:
        self.method = details.method
        self.timeout = details.timeout
        self.metadata = metadata
        self.credentials = details.credentials
        self.wait_for_ready = details.wait_for_ready
        self.compression = details.compression


class _Bearer(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
):
    """Adds the token to every call."""

    def __init__(self, token: str) -> None:
        self._token = token

    def _add(self, details):
        metadata = [*(details.metadata or ()), ("authorization", f"Bearer {self._token}")]
        return _Details(details, metadata)

    def intercept_unary_unary(self, continuation, details, request):
        return continuation(self._add(details), request)

    def intercept_unary_stream(self, continuation, details, request):
        return continuation(self._add(details), request)

    def intercept_stream_unary(self, continuation, details, requests):
        return continuation(self._add(details), requests)


SERVER = (str(forked.BIN / "staddle-server"),)
# Most tests do not test background tasks, which on a busy machine would race with them.
NOTHING_BY_ITSELF = (
    "--gc-every",
    "0",
    "--scrub-period",
    "0",
    "--retention-every",
    "0",
    "--drill-period",
    "0",
)


def logged(log: Callable[[], str], words: str, **fields: object) -> list[dict[str, object]]:
    """The JSON lines of a log with these words in their message and these fields, as soon as there is one.

    A server answers before its log is written: whoever looks at the log of a running one has to wait.
    """
    end_s = time.monotonic() + 60
    while time.monotonic() < end_s:
        lines = [json.loads(line) for line in log().split("\n")[:-1] if line.startswith("{")]
        if found := [
            line for line in lines if words in str(line["message"]) and line.items() >= fields.items()
        ]:
            return found
        time.sleep(0.02)
    raise AssertionError(f"no {words!r} in\n{log()[-3000:]}")


@contextmanager
def heeding_hangups() -> Iterator[None]:
    """Let child processes receive SIGHUP even if the tests run under nohup, whose setting they would inherit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


STARTED: set[ServerProcess] = set()
"""The servers in separate processes that were started and not ended yet."""


@dataclass(eq=False)
class ServerProcess:
    """`staddle-server serve` in a separate process, without its tasks: collection, scrubbing, and retention policies."""

    data: Path
    process: subprocess.Popen[str] | None = None
    flags: tuple[str, ...] = NOTHING_BY_ITSELF
    command: tuple[str, ...] = SERVER
    listen: str = "127.0.0.1:0"
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables besides those of this process."""

    def start(self) -> None:
        """Starts it, on a free port unless `listen` names one, and waits until it listens."""
        with (self.data.parent / f"{self.data.name}.log").open("a") as log, heeding_hangups():
            start = forked.start if self.command == SERVER else subprocess.Popen
            self.process = start(
                [
                    *self.command,
                    "serve",
                    "--data",
                    str(self.data),
                    "--listen",
                    self.listen,
                    *self.flags,
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={
                    **{key: value for key, value in os.environ.items() if not key.startswith("STADDLE")},
                    **self.environment,
                },
            )
        STARTED.add(self)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found = re.match(r"Listening on (.+?) \(", line)
            if found:
                self.address = found[1]
                return
        self._end(signal.SIGKILL)
        raise AssertionError(f"the server did not start: see its log\n{self.log()[-2000:]}")

    def logged(self, words: str, **fields: object) -> list[dict[str, object]]:
        """The log lines with these words in their message and these fields, as soon as there is one."""
        return logged(self.log, words, **fields)

    def log(self) -> str:
        """What it wrote to standard error so far."""
        path = self.data.parent / f"{self.data.name}.log"
        return path.read_text(errors="backslashreplace") if path.exists() else ""

    @property
    def config(self) -> Path:
        """The client's configuration for it."""
        return self.data / "client.toml"

    def stub(self) -> Stub:
        """The generated client, with the token that the server left for this machine."""
        token = tomllib.loads(self.config.read_text())["token"]
        channel = grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)])
        return Stub(grpc.intercept_channel(channel, _Bearer(token)))

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        process, self.process = self.process, None
        STARTED.discard(self)
        if process is None:
            return 0
        process.send_signal(number)
        assert process.stdout is not None
        process.stdout.close()
        return process.wait(60)
