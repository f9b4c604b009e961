"""The free space of the servers' disks over time, from which its end is forecast."""

from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import delete, insert, select

from staddle_server.base.clock import NS
from staddle_server.catalog import schema
from staddle_server.catalog.database import Database, later

_s = schema.space_samples.c
KEPT_S: Final = 90 * 24 * 3600.0
SAMPLES_MAX: Final = 24 * 91
"""Samples of one server and path that are read."""

Samples = Sequence[tuple[int, int]]
"""Time in nanoseconds and free bytes, in the order of time."""


class SpaceSamples:
    """Samples by server, which its data directory names, and path."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def note(self, server: str, free_bytes: Mapping[str, int], at_ns: int) -> None:
        """Keep a sample of each path; delete those of the server that are older than KEPT_S, or later."""
        kept_ns = int(KEPT_S * NS)
        with self._database.write() as connection:
            mine = delete(schema.space_samples).where(_s.server == server)
            later(connection, mine.where(_s.taken_ns < at_ns - kept_ns))
            # A clock that was ahead took them.
            later(connection, mine.where(_s.taken_ns >= at_ns))
            for path, free in free_bytes.items():
                values = {"server": server, "path": path, "taken_ns": at_ns, "free_bytes": free}
                later(connection, insert(schema.space_samples).values(**values))

    def of(self, server: str, path: str) -> Samples:
        """Return the samples of a path."""
        query = (
            select(_s.taken_ns, _s.free_bytes)
            .where(_s.server == server, _s.path == path)
            .order_by(_s.taken_ns.desc())
            .limit(SAMPLES_MAX)
        )
        with self._database.read() as connection:
            return [(row.taken_ns, row.free_bytes) for row in connection.execute(query)][::-1]
