"""The last observations of the wall clocks of the machines, to detect a jump even across restarts."""

from collections.abc import Iterable
from typing import Final, NamedTuple

from sqlalchemy import Insert, Update, delete, func, select, update

from staddle_server.catalog import schema
from staddle_server.catalog.database import Database, insert_or_ignore, rows_in
from staddle_server.catalog.decisions import keep_pending
from staddle_server.catalog.tenants import TenantRows
from staddle_server.catalog.values import PendingRecord

_c = schema.clock.c
KEPT: Final = 100_000
"""A boot whose last observation is this many behind the newest is over: weeks, with several machines."""
_numbers = schema.clock.alias().c.number
_NEXT_NUMBER: Final = select(func.coalesce(func.max(_numbers), 0) + 1).scalar_subquery()
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
    """The last observation of each machine, or rather of each boot of one: their wall clocks differ."""

    def __init__(self, database: Database, tenants: TenantRows) -> None:
        self._database = database
        self._tenants = tenants

    def get(self, boot: str) -> ClockSeen | None:
        """Return the last observation in this boot; without one, the newest of any other; None for none."""
        with self._database.look_up() as connection:
            found = rows_in(connection, _SEEN, {}, _c.boot, (boot,))
            if not found:
                found = connection.execute(select(*_SEEN).order_by(_c.number.desc()).limit(1)).all()
        return ClockSeen(*found[0]) if found else None

    def put(self, seen: ClockSeen, before: ClockSeen | None, records: Iterable[PendingRecord] = ()) -> bool:
        """Store this observation, and `records` as pending, if `before` is still what `get` returns; return
        whether it was.
        """
        with self._database.write() as connection:
            # One statement compares and writes: another server may look at the same moment.
            values = {**seen._asdict(), "number": _NEXT_NUMBER}
            first = before is None or before.boot != seen.boot
            query: Insert | Update
            if first:
                query = insert_or_ignore(connection, schema.clock).values(**values)
            else:
                same = [_c[name] == value for name, value in (before or seen)._asdict().items()]
                query = update(schema.clock).where(*same).values(**values)
            if connection.execute(query).rowcount != 1:
                return False
            if first:
                connection.execute(delete(schema.clock).where(_c.number <= _NEXT_NUMBER - KEPT))
            for record in records:
                keep_pending(connection, self._tenants.row(connection, record.tenant), [record])
            return True

    def newest_ns(self) -> int:
        """Return the newest time of a commit or decision; 0 for none."""
        with self._database.read() as connection:
            commit = connection.execute(select(func.max(schema.backups.c.commit_ns))).scalar() or 0
            decided = connection.execute(select(func.max(schema.tenants.c.decided_ns))).scalar() or 0
        return max(int(commit), int(decided))
