"""Whether a catalog knows every record in its store: one that does not was restored from an old copy."""

from __future__ import annotations

from itertools import chain, pairwise

from staddle_server.base.errors import Damaged
from staddle_server.catalog import Catalog
from staddle_server.store.blobs import Blobs
from staddle_server.store.keys import KeyStore
from staddle_server.store.pack import packs_prefix
from staddle_server.store.records import is_head_name, records_prefix, sequence_of
from staddle_server.tenancy.tenant import Tenant, keys_damage


def records_unknown(tenant: Tenant, catalog: Catalog) -> int:
    """Return how many decisions in the store's records the catalog lacks, as far as their numbers tell.

    These are numbers that it has not given yet, and those that two records have, except where the catalog was
    rebuilt from both: it then decided as if the other decision had not been made.

    Reads the head, and lists the records once. Raises Unavailable.
    """
    try:
        stored = tenant.records.head.read()
    except Damaged:
        stored = 0
    twice: list[int] = []
    numbers = filter(None, map(sequence_of, tenant.records.list()))
    for before, sequence in pairwise(chain((0,), numbers)):
        if sequence == before:
            twice.append(sequence)
        stored = max(stored, sequence)
    # Read second: what a running server decides meanwhile is known by then.
    unknown = max(0, stored - catalog.tenants.newest_record(tenant.id))
    if twice:
        rebuilt = catalog.tenants.rebuilt_record(tenant.id)
        unknown += sum(sequence > rebuilt for sequence in twice)
    return unknown


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
