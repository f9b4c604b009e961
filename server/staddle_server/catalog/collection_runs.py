"""What the last collections of each tenant did. Nothing depends on it: it is for people."""

import json
from collections.abc import Mapping
from typing import Final, NamedTuple

from sqlalchemy import delete, func, insert, select

from staddle_server.catalog import schema
from staddle_server.catalog.database import Database, later
from staddle_server.catalog.leases import require_fence
from staddle_server.catalog.tenants import GC_FAILURE_CHARS_MAX, TenantRows

_c = schema.collections.c
KEPT: Final = 20
"""Collections of a tenant that are kept, the newest ones."""


class CollectionRun(NamedTuple):
    """A collection of a tenant's garbage. `figures` are those of its report; `failure` is empty for none."""

    begun_ns: int
    ended_ns: int
    figures: Mapping[str, int]
    failure: str


class CollectionRuns:
    """The last collections of all tenants."""

    def __init__(self, database: Database, tenants: TenantRows) -> None:
        self._database = database
        self._tenants = tenants

    def note(self, tenant: bytes, fence: int, run: CollectionRun) -> None:
        """Keep what a collection did, in place of the oldest one that is known, if there are KEPT."""
        with self._database.write() as connection:
            require_fence(connection, fence)
            row = self._tenants.row(connection, tenant)
            mine = _c.tenant == row
            newest = connection.execute(select(func.max(_c.number)).where(mine)).scalar() or 0
            later(connection, delete(schema.collections).where(mine, _c.number <= newest + 1 - KEPT))
            values = {"begun_ns": run.begun_ns, "ended_ns": run.ended_ns, "figures": json.dumps(run.figures)}
            failure = run.failure[:GC_FAILURE_CHARS_MAX]
            later(
                connection,
                insert(schema.collections).values(tenant=row, number=newest + 1, failure=failure, **values),
            )

    def last(self, tenant: bytes) -> list[CollectionRun]:
        """Return a tenant's collections, the one that ended last first."""
        query = select(_c.begun_ns, _c.ended_ns, _c.figures, _c.failure)
        with self._database.read() as connection:
            mine = query.where(_c.tenant == self._tenants.row(connection, tenant))
            rows = connection.execute(mine.order_by(_c.number.desc()).limit(KEPT))
            return [CollectionRun(row[0], row[1], json.loads(row[2]), row[3]) for row in rows]
