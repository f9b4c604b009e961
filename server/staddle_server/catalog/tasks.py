"""Scheduled upkeep: when each task last ran, on which server, and its outcome.

Where several servers share the catalog, the database's clock decides what is due, and each task runs on one
of them at a time.
"""

from typing import Any, Final, NamedTuple

from sqlalchemy import Row, select, update

from staddle_server.base.clock import NS
from staddle_server.catalog import schema
from staddle_server.catalog.database import Database, insert_or_ignore, now_ns
from staddle_server.catalog.leases import Lease, is_held, lock, take

_t = schema.tasks.c
OUTCOME_CHARS_MAX = 1000
FAILED: Final = "failed: "
"""How the outcome of a run that failed begins; the reason follows."""


class Period(NamedTuple):
    """When a task is due again: `every_s` after its last start.

    A last start more than `ahead_s` in the future was noted by a wrong clock, and does not count.
    """

    every_s: float
    ahead_s: float


class TaskRun(NamedTuple):
    """The last run of a task; None if it never began, or has not ended."""

    name: str
    begun_ns: int | None
    ended_ns: int | None
    outcome: str

    @property
    def has_failed(self) -> bool:
        """Whether it ended with a failure."""
        return self.outcome.startswith(FAILED)


class Tasks:
    """The last run of each task, and the lease of the running one.

    `own_ns` is this process's time, for a database without a clock of its own.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def is_due(self, name: str, own_ns: int, period: Period) -> bool:
        """Return whether the task's period since its last start is over. A look without a lock."""
        with self._database.read() as connection:
            row = connection.execute(
                select(_t.begun_ns, now_ns(connection, own_ns)).where(_t.name == name)
            ).one_or_none()
        return row is None or _is_due(row, period)

    def claim(self, name: str, holder: str, own_ns: int, lease_s: float, period: Period) -> int | None:
        """Begin the task if it is due and no live process runs it; return the fence of its lease, or None."""
        with self._database.write() as connection:
            row = lock(connection, name, own_ns)
            if is_held(row, lease_s) or not _is_due(row, period):
                return None
            return take(connection, row, holder, lease_s, begun_ns=row.now_ns, ended_ns=None, outcome="")

    def lease(self, name: str) -> Lease:
        """Return the lease of a task, for a command that does the same work now."""
        return Lease(self._database, name, f"busy with {name}")

    def end(self, name: str, fence: int, own_ns: int, outcome: str) -> bool:
        """Record that the task has ended, with this outcome, and return its lease.

        Returns False, and changes nothing, if another process has the lease by now.
        """
        with self._database.write() as connection:
            done = connection.execute(
                update(schema.tasks)
                .where(_t.name == name, _t.fence == fence)
                .values(
                    ended_ns=now_ns(connection, own_ns),
                    outcome=outcome[:OUTCOME_CHARS_MAX],
                    holder="",
                    expires_ns=0,
                )
            )
            return bool(done.rowcount)

    def give_up(self, name: str, fence: int) -> None:
        """Return the lease of a task that was stopped before its end: it is due again at once."""
        with self._database.write() as connection:
            connection.execute(
                update(schema.tasks)
                .where(_t.name == name, _t.fence == fence)
                .values(begun_ns=None, holder="", expires_ns=0)
            )

    def note(self, name: str, begun_ns: int, ended_ns: int, outcome: str) -> None:
        """Record a run of a task that every server runs: the last one stands."""
        with self._database.write() as connection:
            connection.execute(insert_or_ignore(connection, schema.tasks), {"name": name, "outcome": ""})
            values = {"begun_ns": begun_ns, "ended_ns": ended_ns, "outcome": outcome[:OUTCOME_CHARS_MAX]}
            connection.execute(update(schema.tasks).where(_t.name == name).values(**values))

    def last(self, name: str) -> TaskRun:
        """Return the task's last run."""
        with self._database.read() as connection:
            row = connection.execute(
                select(_t.name, _t.begun_ns, _t.ended_ns, _t.outcome).where(_t.name == name)
            ).one_or_none()
        return TaskRun(name, None, None, "") if row is None else TaskRun(*row)


def _is_due(row: Row[Any], period: Period) -> bool:
    if row.begun_ns is None:
        return True
    since_s = (row.now_ns - row.begun_ns) / NS
    return bool(since_s >= period.every_s or since_s <= -period.ahead_s)
