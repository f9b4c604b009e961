"""The parts of a pack as bytes (docs/format.md, "Packs"): pure functions, strict on reading."""

import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from staddle._base.figures import counted

from staddle_server.base.limits import (
    CHUNK_BYTES_MAX,
    FOOTER_BYTES_MAX,
    PACK_BYTES_MAX,
    PACK_CHUNKS_MAX,
    SEGMENT_CHUNKS_MAX,
    SEGMENT_RAW_BYTES_MAX,
)
from staddle_server.base.types import ChunkPlace, ChunkRef, Role, SegmentRef, StoredChunk
from staddle_server.store.blobs import Buffer
from staddle_server.store.frame import Codec
from staddle_server.store.keys import TAG_BYTES, chunk_id, derive

DIGEST_BYTES: Final = 32
SEGMENT_MAGIC: Final = b"SEGM"
FOOTER_NUMBER: Final = 0xFFFFFFFF
TRAILER_SEALED_BYTES: Final = 24
"""How many bytes of the trailer are additional data of the footer's seal."""

_HEADER: Final = struct.Struct("<8sHHI16s16s")
_HEAD: Final = struct.Struct("<4sBBHIIIII")
_TRAILER: Final = struct.Struct("<8sIIQI")
_CRC: Final = struct.Struct("<I")
_ROW: Final = struct.Struct("<IIIIB3s")
_CHUNK: Final = struct.Struct("<I32s")
_NONCE: Final = struct.Struct("<8xI")

HEADER_BYTES: Final = _HEADER.size
HEAD_BYTES: Final = _HEAD.size + _CRC.size
TRAILER_BYTES: Final = _TRAILER.size + _CRC.size
ROW_BYTES: Final = _ROW.size
CHUNK_ROW_BYTES: Final = _CHUNK.size
SEGMENT_BYTES_MIN: Final = HEAD_BYTES + CHUNK_ROW_BYTES + 1 + TAG_BYTES
SEGMENT_BYTES_MAX: Final = (
    HEAD_BYTES + SEGMENT_CHUNKS_MAX * CHUNK_ROW_BYTES + SEGMENT_RAW_BYTES_MAX + TAG_BYTES
)
PACK_BYTES_MIN: Final = (
    HEADER_BYTES + SEGMENT_BYTES_MIN + ROW_BYTES + CHUNK_ROW_BYTES + TAG_BYTES + TRAILER_BYTES
)

_HEADER_MAGIC: Final = b"STADPACK"
_TRAILER_MAGIC: Final = b"STADTAIL"
_VERSION: Final = 1


class FormError(ValueError):
    """Malformed bytes. The caller knows where they lie, and reports that in its own error."""


class Header(NamedTuple):
    key_version: int
    tenant: bytes
    pack: bytes


class SegmentHead(NamedTuple):
    """The plain head in front of a segment's sealed body."""

    role: Role
    codec: Codec
    number: int
    chunks: int
    payload_bytes: int
    raw_bytes: int

    @property
    def table_bytes(self) -> int:
        return self.chunks * CHUNK_ROW_BYTES

    @property
    def segment_bytes(self) -> int:
        return HEAD_BYTES + self.table_bytes + self.payload_bytes + TAG_BYTES


class Trailer(NamedTuple):
    footer_bytes: int
    segments: int
    pack_bytes: int
    chunks: int


def nonce(number: int) -> bytes:
    """Return the nonce of a seal in a pack."""
    return _NONCE.pack(number)


def pack_key(version_key: bytes, header: bytes) -> bytes:
    """Return the key of one pack, from the pack key of its version and its header."""
    return derive("staddle.v1 pack key", version_key + header)


# --- header


def encode_header(header: Header) -> bytes:
    return _HEADER.pack(_HEADER_MAGIC, _VERSION, 0, *header)


def decode_header(data: Buffer) -> Header:
    magic, version, zero, key_version, tenant, pack = _HEADER.unpack(data)
    if (magic, zero) != (_HEADER_MAGIC, 0):
        raise FormError("it does not begin with a pack header")
    if version != _VERSION:
        raise FormError(f"it has format version {version}, which this version does not know")
    return Header(key_version, tenant, pack)


# --- segments


def encode_head(head: SegmentHead) -> bytes:
    fields = _HEAD.pack(SEGMENT_MAGIC, head.role, head.codec, 0, *head[2:], 0)
    return fields + _CRC.pack(zlib.crc32(fields))


def decode_head(data: Buffer) -> SegmentHead:
    """Decode the head in exactly HEAD_BYTES of `data`, with every field within its limits."""
    fields = data[: _HEAD.size]
    magic, role, codec, zero, number, chunks, payload_bytes, raw_bytes, last = _HEAD.unpack(fields)
    if magic != SEGMENT_MAGIC or _CRC.unpack(data[_HEAD.size :])[0] != zlib.crc32(fields):
        raise FormError("a segment head is missing")
    if zero or last or role not in _ROLES or codec not in _CODECS or number == FOOTER_NUMBER:
        raise FormError("the segment's head has an unknown field")
    head = SegmentHead(Role(role), Codec(codec), number, chunks, payload_bytes, raw_bytes)
    fault = head_fault(head)
    if fault is not None:
        raise FormError(fault)
    return head


def head_fault(head: SegmentHead) -> str | None:
    """Return why a segment with this head is invalid; None if it is valid."""
    if not 1 <= head.chunks <= SEGMENT_CHUNKS_MAX:
        return f"a segment has 1 to {SEGMENT_CHUNKS_MAX} chunks, not {head.chunks}"
    if not head.chunks <= head.raw_bytes <= SEGMENT_RAW_BYTES_MAX:
        return f"a segment of {counted(head.chunks, 'chunk')} cannot inflate to {head.raw_bytes} bytes"
    if not 1 <= head.payload_bytes <= SEGMENT_RAW_BYTES_MAX:
        return f"a segment's payload has 1 to {SEGMENT_RAW_BYTES_MAX} bytes, not {head.payload_bytes}"
    if head.codec == Codec.RAW and head.payload_bytes != head.raw_bytes:
        return "the length of a raw payload differs from its stated length"
    return None


def encode_table(table: Sequence[ChunkRef]) -> bytes:
    """Return the table as bytes. Raises ValueError for a chunk with an invalid digest or length."""
    for length, digest in table:
        if len(digest) != DIGEST_BYTES or not 1 <= length <= CHUNK_BYTES_MAX:
            raise ValueError(f"invalid chunk: {length} bytes, with a digest of {len(digest)} bytes")
    return b"".join([_CHUNK.pack(length, digest) for length, digest in table])


def decode_table(data: Buffer, raw_bytes: int) -> tuple[ChunkRef, ...]:
    """Return the chunks of a segment that inflates to `raw_bytes`."""
    table = tuple(map(ChunkRef._make, _CHUNK.iter_unpack(data)))
    _check_lengths(table, raw_bytes)
    return table


def _check_lengths(table: Iterable[ChunkRef], raw_bytes: int) -> None:
    total = 0
    for chunk in table:
        if not 1 <= chunk.length <= CHUNK_BYTES_MAX:
            raise FormError(f"invalid chunk length: {chunk.length} bytes")
        total += chunk.length
    if total != raw_bytes:
        raise FormError(f"its chunks have {total} bytes in total, but it inflates to {raw_bytes}")


# --- footer and trailer


def encode_row(offset: int, head: SegmentHead) -> bytes:
    """Return a segment's row in the footer."""
    return _ROW.pack(offset, head.segment_bytes, head.chunks, head.raw_bytes, head.role, bytes(3))


def decode_footer(plain: Buffer, trailer: Trailer, pack: bytes, id_key: bytes) -> list[StoredChunk]:
    """Return the chunks that an opened footer names, under their stored ids, with their places."""
    view = memoryview(plain)
    rows = view[: trailer.segments * ROW_BYTES]
    tables = view[len(rows) :]
    expected = HEADER_BYTES
    chunks: list[StoredChunk] = []
    for offset, length, count, raw_bytes, role, zero in _ROW.iter_unpack(rows):
        if offset != expected or any(zero) or role not in _ROLES:
            raise FormError("the footer's segments are not contiguous")
        if not 1 <= count <= SEGMENT_CHUNKS_MAX or not _fits(length, count):
            raise FormError("the footer has an invalid segment")
        table_bytes = count * CHUNK_ROW_BYTES
        if table_bytes > len(tables):
            raise FormError("the footer has fewer chunks than its segments")
        table = decode_table(tables[:table_bytes], raw_bytes)
        tables = tables[table_bytes:]
        chunks += _places(SegmentRef(pack, offset, length), Role(role), table, id_key)
        expected += length
    if len(tables) or expected != trailer.pack_bytes - TRAILER_BYTES - trailer.footer_bytes:
        raise FormError("the footer does not cover the whole pack")
    return chunks


def _fits(segment_bytes: int, chunks: int) -> bool:
    payload_bytes = segment_bytes - HEAD_BYTES - chunks * CHUNK_ROW_BYTES - TAG_BYTES
    return 1 <= payload_bytes <= SEGMENT_RAW_BYTES_MAX


def _places(
    segment: SegmentRef, role: Role, table: Sequence[ChunkRef], id_key: bytes
) -> Iterable[StoredChunk]:
    offset = 0
    for length, digest in table:
        yield StoredChunk(chunk_id(id_key, role, digest), ChunkPlace(segment, offset, length))
        offset += length


def footer_bytes(segments: int, chunks: int) -> int:
    """Return the length of a sealed footer."""
    return segments * ROW_BYTES + chunks * CHUNK_ROW_BYTES + TAG_BYTES


def encode_trailer(trailer: Trailer) -> bytes:
    fields = _TRAILER.pack(_TRAILER_MAGIC, *trailer)
    return fields + _CRC.pack(zlib.crc32(fields))


def decode_trailer(data: Buffer, pack_bytes: int) -> Trailer:
    """Return the trailer of a pack object of `pack_bytes`."""
    fields = data[: _TRAILER.size]
    magic, *numbers = _TRAILER.unpack(fields)
    if magic != _TRAILER_MAGIC or _CRC.unpack(data[_TRAILER.size :])[0] != zlib.crc32(fields):
        raise FormError("it does not end with a pack trailer")
    trailer = Trailer(*numbers)
    if not PACK_BYTES_MIN <= trailer.pack_bytes == pack_bytes <= PACK_BYTES_MAX:
        raise FormError(f"it has {pack_bytes} bytes where {trailer.pack_bytes} were stored")
    room = pack_bytes - HEADER_BYTES - SEGMENT_BYTES_MIN - TRAILER_BYTES
    counts = 1 <= trailer.segments <= trailer.chunks <= PACK_CHUNKS_MAX
    fits = counts and trailer.footer_bytes <= min(room, FOOTER_BYTES_MAX)
    if not fits or trailer.footer_bytes != footer_bytes(trailer.segments, trailer.chunks):
        raise FormError("its trailer describes an impossible footer")
    return trailer


_ROLES: Final = frozenset(Role)
_CODECS: Final = frozenset(Codec)
