"""A tenant whose keys do not open: what is lost, what still works, and what to do."""

from __future__ import annotations

from staddle_server.base.errors import StaddleError
from staddle_server.catalog import TenantRow
from staddle_server.store.blobs import Blobs
from staddle_server.store.keys import KeyStore, WrongMasterKey, keys_name


def catalog_has_keys(blobs: Blobs, keys: KeyStore, row: TenantRow) -> bool:
    """Return whether the catalog's copy of the tenant's wrapped keys can replace the store's.

    It cannot if the store has a newer version, or if the copy does not open. Raises Unavailable.
    """
    name = keys_name(row.id, row.keys_version)
    newer = any(other > name for other, _ in blobs.list(f"keys/{row.id.hex()}"))
    return not newer and keys.opens(row.id, row.keys_version, row.wrapped_keys)


def keys_words(blobs: Blobs, keys: KeyStore, row: TenantRow, error: StaddleError) -> str:
    """Describe a tenant whose keys are missing or do not open with `error`. Raises Unavailable."""
    if catalog_has_keys(blobs, keys, row):
        way = "`staddle-server repair` writes the keys again from the catalog"
    elif isinstance(error, WrongMasterKey):
        way = (
            "restore the master.key that belongs to this directory, and restart the server; if it is the right one, restore "
            f"keys/{row.id.hex()} from a copy of the store"
        )
    else:
        way = f"restore keys/{row.id.hex()} from a copy of the store, as the catalog has no copy that fits"
    return (
        f"nothing of tenant {row.name} can be read or backed up: {error.message}. Other tenants are served, and nothing is "
        f"deleted. What to do: {way}"
    )
