"""The contents of a pack: from its footer or, if that is damaged, from a search of the whole pack."""

from __future__ import annotations

from typing import NamedTuple

from staddle._base.figures import counted

from staddle_server.base.errors import Damaged, StaddleError, Unavailable
from staddle_server.base.types import ChunkPlace, PackSummary, StoredChunk, TenantKeys
from staddle_server.catalog.rebuild import RebuiltPack
from staddle_server.store.keys import chunk_id, secrets_of
from staddle_server.store.pack import PackReader, Segment


class Contents(NamedTuple):
    """A pack, and what is wrong with it; empty if nothing was found."""

    pack: RebuiltPack
    damage: str


def read_contents(reader: PackReader, keys: TenantKeys, pack: bytes, size_bytes: int) -> Contents:
    """Return the contents of a pack object of that size.

    Trusts the footer: it was sealed with the pack. Without one every segment is opened, and the gaps between
    them are marked as damaged. Never raises for stored data: even an unreadable pack gets a row, or its
    object would count as an orphan.
    """
    try:
        return Contents(RebuiltPack(reader.footer(pack)), "")
    except (Damaged, Unavailable) as e:
        return _scanned(reader, keys, PackSummary(pack, size_bytes, []), e)


def _scanned(reader: PackReader, keys: TenantKeys, summary: PackSummary, cause: StaddleError) -> Contents:
    id_key = secrets_of(keys).id_key
    damage: list[int | None] = []
    end = 0
    try:
        for found in reader.scan(summary.pack):
            if isinstance(found, Segment):
                summary.chunks.extend(_chunks(found, id_key))
                end = found.ref.offset + found.ref.length
            else:
                if found.offset:  # segments are read without the header
                    damage.append(found.offset)
                end = found.offset + found.length
    except (Damaged, Unavailable):
        damage.append(end)  # the disk does not return more of it
    if not summary.chunks:
        return Contents(
            RebuiltPack(summary, (None,)), f"{cause.message}; nothing else in it is readable either"
        )
    what = f"{cause.message}; a search of the whole pack found {counted(len(summary.chunks), 'chunk')}"
    return Contents(RebuiltPack(summary, tuple(damage)), what)


def _chunks(segment: Segment, id_key: bytes) -> list[StoredChunk]:
    chunks = []
    offset = 0
    for length, digest in segment.table:
        place = ChunkPlace(segment.ref, offset, length)
        chunks.append(StoredChunk(chunk_id(id_key, segment.role, digest), place))
        offset += length
    return chunks
