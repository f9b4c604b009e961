"""Whether a catalog knows of every record in its store: one that does not was put back from a copy."""

from __future__ import annotations

from staddle_server.catalog import Catalog
from staddle_server.errors import Damaged
from staddle_server.session.tenant import Tenant
from staddle_server.store.records import sequence_of


def newest_stored(tenant: Tenant) -> int:
    """The highest number of a record that the store has, or had. Reads the head, and lists the records once."""
    try:
        newest = tenant.records.head.read()
    except Damaged:
        newest = 0
    return max(newest, max((sequence_of(name) or 0 for name in tenant.records.list()), default=0))


def records_unknown(tenant: Tenant, catalog: Catalog) -> int:
    """How many decisions the store has records of that the catalog has not made. Raises Unavailable."""
    stored = newest_stored(tenant)
    # Asked second: what a server that runs decides meanwhile is known by then.
    return max(0, stored - catalog.tenants.newest_record(tenant.id))
