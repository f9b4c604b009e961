"""Sealed segments on a local disk, in front of a store that is far away: what was read once is read from
there.
"""

import contextlib
import logging
import os
import threading
from collections import OrderedDict
from typing import Final

from staddle_server.base.limits import KIB
from staddle_server.base.types import SegmentRef
from staddle_server.store.blobs import Buffer
from staddle_server.store.files import NO_ROOM, Files

_log = logging.getLogger(__name__)

BLOCK_BYTES: Final = 4 * KIB
"""A file takes whole blocks of its disk; the limit counts them."""
SHARDS: Final = 256
NEW: Final = ".new"


class SegmentCache:
    """Segments as they are stored, the least recently used of them removed first. Thread-safe.

    It keeps only what its caller has opened: the seal is the check of what comes back, and a segment that
    does not open any more is dropped. Nothing is synced, and nothing that fails here fails a read.
    """

    def __init__(self, path: str, bytes_max: int) -> None:
        """Create `path` if it is missing, or use its content. Raises OSError."""
        self._path = path
        self._bytes_max = bytes_max
        self._files = Files()
        self._lock = threading.Lock()
        self._sizes: OrderedDict[SegmentRef, int] = OrderedDict()
        """The sizes of the cached segments in whole blocks, the least recently used first."""
        self._bytes = 0
        for shard in range(SHARDS):
            os.makedirs(os.path.join(path, f"{shard:02x}"), mode=0o700, exist_ok=True)
        self._load()

    @property
    def size_bytes(self) -> int:
        """The bytes that it takes on its disk."""
        return self._bytes

    def get(self, ref: SegmentRef) -> bytes | None:
        """Return the sealed bytes; None if they are not here."""
        with self._lock:
            if ref not in self._sizes:
                return None
            self._sizes.move_to_end(ref)
        try:
            with open(self._file(ref), "rb") as file:
                data = file.read(ref.length + 1)
                # The order of use outlives a restart, where the file system keeps times of files.
                with contextlib.suppress(OSError):
                    os.utime(file.fileno())
        except OSError:
            data = b""
        if len(data) == ref.length:
            return data
        self.drop(ref)
        return None

    def put(self, ref: SegmentRef, data: Buffer) -> None:
        """Keep the sealed bytes of a segment that was opened, and remove the oldest ones beyond the limit."""
        size = _blocks(len(data))
        with self._lock:
            if ref in self._sizes or size > self._bytes_max:
                return
        self._make_room(size)
        path = self._file(ref)
        temporary = f"{path}.{threading.get_ident()}{NEW}"
        try:
            with open(temporary, "wb", opener=_private) as file:
                file.write(data)
            self._files.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._files.unlink(temporary)
            if error.errno in NO_ROOM:
                self._make_room(self._bytes_max // 8)
            else:
                _log.warning("a segment could not be kept in the cache %s: %s", self._path, error.strerror)
            return
        with self._lock:
            if ref not in self._sizes:
                self._sizes[ref] = size
                self._bytes += size

    def drop(self, ref: SegmentRef) -> None:
        """Forget a segment."""
        with self._lock:
            self._bytes -= self._sizes.pop(ref, 0)
        with contextlib.suppress(OSError):
            self._files.unlink(self._file(ref))

    # --- parts

    def _make_room(self, size: int) -> None:
        while True:
            with self._lock:
                if not self._sizes or self._bytes + size <= self._bytes_max:
                    return
                oldest = next(iter(self._sizes))
            self.drop(oldest)

    def _file(self, ref: SegmentRef) -> str:
        digits = ref.pack.hex()
        return os.path.join(self._path, digits[:2], f"{digits}-{ref.offset}-{ref.length}")

    def _load(self) -> None:
        """Use what an earlier process left, and remove incomplete files."""
        found: list[tuple[int, SegmentRef, int]] = []
        for shard in range(SHARDS):
            for entry in self._files.scan(os.path.join(self._path, f"{shard:02x}")):
                ref, status = _parse(entry.name), entry.stat(follow_symlinks=False)
                if ref is not None and status.st_size == ref.length:
                    found.append((status.st_mtime_ns, ref, _blocks(ref.length)))
                else:
                    self._files.unlink(entry.path)
        for _, ref, size in sorted(found, key=lambda each: each[0]):
            self._sizes[ref] = size
            self._bytes += size
        self._make_room(0)


def _parse(name: str) -> SegmentRef | None:
    try:
        pack, offset, length = name.split("-")
        return SegmentRef(bytes.fromhex(pack), int(offset), int(length))
    except ValueError:
        return None


def _blocks(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
