"""What was last seen of the wall clock, so that a jump is noticed over restarts too."""

from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import Connection, delete, func, insert, select

from staddle_server.catalog import schema
from staddle_server.catalog.database import Database, rows_in
from staddle_server.catalog.decisions import keep_pending
from staddle_server.catalog.tenants import TenantRows
from staddle_server.catalog.values import PendingRecord

_c = schema.clock.c
_ROW = 1
_SEEN = (_c.boot, _c.offset_ns, _c.uptime_ns, _c.seen_ns, _c.jump_ns, _c.waited_ns)


class ClockSeen(NamedTuple):
    """The wall clock beside one that only rises.

    Attributes:
        boot: In which run of the machine it was seen.
        offset_ns: What the wall clock is ahead of the uptime, while it is right.
        uptime_ns: How long the machine had run.
        seen_ns: The time, as far as it is believed.
        jump_ns: How far the wall clock is off; 0: it is believed.
        waited_ns: How much time has really passed since that jump.

    """

    boot: str
    offset_ns: int
    uptime_ns: int
    seen_ns: int
    jump_ns: int
    waited_ns: int


class Clocks:
    """The one row about the wall clock."""

    def __init__(self, database: Database, tenants: TenantRows) -> None:
        self._database = database
        self._tenants = tenants

    def get(self) -> ClockSeen | None:
        """What was seen last; None: nothing yet."""
        with self._database.read() as connection:
            return _last(connection)

    def put(self, seen: ClockSeen, before: ClockSeen | None, records: Iterable[PendingRecord] = ()) -> bool:
        """Keeps what is seen now, and `records` as pending, if `before` is still what was seen last. Whether it was."""
        with self._database.write() as connection:
            if _last(connection) != before:
                return False
            connection.execute(delete(schema.clock))
            connection.execute(insert(schema.clock), {"row": _ROW, **seen._asdict()})
            for record in records:
                keep_pending(connection, self._tenants.row(connection, record.tenant), [record])
            return True

    def newest_ns(self) -> int:
        """The newest time of a commit or a decision; 0: there is none."""
        with self._database.read() as connection:
            commit = connection.execute(select(func.max(schema.backups.c.commit_ns))).scalar() or 0
            decided = connection.execute(select(func.max(schema.tenants.c.decided_ns))).scalar() or 0
        return max(int(commit), int(decided))


def _last(connection: Connection) -> ClockSeen | None:
    rows = rows_in(connection, _SEEN, {}, _c.row, (_ROW,))
    return ClockSeen(*rows[0]) if rows else None
