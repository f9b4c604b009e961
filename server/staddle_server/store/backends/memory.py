"""Blobs in memory: every promise of blobs except durability. For tests, and as the model of a backend."""

import threading
from collections.abc import Iterator

from staddle_server.store.blobs import (
    BlobExists,
    BlobMissing,
    BlobShort,
    Buffer,
    check_name,
    check_prefix,
    check_range,
)


class MemoryBlobs:
    """Blobs that last as long as this object. Thread-safe.

    Attributes:
        objects: Content by name; a test may damage it.
        failed: Always None: memory does not fail.

    """

    failed: str | None = None

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def check_writable(self) -> None:
        """Do nothing: memory is always writable."""

    def create(self) -> "MemoryWriter":
        return MemoryWriter(self)

    def put(self, name: str, data: bytes) -> None:
        self.add(name, bytes(data))

    def read(self, name: str, offset: int, length: int) -> bytes:
        check_range(offset, length)
        data = self._get(name)
        if offset + length > len(data):
            raise BlobShort(name, offset, length, len(data))
        return data[offset : offset + length]

    def size(self, name: str) -> int:
        return len(self._get(name))

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        below = f"{check_prefix(prefix)}/" if prefix else ""
        with self._lock:
            found = [(name, len(data)) for name, data in self.objects.items() if name.startswith(below)]
        return iter(sorted(found))

    def delete(self, name: str) -> None:
        check_name(name)
        with self._lock:
            if self.objects.pop(name, None) is None:
                raise BlobMissing(name)

    def sweep(self) -> int:
        """Return 0: a writer leaves nothing behind."""
        return 0

    # --- what writers share

    def add(self, name: str, data: bytes) -> None:
        """Store `data` under an unused name. Raises BlobExists."""
        check_name(name)
        with self._lock:
            if name in self.objects:
                raise BlobExists(name)
            self.objects[name] = data

    def replace(self, name: str, data: bytes) -> None:
        """Store `data` under a name, in place of any object that has it."""
        check_name(name)
        with self._lock:
            self.objects[name] = data

    def _get(self, name: str) -> bytes:
        check_name(name)
        with self._lock:
            data = self.objects.get(name)
        if data is None:
            raise BlobMissing(name)
        return data


class MemoryWriter:
    """An object of MemoryBlobs in writing."""

    def __init__(self, blobs: MemoryBlobs) -> None:
        self._blobs = blobs
        self._parts: list[bytes] | None = []

    def write(self, data: Buffer) -> None:
        self._open().append(bytes(data))

    def commit(self, name: str) -> None:
        self._blobs.add(name, self._finish())

    def replace(self, name: str) -> None:
        self._blobs.replace(name, self._finish())

    def abort(self) -> None:
        self._parts = None

    def _open(self) -> list[bytes]:
        if self._parts is None:
            raise ValueError("this writer is finished")
        return self._parts

    def _finish(self) -> bytes:
        data, self._parts = b"".join(self._open()), None
        return data
