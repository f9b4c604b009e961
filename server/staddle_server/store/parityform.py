"""A parity object's parts as bytes (docs/format.md, "Parity"): pure, and strict on reading."""

import hmac
import struct
from typing import Final, NamedTuple

from blake3 import blake3

from staddle_server.base.limits import (
    PACK_BYTES_MAX,
    PARITY_BLOCK_BYTES,
    PARITY_COLUMNS_MAX,
    PARITY_PERCENT_MAX,
)
from staddle_server.store.blobs import Buffer
from staddle_server.store.packform import PACK_BYTES_MIN, FormError
from staddle_server.store.reedsolomon import COLUMNS_PLUS_PARITY_MAX

_HEAD: Final = struct.Struct("<8sHHIQIHH16s16s")
_MAC_BYTES: Final = 32
HEAD_BYTES: Final = _HEAD.size + _MAC_BYTES
CHECK_BYTES: Final = 8

_MAGIC: Final = b"STADPRTY"
_VERSION: Final = 1


class Geometry(NamedTuple):
    """How a pack's bytes lie in rows and columns: a column is a stretch of the pack, a row a block of each.

    Attributes:
        pack_bytes: The pack's length.
        block_bytes: Of each block; only the pack's last one may be shorter, and counts as filled up with zeros.
        rows: Blocks in a column.
        columns: Data blocks in a row.
        parity: Parity blocks of a row.

    """

    pack_bytes: int
    block_bytes: int
    rows: int
    columns: int
    parity: int

    @property
    def blocks(self) -> int:
        """Data blocks that the pack really has; the last columns may lack some, which count as zeros."""
        return -(-self.pack_bytes // self.block_bytes)

    @property
    def row_parity_bytes(self) -> int:
        return self.parity * self.block_bytes

    @property
    def checks_offset(self) -> int:
        """Where in the parity object the checks begin, behind the parity of all rows."""
        return HEAD_BYTES + self.rows * self.row_parity_bytes

    @property
    def checks_bytes(self) -> int:
        return CHECK_BYTES * (self.blocks + self.rows * self.parity)

    @property
    def object_bytes(self) -> int:
        """The parity object's length."""
        return self.checks_offset + self.checks_bytes + HEAD_BYTES


def plan(pack_bytes: int, percent: int) -> Geometry:
    """How parity is made of a pack: of each 100 blocks `percent` more, at least one a row."""
    if not 1 <= percent <= PARITY_PERCENT_MAX:
        raise ValueError(f"parity is 1 to {PARITY_PERCENT_MAX} percent, not {percent}")
    block_bytes = min(PARITY_BLOCK_BYTES, pack_bytes)
    blocks = -(-pack_bytes // block_bytes)
    rows = -(-blocks // PARITY_COLUMNS_MAX)
    columns = -(-blocks // rows)
    return Geometry(pack_bytes, block_bytes, rows, columns, -(-columns * percent // 100))


def encode_head(geometry: Geometry, tenant: bytes, pack: bytes, key: bytes) -> bytes:
    pack_bytes, block_bytes, rows, columns, parity = geometry
    fields = _HEAD.pack(_MAGIC, _VERSION, 0, block_bytes, pack_bytes, rows, columns, parity, tenant, pack)
    return fields + _mac(fields, key)


def decode_head(data: Buffer, tenant: bytes, pack: bytes, key: bytes) -> Geometry:
    """The geometry in exactly HEAD_BYTES of `data`, if it is of this pack and within its limits. Raises FormError."""
    fields = bytes(data[: _HEAD.size])
    if not hmac.compare_digest(bytes(data[_HEAD.size :]), _mac(fields, key)):
        raise FormError("its head is not what was written")
    magic, version, zero, block_bytes, pack_bytes, rows, columns, parity, *owner = _HEAD.unpack(fields)
    if (magic, version, zero) != (_MAGIC, _VERSION, 0):
        raise FormError("its head is of a version that this one does not know")
    if owner != [tenant, pack]:
        raise FormError("it is another pack's")
    geometry = Geometry(pack_bytes, block_bytes, rows, columns, parity)
    if not _possible(geometry):
        raise FormError("its head describes rows and columns that cannot be")
    return geometry


def _possible(geometry: Geometry) -> bool:
    pack_bytes, block_bytes, rows, columns, parity = geometry
    return (
        PACK_BYTES_MIN <= pack_bytes <= PACK_BYTES_MAX
        and block_bytes == min(PARITY_BLOCK_BYTES, pack_bytes)
        and rows >= 1
        and columns >= 1
        and parity >= 1
        and columns + parity <= COLUMNS_PLUS_PARITY_MAX
        and rows * (columns - 1) < geometry.blocks <= rows * columns
    )


def check_of(block: Buffer, key: bytes) -> bytes:
    """What tells a block that is as it was written from one that is not."""
    return blake3(block, key=key).digest(length=CHECK_BYTES)


def _mac(fields: bytes, key: bytes) -> bytes:
    return blake3(fields, key=key).digest(length=_MAC_BYTES)
