"""Scheduled upkeep: when each task last ran, and its outcome."""

from typing import NamedTuple

from sqlalchemy import select, update

from staddle_server.catalog import schema
from staddle_server.catalog.database import Database, insert_or_ignore

_t = schema.tasks.c
OUTCOME_CHARS_MAX = 1000


class TaskRun(NamedTuple):
    """The last run of a task; None if it never began, or has not ended."""

    name: str
    begun_ns: int | None
    ended_ns: int | None
    outcome: str


class Tasks:
    """The last run of each task."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, name: str, now_ns: int) -> None:
        """Record that the task begins now."""
        with self._database.write() as connection:
            connection.execute(insert_or_ignore(connection, schema.tasks), {"name": name, "outcome": ""})
            connection.execute(
                update(schema.tasks).where(_t.name == name).values(begun_ns=now_ns, ended_ns=None, outcome="")
            )

    def end(self, name: str, now_ns: int, outcome: str) -> None:
        """Record that the task has ended, with this outcome."""
        with self._database.write() as connection:
            connection.execute(
                update(schema.tasks)
                .where(_t.name == name)
                .values(ended_ns=now_ns, outcome=outcome[:OUTCOME_CHARS_MAX])
            )

    def last(self, name: str) -> TaskRun:
        """Return the task's last run."""
        with self._database.read() as connection:
            row = connection.execute(
                select(_t.name, _t.begun_ns, _t.ended_ns, _t.outcome).where(_t.name == name)
            ).one_or_none()
        return TaskRun(name, None, None, "") if row is None else TaskRun(*row)
