"""Whether a catalog knows of every record in its store: one that does not was put back from a copy."""

from __future__ import annotations

from contextlib import suppress

from staddle_server.catalog import Catalog
from staddle_server.errors import Damaged
from staddle_server.session.tenant import Tenant
from staddle_server.store.blobs import Blobs
from staddle_server.store.keys import KeyStore
from staddle_server.store.records import is_head_name, sequence_of


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


def tenants_recorded(blobs: Blobs, keys: KeyStore) -> set[bytes]:
    """The tenants that have a record in the store, and keys that open: no rebuild leaves them out. Lists the heads once.

    Raises Unavailable.
    """
    found = set()
    for name, _ in blobs.list("heads"):
        if is_head_name(name):
            tenant = bytes.fromhex(name.partition("/")[2])
            with suppress(Damaged):
                keys.load(tenant)
                found.add(tenant)
    return found
