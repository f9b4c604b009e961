"""Two servers of PostgreSQL, of which one is the primary and the other its synchronous standby, and what a supervisor does with them."""

from __future__ import annotations

import time
from pathlib import Path

from postgres_server import READY_S, USER, PostgresServer


class PostgresPair:
    """A commit is acknowledged once both have it on disk. After `fail_over` they have changed places.

    Attributes:
        primary: The one that accepts writes.
        standby: The other one.

    """

    def __init__(self) -> None:
        self.primary = PostgresServer(durable=True)
        try:
            self.standby = PostgresServer(durable=True, standby_of=self.primary)
        except BaseException:
            self.primary.remove()
            raise
        self.places = (self.primary.place, self.standby.place)
        """The directories of the sockets of both, whichever is the primary."""
        self._wait_for_standby()

    def url(self, name: str, *places: Path) -> str:
        """The URL of a database at whichever server is the primary; `places`: reached through other sockets."""
        hosts = ",".join(map(str, places or self.places))
        return f"postgresql://{USER}@/{name}?host={hosts}&target_session_attrs=read-write"

    def fail_over(self) -> None:
        """Ends the primary at once, and promotes the standby, which then does without one."""
        self.primary.kill()
        self.standby.execute("SELECT pg_promote(true, 60)")
        # It would otherwise wait with every commit for a standby that no longer exists.
        self._set_standby_names(self.standby, "")
        self.primary, self.standby = self.standby, self.primary

    def rejoin(self) -> None:
        """The one that was killed becomes a standby of the other; from then on commits wait for it."""
        self.standby.follow(self.primary)
        self._wait_for_standby()

    def remove(self) -> None:
        for server in (self.standby, self.primary):
            server.remove()

    def restart(self) -> None:
        """Restarts the primary in order."""
        self.primary.stop()
        self.primary.start()

    def _wait_for_standby(self) -> None:
        """Commits wait for the standby only once it follows: a supervisor would do no other."""
        self._wait("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'")
        self._set_standby_names(self.primary, "*")
        self._wait("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'")

    def _wait(self, query: str) -> None:
        end_s = time.monotonic() + READY_S
        while self.primary.execute(query) != [(1,)]:
            assert time.monotonic() < end_s, (self.standby.place / "log").read_text()[-4000:]
            time.sleep(0.02)

    @staticmethod
    def _set_standby_names(server: PostgresServer, names: str) -> None:
        server.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        server.execute("SELECT pg_reload_conf()")
