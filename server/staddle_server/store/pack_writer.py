"""Writing packs: chunks → segments → pack objects (docs/format.md, "Packs")."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from staddle_server.base.limits import (
    FOOTER_BYTES_MAX,
    KIB,
    PACK_BYTES_MAX,
    PACK_BYTES_TARGET,
    PACK_CHUNKS_MAX,
    PACK_CHUNKS_TARGET,
)
from staddle_server.base.types import ChunkRef, PackSummary, Role, TenantKeys
from staddle_server.store import packform as form
from staddle_server.store.blobs import Buffer, WritableBlobs
from staddle_server.store.frame import Codec
from staddle_server.store.keys import ID_BYTES, TAG_BYTES, Random, secrets_of
from staddle_server.store.pack import pack_name

SEAL_BYTES: Final = 256 * KIB
"""Bytes sealed and written at a time: few enough for the processor's cache."""


class PackWriter:
    """One open pack, sealed with the tenant's newest pack key. Not thread-safe. Holds tables, never data.

    Each pack has a random id of its own and uses each nonce once. So a failed writer cannot continue; its
    data goes into another pack.

    Attributes:
        pack: The pack's id, 16 bytes.
        size: Bytes written so far.
        chunk_count: Chunks in it so far.

    """

    def __init__(self, blobs: WritableBlobs, keys: TenantKeys, random: Random = os.urandom) -> None:
        version = max(keys.pack_keys)
        self.pack = random(ID_BYTES)
        header = form.encode_header(form.Header(version, keys.tenant, self.pack))
        self._name = pack_name(keys.tenant, self.pack)
        self._id_key = secrets_of(keys).id_key
        self._key = algorithms.AES256(form.pack_key(keys.pack_keys[version], header))
        self._rows = bytearray()
        self._tables = bytearray()
        # update_into may require one block more than it writes; the tag needs the same room.
        self._buffer = memoryview(bytearray(SEAL_BYTES + TAG_BYTES))
        self._segments = 0
        self._open = True
        self.size = 0
        self.chunk_count = 0
        self._blob = blobs.create()
        # No `with`: entering one allocates memory, and a failure there would leave the file behind, locked.
        try:
            self._write(header)
        except BaseException:
            self.abort()
            raise

    @property
    def full(self) -> bool:
        """Whether it is time to finish the pack. (A pack of tiny chunks has few bytes but large tables.)"""
        return self.size >= PACK_BYTES_TARGET or self.chunk_count >= PACK_CHUNKS_TARGET

    def append(
        self, role: Role, table: Sequence[ChunkRef], codec: int, payload: Buffer, raw_length: int
    ) -> None:
        """Seal and write a segment of the chunks in `table`; `payload` holds them as compress() returns it.

        The segment is then received, not durable. Raises ValueError for an invalid segment or one without
        room in the pack (which stays usable), and what the blobs raise (which aborts the pack). Does not
        inspect the payload's frame.
        """
        self._check_open()
        head = form.SegmentHead(
            Role(role), Codec(codec), self._segments, len(table), len(payload), raw_length
        )
        rows = self._check_segment(head, table)
        encoded = form.encode_head(head)
        offset = self.size
        self._segments += 1
        with self._aborting():
            self._write(encoded)
            self._seal(head.number, encoded, (rows, payload))
        self._rows += form.encode_row(offset, head)
        self._tables += rows
        self.chunk_count += head.chunks

    def finish(self) -> PackSummary:
        """Write footer and trailer, and give the pack its name: durable on return.

        Raises ValueError for a pack without segments, and what the blobs raise; both abort the pack.
        """
        self._check_open()
        with self._aborting():
            if not self._segments:
                raise ValueError("a pack without segments cannot be finished")
            plain = bytes(self._rows + self._tables)
            footer_bytes = form.footer_bytes(self._segments, self.chunk_count)
            total = self.size + footer_bytes + form.TRAILER_BYTES
            trailer = form.Trailer(footer_bytes, self._segments, total, self.chunk_count)
            encoded = form.encode_trailer(trailer)
            # The summary comes from reading back what will be sealed, which also checks this class.
            chunks = form.decode_footer(plain, trailer, self.pack, self._id_key)
            self._seal(form.FOOTER_NUMBER, encoded[: form.TRAILER_SEALED_BYTES], (plain,))
            self._write(encoded)
            self._blob.commit(self._name)
        self._open = False
        return PackSummary(self.pack, self.size, chunks)

    def abort(self) -> None:
        """Discard the pack completely. Does nothing if it is finished or aborted."""
        if self._open:
            self._open = False
            self._blob.abort()

    def _check_open(self) -> None:
        if not self._open:
            raise ValueError("this pack is finished or aborted")

    def _check_segment(self, head: form.SegmentHead, table: Sequence[ChunkRef]) -> bytes:
        """Return the table as bytes, if the segment is valid and has room. Raises ValueError."""
        fault = form.head_fault(head)
        if fault is not None:
            raise ValueError(fault)
        if sum(chunk.length for chunk in table) != head.raw_bytes:
            raise ValueError("the lengths of the chunks in the table do not add up to the payload's length")
        footer_bytes = form.footer_bytes(self._segments + 1, self.chunk_count + head.chunks)
        total = self.size + head.segment_bytes + footer_bytes + form.TRAILER_BYTES
        chunks = self.chunk_count + head.chunks
        if total > PACK_BYTES_MAX or footer_bytes > FOOTER_BYTES_MAX or chunks > PACK_CHUNKS_MAX:
            raise ValueError(
                f"a pack of {self.size} bytes has no room for {head.segment_bytes} more; finish it first"
            )
        return form.encode_table(table)

    def _seal(self, number: int, associated: bytes, parts: Sequence[Buffer]) -> None:
        """Seal `parts` together under `number` and write the result, one buffer at a time to avoid copies."""
        encryptor = Cipher(self._key, modes.GCM(form.nonce(number))).encryptor()
        encryptor.authenticate_additional_data(associated)
        buffer = self._buffer
        filled = 0
        for part in parts:
            rest = memoryview(part)
            while rest:
                taken = rest[: SEAL_BYTES - filled]
                filled += encryptor.update_into(taken, buffer[filled:])
                rest = rest[len(taken) :]
                if filled == SEAL_BYTES:
                    self._write(buffer[:filled])
                    filled = 0
        encryptor.finalize()
        buffer[filled : filled + TAG_BYTES] = encryptor.tag
        self._write(buffer[: filled + TAG_BYTES])

    def _write(self, data: Buffer) -> None:
        self._blob.write(data)
        self.size += len(data)

    @contextmanager
    def _aborting(self) -> Iterator[None]:
        """Abort the pack if the body fails."""
        try:
            yield
        except BaseException:
            self.abort()
            raise
