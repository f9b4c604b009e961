"""The file whose bytes, or whose chunk references, a Restore stream is bringing: whether they are its content."""

from collections.abc import Iterable
from typing import Final

from blake3 import blake3

from staddle._errors import ProtocolError
from staddle._protocol.segments import Chunk
from staddle.chunking import CHUNK_BYTES_MAX, ContentHasher
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

DIGEST_BYTES: Final = 32
ZERO_BYTES_MAX: Final = 1024 * 1024 * 1024
"""Zeros in one part, as the protocol says."""
ZERO_LENGTHS_MAX: Final = 64
"""So many different lengths chunks of zeros have in one stream: each is hashed once. A server cuts runs of zeros into one length."""


class Referred:
    """A file whose chunks are named, and how much of it they are so far."""

    def __init__(self, path: bytes, size_bytes: int) -> None:
        self.path = path
        self._size_bytes = size_bytes
        self._named_bytes = 0

    def add(self, chunks: Iterable[pb.ChunkRef]) -> None:
        for chunk in chunks:
            length = chunk.length_bytes
            if not 0 < length <= CHUNK_BYTES_MAX or len(chunk.digest) != DIGEST_BYTES:
                raise ProtocolError(
                    f"{self.path!r}: a chunk of {length} bytes, with {len(chunk.digest)} of a digest."
                )
            self._named_bytes += length
            if self._named_bytes > self._size_bytes:
                raise ProtocolError(f"{self.path!r}: chunks of more than its {self._size_bytes} bytes.")

    def end(self) -> None:
        if self._named_bytes != self._size_bytes:
            raise ProtocolError(
                f"{self.path!r}: chunks of {self._named_bytes} bytes, and it has {self._size_bytes}."
            )


class StreamedFile:
    """The file whose bytes are coming, and the content id of them so far."""

    def __init__(self, path: bytes, size_bytes: int, content_id: bytes, zeros: dict[int, bytes]) -> None:
        """`zeros`: the digests of chunks of zeros by their lengths, which one stream keeps."""
        self.path = path
        self._zeros = zeros
        self._content_id = content_id
        self.size_bytes = size_bytes
        self._hasher = ContentHasher()
        self._came_bytes = 0

    def add(self, data: sv.Data, payload: bytes) -> None:
        size = data.zero_bytes or len(payload)
        if data.zero_bytes and payload:
            raise ProtocolError(f"{self.path!r}: data that is both bytes and zeros.")
        if data.zero_bytes > ZERO_BYTES_MAX:
            raise ProtocolError(f"{self.path!r}: {size} zeros at once, over {ZERO_BYTES_MAX}.")
        if sum(data.chunk_lengths) != size or not size:
            raise ProtocolError(f"{self.path!r}: data of {size} bytes that are not whole chunks.")
        self._came(size)
        if data.zero_bytes:
            for length in data.chunk_lengths:
                self._hasher.add(length, self._zeros_digest(self._checked(length)))
            return
        view, offset = memoryview(payload), 0
        for length in data.chunk_lengths:
            self._hasher.add(self._checked(length), blake3(view[offset : offset + length]).digest())
            offset += length

    def _zeros_digest(self, length: int) -> bytes:
        digest = self._zeros.get(length)
        if digest is None:
            if len(self._zeros) >= ZERO_LENGTHS_MAX:
                raise ProtocolError(f"{self.path!r}: zeros in chunks of over {ZERO_LENGTHS_MAX} lengths.")
            digest = self._zeros[length] = blake3(bytes(length)).digest()
        return digest

    def add_chunk(self, chunk: Chunk) -> None:
        length = len(chunk.data)
        self._came(length)
        self._hasher.add(self._checked(length), chunk.digest)

    def _came(self, size: int) -> None:
        self._came_bytes += size
        if self._came_bytes > self.size_bytes:
            raise ProtocolError(f"{self.path!r}: more data came than its {self.size_bytes} bytes.")

    def _checked(self, length: int) -> int:
        if not 0 < length <= CHUNK_BYTES_MAX:
            raise ProtocolError(f"{self.path!r}: a chunk of {length} bytes.")
        return length

    def check(self, end: sv.EntryEnd) -> None:
        if end.size_bytes != self._came_bytes or self._came_bytes != self.size_bytes:
            raise ProtocolError(
                f"{self.path!r}: {self._came_bytes} bytes came of {self.size_bytes}; its end says {end.size_bytes}."
            )
        said = {self._content_id or end.content_id, end.content_id}
        if said != {self._hasher.content_id()}:
            raise ProtocolError(f"{self.path!r}: the bytes that came are not what its content id says.")
