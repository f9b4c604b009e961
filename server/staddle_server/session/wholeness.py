"""Whether everything that a new backup refers to has a sound copy, as far as anybody knows."""

from __future__ import annotations

from itertools import islice
from typing import Final, NamedTuple

from staddle_server.catalog import Catalog
from staddle_server.errors import Damaged
from staddle_server.manifest.content import chunks_of
from staddle_server.manifest.read import Gap, Manifest
from staddle_server.session.reading import ChunkReader
from staddle_server.session.tenant import Tenant
from staddle_server.types import ChunkRef, Entry, Role, Root

_BATCH: Final = 1024


class Lacking(NamedTuple):
    """What a manifest refers to and nothing sound holds.

    Attributes:
        chunks: Data chunks, with their lengths.
        paths: Entries of which the list of chunks or the attributes are lost: only the entries themselves bring those back.

    """

    chunks: dict[bytes, int]
    paths: list[bytes]

    @property
    def total(self) -> int:
        """How many things have to be sent again."""
        return len(self.chunks) + len(self.paths)


def lacking(tenant: Tenant, catalog: Catalog, root: Root, limit: int) -> Lacking:
    """What the backup with this manifest lacks, at most `limit` of it. Reads the manifest.

    Raises:
        Damaged: a page of the manifest cannot be read.

    """
    found = Lacking({}, [])
    if not root.entries:
        return found
    reader = ChunkReader(tenant, catalog)
    entries = Manifest(root, reader).walk()
    while found.total < limit and (batch := list(islice(entries, _BATCH))):
        for each in batch:
            if isinstance(each, Gap):
                raise Damaged(
                    f"a page of the list of entries is damaged: {each.message}; a backup of the kind FULL needs nothing of it"
                )
        known = [each for each in batch if isinstance(each, Entry)]
        _look(known, reader, found)
    return found


def _look(entries: list[Entry], reader: ChunkReader, found: Lacking) -> None:
    inline = [ref for entry in entries if entry.content is not None for ref in entry.content.chunks]
    attributes = {entry.attributes_ref.digest for entry in entries if entry.attributes_ref is not None}
    _add_lost(inline, reader, found)
    here = reader.sound(Role.MANIFEST, attributes) if attributes else set()
    for entry in entries:
        whole = entry.attributes_ref is None or entry.attributes_ref.digest in here
        if entry.content is not None and entry.content.root is not None:
            try:
                refs = chunks_of(entry.content, reader)
                while some := [ref for _, ref in islice(refs, _BATCH)]:
                    _add_lost(some, reader, found)
            except Damaged:
                whole = False
        if not whole:
            found.paths.append(entry.path)


def _add_lost(refs: list[ChunkRef], reader: ChunkReader, found: Lacking) -> None:
    here = reader.sound(Role.DATA, {ref.digest for ref in refs})
    found.chunks.update((ref.digest, ref.length) for ref in refs if ref.digest not in here)
