"""Objects that backups need and that somebody with the store's credentials deleted: object lock keeps their
versions, below the markers of the deletions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from staddle._base.figures import counted

from staddle_server.catalog import WHOLE_PACK, TenantRow
from staddle_server.store.blobs import FORMAT_NAME
from staddle_server.store.locks import ObjectLock, hidden_below, some_names
from staddle_server.store.pack import pack_name
from staddle_server.store.records import records_prefix, sequence_of
from staddle_server.tenancy.pack_listing import each_pack
from staddle_server.upkeep.integrity.findings import Kept
from staddle_server.upkeep.integrity.record_check import lost_records
from staddle_server.upkeep.record_chain import Span

PACKS_MAX: Final = 1_000
"""The most missing packs of a tenant that are looked for below markers."""


def hidden_records(lock: ObjectLock, tenant: bytes, missing: Iterable[Span]) -> list[str]:
    """Return the names of a tenant's hidden records with these numbers. Raises Unavailable."""
    numbers = list(missing)
    if not numbers:
        return []
    return [
        name
        for name in hidden_below(lock, records_prefix(tenant))
        if any(span.first <= (sequence_of(name) or 0) <= span.last for span in numbers)
    ]


def hidden_keys(lock: ObjectLock, tenant: bytes) -> list[str]:
    """Return the names of a tenant's hidden keys, which are never deleted. Raises Unavailable."""
    return list(hidden_below(lock, f"keys/{tenant.hex()}"))


def hidden_packs(lock: ObjectLock, tenant: bytes, packs: Iterable[bytes]) -> list[str]:
    """Return the names of those of a tenant's live packs that are hidden. Raises Unavailable."""
    return [name for pack in packs for name in hidden_below(lock, pack_name(tenant, pack))]


def hidden_objects(kept: Kept, lock: ObjectLock) -> Iterator[str]:
    """Yield the names of all hidden objects that backups need; packs only if they are known to be missing.

    Raises Damaged for keys that do not open, and Unavailable.
    """
    yield from hidden_below(lock, FORMAT_NAME)
    for row in kept.catalog.tenants.list_all():
        keys = hidden_keys(lock, row.id)
        yield from keys
        if not keys:
            yield from hidden_records(lock, row.id, lost_records(kept.tenants.get(row.id), kept.catalog))
            yield from hidden_packs(lock, row.id, _missing_packs(kept, row))


def hidden_words(names: list[str]) -> str:
    """Return in words that these objects are hidden, and what to do."""
    return (
        f"{counted(len(names), 'object is', 'objects are')} hidden in the bucket by delete markers{some_names(names)}. Somebody with "
        "the store's credentials deleted them; object lock keeps their versions. Take the credentials away from the "
        "attacker, then run `staddle-server lock --unhide`"
    )


def _missing_packs(kept: Kept, row: TenantRow) -> list[bytes]:
    if not kept.catalog.packs.known_damage().get(row.id):
        return []
    missing = [pack.id for pack in each_pack(kept.catalog, row.id) if WHOLE_PACK in pack.marks]
    return missing[:PACKS_MAX]
