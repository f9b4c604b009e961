"""Whether a catalog knows every record in its store: one that does not was restored from an old copy."""

from __future__ import annotations

from staddle_server.base.errors import Damaged
from staddle_server.catalog import Catalog
from staddle_server.store.blobs import Blobs
from staddle_server.store.keys import KeyStore
from staddle_server.store.pack import packs_prefix
from staddle_server.store.records import is_head_name, records_prefix, sequence_of
from staddle_server.tenancy.tenant import Tenant, keys_damage


def newest_stored(tenant: Tenant) -> int:
    """Return the highest number of a record that the store has, or had.

    Reads the head, and lists the records once.
    """
    try:
        newest = tenant.records.head.read()
    except Damaged:
        newest = 0
    return max(newest, max((sequence_of(name) or 0 for name in tenant.records.list()), default=0))


def records_unknown(tenant: Tenant, catalog: Catalog) -> int:
    """Return how many decisions in the store's records the catalog lacks. Raises Unavailable."""
    stored = newest_stored(tenant)
    # Read second: what a running server decides meanwhile is known by then.
    return max(0, stored - catalog.tenants.newest_record(tenant.id))


def tenants_unknown(blobs: Blobs, keys: KeyStore, catalog: Catalog) -> set[bytes]:
    """Return tenants that the catalog lacks and a rebuild finds: with records or packs, and with keys that
    open.

    Lists the heads once. Raises Unavailable.
    """
    recorded = {
        bytes.fromhex(name.partition("/")[2]) for name, _ in blobs.list("heads") if is_head_name(name)
    }
    # Read second: a tenant that another process creates meanwhile is known by then.
    unknown = recorded - {row.id for row in catalog.tenants.list_all()}
    return {tenant for tenant in unknown if was_finished(blobs, tenant) and keys_damage(keys, tenant) is None}


def was_finished(blobs: Blobs, tenant: bytes) -> bool:
    """Return whether a tenant's creation was completed: its record is written last, before the tenant is
    reported.
    """
    names = (records_prefix(tenant), packs_prefix(tenant))
    return any(next(blobs.list(prefix), None) is not None for prefix in names)
