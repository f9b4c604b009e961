"""Reed–Solomon over blocks of one length (docs/format.md, "Parity"), computed by pyeclib, which is loaded on
use.

Only the code itself comes from the library: the heads that it puts before each block stay out of the store.
"""

import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from staddle_server.base.errors import Fault

COLUMNS_PLUS_PARITY_MAX: Final = 255
"""Elements of the field, minus one."""
_CODE: Final = "isa_l_rs_cauchy"
_ALIGNMENT: Final = 16


class ParityLibraryMissing(Fault):
    """The package that computes parity is not installed. Everything except parity works without it."""

    def __init__(self) -> None:
        super().__init__(
            "INTERNAL",
            "parity needs the Python package pyeclib, 1.8 or newer, which is not installed: pip install 'staddle[parity]'",
        )


class Code:
    """A code with `parity` blocks for every `columns` blocks of data: any `columns` of them restore the data.

    Each block has `block_bytes`. Thread-safe. Raises ParityLibraryMissing.
    """

    def __init__(self, columns: int, parity: int, block_bytes: int) -> None:
        if columns < 1 or parity < 1 or columns + parity > COLUMNS_PLUS_PARITY_MAX or block_bytes < 1:
            raise ValueError(f"invalid code: {columns} and {parity} blocks of {block_bytes} bytes")
        self._columns = columns
        self._block_bytes = block_bytes
        self._padding = bytes(-block_bytes % _ALIGNMENT)
        self._driver = _driver(columns, parity)
        # The library expects its own head before each block. The heads say nothing about the content, so
        # these fit any data.
        empty = self._driver.encode(bytes(columns * (block_bytes + len(self._padding))))
        self._heads = [fragment[: len(fragment) - block_bytes - len(self._padding)] for fragment in empty]

    def encode(self, blocks: Sequence[bytes]) -> list[bytes]:
        """Return the parity of a row of data blocks."""
        if len(blocks) != self._columns or any(len(block) != self._block_bytes for block in blocks):
            raise ValueError(f"a row has {self._columns} blocks of {self._block_bytes} bytes")
        fragments = self._driver.encode(b"".join([block + self._padding for block in blocks]))
        return [self._block(index, fragment) for index, fragment in enumerate(fragments)][self._columns :]

    def restore(self, blocks: Mapping[int, bytes]) -> list[bytes]:
        """Return all data blocks of a row, from any `columns` intact blocks of it, by index: data first, then
        parity.
        """
        if len(blocks) < self._columns:
            raise ValueError(f"{self._columns} blocks are required, not {len(blocks)}")
        some = sorted(blocks)[: self._columns]
        data: bytes = self._driver.decode([self._heads[i] + blocks[i] + self._padding for i in some])
        step = self._block_bytes + len(self._padding)
        return [data[start : start + self._block_bytes] for start in range(0, self._columns * step, step)]

    def _block(self, index: int, fragment: bytes) -> bytes:
        start = len(self._heads[index])
        return fragment[start : start + self._block_bytes]


def _driver(columns: int, parity: int) -> Any:
    try:
        library = importlib.import_module("pyeclib.ec_iface")
    except ImportError as error:
        raise ParityLibraryMissing from error
    try:
        return library.ECDriver(k=columns, m=parity, ec_type=_CODE)
    except library.ECDriverError as error:  # an older version, or one built without ISA-L
        raise ParityLibraryMissing from error


@functools.lru_cache(maxsize=64)
def code(columns: int, parity: int, block_bytes: int) -> Code:
    """Return the code for these numbers, cached."""
    return Code(columns, parity, block_bytes)
