"""The parts of a parity object as bytes (docs/format.md, "Parity"): pure functions, strict on reading."""

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
    """How a pack's bytes form rows and columns: a column is a range of the pack, a row is one block of each
    column.

    Attributes:
        pack_bytes: The pack's length.
        block_bytes: The length of a block; the pack's last one may be shorter, and is padded with zeros.
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
        """Where the checks begin in the parity object, after the parity of all rows."""
        return HEAD_BYTES + self.rows * self.row_parity_bytes

    @property
    def checks_bytes(self) -> int:
        return CHECK_BYTES * (self.blocks + self.rows * self.parity)

    @property
    def object_bytes(self) -> int:
        """The parity object's length."""
        return self.checks_offset + self.checks_bytes + HEAD_BYTES


def plan(pack_bytes: int, percent: int) -> Geometry:
    """Choose the geometry for a pack: `percent` parity blocks for each 100 blocks, at least one
    in each row.
    """
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
    """Decode the geometry in exactly HEAD_BYTES of `data`.

    Raises FormError for another pack's head or invalid values.
    """
    fields = bytes(data[: _HEAD.size])
    if not hmac.compare_digest(bytes(data[_HEAD.size :]), _mac(fields, key)):
        raise FormError("its head is damaged")
    magic, version, zero, block_bytes, pack_bytes, rows, columns, parity, *owner = _HEAD.unpack(fields)
    if (magic, version, zero) != (_MAGIC, _VERSION, 0):
        raise FormError("its head has an unknown version")
    if owner != [tenant, pack]:
        raise FormError("it belongs to another pack")
    geometry = Geometry(pack_bytes, block_bytes, rows, columns, parity)
    if not _possible(geometry):
        raise FormError("its head describes impossible rows and columns")
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
    """Return the check that tells an intact block from a damaged one."""
    return blake3(block, key=key).digest(length=CHECK_BYTES)


def _mac(fields: bytes, key: bytes) -> bytes:
    return blake3(fields, key=key).digest(length=_MAC_BYTES)
