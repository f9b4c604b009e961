"""A file's chunks: inline, or as a tree of list chunks (docs/format.md, "List chunk"); and large
attributes.
"""

import threading
from collections.abc import Callable, Iterator
from struct import Struct
from typing import Final

import msgspec
from staddle.chunking import ContentHasher

from staddle_server.base import errors, limits
from staddle_server.base.types import Attributes, ChunkRef, Content, Entry, ListRoot, Profile
from staddle_server.manifest.entries import DIGEST_BYTES, check_attributes, shown
from staddle_server.manifest.pages import (
    FORMAT,
    PageKind,
    PageRules,
    PageSink,
    PageSource,
    decode_attributes,
    encode_attributes,
    encoder,
)

ITEM: Final = Struct("<Q32s")
"""An item of a list chunk: bytes of the file below it, and digest."""
_HEAD_BYTES: Final = 2
LIST_BYTES_MAX: Final = _HEAD_BYTES + FORMAT.list_items * ITEM.size


class ListLevel(msgspec.Struct, array_like=True):
    """The unfinished list chunk of one level, and the level's history."""

    items: bytes = b""
    ended: int = 0
    """The complete list chunks of this level."""
    newest: bytes = b""
    """The digest of the last complete one."""


class ContentState(msgspec.Struct, frozen=True, array_like=True):
    """The state of an unfinished content: a few KiB for each level of its list, whatever its size."""

    profile: Profile
    size: int
    count: int
    levels: tuple[ListLevel, ...]


class ContentBuilder:
    """Takes a file's chunks in order and builds its content.

    Saving a list with state() and restoring it midway gives the same result.
    """

    def __init__(self, sink: PageSink, profile: Profile, rules: PageRules = FORMAT) -> None:
        self._sink = sink
        self._profile = profile
        self._rules = rules
        self._mask = (1 << rules.list_bits) - 1
        self._hasher = ContentHasher()
        self._size = 0
        self._count = 0
        self._levels = [_Filling()]

    @property
    def size(self) -> int:
        """The bytes so far."""
        return self._size

    def add(self, ref: ChunkRef) -> None:
        """Add the next chunk. Raises BadRequest if that makes the file too large."""
        if not 1 <= ref.length <= limits.CHUNK_BYTES_MAX or len(ref.digest) != DIGEST_BYTES:
            raise errors.BadRequest(
                "BAD_FIELD",
                f"A chunk has 1 to {limits.CHUNK_BYTES_MAX} bytes and a digest of {DIGEST_BYTES}.",
                field="content.chunks",
            )
        if self._size + ref.length > limits.FILE_BYTES_MAX:
            raise errors.BadRequest(
                "BAD_FIELD",
                f"The file is over {limits.FILE_BYTES_MAX} bytes.",
                field="content.size_bytes",
            )
        self._hasher.add(ref.length, ref.digest)
        self._size += ref.length
        self._count += 1
        # Chunks that may fit inline wait here: no list chunk is written for them.
        if self._count <= limits.CHUNKS_INLINE_MAX:
            self._levels[0].items += ITEM.pack(*ref)
            return
        if self._count == limits.CHUNKS_INLINE_MAX + 1:
            waiting, self._levels[0].items = self._levels[0].items, bytearray()
            for length, digest in ITEM.iter_unpack(waiting):
                self._append(0, length, digest)
        self._append(0, ref.length, ref.digest)

    def state(self) -> ContentState:
        """Return what restore() needs. Only what the sink made durable is available later."""
        levels = tuple(ListLevel(bytes(level.items), level.ended, level.newest) for level in self._levels)
        return ContentState(self._profile, self._size, self._count, levels)

    @classmethod
    def restore(
        cls, state: ContentState, source: PageSource, sink: PageSink, rules: PageRules = FORMAT
    ) -> "ContentBuilder":
        """Continue from a state; reads the list so far for the content id.

        Raises Damaged if they do not agree.
        """
        builder = cls(sink, state.profile, rules)
        if not 1 <= len(state.levels) <= limits.TREE_HEIGHT_MAX:
            raise errors.Damaged("An upload's state is damaged: its list of chunks has no levels.")
        builder._levels = [
            _Filling(bytearray(level.items), level.ended, level.newest) for level in state.levels
        ]
        for ref in builder._refs(source):
            builder._hasher.add(*ref)
            builder._size += ref.length
            builder._count += 1
        if builder._size != state.size or builder._count != state.count:
            raise errors.Damaged(
                "An upload's state is damaged: its list of chunks does not have the stated bytes."
            )
        return builder

    def _refs(self, source: PageSource) -> Iterator[ChunkRef]:
        """Yield the chunks so far: the highest level came first."""
        for level in range(len(self._levels) - 1, -1, -1):
            items = _items(bytes([PageKind.LIST, level]) + self._levels[level].items, level, empty=True)
            for _, ref in _below(items, level, 0, source):
                yield ref

    def finish(self) -> Content:
        """Finish the list and return the content."""
        content_id = self._hasher.content_id()
        if self._count <= limits.CHUNKS_INLINE_MAX:
            chunks = tuple(ChunkRef(*item) for item in ITEM.iter_unpack(self._levels[0].items))
            return Content(self._size, content_id, self._profile, chunks)
        return Content(self._size, content_id, self._profile, (), self._finish_list())

    def _finish_list(self) -> ListRoot:
        level = 0
        while True:
            current = self._levels[level]
            if current.items:
                item = self._end(level)
                if current.ended > 1:
                    self._level(level + 1).items += ITEM.pack(*item)
            if current.ended == 1:
                return ListRoot(level, current.newest)
            level += 1

    def _append(self, level: int, length: int, digest: bytes) -> None:
        """Add an item, and end list chunks from this level up as the rules say."""
        while True:
            items = self._level(level).items
            items += ITEM.pack(length, digest)
            if digest[0] & self._mask and len(items) < self._rules.list_items * ITEM.size:
                return
            length, digest = self._end(level)
            level += 1

    def _end(self, level: int) -> tuple[int, bytes]:
        """Write the list chunk of a level; return the item that stands for it."""
        current = self._levels[level]
        length = sum(length for length, _ in ITEM.iter_unpack(current.items))
        digest = self._sink.write(bytes([PageKind.LIST, level]) + current.items)
        current.items = bytearray()
        current.ended += 1
        current.newest = digest
        return length, digest

    def _level(self, level: int) -> "_Filling":
        while len(self._levels) <= level:
            if len(self._levels) >= limits.TREE_HEIGHT_MAX:
                raise errors.Fault("INTERNAL", "A list of chunks would be higher than TREE_HEIGHT_MAX.")
            self._levels.append(_Filling())
        return self._levels[level]


class _Filling:
    """A ListLevel in use."""

    __slots__ = ("ended", "items", "newest")

    def __init__(self, items: bytearray | None = None, ended: int = 0, newest: bytes = b"") -> None:
        self.items = bytearray() if items is None else items
        self.ended = ended
        self.newest = newest


def chunks_of(content: Content, source: PageSource, offset: int = 0) -> Iterator[tuple[int, ChunkRef]]:
    """Yield the chunks of a content with their offsets in the file, from the one that holds byte `offset`.

    Reads only the list chunks that it needs, one of each level at a time. Raises Damaged.
    """
    root = content.root
    if root is None:
        yield from _below([(ref.length, ref.digest) for ref in content.chunks], 0, offset, source)
    else:
        yield from _below([(content.size, root.digest)], root.level + 1, offset, source)


_Items = list[tuple[int, bytes]]


def _below(items: _Items, level: int, offset: int, source: PageSource) -> Iterator[tuple[int, ChunkRef]]:
    """Yield all chunks below items of a level that end after `offset`; the first item begins at 0."""
    at = 0
    open_lists: list[tuple[int, Iterator[tuple[int, bytes]]]] = [(level, iter(items))]
    while open_lists:
        level, rest = open_lists[-1]
        for length, digest in rest:
            if at + length <= offset:
                at += length
            elif level == 0:
                yield at, ChunkRef(length, digest)
                at += length
            else:
                open_lists.append((level - 1, iter(read_list(source, digest, level - 1, length))))
                break
        else:
            open_lists.pop()


def lists_of(
    content: Content, source: PageSource, skip: Callable[[bytes], bool]
) -> Iterator[tuple[bytes, list[ChunkRef]]]:
    """Yield the place of each list chunk of a content with the data chunks that it names, in order, parents
    first.

    A place is the digest, plus what must be below: the level (1 byte) and the bytes of the file (8). If
    `skip` accepts a place, that list chunk and everything below it is left out. A list that names one chunk
    many times is read as often, unless `skip` knows it. Raises Damaged.
    """
    root = content.root
    # A stack: it holds at most the rest of one list chunk of each level.
    waiting = [] if root is None else [(root.level, content.size, root.digest)]
    while waiting:
        level, length, digest = waiting.pop()
        place = digest + bytes([level]) + length.to_bytes(8)
        if skip(place):
            continue
        items = read_list(source, digest, level, length)
        yield place, [] if level else [ChunkRef(*item) for item in items]
        if level:
            waiting.extend((level - 1, *item) for item in reversed(items))


def read_list(source: PageSource, digest: bytes, level: int, length: int) -> _Items:
    """Return the items of a list chunk that must have this level and stand for `length` bytes.

    Raises Damaged.
    """
    items = _items(source.read(digest), level)
    found = sum(item for item, _ in items)
    if found != length:
        raise errors.Damaged(f"A list of chunks is damaged: it has {found} bytes instead of {length}.")
    return items


def _items(data: bytes, level: int, *, empty: bool = False) -> _Items:
    head, body = data[:_HEAD_BYTES], memoryview(data)[_HEAD_BYTES:]
    if head != bytes([PageKind.LIST, level]) or len(data) > LIST_BYTES_MAX or len(body) % ITEM.size:
        raise errors.Damaged("A list of chunks is damaged: it is not a list chunk of its level.")
    items: _Items = list(ITEM.iter_unpack(body))
    most = limits.CHUNK_BYTES_MAX if level == 0 else limits.FILE_BYTES_MAX
    if not (items or empty) or not all(1 <= length <= most for length, _ in items):
        raise errors.Damaged("A list of chunks is damaged: an item is out of range, or the list is empty.")
    return items


def store_attributes(entry: Entry, sink: PageSink) -> Entry:
    """Return the entry as a manifest holds it: attributes sorted by name, large ones in a separate chunk.

    Raises BadRequest if the attributes break a limit.
    """
    attributes = entry.attributes
    if attributes is None:
        return entry
    if not attributes.xattrs and not attributes.holes:
        return msgspec.structs.replace(entry, attributes=None)
    check_attributes(attributes, entry)
    attributes = Attributes(tuple(sorted(attributes.xattrs)), attributes.holes)
    few = len(attributes.xattrs) + len(attributes.holes) <= limits.ATTRIBUTES_INLINE_ITEMS_MAX
    if few and len(encoder.encode(attributes)) <= limits.ATTRIBUTES_INLINE_BYTES_MAX:
        return msgspec.structs.replace(entry, attributes=attributes)
    data = encode_attributes(attributes)
    return msgspec.structs.replace(
        entry, attributes=None, attributes_ref=ChunkRef(len(data), sink.write(data))
    )


def read_attributes(entry: Entry, source: PageSource) -> bytes | None:
    """Return an entry's separately stored attributes, checked and still encoded; None if it has none there.

    Encoded they take at most a MiB, as objects several times that. `with_attributes` decodes them. Raises
    Damaged.
    """
    ref = entry.attributes_ref
    if ref is None:
        return None
    data = source.read(ref.digest)
    if len(data) != ref.length:
        raise errors.Damaged(f"The attributes of {shown(entry.path)!r} are damaged: their length differs.")
    with _decoding:
        try:
            check_attributes(decode_attributes(data), entry)
        except errors.BadRequest as error:
            raise errors.Damaged(f"The attributes are damaged: {error.message}") from error
    return data


_decoding: Final = threading.Lock()
"""Attributes are checked one at a time, because as objects they are large."""


def with_attributes(entry: Entry, attributes: bytes) -> Entry:
    """Return the entry with the result of `read_attributes`."""
    return msgspec.structs.replace(entry, attributes=decode_attributes(attributes), attributes_ref=None)


def load_attributes(entry: Entry, source: PageSource) -> Entry:
    """Return the entry with its attributes, wherever they are stored. Raises Damaged."""
    attributes = read_attributes(entry, source)
    return entry if attributes is None else with_attributes(entry, attributes)
