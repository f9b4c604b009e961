"""One file of the cache: what a backup holds of each path's identity, by directory, in the order in which a scan comes to it.

    header  magic and version (16), checksum (32), length of the rest (8), backup id (16), scope (32), row (33) and digest (32) of the root
    blocks  path length (2), bits FIRST and MORE (1), count (2), length of the names (4); path; names, joined by NUL; rows; digests

A block has some or all children of one directory, sorted, and says whether it is the directory's first and whether another one follows.
Blocks stand in the order of a scan that looks at so many children at once, and then enters the directories among them. A row is
what stat proves a path to be: kind and flags (1), inode (8), mtime and ctime in nanoseconds (8 each), size (8). Little-endian. A digest
is that of the entry that the backup has there (`staddle._backup.entry_digest`); zeros: unknown.

The checksum covers all that follows it. A file is checked from end to end before anything of it is used; what is wrong with it is the same as its not
being there. Other versions are not read: the cache is rebuilt.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from typing import Final, NamedTuple

from blake3 import blake3

from staddle._protocol.convert import COMPONENT_BYTES_MAX, PATH_BYTES_MAX, is_below, sort_key

MAGIC: Final = b"staddle cache\0\0\2"
"""The last byte is the version."""
CONTEXT: Final = "staddle 2026-11-26 client cache of a backup's entries 1"
FILE_BYTES_MAX: Final = 1024 * 1024 * 1024
CHILDREN_MAX: Final = 4_096
"""In one block."""
NAMES_BYTES_MAX: Final = CHILDREN_MAX * (COMPONENT_BYTES_MAX + 1)
PIECE_BYTES: Final = 1024 * 1024
ID_BYTES: Final = 16
SCOPE_BYTES: Final = 32

LOOK: Final = 1
"""A flag of a row: nothing proves that this path is unchanged, whatever the row says."""
ABSENT: Final = 2
"""A flag of a row: the backup does not have this path."""
UNTOLD: Final = 4
"""A flag that only what was seen has, never what is known: a row cannot say what stat says, and proves nothing."""

_FIRST: Final = 1
_MORE: Final = 2

_HEADER: Final = struct.Struct(f"<{len(MAGIC)}s32sQ{ID_BYTES}s{SCOPE_BYTES}s")
_CHECKED_FROM: Final = len(MAGIC) + 32
_BLOCK: Final = struct.Struct("<HBHI")
_ROW: Final = struct.Struct("<BQqqQ")
pack_row: Final = _ROW.pack
unpack_row: Final = _ROW.unpack
ROW_BYTES: Final = _ROW.size
SIZE_AT: Final = ROW_BYTES - 8
"""Where a row's size begins: only that of a regular file says anything."""
KIND: Final = 0xF0
FILE_KIND: Final = 0x80
_PRESENT_KINDS: Final = bytes(kind for kind in range(256) if not kind & ABSENT)
NO_ROW: Final = bytes([ABSENT]) + bytes(ROW_BYTES - 1)
DIGEST_BYTES: Final = 32
NO_DIGEST: Final = bytes(DIGEST_BYTES)
_BODY_AT: Final = _HEADER.size + ROW_BYTES + DIGEST_BYTES


class CacheError(Exception):
    """A cache contradicts itself: nothing read from it can be relied on."""


def row_of(status: os.stat_result) -> bytes:
    """The row of a path, without flags; UNTOLD if its values do not fit into a row."""
    try:
        return pack_row(
            status.st_mode >> 8 & KIND, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
        )
    except struct.error:
        return bytes([status.st_mode >> 8 & KIND | UNTOLD]) + bytes(ROW_BYTES - 1)


class CacheBlock(NamedTuple):
    """Children of one directory, as the base has them."""

    path: bytes
    first: bool
    more: bool
    children: int
    names: bytes
    rows: bytes
    digests: bytes = b""
    """Of their entries; empty: none is known."""

    def order(self) -> bytes:
        """The block's place in the order of a scan."""
        if self.first:
            return sort_key(self.path)
        name = self.names.partition(b"\0")[0]
        return sort_key(self.path + b"/" + name if self.path else name)

    def packed(self) -> bytes:
        """As it stands in the file."""
        bits = self.first * _FIRST | self.more * _MORE
        head = _BLOCK.pack(len(self.path), bits, self.children, len(self.names))
        digests = self.digests or NO_DIGEST * self.children
        return b"".join((head, self.path, self.names, self.rows, digests))


class CacheReader:
    """A checked file of the cache, read from its beginning to its end. It owns the descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.root = os.pread(descriptor, ROW_BYTES, _HEADER.size)
        self.root_digest = os.pread(descriptor, DIGEST_BYTES, _HEADER.size + ROW_BYTES)
        self._file = open(descriptor, "rb", buffering=PIECE_BYTES)  # noqa: SIM115 - closed by close
        self._file.seek(_BODY_AT)
        self._ahead: CacheBlock | None = None
        self._ended = False
        self._present = 0

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def first(self, directory: bytes) -> CacheBlock | None:
        """The first block of a directory; None if it has none. Ask for directories in order: earlier blocks are skipped.

        Raises CacheError, as `next` does.
        """
        block = self._next()
        if block is not None and not (block.first and block.path == directory):
            order = sort_key(directory)
            while block is not None and block.order() < order:
                block = self._pass()
        return self._taken(block, directory, first=True)

    def next(self, directory: bytes) -> CacheBlock | None:
        """The next block of a directory, once all directories inside are done."""
        block = self._next()
        while block is not None and is_below(block.path, directory):
            block = self._pass()
        return self._taken(block, directory, first=False)

    def count_all(self) -> int:
        """The paths that the backup holds, without the root; reads to the end. Raises CacheError."""
        while self._next() is not None:
            self._ahead = None
        return self._present

    def _taken(self, block: CacheBlock | None, directory: bytes, *, first: bool) -> CacheBlock | None:
        if block is None or block.path != directory or block.first is not first:
            return None
        self._ahead = None
        return block

    def _pass(self) -> CacheBlock | None:
        self._ahead = None
        return self._next()

    def _next(self) -> CacheBlock | None:
        if self._ahead is None and not self._ended:
            self._ahead = self._read()
            self._ended = self._ahead is None
            if self._ahead is not None:
                kinds = self._ahead.rows[::ROW_BYTES]
                self._present += len(kinds) - len(kinds.translate(None, _PRESENT_KINDS))
        return self._ahead

    def _read(self) -> CacheBlock | None:
        head = self._data(_BLOCK.size)
        if not head:
            return None
        if len(head) < _BLOCK.size:
            raise CacheError("it ends within a block")
        path_bytes, bits, count, names_bytes = _BLOCK.unpack(head)
        if path_bytes > PATH_BYTES_MAX or count > CHILDREN_MAX or names_bytes > NAMES_BYTES_MAX:
            raise CacheError("a block is larger than any can be")
        rows_at = path_bytes + names_bytes
        digests_at = rows_at + count * ROW_BYTES
        size = digests_at + count * DIGEST_BYTES
        data = self._data(size)
        if len(data) < size:
            raise CacheError("it ends within a block")
        names = data[path_bytes:rows_at]
        digests = data[digests_at:]
        if not count or names.count(b"\0") != count - 1:
            raise CacheError("a block has another number of names than it says")
        return CacheBlock(
            data[:path_bytes],
            bool(bits & _FIRST),
            bool(bits & _MORE),
            count,
            names,
            data[rows_at:digests_at],
            digests if digests.strip(b"\0") else b"",
        )

    def _data(self, count: int) -> bytes:
        try:
            return self._file.read(count)
        except OSError as error:
            raise CacheError(f"it cannot be read: {error.strerror}") from error


def is_cache_of(descriptor: int, backup_id: bytes, scope: bytes) -> bool:
    """Whether an open file is, from end to end, the cache of this backup. Raises OSError."""
    size = os.fstat(descriptor).st_size
    if not _BODY_AT <= size <= FILE_BYTES_MAX:
        return False
    magic, checksum, rest, its_id, its_scope = _HEADER.unpack(os.pread(descriptor, _HEADER.size, 0))
    return (
        magic == MAGIC
        and rest == size - _HEADER.size
        and (its_id, its_scope) == (backup_id, scope)
        and checksum == _checksum(descriptor, size)
    )


def _checksum(descriptor: int, size: int) -> bytes:
    hasher = blake3(derive_key_context=CONTEXT)
    for piece in _pieces(descriptor, _CHECKED_FROM, size):
        hasher.update(piece)
    return hasher.digest()


def _pieces(descriptor: int, start: int, end: int) -> Iterator[bytes]:
    while start < end:
        piece = os.pread(descriptor, min(PIECE_BYTES, end - start), start)
        if not piece:
            return
        start += len(piece)
        yield piece


class CacheWriter:
    """Writes a file of the cache. It owns the descriptor. One thread writes; another one may close it meanwhile.

    After an error in the file nothing more is written, and `finish` returns False.
    """

    def __init__(self, descriptor: int, path: bytes) -> None:
        self.path = path
        self._descriptor = descriptor
        self._pending = bytearray(_BODY_AT)
        self._written = 0
        self._lock = threading.Lock()
        self._closed = False
        self.failed = False

    def close(self) -> None:
        """Closes the file. May be called again."""
        with self._lock:
            self.failed = True
            if not self._closed:
                self._closed = True
                os.close(self._descriptor)

    def set_root(self, row: bytes, digest: bytes = NO_DIGEST) -> None:
        """Set the root's row and digest."""
        self.replace(_HEADER.size, row + digest)

    def add(self, block: CacheBlock) -> int:
        """Add a block; returns the place of its rows."""
        self._pending += block.packed()
        end = self._written + len(self._pending)
        if end > FILE_BYTES_MAX:
            self.failed = True
        if len(self._pending) >= PIECE_BYTES:
            self._flush()
        return end - block.children * (ROW_BYTES + DIGEST_BYTES)

    def replace(self, offset: int, rows: bytes | bytearray) -> None:
        """Overwrite rows that were added, and the digests behind them."""
        start = offset - self._written
        if start >= 0:
            self._pending[start : start + len(rows)] = rows
        else:
            self._write(rows, offset)

    def finish(self, backup_id: bytes, scope: bytes) -> bool:
        """Complete the file as the cache of that backup; returns whether that succeeded."""
        self._flush()
        rest = self._written - _HEADER.size
        self._write(_HEADER.pack(MAGIC, bytes(32), rest, backup_id, scope), 0)
        if not self.failed:
            try:
                checksum = _checksum(self._descriptor, self._written)
            except OSError:
                return False
            self._write(checksum, len(MAGIC))
        return not self.failed

    def _flush(self) -> None:
        self._write(self._pending, self._written)
        self._written += len(self._pending)
        self._pending = bytearray()

    def _write(self, data: bytes | bytearray, offset: int) -> None:
        with self._lock:
            if self.failed:
                return
            try:
                view = memoryview(data)
                while view:
                    count = os.pwrite(self._descriptor, view, offset)
                    view, offset = view[count:], offset + count
            except OSError:
                self.failed = True
