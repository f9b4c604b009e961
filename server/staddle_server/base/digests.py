"""Verification of chunks: the one comparison of bytes with the digest that names them."""

from __future__ import annotations

from collections.abc import Iterable

from blake3 import blake3

from staddle_server.base.types import ChunkRef


def has_digest(data: bytes | bytearray | memoryview, digest: bytes) -> bool:
    """Return whether these bytes are the chunk with this digest."""
    return blake3(data).digest() == digest


def first_unsound(table: Iterable[ChunkRef], data: memoryview) -> int | None:
    """Return the number of the first chunk whose bytes do not match its digest; None if all are intact.

    The chunks lie one after another in `data`.
    """
    offset = 0
    for number, (length, digest) in enumerate(table):
        if not has_digest(data[offset : offset + length], digest):
            return number
        offset += length
    return None
