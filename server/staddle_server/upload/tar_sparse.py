"""The maps of sparse files in a tar: GNU's old format, and its PAX formats 0.0, 0.1 and 1.0.

Source: https://www.gnu.org/software/tar/manual/html_node/Sparse-Formats.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from staddle_server.base.limits import FILE_BYTES_MAX, HOLES_MAX
from staddle_server.base.types import Hole
from staddle_server.upload.tar_header import TarError, number, whole_number

PIECES_MAX: Final = HOLES_MAX
_OLD_MAP: Final = (386, 4)
_MORE_MAP: Final = (0, 21)
"""Where a block has pieces, and how many."""
_IS_EXTENDED: Final = 482
_REAL_SIZE: Final = slice(483, 495)
_MORE_EXTENDED: Final = 504
_NUMBER_BYTES: Final = 12
_DIGITS_MAX: Final = 20

Read = Callable[[], bytes]
"""Returns the next block."""


class Sparse(NamedTuple):
    """A sparse file: its size, and where its data is: (offset, length), in order."""

    size: int
    pieces: list[tuple[int, int]]

    @property
    def holes(self) -> tuple[Hole, ...]:
        """What lies between the data."""
        found, at = [], 0
        for offset, length in self.pieces:
            if offset > at:
                found.append(Hole(at, offset - at))
            at = offset + length
        if self.size > at:
            found.append(Hole(at, self.size - at))
        return tuple(found)


def checked(size: int, pieces: Iterable[tuple[int, int]], stored: int, path: bytes) -> Sparse:
    """Check a map against the bytes that are in the tar. Raises TarError."""
    found: list[tuple[int, int]] = []
    end = total = 0
    if not 0 <= size <= FILE_BYTES_MAX:
        raise TarError(f"a file has at most {FILE_BYTES_MAX} bytes, not {size}", path)
    for count, (offset, length) in enumerate(pieces, 1):
        if count > PIECES_MAX:
            raise _too_many(path)
        if offset < end or length < 0 or offset + length > size:
            raise TarError("the map of this sparse file is damaged: its pieces overlap, or lie outside", path)
        end = offset + length
        total += length
        if length:
            found.append((offset, length))
    if total != stored:
        raise TarError(f"the map of this sparse file has {total} bytes of data, the tar {stored}", path)
    return Sparse(size, found)


def old_gnu(header: bytes, read: Read) -> tuple[int, list[tuple[int, int]]]:
    """Return size and pieces from a header of type S and the blocks that continue it. Raises TarError."""
    pieces = _numbers(header, *_OLD_MAP)
    is_extended = header[_IS_EXTENDED]
    while is_extended:
        if len(pieces) > PIECES_MAX:
            break  # `checked` says so
        block = read()
        pieces += _numbers(block, *_MORE_MAP)
        is_extended = block[_MORE_EXTENDED]
    return number(header[_REAL_SIZE]), pieces


def _numbers(block: bytes, start: int, count: int) -> list[tuple[int, int]]:
    found = []
    for at in range(start, start + 2 * count * _NUMBER_BYTES, 2 * _NUMBER_BYTES):
        first, second = block[at : at + _NUMBER_BYTES], block[at + _NUMBER_BYTES : at + 2 * _NUMBER_BYTES]
        if not first.strip(b"\0 ") or not second.strip(b"\0 "):
            break
        found.append((number(first), number(second)))
    return found


def in_records(records: Mapping[bytes, bytes], listed: list[int], path: bytes) -> list[tuple[int, int]]:
    """Return the pieces of formats 0.0 (`listed`: their offsets and lengths) and 0.1. Raises TarError."""
    numbers = listed
    text = records.get(b"GNU.sparse.map")
    if text is not None:
        if text.count(b",") > 2 * PIECES_MAX:
            raise _too_many(path)
        numbers = [whole_number("GNU.sparse.map", each, path) for each in text.split(b",")] if text else []
    if len(numbers) % 2:
        raise TarError("the map of this sparse file is damaged: it ends in the middle of a piece", path)
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def in_data(read: Read, path: bytes) -> list[tuple[int, int]]:
    """Read the pieces of format 1.0, which precede the data, and return them. Raises TarError."""
    lines = _Lines(read, path)
    count = lines.next()
    if count > PIECES_MAX:
        raise _too_many(path)
    return [(lines.next(), lines.next()) for _ in range(count)]


class _Lines:
    """Numbers, one a line, in whole blocks."""

    def __init__(self, read: Read, path: bytes) -> None:
        self._read = read
        self._path = path
        self._rest = b""

    def next(self) -> int:
        while (end := self._rest.find(b"\n")) < 0:
            if len(self._rest) > _DIGITS_MAX:
                raise TarError(
                    "the map of this sparse file is damaged: a number in it has no end", self._path
                )
            self._rest += self._read()
        line, self._rest = self._rest[:end], self._rest[end + 1 :]
        return whole_number("a number of the sparse map", line, self._path)


def _too_many(path: bytes) -> TarError:
    return TarError(
        f"a sparse file has at most {PIECES_MAX} pieces of data: make the tar without --sparse", path
    )
