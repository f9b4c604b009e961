"""Packs as they are written: chunks → segments → pack objects (docs/format.md, "Packs")."""

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
"""So much is sealed and written at a time: it stays in the processor's cache."""


class PackWriter:
    """One open pack, sealed with the tenant's newest pack key. Not thread-safe; holds tables, never data.

    Its id is random and its own, and each number is used once: a writer that failed is of no more use, and what it was
    to hold goes into another pack.

    Attributes:
        pack: the pack's id, 16 bytes.
        size: bytes written so far.
        chunk_count: chunks in it so far.

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
        # update_into may ask for a block more than it writes; the tag needs the same room.
        self._buffer = memoryview(bytearray(SEAL_BYTES + TAG_BYTES))
        self._segments = 0
        self._open = True
        self.size = 0
        self.chunk_count = 0
        self._blob = blobs.create()
        # No `with`: to enter one takes memory, and without it the file would stay, and stay locked.
        try:
            self._write(header)
        except BaseException:
            self.abort()
            raise

    @property
    def full(self) -> bool:
        """Whether it is time to finish it. (A pack of tiny chunks has few bytes and large tables.)"""
        return self.size >= PACK_BYTES_TARGET or self.chunk_count >= PACK_CHUNKS_TARGET

    def append(
        self, role: Role, table: Sequence[ChunkRef], codec: int, payload: Buffer, raw_length: int
    ) -> None:
        """Seal and write a segment of the chunks in `table`; `payload` holds them as compress() gives it.

        Received, not durable. Raises ValueError for what cannot be a segment or has no room in the pack (which stays
        usable), and what the blobs raise (after which it is aborted). The payload's frame is not looked into.
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
        """Write footer and trailer and give the pack its name: durable on return.

        Raises ValueError for a pack without segments, and what the blobs raise; the pack is then aborted.
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
            # Reading back what is about to be sealed gives the summary, and one reason less to trust this class.
            chunks = form.decode_footer(plain, trailer, self.pack, self._id_key)
            self._seal(form.FOOTER_NUMBER, encoded[: form.TRAILER_SEALED_BYTES], (plain,))
            self._write(encoded)
            self._blob.commit(self._name)
        self._open = False
        return PackSummary(self.pack, self.size, chunks)

    def abort(self) -> None:
        """Discard the pack; nothing of it stays. Does nothing if it is finished or aborted."""
        if self._open:
            self._open = False
            self._blob.abort()

    def _check_open(self) -> None:
        if not self._open:
            raise ValueError("this pack has been finished or aborted")

    def _check_segment(self, head: form.SegmentHead, table: Sequence[ChunkRef]) -> bytes:
        """The table as bytes, if the segment can be one and has room. Raises ValueError."""
        fault = form.head_fault(head)
        if fault is not None:
            raise ValueError(fault)
        if sum(chunk.length for chunk in table) != head.raw_bytes:
            raise ValueError("the chunks in the table do not have the payload's length together")
        footer_bytes = form.footer_bytes(self._segments + 1, self.chunk_count + head.chunks)
        total = self.size + head.segment_bytes + footer_bytes + form.TRAILER_BYTES
        chunks = self.chunk_count + head.chunks
        if total > PACK_BYTES_MAX or footer_bytes > FOOTER_BYTES_MAX or chunks > PACK_CHUNKS_MAX:
            raise ValueError(
                f"a pack of {self.size} bytes has no room for {head.segment_bytes} more; finish it first"
            )
        return form.encode_table(table)

    def _seal(self, number: int, associated: bytes, parts: Sequence[Buffer]) -> None:
        """Seal `parts` as one under `number`, and write that; a buffer at a time, so that nothing is copied twice."""
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
