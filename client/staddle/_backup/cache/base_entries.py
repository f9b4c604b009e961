"""The entries of a backup as far as the cache knows them, for a comparison that reads everything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from staddle._backup.cache.file import (
    ABSENT,
    DIGEST_BYTES,
    KIND,
    LOOK,
    NO_DIGEST,
    ROW_BYTES,
    CacheBlock,
    CacheError,
    CacheReader,
    unpack_row,
)
from staddle._backup.comparison import BaseEntry
from staddle._fs.metadata import TYPES
from staddle._protocol.columns import READ_AGAIN, EntryRow
from staddle._protocol.convert import sort_key
from staddle.v1 import resources_pb2 as pb

_KIND_BITS: Final = 8
"""A row has the kind of a mode without its lower bits."""


@dataclass(slots=True)
class _Opened:
    """A directory on the way, and how far its children are passed."""

    path: bytes
    block: CacheBlock | None
    names: list[bytes]
    index: int = 0


def cached_entries(known: CacheReader) -> Iterator[BaseEntry]:
    """All that a backup has, in order. Raises CacheError if the cache contradicts itself."""
    if not known.root[0] & ABSENT:
        yield _entry(b"", known.root, known.root_digest)
    ways = [_way_into(b"", known.first(b""))]
    last = b""
    while ways:
        way = ways[-1]
        block = way.block
        if block is None:
            ways.pop()
        elif way.index == block.children:
            ways[-1] = _way_into(way.path, known.next(way.path) if block.more else None)
        else:
            index, name = way.index, way.names[way.index]
            way.index += 1
            row = block.rows[index * ROW_BYTES : (index + 1) * ROW_BYTES]
            if row[0] & ABSENT:
                continue
            path = way.path + b"/" + name if way.path else name
            order = sort_key(path)
            if order <= last:
                raise CacheError("names are not in order")
            last = order
            entry = _entry(path, row, block.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES])
            yield entry
            if entry.row.type == pb.ENTRY_TYPE_DIRECTORY:
                ways.append(_way_into(path, known.first(path)))


def _way_into(path: bytes, block: CacheBlock | None) -> _Opened:
    return _Opened(path, block, [] if block is None else block.names.split(b"\0"))


def _entry(path: bytes, row: bytes, digest: bytes) -> BaseEntry:
    kind, inode, mtime_ns, ctime_ns, size = unpack_row(row)
    entry_type = TYPES.get((kind & KIND) << _KIND_BITS)
    if entry_type is None:
        raise CacheError("a row is of no kind that a backup can hold")
    row_of = EntryRow(
        path,
        entry_type,
        READ_AGAIN if kind & LOOK else 0,
        None,
        None,
        None,
        mtime_ns,
        ctime_ns,
        inode,
        "",
        "",
        size if entry_type == pb.ENTRY_TYPE_FILE else 0,
    )
    return BaseEntry(path, row_of, True, b"" if digest == NO_DIGEST else digest)
