"""Bytes to chunks: the one place where data is cut, for the server's thin path and the source side alike.

Cuts depend on the bytes and the tenant's parameters alone, never on how the bytes arrive. They restart at every chunk, so
a writer that resumes at the end of a chunk makes the same cuts.

The algorithm is FastCDC 2020 (Xia et al., "The Design of Fast Content-Defined Chunking for Data Deduplication Based Storage
Systems", IEEE TPDS 31(9)), from `pyfastcdc`; digests are BLAKE3-256. Only `Chunker` needs `pyfastcdc`: the rest works with
what the thin client installs.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from blake3 import blake3

if TYPE_CHECKING:
    from pyfastcdc import FastCDC

Buffer = bytes | bytearray | memoryview

CONTENT_ID_CONTEXT: Final = "staddle.v1 content id"
EMPTY_CONTENT_ID: Final = blake3(b"").digest()
CHUNK_BYTES_MAX: Final = 1024 * 1024
SMALL_BYTES: Final = 4 * 1024
"""Pushed pieces up to this size are gathered: each would cost more to keep than it holds."""
_PAIR: Final = struct.Struct("<I32s")


@dataclass(frozen=True, slots=True)
class ChunkerParameters:
    """How a tenant's data is cut; GetServerInfo and every Upload carry them. Sizes are bytes."""

    seed: int
    min_bytes: int = 64 * 1024
    avg_bytes: int = 256 * 1024
    max_bytes: int = CHUNK_BYTES_MAX
    normalization: int = 2
    fixed_bytes: int = CHUNK_BYTES_MAX

    def __post_init__(self) -> None:
        if not 0 < self.seed < 2**63:
            raise ValueError("a chunker seed lies between 1 and 2^63 - 1: 0 would mean none")
        if not 0 < self.min_bytes < self.avg_bytes < self.max_bytes <= CHUNK_BYTES_MAX:
            raise ValueError("chunk sizes must rise from minimum over average to maximum, at most 1 MiB")
        if not 0 < self.fixed_bytes <= CHUNK_BYTES_MAX:
            raise ValueError("a fixed chunk has 1 byte to 1 MiB")

    def __repr__(self) -> str:
        return f"ChunkerParameters({self.min_bytes}, {self.avg_bytes}, {self.max_bytes}, seed=…)"


class Cut(NamedTuple):
    """A chunk: its digest and its bytes, a view of what was pushed."""

    digest: bytes
    data: memoryview


class ContentHasher:
    """The content id of a file, chunk by chunk (docs/format.md, "Chunks")."""

    def __init__(self) -> None:
        self._first: tuple[int, bytes] | None = None
        self._hash: blake3 | None = None

    def add(self, length: int, digest: bytes) -> None:
        """Adds the next chunk."""
        if self._hash is not None:
            self._hash.update(_PAIR.pack(length, digest))
        elif self._first is None:
            self._first = (length, digest)
        else:
            self._hash = blake3(derive_key_context=CONTENT_ID_CONTEXT)
            self._hash.update(_PAIR.pack(*self._first))
            self._hash.update(_PAIR.pack(length, digest))

    def content_id(self) -> bytes:
        """The content id of the chunks so far, 32 bytes."""
        if self._hash is not None:
            return self._hash.digest()
        return EMPTY_CONTENT_ID if self._first is None else self._first[1]


def content_id(chunks: Iterable[tuple[int, bytes]]) -> bytes:
    """The content id of a file with these chunks, (length, digest) in order."""
    hasher = ContentHasher()
    for length, digest in chunks:
        hasher.add(length, digest)
    return hasher.content_id()


class Zeros(NamedTuple):
    """The chunk that a run of zeros is cut into."""

    data: bytes
    digest: bytes


class Cutter:
    """Where chunks end, for one tenant. Holds the gear table, so make one and share it; it is thread-safe."""

    def __init__(self, parameters: ChunkerParameters) -> None:
        self.parameters = parameters
        self._fastcdc: FastCDC = _fastcdc(parameters)
        self.fixed_zeros = _zeros(parameters.fixed_bytes)

    @functools.cached_property
    def zeros(self) -> Zeros:
        """The chunk that zeros are cut into by content."""
        return _zeros(next(self.lengths(memoryview(bytes(self.parameters.max_bytes)))))

    def lengths(self, window: memoryview) -> Iterator[int]:
        """The lengths of the window's chunks. The last one may be longer when more follows."""
        for chunk in self._fastcdc.cut_buf(window):
            yield chunk.length


def _fastcdc(parameters: ChunkerParameters) -> FastCDC:
    from pyfastcdc import FastCDC  # the thin client does without

    return FastCDC(
        avg_size=parameters.avg_bytes,
        min_size=parameters.min_bytes,
        max_size=parameters.max_bytes,
        normalized_chunking=parameters.normalization,  # type: ignore[arg-type] # checked by pyfastcdc itself
        seed=parameters.seed,
    )


def _zeros(length: int) -> Zeros:
    data = bytes(length)
    return Zeros(data, blake3(data).digest())


class Chunker:
    """Cuts one file that is pushed piece by piece.

    Chunks are views of the pieces, where they lie in one; a chunk that lies across pieces is a copy.
    """

    def __init__(self, cutter: Cutter, *, fixed: bool = False) -> None:
        parameters = cutter.parameters
        self._cutter = cutter
        self._fixed_bytes = parameters.fixed_bytes if fixed else 0
        self._max_bytes = self._fixed_bytes or parameters.max_bytes
        # Where a chunk ends by content depends on the byte behind it.
        self._enough_bytes = self._fixed_bytes or parameters.max_bytes + 1
        """In so many bytes at least one chunk is certain."""
        self._parts: list[Buffer] = []
        self._pending = 0
        self._pending_zeros = 0
        """So many bytes at the end of what is pending are known to be zeros."""

    @property
    def pending_bytes(self) -> int:
        """Bytes that were pushed and lie in no chunk yet."""
        return self._pending

    def push(self, data: Buffer) -> list[Cut]:
        """Adds bytes; gives the chunks that are certain by now. The data must not change afterwards."""
        if not data:
            return []
        if len(data) > SMALL_BYTES:
            self._parts.append(data)
        elif self._parts and isinstance(self._parts[-1], bytearray):
            self._parts[-1] += data
        else:
            self._parts.append(bytearray(data))
        self._pending += len(data)
        self._pending_zeros = 0
        return self._cut(last=False)

    def push_zeros(self, count: int) -> list[Cut]:
        """Adds so many zero bytes. Long runs cost next to nothing."""
        zeros = self._cutter.fixed_zeros if self._fixed_bytes else self._cutter.zeros
        cuts: list[Cut] = []
        while count:
            if self._pending_zeros == self._pending and self._pending + count >= len(zeros.data):
                whole, rest = divmod(self._pending + count, len(zeros.data))
                cuts.extend([Cut(zeros.digest, memoryview(zeros.data))] * whole)
                self._parts = [memoryview(zeros.data)[:rest]] if rest else []
                self._pending = self._pending_zeros = rest
                return cuts
            piece = min(count, len(zeros.data))
            known = self._pending_zeros + piece
            cuts += self.push(memoryview(zeros.data)[:piece])
            self._pending_zeros = min(known, self._pending)
            count -= piece
        return cuts

    def finish(self) -> list[Cut]:
        """Ends the file: the chunks that were still pending."""
        return self._cut(last=True)

    def _cut(self, *, last: bool) -> list[Cut]:
        cuts: list[Cut] = []
        if not last and self._pending < self._enough_bytes:
            return cuts
        while len(self._parts) > 1 and (last or self._pending >= self._enough_bytes):
            cuts += self._cut_across(last=last)
        if len(self._parts) == 1:
            cuts += self._cut_in_place(last=last)
        self._pending_zeros = min(self._pending_zeros, self._pending)
        return cuts

    def _cut_in_place(self, *, last: bool) -> list[Cut]:
        """The chunks of the only part."""
        window = memoryview(self._parts[0])
        pieces = list(self._pieces(window, ends=last))
        self._drop(sum(map(len, pieces)))
        return [Cut(blake3(piece).digest(), piece) for piece in pieces]

    def _cut_across(self, *, last: bool) -> list[Cut]:
        """The chunks from the first part on, up to the first one that ends in the last part; at least one."""
        before = self._pending - len(self._parts[-1])
        window = memoryview(b"".join(self._first(self._enough_bytes)))
        cuts, position = [], 0
        for piece in self._pieces(window, ends=last and len(window) == self._pending):
            cuts.append(Cut(blake3(piece).digest(), memoryview(bytes(piece))))
            position += len(piece)
            if position >= before:
                break
        self._drop(position)
        return cuts

    def _pieces(self, window: memoryview, *, ends: bool) -> Iterator[memoryview]:
        """The window's chunks, but not a last one that may be longer when more follows."""
        position = 0
        for length in self._fixed_lengths(window) if self._fixed_bytes else self._cutter.lengths(window):
            start, position = position, position + length
            if ends or position < len(window) or length == self._max_bytes:
                yield window[start:position]

    def _fixed_lengths(self, window: memoryview) -> Iterator[int]:
        for start in range(0, len(window), self._fixed_bytes):
            yield min(self._fixed_bytes, len(window) - start)

    def _first(self, count: int) -> Iterator[Buffer]:
        """The first bytes that are pending: so many, or all."""
        for part in self._parts:
            if count <= 0:
                return
            yield part if len(part) <= count else memoryview(part)[:count]
            count -= len(part)

    def _drop(self, count: int) -> None:
        """Takes the first bytes out of what is pending."""
        self._pending -= count
        whole = 0
        while whole < len(self._parts) and len(self._parts[whole]) <= count:
            count -= len(self._parts[whole])
            whole += 1
        del self._parts[:whole]
        if count:
            self._parts[0] = memoryview(self._parts[0])[count:]
