"""The chunks of a file that is being read, of any size."""

from __future__ import annotations

import struct
import tempfile
import weakref
from collections.abc import Iterator
from typing import IO, Final

CHUNKS_IN_MEMORY_MAX: Final = 16_384
"""A longer list of chunks lies in a temporary file."""

_REFERENCE: Final = struct.Struct("<I32s")


class ChunkList:
    """The chunks of one file, (length, digest) in order; a file of any size takes little memory."""

    __slots__ = ("__weakref__", "_count", "_few", "_file")

    def __init__(self) -> None:
        self._few: list[tuple[int, bytes]] = []
        self._file: IO[bytes] | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        if self._file is not None:
            self._spill(self._file)
            position = 0
            while block := self._block(self._file, position):
                position += len(block)
                yield from _REFERENCE.iter_unpack(block)
        yield from self._few

    def append(self, length: int, digest: bytes) -> None:
        """Adds the next chunk."""
        self._count += 1
        self._few.append((length, digest))
        if len(self._few) >= CHUNKS_IN_MEMORY_MAX:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the list
                weakref.finalize(self, self._file.close)
            self._spill(self._file)

    def _spill(self, file: IO[bytes]) -> None:
        file.seek(0, 2)
        file.write(b"".join(_REFERENCE.pack(*chunk) for chunk in self._few))
        self._few.clear()

    @staticmethod
    def _block(file: IO[bytes], position: int) -> bytes:
        file.seek(position)
        return file.read(_REFERENCE.size * 4096)
