"""Three servers in processes of their own, on one PostgreSQL and one bucket, for tests of single faults."""

from __future__ import annotations

import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import chaos_site
import forked
import grpc
import postgres_server
from crash_server import Plan, check_agreement
from postgres_proxy import PostgresProxy
from postgres_server import PostgresServer
from seaweed import S3Server
from servers import NOTHING_BY_ITSELF
from tcp_proxy import Proxy


class SmallSite(chaos_site.Servers):
    """Three servers without tasks of their own, with a proxy before the database and one before the store."""

    def __init__(self, place: Path, stopping: ExitStack, s3: S3Server) -> None:
        postgres_server.need()
        server = PostgresServer(durable=True)
        stopping.callback(server.remove)
        self.database, self.store = PostgresProxy(server.place), Proxy(s3.port)
        stopping.callback(self.database.close)
        stopping.callback(self.store.stop)
        catalog = f"postgresql://{postgres_server.USER}@/{server.new_database()}?host={self.database.place}"
        # Several of these may use one store.
        store = s3.url(f"chaos-{uuid.uuid4().hex}", self.store.endpoint)
        super().__init__(place, stopping, catalog, store, upkeep=NOTHING_BY_ITSELF)

    def staddle(self, *words: str) -> tuple[int, str]:
        """The command with the addresses of all servers; its exit status and output."""
        given = {
            "STADDLE_SERVER": ",".join(self.addresses),
            "STADDLE_TOKEN": self.token,
            "STADDLE_CONFIG": os.devnull,
        }
        done = forked.run(
            [str(forked.BIN / "staddle"), *words], capture_output=True, text=True, env={**os.environ, **given}
        )
        return done.returncode, done.stdout + done.stderr

    def collect(self) -> None:
        status, said = self.run("gc", "--grace", "0s", "--yes")
        assert status == 0, said

    def assert_sound(self) -> None:
        status, said = self.run("check", "--read-data")
        assert status == 0, said
        check_agreement(self.members[0].data)

    @contextmanager
    def stopped(
        self, step: str, phase: str, number: int, call: Callable[[], object]
    ) -> Iterator[list[object]]:
        """Stops that server at the next such step, which the call leads to; it goes on at the end of the context.

        Gives the call's outcome, or its error, after the context.
        """
        outcome: list[object] = []

        def run() -> None:
            try:
                outcome.append(call())
            except grpc.RpcError as error:
                outcome.append(error)

        self.arm(Plan(step, phase, 1, signal.SIGSTOP))
        thread = threading.Thread(target=run)
        thread.start()
        pid = self.wait_fired(60)
        assert pid is not None, f"the call did not come to {step}: {outcome}"
        try:
            assert self.member_of(pid) is self.members[number]
            yield outcome
        finally:
            os.kill(pid, signal.SIGCONT)
            thread.join()
