"""A server in a separate process that dies at a planned step, and the checks of its data directory."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import forked
import grpc
from crash_work import LostError
from sqlalchemy import select
from staddle.v1 import service_pb2_grpc
from staddle_server.app import bootstrap
from staddle_server.app.data_directory import DataDirectory
from staddle_server.catalog import schema
from staddle_server.store.pack import PackReader, pack_name
from staddle_server.store.records import CommittedRecord, DeletedRecord, Records, UndeletedRecord

LAUNCHER = Path(__file__).with_name("crash_launcher.py")
CALL_S = 60.0
END_S = 60.0
RESTING = {
    "client.toml",
    "master.key",
    "catalog.db",
    "catalog.db-wal",
    "catalog.db-shm",
    "server.lock",
    "reserve",
    "reserve.inodes",
    "store",
}


class Plan(NamedTuple):
    """Where to die: before or after the n-th time of a step; with SIGSTOP, where to halt."""

    step: str
    phase: str
    nth: int
    signal: int = signal.SIGKILL

    def __str__(self) -> str:
        return f"{self.phase} {self.step} #{self.nth}"

    def write(self, path: Path) -> None:
        """Gives it to the processes that are started with this path."""
        written = path.with_suffix(".new")
        written.write_text(f"{self.step} {self.phase} {self.nth} {int(self.signal)}")
        written.replace(path)


class Stub:
    """The generated client with a token, and a deadline for each call."""

    def __init__(self, channel: grpc.Channel, token: str, call_s: float = CALL_S) -> None:
        self._stub = service_pb2_grpc.StaddleServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._call_s = call_s

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._stub, name)
        return lambda request: call(request, metadata=self._metadata, timeout=self._call_s)


class CrashServer:
    """`staddle-server serve` on a directory, under the launcher."""

    def __init__(self, place: Path) -> None:
        self.data = place / "data"
        self._plan = place / "plan"
        self._steps = place / "steps"
        self._log = place / "log"
        self._process: subprocess.Popen[str] | None = None
        self._channel: grpc.Channel | None = None
        self.address = ""
        self._read = 0

    def start(self, plan: Plan | None = None) -> bool:
        """Starts it; False if it died by SIGKILL before it served, as planned."""
        self._plan.unlink(missing_ok=True)
        if plan is not None:
            self.arm(plan)
        self._read = self._steps.stat().st_size if self._steps.exists() else 0
        words = self.command("serve", "--listen", "127.0.0.1:0")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("STADDLE")}
        with self._log.open("a") as log:
            self._process = forked.start(
                words, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found = re.match(r"Listening on (\S+:\d+)", line)
            if found:
                self.address = found[1]
                self._channel = grpc.insecure_channel(
                    self.address, options=[("grpc.use_local_subchannel_pool", 1)]
                )
                return True
        if self.wait() != -signal.SIGKILL:
            raise LostError(f"the server does not start: {self._log.read_text()[-2000:]}")
        return False

    def command(self, *words: str) -> list[str]:
        """`staddle-server` with these arguments on the same directory, which dies by the same plan."""
        launched = [sys.executable, LAUNCHER, self._plan, self._steps, *words, "--data", self.data]
        return list(map(str, launched))

    def arm(self, plan: Plan) -> None:
        """Plan the next death."""
        plan.write(self._plan)

    def steps(self) -> Counter[str]:
        """The steps since the start or the previous call."""
        with self._steps.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        self._read += len(text)
        return Counter(text.decode().split())

    def last_steps(self) -> list[str]:
        return self._steps.read_text().split()[-5:]

    @property
    def stub(self) -> Stub:
        assert self._channel is not None
        token = tomllib.loads((self.data / "client.toml").read_text())["token"]
        return Stub(self._channel, token)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def has_died(self, within_s: float = 0.0) -> bool:
        if self._process is None:
            return True
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def strike(self) -> None:
        """kill -9, while clients are at work."""
        assert self._process is not None
        self._process.kill()

    def kill(self) -> None:
        """kill -9, and close everything. Does nothing if already killed."""
        if self._process is not None:
            self.strike()
            self.wait()

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        process, self._process = self._process, None
        assert process is not None
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        status = process.wait(END_S)
        assert process.stdout is not None
        process.stdout.close()
        return status


def check_swept(data: Path) -> None:
    """A started server has swept the unfinished files of the previous one. Raises LostError."""
    tmp = data / "store" / "tmp"
    left = [*map(str, tmp.iterdir())] if tmp.exists() else []
    left += sorted(set(os.listdir(data)) - RESTING)
    if left:
        raise LostError(f"left behind: {left}")


def check_agreement(data: Path) -> int:
    """Check that catalog and store agree, and every record exists; return the number of packs. Raises LostError."""
    with bootstrap.open_rooms(DataDirectory(data)) as opened:
        with opened.catalog.database.read() as connection:
            is_file = connection.dialect.name == "sqlite"
            checked = connection.exec_driver_sql("PRAGMA integrity_check").all() if is_file else [("ok",)]
            problems = [row[0] for row in checked]
            pending = connection.execute(select(schema.pending_records.c.id)).all()
        if problems != ["ok"]:
            raise LostError(f"the catalog is damaged: {problems}")
        if pending:
            raise LostError(f"{len(pending)} records that were decided on are not written")
        return sum(_check_tenant(opened, tenant.id) for tenant in opened.catalog.tenants.list_all())


def _check_tenant(opened: bootstrap.Rooms, tenant: bytes) -> int:
    keys = opened.keys.load(tenant)
    reader, records = PackReader(opened.blobs, keys), Records(opened.blobs, keys)
    with opened.catalog.database.read() as connection:
        row = opened.catalog.tenants.row(connection, tenant)
        packs = connection.execute(
            select(schema.packs).where(schema.packs.c.tenant == row, schema.packs.c.state == schema.PACK_LIVE)
        ).all()
        backups = connection.execute(
            select(schema.backups).where(schema.backups.c.tenant == row, schema.backups.c.purged_ns.is_(None))
        ).all()
    for pack in packs:
        size = opened.blobs.size(pack_name(tenant, pack.id))
        summary = reader.footer(pack.id)
        if (size, summary.size_bytes, len(summary.chunks)) != (
            pack.size_bytes,
            pack.size_bytes,
            pack.chunk_count,
        ):
            raise LostError(f"the live pack {pack.id.hex()} is not what the catalog says")
    committed, deleted = set(), {}
    for record in map(records.read, sorted(records.list())):
        if isinstance(record, CommittedRecord):
            committed.add(record.backup)
        elif isinstance(record, DeletedRecord | UndeletedRecord):
            deleted[record.backup] = isinstance(record, DeletedRecord)
    for backup in backups:
        if backup.id not in committed:
            raise LostError(f"the backup {backup.id.hex()} has no record")
        if deleted.get(backup.id, False) != (backup.deleted_ns is not None):
            raise LostError(
                f"the records say otherwise than the catalog whether {backup.id.hex()} is deleted"
            )
    return len(packs)
