"""A PostgreSQL server of the tests' own: one for a process, started when it is first needed, one database for each test."""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psycopg
import pytest
from staddle_server.catalog import open_catalog

VERSION_MIN = 15
INSTALL = "Debian and Ubuntu: apt-get install postgresql"
FAST = ("fsync=off", "full_page_writes=off", "autovacuum=off", "wal_level=minimal", "max_wal_senders=0")
"""For tests that kill no machine: what is written need not reach a disk."""
SMALL = (
    "jit=off",
    "shared_buffers=16MB",
    "max_connections=100",
    "listen_addresses=",
    "log_min_messages=warning",
)
READY_S = 60.0
on_both_databases = pytest.mark.parametrize("catalog_url", ["sqlite", "postgresql"], indirect=True)
"""Runs a test of `running` with its catalog in a file, and in PostgreSQL."""
only_in_a_file = pytest.mark.parametrize("catalog_url", ["sqlite"], indirect=True)
"""Runs a test with its catalog in a file whatever STADDLE_TEST_CATALOG says: it handles the file, or moves the time of
leases, which in PostgreSQL is the database's.
"""
on_both_databases_in_test_all = pytest.mark.parametrize(
    "catalog_url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True
)
"""The same for a long test: PostgreSQL only in `make test-all`."""
USER = "staddle"


def programs() -> Path | None:
    """The directory of the newest installed version that is new enough; None: there is none."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if (initdb := shutil.which("initdb")) is not None:
        found.append(Path(initdb).resolve())
    new_enough = [(major, path.parent) for path in found if (major := _major(path)) >= VERSION_MIN]
    return max(new_enough)[1] if new_enough else None


def _major(initdb: Path) -> int:
    words = subprocess.run([initdb, "--version"], capture_output=True, text=True, check=True).stdout.split()
    return int(words[2].split(".")[0])


def need() -> None:
    """Skips the test, or fails it where nothing may be left out, unless PostgreSQL is here."""
    if programs() is not None:
        return
    text = f"PostgreSQL left out: no version {VERSION_MIN} or newer is installed ({INSTALL})"
    if os.environ.get("STADDLE_TEST_REQUIRE") == "all":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


class PostgresServer:
    """A server with a cluster of its own, reached through a Unix socket. As root it runs as an ordinary user, which it insists on."""

    def __init__(
        self,
        *,
        durable: bool = False,
        standby_of: PostgresServer | None = None,
        settings: Sequence[str] = (),
    ) -> None:
        """`durable`: for tests that kill it. `standby_of`: starts as a standby of that server. `settings` override those here."""
        bin_ = programs()
        assert bin_ is not None
        self._bin = bin_
        # A socket's path has at most 107 bytes.
        self.place = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
        self._as_user: list[str] = []
        if os.geteuid() == 0:
            user = "nobody"
            shutil.chown(self.place, user)
            self._as_user = ["setpriv", f"--reuid={user}", "--clear-groups"]
        self._settings = [
            *SMALL,
            f"unix_socket_directories={self.place}",
            *(() if durable else FAST),
            *settings,
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._names = (f"t{number}" for number in itertools.count())
        if standby_of is not None:
            self.follow(standby_of)
            return
        self._run(
            "initdb", "--no-sync", "--auth=trust", "--encoding=UTF8", "--no-locale", f"--username={USER}", "-D",
            str(self.place / "data"),
        )  # fmt: skip
        self.start()

    def follow(self, primary: PostgresServer) -> None:
        """Begins again as a standby of that server, with a copy of all its files."""
        shutil.rmtree(self.place / "data", ignore_errors=True)
        self._run(
            "pg_basebackup", "--no-sync", "--checkpoint=fast", "--wal-method=stream", "--write-recovery-conf", "-D",
            str(self.place / "data"), "-d", f"host={primary.place} user={USER}",
        )  # fmt: skip
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [*self._as_user, str(self._bin / program), *arguments],
            check=True, capture_output=True, text=True, cwd=self.place,
        )  # fmt: skip

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        options = [word for setting in self._settings for word in ("-c", setting)]
        # It ends with the process of the tests, however that ends.
        command = ["setpriv", "--pdeathsig", "INT"] if shutil.which("setpriv") else []
        with (self.place / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*(self._as_user or ["env"]), *command, str(self._bin / "postgres"), "-D", str(self.place / "data"), *options],
                stdout=log, stderr=log, cwd=self.place,
            )  # fmt: skip
        deadline = time.monotonic() + READY_S
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError((self.place / "log").read_text()[-4000:]) from None
                time.sleep(0.01)
            else:
                return

    def url(self, name: str) -> str:
        """The URL of a database."""
        return f"postgresql://{USER}@/{name}?host={self.place}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Runs one statement, outside a transaction, and gives its rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def new_database(self, template: str = "template0") -> str:
        """Makes a database, and gives its name."""
        name = next(self._names)
        # Copying the files takes a third of the time that copying through the log does.
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return name

    def kill(self) -> None:
        """Ends all of it at once, as a power cut would."""
        assert self._process is not None
        children = [
            int(pid)
            for pid in Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
            .read_text()
            .split()
        ]
        for pid in [self._process.pid, *children]:
            os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ends it in order: SIGINT closes connections, SIGQUIT does not even write a checkpoint."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        """Ends it, and removes its files."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.place, ignore_errors=True)


@functools.cache
def shared() -> PostgresServer:
    """The server of all tests of this process that do not kill it. Skips the test where there is no PostgreSQL."""
    need()
    server = PostgresServer()
    atexit.register(server.remove)
    return server


def new_url() -> str:
    """An empty database."""
    server = shared()
    return server.url(server.new_database())


@functools.cache
def _template() -> str:
    server = shared()
    name = server.new_database()
    open_catalog(server.url(name)).close()
    return name


def ready_url() -> str:
    """A database with the tables of a catalog: a copy takes a fraction of the time that making them does."""
    return shared().url(shared().new_database(_template()))
