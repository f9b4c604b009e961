"""The last observation of the wall clock, to detect a jump even across restarts."""

from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import Insert, Update, func, select, update

from staddle_server.catalog import schema
from staddle_server.catalog.database import Database, insert_or_ignore, rows_in
from staddle_server.catalog.decisions import keep_pending
from staddle_server.catalog.tenants import TenantRows
from staddle_server.catalog.values import PendingRecord

_c = schema.clock.c
_ROW = 1
_SEEN = (_c.boot, _c.offset_ns, _c.uptime_ns, _c.seen_ns, _c.jump_ns, _c.waited_ns)


class ClockSeen(NamedTuple):
    """The wall clock compared with a clock that only rises.

    Attributes:
        boot: The boot of the machine in which it was observed.
        offset_ns: How far the wall clock is ahead of the uptime while it is right.
        uptime_ns: The machine's uptime.
        seen_ns: The last trusted time.
        jump_ns: How far the wall clock is off; 0 if it is trusted.
        waited_ns: How much time has really passed since that jump.

    """

    boot: str
    offset_ns: int
    uptime_ns: int
    seen_ns: int
    jump_ns: int
    waited_ns: int


class Clocks:
    """The single row about the wall clock."""

    def __init__(self, database: Database, tenants: TenantRows) -> None:
        self._database = database
        self._tenants = tenants

    def get(self) -> ClockSeen | None:
        """Return the last observation; None for none."""
        with self._database.look_up() as connection:
            rows = rows_in(connection, _SEEN, {}, _c.row, (_ROW,))
        return ClockSeen(*rows[0]) if rows else None

    def put(self, seen: ClockSeen, before: ClockSeen | None, records: Iterable[PendingRecord] = ()) -> bool:
        """Store this observation, and `records` as pending, if `before` is still the last one; return whether
        it was.
        """
        with self._database.write() as connection:
            # One statement compares and writes: another server may look at the same moment.
            query: Insert | Update
            if before is None:
                query = insert_or_ignore(connection, schema.clock).values(row=_ROW, **seen._asdict())
            else:
                same = [_c[name] == value for name, value in before._asdict().items()]
                query = update(schema.clock).where(_c.row == _ROW, *same).values(**seen._asdict())
            if connection.execute(query).rowcount != 1:
                return False
            for record in records:
                keep_pending(connection, self._tenants.row(connection, record.tenant), [record])
            return True

    def newest_ns(self) -> int:
        """Return the newest time of a commit or decision; 0 for none."""
        with self._database.read() as connection:
            commit = connection.execute(select(func.max(schema.backups.c.commit_ns))).scalar() or 0
            decided = connection.execute(select(func.max(schema.tenants.c.decided_ns))).scalar() or 0
        return max(int(commit), int(decided))
