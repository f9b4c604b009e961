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
from collections import deque
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
EXPECTED_AHEAD: Final = 4_096
"""How many expected chunks are kept in view: an insertion or removal is found if the file continues within them."""
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


def hashed(cuts: Iterable[Cut]) -> list[Cut]:
    """The same with their digests, where they have none yet."""
    return [cut if cut.digest else Cut(blake3(cut.data).digest(), cut.data) for cut in cuts]


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


@functools.lru_cache(maxsize=16)
def _zeros(length: int) -> Zeros:
    # Kept for all tenants: hashing them takes as long as starting a backup of a few files.
    data = bytes(length)
    return Zeros(data, blake3(data).digest())


class Expected:
    """The chunks of an earlier version of a file, in order: where one of them begins, so mostly does the next one where it ends.

    Nothing is believed. A chunk is what was expected if its digest says so; and it is not scanned only if the next one is what was expected
    too, for whether a chunk ends at a byte depends on what lies behind it (docs/decisions/2026-11-26-expected-cuts.md).
    """

    def __init__(self, chunks: Iterable[tuple[int, bytes]], parameters: ChunkerParameters) -> None:
        """`chunks` are (length, digest), of a file that was cut with the same parameters; drawn from as the file goes by."""
        self._source = iter(chunks)
        self._lengths = range(parameters.min_bytes, parameters.max_bytes + 1)
        self._coming: deque[tuple[int, bytes]] = deque()
        self._passed = 0
        """So many chunks stood before the first that is coming."""
        self._numbers: dict[bytes, int] = {}
        self._following = True
        """Whether the first that is coming is expected at this place."""
        self._seen = False
        """Whether it was found there already."""
        self._next_seen = False
        """Whether the one behind it was found as well."""
        self._fill()

    def length_at(self, data: memoryview) -> int:
        """The length of the chunk that begins here; 0 if it has to be found by scanning. `digest_of` has to be asked next."""
        self._next_seen = False
        if not self._following or len(self._coming) < 2:
            return 0
        (length, digest), (next_length, next_digest) = self._coming[0], self._coming[1]
        end = length + next_length
        if end > len(data):
            return 0
        self._seen = self._seen or blake3(data[:length]).digest() == digest
        self._following = self._next_seen = self._seen and blake3(data[length:end]).digest() == next_digest
        return length if self._following else 0

    def digest_of(self, chunk: memoryview) -> bytes:
        """The digest of the chunk that begins here, and what is expected behind it."""
        if self._seen and len(chunk) == self._coming[0][0]:
            digest, found = self._coming[0][1], self._passed
        else:
            digest = blake3(chunk).digest()
            is_next = bool(self._coming) and digest == self._coming[0][1]
            found = self._passed if is_next else self._numbers.get(digest, -1)
        self._seen = self._next_seen and found == self._passed
        self._following = found >= 0
        while self._passed <= found:
            self._pass()
        return digest

    def lose(self) -> None:
        """Bytes were passed that `digest_of` was not asked about."""
        self._following = self._seen = self._next_seen = False

    def _pass(self) -> None:
        _, digest = self._coming.popleft()
        if self._numbers.get(digest) == self._passed:
            del self._numbers[digest]
        self._passed += 1
        self._fill()

    def _fill(self) -> None:
        while len(self._coming) < EXPECTED_AHEAD:
            length, digest = next(self._source, (0, b""))
            if length not in self._lengths:  # the end of the file, or nothing that a chunk could be
                self._source = iter(())
                return
            self._numbers.setdefault(digest, self._passed + len(self._coming))
            self._coming.append((length, digest))


class Chunker:
    """Cuts one file that is pushed piece by piece.

    Chunks are views of the pieces, where they lie in one; a chunk that lies across pieces is a copy.
    """

    def __init__(
        self, cutter: Cutter, *, fixed: bool = False, hashes: bool = True, expected: Expected | None = None
    ) -> None:
        """`hashes` False: digests are left empty, for another thread to compute (`hashed`) where that takes time.

        `expected` says where cuts may be; they are where they are without it. It is of no use for fixed chunks.
        """
        parameters = cutter.parameters
        self._cutter = cutter
        self._hashes = hashes
        self._expected = None if fixed else expected
        self._fixed_bytes = parameters.fixed_bytes if fixed else 0
        self._max_bytes = self._fixed_bytes or parameters.max_bytes
        # Where a chunk ends by content depends on the byte behind it.
        self._enough_bytes = self._fixed_bytes or parameters.max_bytes + 1
        """In so many bytes at least one chunk is certain."""
        self._likely_bytes = self._fixed_bytes or parameters.min_bytes + parameters.avg_bytes
        """In so many bytes mostly one ends."""
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
                if self._expected is not None:
                    self._expected.lose()
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
        cuts = [self._cut_of(piece) for piece in self._pieces(window, ends=last)]
        self._drop(sum(len(cut.data) for cut in cuts))
        return cuts

    def _cut_of(self, piece: memoryview) -> Cut:
        if self._expected is not None:
            return Cut(self._expected.digest_of(piece), piece)
        return Cut(blake3(piece).digest() if self._hashes else b"", piece)

    def _cut_across(self, *, last: bool) -> list[Cut]:
        """The chunks from the first part on, up to the first one that ends in the last part; at least one."""
        before = self._pending - len(self._parts[-1])
        # Joining copies, so a shorter stretch is tried first.
        for count in (before + self._likely_bytes, self._enough_bytes):
            window = memoryview(b"".join(self._first(count)))
            cuts, position = [], 0
            for piece in self._pieces(window, ends=last and len(window) == self._pending):
                cuts.append(self._cut_of(memoryview(bytes(piece))))
                position += len(piece)
                if position >= before:
                    break
            if cuts:
                break
        self._drop(position)
        return cuts

    def _pieces(self, window: memoryview, *, ends: bool) -> Iterator[memoryview]:
        """The window's chunks, but not a last one that may be longer when more follows."""
        position = 0
        for length in self._lengths(window):
            start, position = position, position + length
            if ends or position < len(window) or length == self._max_bytes:
                yield window[start:position]

    def _lengths(self, window: memoryview) -> Iterator[int]:
        if self._fixed_bytes:
            return self._fixed_lengths(window)
        return (
            self._cutter.lengths(window)
            if self._expected is None
            else self._expected_lengths(window, self._expected)
        )

    def _fixed_lengths(self, window: memoryview) -> Iterator[int]:
        for start in range(0, len(window), self._fixed_bytes):
            yield min(self._fixed_bytes, len(window) - start)

    def _expected_lengths(self, window: memoryview, expected: Expected) -> Iterator[int]:
        while window:
            length = expected.length_at(window) or next(self._cutter.lengths(window))
            yield length
            window = window[length:]

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
