"""Leases of work that one process does at a time, each with a fence.

A holder that was presumed dead cannot change anything any more. Where several servers share the catalog, the
database's clock decides when a lease ends.
"""

from typing import Any, Final

from sqlalchemy import Connection, Row, select, update

from staddle_server.base import errors
from staddle_server.base.clock import NS
from staddle_server.catalog import schema
from staddle_server.catalog.database import Database, insert_or_ignore, later, locking, now_ns
from staddle_server.catalog.validation import rfc3339

_t = schema.tasks.c
COLLECTOR: Final = "collector"
_FREE: Final = 0


class Lease:
    """The lease of one kind of work. Writes that carry its fence are refused once another process has it."""

    def __init__(self, database: Database, name: str, doing: str) -> None:
        """`doing` says for messages what its holder does."""
        self._database = database
        self._name = name
        self._doing = doing

    def acquire(self, holder: str, own_ns: int, lease_s: float) -> int:
        """Take the lease and return its fence, higher than every earlier one.

        `own_ns` is this process's time, for a database without a clock of its own.

        Raises:
            Conflict: LEASE_HELD, another process has it and is not overdue.

        """
        with self._database.write() as connection:
            row = lock(connection, self._name, own_ns)
            if is_held(row, lease_s):
                raise self._held(row)
            return take(connection, row, holder, lease_s)

    def renew(self, fence: int, own_ns: int, lease_s: float) -> None:
        """Extend the lease. Conflict STALE_EPOCH if another process has it."""
        with self._database.write() as connection:
            row = lock(connection, self._name, own_ns)
            _require(row.fence, fence, self._doing)
            connection.execute(_update(self._name).values(expires_ns=row.now_ns + int(lease_s * NS)))

    def release(self, fence: int) -> None:
        """Return the lease; if another process has it by now, leave it."""
        with self._database.write() as connection:
            connection.execute(
                _update(self._name).where(_t.fence == fence).values(holder="", expires_ns=_FREE)
            )

    def require(self, connection: Connection, fence: int) -> None:
        """Raise STALE_EPOCH unless this is the newest fence.

        Locks the lease's row: a successor waits for this transaction.
        """
        query = locking(select(_t.fence).where(_t.name == self._name))
        _require(connection.execute(query).scalar(), fence, self._doing)

    def holder(self, own_ns: int) -> str:
        """Return who has the lease now; "" for no one."""
        with self._database.read() as connection:
            row = connection.execute(
                select(_t.holder, _t.expires_ns, now_ns(connection, own_ns)).where(_t.name == self._name)
            ).one_or_none()
        return "" if row is None or row.expires_ns <= row.now_ns else str(row.holder)

    def _held(self, row: Row[Any]) -> errors.Conflict:
        until = rfc3339(row.expires_ns)
        return errors.Conflict(
            "LEASE_HELD",
            f"{row.holder} is {self._doing}: wait until it ends (or, if it was killed, until {until})",
            lease_expire_time=until,
        )


def collectors_lease(database: Database) -> Lease:
    """Return the one lease of all collectors, which repair takes too."""
    return Lease(database, COLLECTOR, "collecting or repairing")


def require_fence(connection: Connection, fence: int) -> None:
    """Raise STALE_EPOCH unless this is the newest fence of the collectors' lease.

    Locks its row: a successor waits for this transaction.
    """
    query = locking(select(_t.fence).where(_t.name == COLLECTOR))
    _require(connection.execute(query).scalar(), fence, "collecting or repairing")


def lock(connection: Connection, name: str, own_ns: int) -> Row[Any]:
    """Lock the row of a lease, which is made if necessary, and return it with the time as `now_ns`."""
    later(connection, insert_or_ignore(connection, schema.tasks), {"name": name, "outcome": ""})
    query = select(schema.tasks, now_ns(connection, own_ns)).where(_t.name == name)
    return connection.execute(locking(query)).one()


def is_held(row: Row[Any], lease_s: float) -> bool:
    """Return whether the lease of a row of `lock` is another's.

    A lease that ends much later than any can was taken before the clock was set back, and does not count. A
    little later is a process whose clock is ahead of this one, or a transaction that waited for its turn.
    """
    return bool(row.now_ns < row.expires_ns <= row.now_ns + 2 * int(lease_s * NS))


def take(connection: Connection, row: Row[Any], holder: str, lease_s: float, **values: object) -> int:
    """Give the lease of a row of `lock` to this holder, set these values too, and return the fence."""
    fence = int(row.fence) + 1
    expires_ns = row.now_ns + int(lease_s * NS)
    connection.execute(_update(row.name).values(holder=holder, fence=fence, expires_ns=expires_ns, **values))
    return fence


def _update(name: str) -> Any:
    return update(schema.tasks).where(_t.name == name)


def _require(found: int | None, fence: int, doing: str) -> None:
    if found != fence:
        raise errors.Conflict(
            "STALE_EPOCH",
            f"Another process is {doing} by now (fence {found}, not {fence}): this one stops, without loss",
            epoch=str(found),
        )
