"""The lease of collection and repair, with a fence: a collector presumed dead cannot change anything any
more.
"""

from typing import Final

from sqlalchemy import Connection, select, update

from staddle_server.base import errors
from staddle_server.catalog import schema
from staddle_server.catalog.database import Database, insert_or_ignore, locking
from staddle_server.catalog.validation import NS, rfc3339

_g = schema.collector.c
_ROW: Final = 1
_NOBODY: Final = 0


class GcLease:
    """The one lease of all collectors.

    Their writes carry the fence, and are refused once another one took over.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def acquire(self, holder: str, now_ns: int, lease_s: float) -> int:
        """Take the lease and return its fence, higher than every earlier one.

        Raises:
            Conflict: LEASE_HELD, another collector has it and is not overdue.

        """
        lease_ns = int(lease_s * NS)
        with self._database.write() as connection:
            free = {"row": _ROW, "holder": "", "fence": 0, "expires_ns": _NOBODY}
            connection.execute(insert_or_ignore(connection, schema.collector), free)
            row = connection.execute(locking(select(schema.collector))).one()
            # A lease that ends much later than any can was taken before the clock was set back: ignore it. A
            # little later is a server whose clock is ahead of this one, or a transaction that waited for its
            # turn.
            if now_ns < row.expires_ns <= now_ns + 2 * lease_ns:
                raise _held(row.holder, row.expires_ns)
            fence = int(row.fence) + 1
            connection.execute(
                update(schema.collector).values(holder=holder, fence=fence, expires_ns=now_ns + lease_ns)
            )
            return fence

    def renew(self, fence: int, now_ns: int, lease_s: float) -> None:
        """Extend the lease. Conflict STALE_EPOCH if another collector has it."""
        with self._database.write() as connection:
            require_fence(connection, fence)
            connection.execute(update(schema.collector).values(expires_ns=now_ns + int(lease_s * NS)))

    def release(self, fence: int) -> None:
        """Return the lease; if another collector has it by now, leave it."""
        with self._database.write() as connection:
            connection.execute(
                update(schema.collector).where(_g.fence == fence).values(holder="", expires_ns=_NOBODY)
            )

    def holder(self, now_ns: int) -> str:
        """Return who is collecting now; "" for no one."""
        with self._database.read() as connection:
            row = connection.execute(select(_g.holder, _g.expires_ns)).one_or_none()
        return "" if row is None or row.expires_ns <= now_ns else str(row.holder)


def require_fence(connection: Connection, fence: int) -> None:
    """Raise STALE_EPOCH unless this is the newest fence.

    Locks the collector's row: a successor waits for this transaction.
    """
    found = connection.execute(locking(select(_g.fence))).scalar()
    if found != fence:
        raise errors.Conflict(
            "STALE_EPOCH",
            f"Another collector has taken over (fence {found}, not {fence}): this one stops, without loss",
            epoch=str(found),
        )


def _held(holder: str, expires_ns: int) -> errors.Conflict:
    until = rfc3339(expires_ns)
    return errors.Conflict(
        "LEASE_HELD",
        f"{holder} is collecting or repairing: wait until it ends (or, if it was killed, until {until})",
        lease_expire_time=until,
    )
