"""The live packs of a tenant beside one listing of the store."""

from __future__ import annotations

from collections.abc import Iterator

from staddle_server.catalog import Catalog, LivePack
from staddle_server.store.blobs import Blobs
from staddle_server.store.pack import packs_prefix, parse_pack_name
from staddle_server.tenancy.tenant import Tenant


def each_pack(catalog: Catalog, tenant: bytes) -> Iterator[LivePack]:
    """Yield all live packs of a tenant by id."""
    after = b""
    while page := catalog.verification.live_packs(tenant, after=after):
        yield from page
        after = page[-1].id


def compared_with_listing(tenant: Tenant, catalog: Catalog) -> Iterator[tuple[LivePack, bool]]:
    """Yield all live packs, and whether the store lists their object with its size; in constant memory.

    A pack that is not listed so may have been published, collected or replaced meanwhile: look at it again.

    Raises:
        Unavailable: The store does not answer.

    """
    listed = _listed(tenant.blobs, tenant.id)
    at = next(listed, None)
    for pack in each_pack(catalog, tenant.id):
        while at is not None and at[0] < pack.id:
            at = next(listed, None)
        yield pack, at == (pack.id, pack.size_bytes)


def _listed(blobs: Blobs, tenant: bytes) -> Iterator[tuple[bytes, int]]:
    for name, size in blobs.list(packs_prefix(tenant)):
        try:
            yield parse_pack_name(name)[1], size
        except ValueError:
            continue
