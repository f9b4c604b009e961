"""Compressed streams of any length, in and out, each in bounded memory.

Frames of stored payloads are in frame.py: these streams are what clients and their programs exchange.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

import zstandard

from staddle_server.base.errors import BadRequest
from staddle_server.base.limits import INFLATED_PIECE_BYTES, ZSTD_STREAM_WINDOW_BYTES_MAX
from staddle_server.store.frame import ZSTD_LEVEL

_GZIP: Final = zlib.MAX_WBITS | 16
_SECRET_BYTES: Final = 32


def compressed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield pieces as one zstd frame. A stream that ends early has no end of its frame."""
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True).compressobj()
    for piece in pieces:
        data = compressor.compress(piece)
        if data:
            yield data
    yield compressor.flush()


class ByteSource(Protocol):
    """Bytes on demand, as `io.RawIOBase` has them."""

    def read(self, size: int, /) -> bytes:
        """Return 1 to `size` bytes; none at the end."""


class Pieces:
    """A ByteSource of pieces that arrive."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def read(self, size: int = -1, /) -> bytes:
        """Return 1 to `size` bytes; none at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = memoryview(piece)
        taken = self._rest[: size if size >= 0 else None]
        self._rest = self._rest[len(taken) :]
        return bytes(taken)


def inflated(form: str, source: Pieces) -> ByteSource:
    """Return a source of what a compressed source holds. `form` is "", "gzip" or "zstd".

    It inflates no more than is asked for. Several frames or members in succession count as one stream.
    Its `read` raises BadRequest (BAD_FRAME) for bytes that are not of that format or that are cut short.
    """
    if form == "gzip":
        return _Gzip(source)
    if form == "zstd":
        return _Zstd(source)
    return source


class _Gzip:
    def __init__(self, source: Pieces) -> None:
        self._source = source
        self._reader = zlib.decompressobj(_GZIP)
        self._input = b""

    def read(self, size: int, /) -> bytes:
        while True:
            if self._reader.eof and not self._begin_next():
                return b""
            if not self._input:
                self._input = self._source.read(INFLATED_PIECE_BYTES)
                if not self._input:
                    raise _cut_short("gzip")
            try:
                found = self._reader.decompress(self._input, size)
            except zlib.error as error:
                raise _not("gzip") from error
            self._input = self._reader.unconsumed_tail
            if found:
                return found

    def _begin_next(self) -> bool:
        """Begin the next member; return False if there is none, behind padding as tapes and some tools add it."""
        rest = self._reader.unused_data
        while not rest.strip(b"\0"):
            rest = self._source.read(INFLATED_PIECE_BYTES)
            if not rest:
                return False
        self._input, self._reader = rest, zlib.decompressobj(_GZIP)
        return True


class _Zstd:
    """zstd's reader takes a stream that is cut short for whole. Therefore a frame with a secret follows it: it
    comes out only if the stream before it is complete.
    """

    def __init__(self, source: Pieces) -> None:
        self._secret = os.urandom(_SECRET_BYTES)
        self._marked = _Marked(source, zstandard.ZstdCompressor().compress(self._secret))
        self._kept = b""
        """The last bytes, which may be the secret."""
        self._reader = zstandard.ZstdDecompressor(max_window_size=ZSTD_STREAM_WINDOW_BYTES_MAX).stream_reader(
            self._marked,  # type: ignore[arg-type] # it is only read
            read_size=INFLATED_PIECE_BYTES,
            read_across_frames=True,
        )

    def read(self, size: int, /) -> bytes:
        while True:
            try:
                found: bytes = self._reader.read(size)
            except zstandard.ZstdError as error:
                if self._marked.at_end:
                    raise _cut_short("zstd") from error
                raise _not("zstd") from error
            if not self._marked.at_end:
                return found
            if not found:
                if self._kept != self._secret:
                    raise _cut_short("zstd")
                return b""
            data = self._kept + found
            self._kept = data[-_SECRET_BYTES:]
            if len(data) > _SECRET_BYTES:
                return data[:-_SECRET_BYTES]


class _Marked:
    """A source with a mark behind its end."""

    def __init__(self, source: Pieces, mark: bytes) -> None:
        self._source = source
        self._mark = mark
        self.at_end = False

    def read(self, size: int = -1, /) -> bytes:
        found = b"" if self.at_end else self._source.read(size)
        if not found:
            self.at_end = True
            # Byte by byte: zstd would take a frame that is whole at once, also in the middle of a header.
            found, self._mark = self._mark[:1], self._mark[1:]
        return found


def _not(form: str) -> BadRequest:
    return BadRequest("BAD_FRAME", f"the body is not valid {form}")


def _cut_short(form: str) -> BadRequest:
    return BadRequest("BAD_FRAME", f"the body is cut short: its {form} stream has no end")
