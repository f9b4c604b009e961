"""Segments of a Restore stream: inflated, cut into pieces and hashed on another thread, a little before they are needed.

What a server says of them is not believed: how much a frame inflates to is looked up in it first, and a piece is bytes of a segment or
an error. Whether they are the right bytes, the content id of each file says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from importlib.util import find_spec
from typing import Final, NamedTuple, Protocol

from blake3 import blake3

from staddle._base.threads import Threads
from staddle._errors import ProtocolError
from staddle.chunking import CHUNK_BYTES_MAX
from staddle.v1 import service_pb2 as sv

KEPT: Final = 8
"""The protocol says that pieces refer to one of the last eight."""
RAW_BYTES_MAX: Final = 3 * 1024 * 1024
WINDOW_BYTES_MAX: Final = 2 * 1024 * 1024
MESSAGES_AHEAD: Final = 2
"""So many messages are taken before they are needed, for the sake of what is in them."""
OPENED_BYTES_MAX: Final = 8 * 1024 * 1024
"""So much is opened and hashed of a message at once: a few bytes can stand for a segment, and fewer for a piece."""


class Parts(Protocol):
    """A message, or some parts of one."""

    @property
    def parts(self) -> Iterable[sv.RestorePart]:
        """In order."""


class _Some(NamedTuple):
    parts: list[sv.RestorePart]


def _slices(response: sv.RestoreResponse) -> Iterator[Parts]:
    """A message in as many slices as keep what is opened of it bounded."""
    sizes = [_opened_bytes(part) for part in response.parts]
    if sum(sizes) <= OPENED_BYTES_MAX:
        yield response
        return
    some, opened = _Some([]), 0
    for part, size in zip(response.parts, sizes, strict=True):
        if some.parts and opened + size > OPENED_BYTES_MAX:
            yield some
            some, opened = _Some([]), 0
        some.parts.append(part)
        opened += size
    yield some


def _opened_bytes(part: sv.RestorePart) -> int:
    kind = part.WhichOneof("part")
    if kind == "segment":
        return part.segment.raw_bytes
    if kind == "pieces":
        return sum(piece.length_bytes for piece in part.pieces.pieces)
    return 0


class Chunk(NamedTuple):
    """A chunk that was a piece of a segment, and its digest."""

    data: memoryview
    digest: bytes


class _Kept:
    """The last segments, by their numbers."""

    def __init__(self) -> None:
        self._segments: deque[memoryview] = deque(maxlen=KEPT)
        self._count = 0

    def add(self, segment: memoryview) -> None:
        self._segments.append(segment)
        self._count += 1

    def of(self, piece: sv.Piece) -> Chunk:
        """A piece. Raises ProtocolError if the segments do not have it."""
        return self.chunk(piece.segment, piece.offset_bytes, piece.length_bytes)

    def chunk(self, number: int, offset: int, length: int) -> Chunk:
        """Bytes of a segment. Raises ProtocolError if the segments do not have them."""
        index = number - self._count + len(self._segments)
        if not 0 <= index < len(self._segments):
            raise ProtocolError(f"The restore refers to segment {number}, and {self._count} have come.")
        segment = self._segments[index]
        if not length or offset + length > len(segment):
            raise ProtocolError(
                f"The restore refers to {length} bytes at {offset} of a segment of {len(segment)}."
            )
        if length > CHUNK_BYTES_MAX:
            raise ProtocolError(f"The restore has a chunk of {length} bytes, over {CHUNK_BYTES_MAX}.")
        data = segment[offset : offset + length]
        return Chunk(data, blake3(data).digest())


class _Unpacked(NamedTuple):
    """The decoded message: its segments, and the chunks of its parts that consist of pieces."""

    segments: deque[memoryview]
    chunks: deque[Chunk]


def can_open() -> bool:
    """Whether this installation can open zstd frames, which the extra `cli` brings."""
    return find_spec("zstandard") is not None


class Segments:
    """The last segments of one stream. One thread uses it; close it at the end."""

    def __init__(self) -> None:
        self._pool = Threads(1, thread_name_prefix="staddle-inflate")
        self._kept = _Kept()
        self._opened = _Unpacked(deque(), deque())
        """Of the message that was passed on last."""
        self._kept_ahead = _Kept()
        """Only the pool's thread uses it."""

    def close(self) -> None:
        """Cancel the work in progress."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def ahead(self, responses: Iterable[sv.RestoreResponse]) -> Iterator[Parts]:
        """Pass messages on, each once its segments have come, while the segments of later ones are opened.

        Raises ProtocolError for malformed segments and pieces, and what `responses` raises.
        """
        waiting: deque[tuple[Parts, Future[_Unpacked]]] = deque()
        for response in (each for message in responses for each in _slices(message)):
            large = [part for part in response.parts if part.WhichOneof("part") in _LARGE]
            if not large and not waiting:
                yield response
                continue
            waiting.append((response, self._pool.submit(self._open, large)))
            if len(waiting) > MESSAGES_AHEAD:
                yield self._come(*waiting.popleft())
        while waiting:
            yield self._come(*waiting.popleft())

    def _come(self, response: Parts, opening: Future[_Unpacked]) -> Parts:
        self._opened = opening.result()
        return response

    def next_segment(self) -> None:
        """The next segment of the message that was passed on last has its turn."""
        self._kept.add(self._opened.segments.popleft())

    def next_chunk(self) -> Chunk:
        """The next chunk of the message's parts that consist of pieces."""
        return self._opened.chunks.popleft()

    def chunk(self, number: int, offset: int, length: int) -> Chunk:
        """The piece of an entry. Raises ProtocolError if the segments do not have it."""
        # Small: passing it to another thread takes longer than hashing it.
        return self._kept.chunk(number, offset, length)

    def _open(self, large: Iterable[sv.RestorePart]) -> _Unpacked:
        """The slow part of a message, on the pool's thread."""
        opened = _Unpacked(deque(), deque())
        for part in large:
            if part.HasField("segment"):
                segment = _inflated(part.segment)
                opened.segments.append(segment)
                self._kept_ahead.add(segment)
            else:
                opened.chunks.extend(map(self._kept_ahead.of, part.pieces.pieces))
        return opened


_LARGE: Final = frozenset({"segment", "pieces"})


def _inflated(segment: sv.Segment) -> memoryview:
    data, raw_bytes = segment.data, segment.raw_bytes
    if raw_bytes > RAW_BYTES_MAX:
        raise ProtocolError(f"The restore has a segment of {raw_bytes} bytes, over {RAW_BYTES_MAX}.")
    inflated = data if segment.raw else _inflate_frame(data, raw_bytes)
    if len(inflated) != raw_bytes:
        raise ProtocolError(f"The restore has a segment of {len(inflated)} bytes that says {raw_bytes}.")
    return memoryview(inflated)


def _inflate_frame(data: bytes, raw_bytes: int) -> bytes:
    import zstandard

    try:
        # Skippable frames have parameters too, and would pass for empty ones.
        parameters = zstandard.get_frame_parameters(data)
        if (
            data[:4] != zstandard.FRAME_HEADER
            or parameters.content_size != raw_bytes
            or parameters.window_size > WINDOW_BYTES_MAX
        ):
            raise ProtocolError("The restore has a segment that is not the zstd frame that it may be.")
        decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX)
        return decompressor.decompress(data, read_across_frames=False, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ProtocolError(f"The restore has a segment that cannot be inflated: {error}") from error
