"""Pages as bytes: leaves, index pages, attributes; and where a page ends (docs/format.md, "Manifests").

Decoding checks everything as untrusted input: types, limits, order. Any violation raises errors.Damaged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, Never, Protocol

import msgspec
from blake3 import blake3

from staddle_server.base import errors, limits
from staddle_server.base.types import Attributes, Entry, sort_key
from staddle_server.manifest.columns import CheckedColumns, Columns, columns_of
from staddle_server.manifest.entries import DIGEST_BYTES, I64_MAX, check_path, shown
from staddle_server.manifest.leaves import Leaf, checked_columns, leaf_of


class PageSource(Protocol):
    """Reads chunks of role manifest."""

    def read(self, ref_digest: bytes) -> bytes:
        """Return the chunk with this BLAKE3 digest, verified. Raises Damaged if it is missing or damaged."""
        ...


class PageSink(Protocol):
    """Stores chunks of role manifest."""

    def write(self, data: bytes) -> bytes:
        """Store the chunk, unless it exists, and return its BLAKE3 digest."""
        ...


class PageKind(IntEnum):
    """The first byte of a chunk of role manifest."""

    LEAF = 1
    INDEX = 2
    LIST = 3
    ATTRIBUTES = 4


@dataclass(frozen=True, slots=True)
class PageRules:
    """Where pages end. A store always uses FORMAT; other rules are for tests that need many small pages."""

    leaf_bits: int = 7
    level_bits: int = 6
    page_bytes: int = limits.PAGE_BYTES_MAX
    list_bits: int = 7
    list_items: int = 1024

    def mask(self, level: int) -> int:
        """Return the bits of a path's hash that are zero where a page of this level ends."""
        return (1 << (self.leaf_bits + self.level_bits * level)) - 1


FORMAT: Final = PageRules()


class Child(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A page as its index page names it: its last path, its digest, and totals of everything below it."""

    last: bytes
    digest: bytes
    entries: int
    data_bytes: int


@dataclass(frozen=True, slots=True)
class Page:
    """A decoded page: `entries` at level 0, `children` above."""

    level: int
    entries: CheckedColumns
    children: list[Child]
    keys: Sequence[bytes]
    """The sort key of each item: of its last path."""
    entries_below: int
    """The number of its entries."""
    data_bytes: int
    """The file bytes of its entries."""

    def __len__(self) -> int:
        return len(self.keys)

    def last(self, index: int) -> bytes:
        """Return the last path of the item at `index`."""
        return self.children[index].last if self.level else self.entries.columns.paths[index]


_NO_ENTRIES: Final = CheckedColumns(Columns([], b""), [])


def path_hash(page_key: bytes, path: bytes) -> int:
    """Return h(path), which decides where pages end."""
    return int.from_bytes(blake3(path, key=page_key).digest(8), "little")


def is_boundary(page_key: bytes, path: bytes, level: int, rules: PageRules = FORMAT) -> bool:
    """Return whether a page of this level ends after this path, whatever its size."""
    return path_hash(page_key, path) & rules.mask(level) == 0


encoder: Final = msgspec.msgpack.Encoder()
_leaf_decoder: Final = msgspec.msgpack.Decoder(Leaf)
_index_decoder: Final = msgspec.msgpack.Decoder(tuple[int, list[Child]])
_attributes_decoder: Final = msgspec.msgpack.Decoder(Attributes)

_LEAF: Final = bytes([PageKind.LEAF])
_INDEX_PAIR: Final = bytes([PageKind.INDEX, 0x92])
_ATTRIBUTES: Final = bytes([PageKind.ATTRIBUTES])
_DECODED_BYTES_MAX: Final = 64 * limits.MIB
"""The most memory that a page without false claims takes."""
_PAGE_BYTES_MAX: Final = limits.PAGE_BYTES_MAX + limits.ENTRY_BYTES_MAX + 16


def _array(count: int) -> bytes:
    """Return the shortest head of a msgpack array."""
    if count < 16:
        return bytes([0x90 | count])
    if count < 65_536:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")


def leaf_page(leaf: Leaf) -> bytes:
    """Return the page of a leaf."""
    return _LEAF + encoder.encode(leaf)


def index_of(level: int, encoded: bytes | bytearray, count: int) -> bytes:
    """Return the index page of `count` consecutive encoded children."""
    return b"".join((_INDEX_PAIR, encoder.encode(level), _array(count), encoded))


def encode_leaf(entries: Sequence[Entry]) -> bytes:
    """Return a leaf of these entries, which must be valid and in order."""
    return leaf_page(leaf_of(columns_of(entries)))


def encode_index(level: int, children: list[Child]) -> bytes:
    """Return an index page of this level."""
    return index_of(level, b"".join(map(encoder.encode, children)), len(children))


def encode_attributes(attributes: Attributes) -> bytes:
    """Return attributes and holes encoded as a chunk of their own."""
    return _ATTRIBUTES + encoder.encode(attributes)


def decode_leaf(data: bytes, *, run: bool = False) -> CheckedColumns:
    """Decode the entries of a leaf. In a run, a removal may precede the entry of its path. Raises Damaged."""
    leaf: Leaf = _decode(_leaf_decoder, data, PageKind.LEAF)
    return checked_columns(leaf, data[1:], run=run)


def decode_index(data: bytes, *, run: bool = False) -> tuple[int, list[Child]]:
    """Decode level and children of an index page. Raises Damaged."""
    level: int
    children: list[Child]
    level, children = _decode(_index_decoder, data, PageKind.INDEX)
    if not 1 <= level < limits.TREE_HEIGHT_MAX or not children:
        _damaged("an index page has no level or no children")
    before: bytes | None = None
    for child in children:
        try:
            check_path(child.last)
        except errors.BadRequest as error:
            raise errors.Damaged(f"a page of a manifest has an invalid value: {error.message}") from error
        key = sort_key(child.last)
        # In a run a page may end between a removal and the entry of the same path.
        if before is not None and (key < before if run else key <= before):
            _damaged("the children of an index page are not in order")
        before = key
        if len(child.digest) != DIGEST_BYTES or child.entries < 1 or child.data_bytes < 0:
            _damaged(f"the child that ends with {shown(child.last)!r} is out of range")
    if max(_sums(children)) > I64_MAX:
        _damaged("an index page claims too many entries or bytes")
    return level, children


def decode_attributes(data: bytes) -> Attributes:
    """Decode a chunk of attributes and holes; check_attributes checks them. Raises Damaged."""
    attributes: Attributes = _decode(_attributes_decoder, data, PageKind.ATTRIBUTES)
    return attributes


def _decode(decoder: msgspec.msgpack.Decoder[Any], data: bytes, kind: PageKind) -> Any:
    most = limits.CHUNK_BYTES_MAX if kind == PageKind.ATTRIBUTES else _PAGE_BYTES_MAX
    if not data or data[0] != kind:
        _damaged(f"a chunk is not a {kind.name.lower()} page")
    if len(data) > most:
        _damaged(f"the length of a page is {len(data)} bytes")
    try:
        return _decode_once(decoder, data)
    except MemoryError:
        _need_memory()
    try:
        return _decode_once(decoder, data)
    except MemoryError as error:
        _need_memory()
        raise errors.Damaged("a page of a manifest claims more items than fit into memory") from error


def _decode_once(decoder: msgspec.msgpack.Decoder[Any], data: bytes) -> Any:
    try:
        return decoder.decode(memoryview(data)[1:])
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise errors.Damaged(f"a page of a manifest cannot be read: {error}") from error


def _need_memory() -> None:
    """Raise MemoryError if memory is too low for any page: the failure then says nothing about this page."""
    bytearray(_DECODED_BYTES_MAX)


def load_page(source: PageSource, digest: bytes, level: int, *, run: bool = False) -> Page:
    """Read the page that should have this level; see decode_leaf for `run`. Raises Damaged."""
    data = source.read(digest)
    if level == 0:
        entries = decode_leaf(data, run=run)
        return Page(0, entries, [], entries.keys, len(entries), entries.data_bytes)
    found, children = decode_index(data, run=run)
    if found != level:
        _damaged(f"a page has level {found} instead of {level}")
    keys = [sort_key(child.last) for child in children]
    return Page(level, _NO_ENTRIES, children, keys, *_sums(children))


def _sums(children: list[Child]) -> tuple[int, int]:
    """Return the entries and file bytes below an index page."""
    return sum(child.entries for child in children), sum(child.data_bytes for child in children)


def _damaged(what: str) -> Never:
    raise errors.Damaged(f"A manifest is damaged: {what}.")
