"""What one core needs for each part of the work alone, with the libraries that Staddle uses: nothing can be faster than their sum on two."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from staddle._backup.send_missing import COMPRESSION_LEVEL, FRAME_BYTES_MAX
from staddle.chunking import ChunkerParameters, Cutter

from benchmarks.data.files import MIB, files_below

PIECE_BYTES: Final = 4 * MIB


def measure(source: Path) -> dict[str, float]:
    """Seconds for all the data of a directory, once through each part."""
    spent: dict[str, float] = {}
    spent["list"] = _timed(lambda: sum(1 for _ in files_below(os.fsencode(source))))
    spent |= dict.fromkeys(("read", "cut", "hash", "compress", "inflate", "seal"), 0.0)
    cutter = Cutter(ChunkerParameters(seed=1))
    compressor, inflater = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL), zstandard.ZstdDecompressor()
    sealer = AESGCM(bytes(32))
    waiting = bytearray()
    for piece, last in _pieces(source, spent):
        spent["cut"] += _timed(lambda piece=piece: sum(1 for _ in cutter.lengths(memoryview(piece))))
        spent["hash"] += _timed(lambda piece=piece: blake3(piece).digest())
        waiting += piece
        while len(waiting) >= FRAME_BYTES_MAX or (last and waiting):
            segment = bytes(waiting[:FRAME_BYTES_MAX])
            del waiting[:FRAME_BYTES_MAX]
            begun_s = time.monotonic()
            frame = compressor.compress(segment)
            compressed_s = time.monotonic()
            inflater.decompress(frame)
            inflated_s = time.monotonic()
            sealer.encrypt(bytes(12), frame, None)
            spent["compress"] += compressed_s - begun_s
            spent["inflate"] += inflated_s - compressed_s
            spent["seal"] += time.monotonic() - inflated_s
    return spent


def _timed(work: Callable[[], object]) -> float:
    begun_s = time.monotonic()
    work()
    return time.monotonic() - begun_s


def _pieces(source: Path, spent: dict[str, float]) -> Iterator[tuple[bytes, bool]]:
    """All files in pieces, and which piece is the last of all."""
    before = b""
    for path in files_below(os.fsencode(source)):
        begun_s = time.monotonic()
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(PIECE_BYTES):
                spent["read"] += time.monotonic() - begun_s
                if before:
                    yield before, False
                before = piece
                begun_s = time.monotonic()
        spent["read"] += time.monotonic() - begun_s
    if before:
        yield before, True
