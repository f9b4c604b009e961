"""The entries of a backup that cannot be restored completely, so that the next upload sends them again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby, islice
from typing import Final, NamedTuple

from staddle_server.base.types import Entry, EntryType, Root
from staddle_server.catalog import Catalog
from staddle_server.manifest.read import Gap
from staddle_server.tenancy.chunk_reader import ChunkReader
from staddle_server.tenancy.losses import Losses
from staddle_server.tenancy.tenant import Tenant

LISTED_MAX: Final = 1000
"""Damaged entries that one answer lists."""


class DamagedEntries(NamedTuple):
    """Some damaged entries, and whether more exist."""

    entries: list[Entry]
    more: bool


def damaged_entries(
    tenant: Tenant,
    catalog: Catalog,
    root: Root,
    after: bytes | None,
    limit: int = LISTED_MAX,
    *,
    check: Callable[[], None] = lambda: None,
) -> DamagedEntries:
    """Return the entries of a manifest after `after` whose content or attributes lack chunks.

    An unreadable page is returned as a directory at its last path, so that no caller counts its entries as
    intact. Free without known damage in this tenant; else reads the manifest, and calls `check` at each page,
    which raises once the caller is gone.
    """
    if not root.digest or not catalog.packs.damaged_count(tenant.id):
        return DamagedEntries([], more=False)
    losses = Losses(ChunkReader(tenant, catalog, check=check))
    found = list(islice(_damaged(losses, root, after), limit + 1))
    return DamagedEntries(found[:limit], len(found) > limit)


def _damaged(losses: Losses, root: Root, after: bytes | None) -> Iterator[Entry]:
    for where, _ in groupby(losses.of(root, after=after), key=lambda loss: loss.where):
        if isinstance(where, Gap):
            yield Entry(where.upto or where.after or b"", EntryType.DIRECTORY)
        elif where is not None:
            yield where
