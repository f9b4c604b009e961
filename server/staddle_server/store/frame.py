"""Payloads as stored: raw, or one zstd frame (RFC 8878) that states its content size."""

import enum
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

import zstandard

from staddle_server.base.errors import BadRequest
from staddle_server.base.limits import MIB, SEGMENT_RAW_BYTES_MAX
from staddle_server.store.blobs import Buffer

WINDOW_BYTES_MAX: Final = 2 * MIB
ZSTD_LEVEL: Final = 1
KEPT_PERCENT_MAX: Final = 97
"""A frame above this share of its content is stored raw: decompression would cost more than it saves."""


C = TypeVar("C")


class Codec(enum.IntEnum):
    """The codec of a payload, as stored and as on the wire."""

    RAW = 0
    ZSTD = 1


class FrameError(BadRequest):
    """A payload breaks the rules, or its content differs from what was stated."""

    def __init__(self, message: str) -> None:
        super().__init__("BAD_FRAME", message)


class _Contexts(Generic[C]):
    """zstd contexts for reuse: each serves one thread at a time, so there are as many as were ever used at
    once.
    """

    def __init__(self, make: Callable[[], C]) -> None:
        self._make = make
        self._idle: deque[C] = deque()

    @contextmanager
    def one(self) -> Iterator[C]:
        """Lend a context to one caller at a time."""
        try:
            context = self._idle.pop()
        except IndexError:
            context = self._make()
        try:
            yield context
        finally:
            self._idle.append(context)


_compressors: Final = _Contexts(lambda: zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=True))
_decompressors: Final = _Contexts(lambda: zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX))


def compress(payload: Buffer) -> tuple[int, Buffer]:
    """Return codec and payload as stored: `payload` itself if compression saves under 3 %.

    Releases the GIL.
    """
    with _compressors.one() as compressor:
        frame = compressor.compress(payload)
    if len(frame) * 100 > len(payload) * KEPT_PERCENT_MAX:
        return Codec.RAW, payload
    return Codec.ZSTD, frame


def inflate(codec: int, payload: Buffer, raw_length: int) -> Buffer:
    """Return the `raw_length` bytes that `payload` stands for: `payload` itself if it is raw.

    Releases the GIL. Allocates at most `raw_length` bytes, whatever the frame states. Raises FrameError for
    an unknown codec, a length outside 1 to SEGMENT_RAW_BYTES_MAX or different from the stated one, a window
    over 2 MiB, a dictionary, a broken frame, or trailing bytes.
    """
    if not 1 <= raw_length <= SEGMENT_RAW_BYTES_MAX:
        raise FrameError(f"a payload inflates to 1 to {SEGMENT_RAW_BYTES_MAX} bytes, not {raw_length}")
    if codec == Codec.ZSTD:
        return _inflate_frame(payload, raw_length)
    if codec != Codec.RAW:
        raise FrameError(f"unknown codec {codec}")
    if len(payload) != raw_length:
        raise FrameError(f"a raw payload has {len(payload)} bytes where {raw_length} were stated")
    return payload


def inflate_start(codec: int, payload: Buffer, raw_length: int, length: int) -> Buffer:
    """Return the first `length` of the `raw_length` bytes, without inflating the rest.

    Raises as `inflate` does.
    """
    if codec != Codec.ZSTD or not 1 <= length < raw_length <= SEGMENT_RAW_BYTES_MAX:
        return inflate(codec, payload, raw_length)
    _check_parameters(payload, raw_length)
    try:
        with _decompressors.one() as decompressor, decompressor.stream_reader(payload) as reader:
            start: bytes = reader.read(length)
    except zstandard.ZstdError as error:
        raise FrameError(f"a zstd frame is broken: {error}") from error
    if len(start) != length:
        raise FrameError(f"a zstd frame ends after {len(start)} bytes where {raw_length} were stated")
    return start


def _inflate_frame(frame: Buffer, raw_length: int) -> bytes:
    _check_parameters(frame, raw_length)
    try:
        with _decompressors.one() as decompressor:
            raw = decompressor.decompress(frame, read_across_frames=False, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FrameError(f"a zstd frame is broken: {error}") from error
    if len(raw) != raw_length:
        raise FrameError(f"a zstd frame holds {len(raw)} bytes where {raw_length} were stated")
    return raw


def _check_parameters(frame: Buffer, raw_length: int) -> None:
    # Skippable frames have parameters too, and would pass as empty frames.
    if bytes(frame[:4]) != zstandard.FRAME_HEADER:
        raise FrameError("a payload is not a zstd frame")
    try:
        parameters = zstandard.get_frame_parameters(frame)
    except zstandard.ZstdError as error:
        raise FrameError(f"a zstd frame is broken: {error}") from error
    if parameters.content_size == zstandard.CONTENTSIZE_UNKNOWN:
        raise FrameError("a zstd frame does not state its content size")
    if parameters.content_size != raw_length:
        raise FrameError(
            f"a zstd frame states {parameters.content_size} bytes of content where {raw_length} were stated"
        )
    if parameters.window_size > WINDOW_BYTES_MAX:
        raise FrameError(
            f"a zstd frame has a window of {parameters.window_size} bytes, over {WINDOW_BYTES_MAX}"
        )
    if parameters.dict_id:
        raise FrameError("a zstd frame needs a dictionary")
