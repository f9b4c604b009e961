"""Existing files, compared by content with a backup."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from blake3 import blake3

from staddle._errors import ProtocolError
from staddle.chunking import CHUNK_BYTES_MAX, ContentHasher

if TYPE_CHECKING:
    from staddle.v1 import resources_pb2 as pb


class ContentComparison:
    """An open file, read chunk by chunk as the server names the chunks. Owns the descriptor; close it at the end."""

    def __init__(self, descriptor: int, path: bytes, entry: pb.Entry) -> None:
        self.path = path
        self.entry = entry
        self._descriptor = descriptor
        self._hasher = ContentHasher()
        self._read_bytes = 0
        self._same = True

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)

    def add(self, chunks: Iterable[pb.ChunkRef]) -> None:
        """Compares with the next chunks; after a difference nothing more is read. Raises OSError, ProtocolError."""
        size_bytes = self.entry.content.size_bytes
        for chunk in chunks:
            length = chunk.length_bytes
            if not 0 < length <= CHUNK_BYTES_MAX or length > size_bytes - self._read_bytes:
                raise ProtocolError(f"{self.path!r}: a chunk of {length} bytes, which it cannot have.")
            digest = blake3(self._read(length)).digest() if self._same else b""
            self._same = digest == chunk.digest
            self._hasher.add(length, digest)
            self._read_bytes += length

    def is_same(self) -> bool:
        """Whether the file is what the content id says, when all chunks were added.

        Raises ProtocolError if the chunks that matched are not those that the content id stands for.
        """
        if not self._same or os.fstat(self._descriptor).st_size != self.entry.content.size_bytes:
            return False
        if (
            self._read_bytes != self.entry.content.size_bytes
            or self._hasher.content_id() != self.entry.content.content_id
        ):
            raise ProtocolError(f"{self.path!r}: the chunks that the server names are not its content.")
        return True

    def _read(self, length: int) -> bytes:
        """The next bytes; fewer at the end of the file."""
        pieces = []
        position = self._read_bytes
        while length and (piece := os.pread(self._descriptor, length, position)):
            pieces.append(piece)
            position += len(piece)
            length -= len(piece)
        return b"".join(pieces)
