"""Which entries of a backup cannot be given back whole, so that the next upload sends them again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, NamedTuple

from staddle_server.catalog import Catalog
from staddle_server.errors import Damaged
from staddle_server.manifest.content import chunks_of
from staddle_server.manifest.read import Gap, Manifest
from staddle_server.session.reading import ChunkReader
from staddle_server.session.tenant import Tenant
from staddle_server.types import Entry, EntryType, Role, Root

LISTED_MAX: Final = 1000
"""Damaged entries that one answer lists."""
_BATCH: Final = 1024


class DamagedEntries(NamedTuple):
    """Some of them, and whether there are more."""

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
    """The entries of a manifest, behind `after`, whose content or attributes lack chunks; and for each part of the manifest that cannot
    be read one path at its end, as a directory, so that nobody takes what is there for whole.

    Costs nothing while no damage is known in this tenant; else it reads the manifest, and asks `check` at each page, which
    raises where the caller has gone.
    """
    if not root.digest or not catalog.packs.damaged_count(tenant.id):
        return DamagedEntries([], more=False)
    found = list(islice(_damaged(ChunkReader(tenant, catalog, check=check), root, after), limit + 1))
    return DamagedEntries(found[:limit], len(found) > limit)


def _damaged(reader: ChunkReader, root: Root, after: bytes | None) -> Iterator[Entry]:
    entries = (
        entry
        for entry in Manifest(root, reader).walk(after=after)
        if isinstance(entry, Gap) or entry.content is not None or entry.attributes_ref is not None
    )
    while batch := list(islice(entries, _BATCH)):
        known = [entry for entry in batch if isinstance(entry, Entry)]
        inline = {ref.digest for entry in known for ref in (entry.content.chunks if entry.content else ())}
        large = {entry.attributes_ref.digest for entry in known if entry.attributes_ref is not None}
        here = reader.sound(Role.DATA, inline)
        attributes = reader.sound(Role.MANIFEST, large) if large else set()
        for entry in batch:
            if isinstance(entry, Gap):
                yield Entry(entry.upto or entry.after or b"", EntryType.DIRECTORY)
                continue
            whole = entry.attributes_ref is None or entry.attributes_ref.digest in attributes
            if not (whole and _has_all(entry, here, reader)):
                yield entry


def is_whole(entry: Entry, reader: ChunkReader) -> bool:
    """Whether nothing of an entry's content is known to be missing or damaged."""
    refs = entry.content.chunks if entry.content is not None else ()
    return _has_all(entry, reader.sound(Role.DATA, [ref.digest for ref in refs]), reader)


def _has_all(entry: Entry, here: set[bytes], reader: ChunkReader) -> bool:
    content = entry.content
    if content is None or content.root is None:
        return content is None or all(ref.digest in here for ref in content.chunks)
    try:
        refs = chunks_of(content, reader)
        while batch := [ref.digest for _, ref in islice(refs, _BATCH)]:
            if not reader.sound(Role.DATA, batch).issuperset(batch):
                return False
    except Damaged:
        return False
    return True
