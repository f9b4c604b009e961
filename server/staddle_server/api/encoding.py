"""Encodes Restore's messages straight from the chunks in memory, with one copy.

Message objects would copy the same bytes three times, and each stream would hold that memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from google.protobuf.message import Message
from staddle._protocol.encoding import tag, varint
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

Piece = bytes | bytearray | memoryview

Pieces = list[Piece]
"""A part of a RestoreResponse, encoded."""

_PARTS: Final = tag(sv.RestoreResponse, "parts")
_DATA: Final = tag(sv.RestorePart, "data")
_BYTES_OF_DATA: Final = tag(sv.Data, "data")
_ENTRY: Final = tag(sv.RestorePart, "entry")
_BYTES_OF_ENTRY: Final = tag(pb.Entry, "data")
_COLUMNS: Final = tag(sv.RestorePart, "columns")
_PIECE: Final = tag(sv.RestorePart, "piece")
_COLUMN_DATA: Final = tag(sv.RestorePart, "column_data")
_PIECE_COLUMNS: Final = tag(sv.RestorePart, "piece_columns")
_SEGMENT: Final = tag(sv.RestorePart, "segment")
_LISTED: Final = tag(sv.ListEntriesResponse, "entries")
_LISTED_COLUMNS: Final = tag(sv.ListEntriesResponse, "columns")
_BYTES_OF_SEGMENT: Final = tag(sv.Segment, "data")


def part(message: sv.RestorePart) -> Pieces:
    """Encode a part without bulk data."""
    encoded = message.SerializeToString()
    return [_PARTS + varint(len(encoded)), encoded]


def data_part(chunks: Sequence[Piece]) -> Pieces:
    """Encode a part with these chunks' bytes and their lengths."""
    return _bulk(_DATA, sv.Data(chunk_lengths=map(len, chunks)), _BYTES_OF_DATA, chunks)


def entry_part(entry: pb.Entry) -> Pieces:
    """Encode a part with an entry."""
    encoded = entry.SerializeToString()
    return _part_of(_ENTRY + varint(len(encoded)), encoded)


def columns_part(columns: bytes, pieces: bytes, data: Sequence[Piece]) -> Pieces:
    """Encode a part with encoded columns, and with the encoded pieces or the bytes of their files."""
    fields = [_COLUMNS + varint(len(columns)), columns]
    if pieces:
        fields += [_PIECE_COLUMNS + varint(len(pieces)), pieces]
    if data:
        fields += [_COLUMN_DATA + varint(sum(map(len, data)))]
    size = sum(map(len, fields)) + sum(map(len, data))
    return [_PARTS + varint(size), *fields, *data]


def inline_part(entry: pb.Entry, data: Piece) -> Pieces:
    """Encode a part with an entry whose content is `data`, which is copied."""
    return [b"".join(_bulk(_ENTRY, entry, _BYTES_OF_ENTRY, [data]))]


def entry_and_piece(entry: pb.Entry, piece: sv.Piece) -> Pieces:
    """Encode a part with an entry whose content is a piece of a segment."""
    encoded, place = entry.SerializeToString(), piece.SerializeToString()
    return _part_of(_ENTRY + varint(len(encoded)), encoded, _PIECE + varint(len(place)), place)


def segment_part(segment: sv.Segment, data: Piece) -> Pieces:
    """Encode a part with a segment that consists of `data`."""
    return _bulk(_SEGMENT, segment, _BYTES_OF_SEGMENT, [data])


def _part_of(*fields: bytes) -> Pieces:
    encoded = b"".join(fields)
    return [_PARTS + varint(len(encoded)) + encoded]


def _bulk(field: bytes, message: Message, bulk: bytes, data: Sequence[Piece]) -> Pieces:
    """Encode a part that is `message`, with `data` as one more field."""
    size = sum(map(len, data))
    inside = message.SerializeToString() + bulk + varint(size)
    of_part = field + varint(len(inside) + size)
    return [_PARTS + varint(len(of_part) + len(inside) + size) + of_part + inside, *data]


def entries_response(rest: sv.ListEntriesResponse, items: Sequence[bytes], *, columns: bool) -> bytes:
    """Return a ListEntriesResponse of encoded entries, or columns, which as messages would take several times
    their bytes.
    """
    key = _LISTED_COLUMNS if columns else _LISTED
    fields = (piece for item in items for piece in (key + varint(len(item)), item))
    return b"".join((rest.SerializeToString(), *fields))


def response(parts: Pieces) -> bytes:
    """Return a RestoreResponse of encoded parts, and empty the list, which frees the chunks."""
    message = b"".join(parts)
    parts.clear()
    return message
