"""Wrappers around blobs, to count, delay, retry or cache without the backend's knowledge."""

import threading
from collections.abc import Iterator

from staddle_server.store.blobs import Blobs, BlobWriter, Buffer


class WrappedBlobs:
    """Passes every call to `inner`, with its promises and errors. A subclass changes some of the calls.

    `put` and `create` are separate ways to write: a subclass that changes how objects are written overrides
    both.
    """

    def __init__(self, inner: Blobs) -> None:
        self.inner = inner

    @property
    def failed(self) -> str | None:
        return self.inner.failed

    def check_writable(self) -> None:
        self.inner.check_writable()

    def create(self) -> BlobWriter:
        return self.inner.create()

    def put(self, name: str, data: bytes) -> None:
        self.inner.put(name, data)

    def read(self, name: str, offset: int, length: int) -> bytes:
        return self.inner.read(name, offset, length)

    def size(self, name: str) -> int:
        return self.inner.size(name)

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        return self.inner.list(prefix)

    def delete(self, name: str) -> None:
        self.inner.delete(name)

    def sweep(self) -> int:
        return self.inner.sweep()


class CountedReads(WrappedBlobs):
    """Blobs that count what is read of them. Thread-safe."""

    def __init__(self, inner: Blobs) -> None:
        super().__init__(inner)
        self._lock = threading.Lock()
        self._read_bytes = 0

    def read(self, name: str, offset: int, length: int) -> bytes:
        data = super().read(name, offset, length)
        with self._lock:
            self._read_bytes += len(data)
        return data

    def take(self) -> int:
        """Return how many bytes were read since this was last asked."""
        with self._lock:
            taken, self._read_bytes = self._read_bytes, 0
        return taken


class WrappedWriter:
    """Passes every call to `inner`: for a WrappedBlobs whose `create` returns its own writers."""

    def __init__(self, inner: BlobWriter) -> None:
        self.inner = inner

    def write(self, data: Buffer) -> None:
        self.inner.write(data)

    def commit(self, name: str) -> None:
        self.inner.commit(name)

    def replace(self, name: str) -> None:
        self.inner.replace(name)

    def abort(self) -> None:
        self.inner.abort()
