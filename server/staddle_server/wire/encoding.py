"""Restore's messages as bytes: written from the chunks as they lie in memory, in one copy.

Through message objects the same bytes would be copied three times, and each stream would hold what that takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from google.protobuf.message import Message
from staddle.v1 import service_pb2 as sv

BYTES: Final = 2
"""The wire type of what has a length."""

Piece = bytes | memoryview


def tag(message: type[Message], name: str) -> bytes:
    """How a field that has a length begins."""
    return varint(message.DESCRIPTOR.fields_by_name[name].number << 3 | BYTES)


def varint(number: int) -> bytes:
    """A number of 0 or more, seven bits a byte, the lowest first."""
    written = bytearray()
    while number >= 0x80:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


_PARTS: Final = tag(sv.RestoreResponse, "parts")
_DATA: Final = tag(sv.RestorePart, "data")
_BYTES_OF_DATA: Final = tag(sv.Data, "data")


def part(message: sv.RestorePart) -> list[Piece]:
    """A part of a RestoreResponse."""
    encoded = message.SerializeToString()
    return [_PARTS + varint(len(encoded)), encoded]


def data_part(chunks: Sequence[memoryview]) -> list[Piece]:
    """The part with these chunks' bytes and their lengths."""
    lengths = sv.Data(chunk_lengths=map(len, chunks)).SerializeToString()
    size = sum(map(len, chunks))
    head = _BYTES_OF_DATA + varint(size)
    inner = len(lengths) + len(head) + size
    of_part = _DATA + varint(inner)
    return [_PARTS + varint(len(of_part) + inner) + of_part + lengths + head, *chunks]


def response(parts: list[Piece]) -> bytes:
    """A RestoreResponse of parts as `part` and `data_part` give them; the list is empty afterwards, and holds no chunk any more."""
    message = b"".join(parts)
    parts.clear()
    return message
