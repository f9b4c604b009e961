"""Blobs in memory: the contract, for tests that need no disk."""

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


def xored(data: bytes, with_what: int = 0xFF) -> bytes:
    """Other bytes of the same length, whatever they were."""
    return bytes(byte ^ with_what for byte in data)


class MemoryBlobs:
    failed: str | None = None

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.lock = threading.Lock()

    def check_writable(self) -> None:
        """Memory does not fail."""

    def create(self) -> "MemoryWriter":
        return MemoryWriter(self)

    def put(self, name: str, data: bytes) -> None:
        writer = self.create()
        writer.write(data)
        writer.commit(name)

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
        with self.lock:
            found = [(name, len(data)) for name, data in self.objects.items() if name.startswith(below)]
        return iter(sorted(found))

    def delete(self, name: str) -> None:
        self._get(name)
        with self.lock:
            del self.objects[name]

    def _get(self, name: str) -> bytes:
        with self.lock:
            data = self.objects.get(check_name(name))
        if data is None:
            raise BlobMissing(name)
        return data


class MemoryWriter:
    def __init__(self, blobs: MemoryBlobs) -> None:
        self._blobs = blobs
        self._parts: list[bytes] | None = []

    def write(self, data: Buffer) -> None:
        if self._parts is None:
            raise ValueError("finished")
        self._parts.append(bytes(data))

    def commit(self, name: str) -> None:
        if self._parts is None:
            raise ValueError("finished")
        data, self._parts = b"".join(self._parts), None
        check_name(name)
        with self._blobs.lock:
            if name in self._blobs.objects:
                raise BlobExists(name)
            self._blobs.objects[name] = data

    def replace(self, name: str) -> None:
        if self._parts is None:
            raise ValueError("finished")
        data, self._parts = b"".join(self._parts), None
        with self._blobs.lock:
            self._blobs.objects[check_name(name)] = data

    def abort(self) -> None:
        self._parts = None
