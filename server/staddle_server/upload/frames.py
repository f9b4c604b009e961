"""Compressed client data: checked before any of it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from staddle_server.base.digests import first_unsound
from staddle_server.base.errors import BadRequest
from staddle_server.base.limits import (
    CHUNK_BYTES_MAX,
    CHUNKS_PER_CALL_MAX,
    PUT_CHUNKS_BYTES_MAX,
    PUT_CHUNKS_INFLATED_BYTES_MAX,
)
from staddle_server.base.types import ChunkRef
from staddle_server.store.blobs import Buffer
from staddle_server.store.frame import Codec, FrameError, inflate


class CheckedChunks(NamedTuple):
    """Chunks with verified digests, ready for a segment."""

    table: Sequence[ChunkRef]
    codec: int
    payload: Buffer
    raw_length: int


def check_frame(table: Sequence[ChunkRef], data: Buffer, *, raw: bool) -> CheckedChunks:
    """Inflate a client's data within limits, and check every chunk in it.

    Raises:
        BadRequest: BAD_FIELD, BAD_FRAME or DIGEST_MISMATCH; nothing of the frame may be kept.

    """
    if not 1 <= len(table) <= CHUNKS_PER_CALL_MAX:
        raise BadRequest("BAD_FIELD", f"a call must carry 1 to {CHUNKS_PER_CALL_MAX} chunks", field="chunks")
    if len(data) > PUT_CHUNKS_BYTES_MAX:
        raise BadRequest("BAD_FIELD", f"data is over {PUT_CHUNKS_BYTES_MAX} bytes", field="data")
    if not all(map(is_ref, table)):
        for index, ref in enumerate(table):
            check_ref(ref, f"chunks[{index}]")
    total = sum(ref.length for ref in table)
    if total > PUT_CHUNKS_INFLATED_BYTES_MAX:
        raise BadRequest(
            "BAD_FIELD",
            f"the limit is {PUT_CHUNKS_INFLATED_BYTES_MAX} bytes for all chunks of a call, these are {total}",
            field="chunks",
        )
    codec = Codec.RAW if raw else Codec.ZSTD
    try:
        inflated = memoryview(inflate(codec, data, total))
    except FrameError as e:
        raise BadRequest("BAD_FRAME", f"data: {e}", field="data") from e
    unsound = first_unsound(table, inflated)
    if unsound is not None:
        raise BadRequest(
            "DIGEST_MISMATCH",
            f"chunks[{unsound}]: its bytes do not match the digest {table[unsound].digest.hex()}; nothing of this call was kept",
            field=f"chunks[{unsound}]",
        )
    return CheckedChunks(table, codec, data, total)


def is_ref(ref: ChunkRef) -> bool:
    """Return whether a chunk reference is valid; `check_ref` says why not."""
    return len(ref.digest) == 32 and 1 <= ref.length <= CHUNK_BYTES_MAX


def check_ref(ref: ChunkRef, field: str) -> None:
    """Check a chunk reference.

    Raises:
        BadRequest: BAD_FIELD.

    """
    if len(ref.digest) != 32:
        raise BadRequest("BAD_FIELD", f"{field}: a digest must be 32 bytes", field=field)
    if not 1 <= ref.length <= CHUNK_BYTES_MAX:
        raise BadRequest("BAD_FIELD", f"{field}: a chunk must be 1 to {CHUNK_BYTES_MAX} bytes", field=field)
