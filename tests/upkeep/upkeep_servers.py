"""Several servers of one installation in this process: schedules that share a catalog, each with a clock of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import postgres_server
from sqlalchemy import update
from staddle_server.catalog import Catalog, open_catalog
from staddle_server.catalog.schema import tasks
from staddle_server.upkeep.schedule import Schedule, Task

NS = 10**9


class SetClock:
    """A clock that stands still until it is moved."""

    def __init__(self, ahead_s: float = 0) -> None:
        self.wall_s = 1_700_000_000 + ahead_s
        self.steady_s = 5_000.0

    def now_ns(self) -> int:
        return int(self.wall_s * NS)

    def monotonic_s(self) -> float:
        return self.steady_s


class Servers:
    """One installation. Each server has a connection pool of its own, as a process has."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.has_own_clock = url.startswith("postgresql")
        self.catalogs: list[Catalog] = []
        self.clocks: list[SetClock] = []
        self.catalog = self.new()

    def new(self) -> Catalog:
        self.catalogs.append(open_catalog(self.url))
        return self.catalogs[-1]

    def add(self, *run: Task, ahead_s: float = 0) -> Schedule:
        """Another server with these tasks, whose clock is ahead of the others'."""
        self.clocks.append(SetClock(ahead_s))
        return Schedule(run, self.new(), self.clocks[-1], holder=f"server {len(self.clocks)}")

    def pass_s(self, seconds: float) -> None:
        """Lets this much time pass everywhere.

        The database's clock cannot be moved, so what it measured is moved back.
        """
        for clock in self.clocks:
            clock.wall_s += seconds
            clock.steady_s += seconds
        if self.has_own_clock:
            ns = int(seconds * NS)
            columns = tasks.c.begun_ns, tasks.c.ended_ns, tasks.c.expires_ns
            with self.catalog.database.write() as connection:
                connection.execute(update(tasks).values({column.name: column - ns for column in columns}))

    def close(self) -> None:
        for catalog in self.catalogs:
            catalog.close()


def installation(kind: str, place: Path) -> Iterator[Servers]:
    made = Servers(postgres_server.ready_url() if kind == "postgresql" else str(place / "catalog.db"))
    yield made
    made.close()


def counting(ran: list[str], name: str, every_s: float = 60) -> Callable[[str], Task]:
    """A task that notes on which server it ran."""
    return lambda server: Task(name, every_s, lambda _: ran.append(server) or "did it")
