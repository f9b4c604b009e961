"""Reports how long the operations of a store take, and which fail."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import Final

from staddle_server.base.observer import Observer
from staddle_server.store.blobs import BlobMissing, Blobs, BlobWriter
from staddle_server.store.wrapped import WrappedBlobs, WrappedWriter

OPERATIONS: Final = ("put", "read", "size", "delete", "list", "commit")


class ObservedBlobs(WrappedBlobs):
    """Blobs whose operations an observer hears of."""

    def __init__(self, inner: Blobs, observer: Observer) -> None:
        super().__init__(inner)
        self._observer = observer

    @contextmanager
    def _observed(self, operation: str) -> Iterator[None]:
        start_s = time.monotonic()
        failed = True
        try:
            with self._observer.span(f"store {operation}"):
                yield
            failed = False
        except BlobMissing:
            failed = False
            raise
        finally:
            self._observer.store_used(operation, time.monotonic() - start_s, failed=failed)

    def put(self, name: str, data: bytes) -> None:
        with self._observed("put"):
            super().put(name, data)

    def read(self, name: str, offset: int, length: int) -> bytes:
        with self._observed("read"):
            return super().read(name, offset, length)

    def size(self, name: str) -> int:
        with self._observed("size"):
            return super().size(name)

    def delete(self, name: str) -> None:
        with self._observed("delete"):
            super().delete(name)

    def create(self) -> BlobWriter:
        return _ObservedWriter(super().create(), self)

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """List as `inner` does, with the first name at once: the time until then counts."""
        with self._observed("list"):
            names = super().list(prefix)
            first = tuple(islice(names, 1))
        return chain(first, names)


class _ObservedWriter(WrappedWriter):
    """Making a written object durable is what takes time, and fails."""

    def __init__(self, inner: BlobWriter, blobs: ObservedBlobs) -> None:
        super().__init__(inner)
        self._blobs = blobs

    def commit(self, name: str) -> None:
        with self._blobs._observed("commit"):  # noqa: SLF001 - two halves of one wrapper
            super().commit(name)

    def replace(self, name: str) -> None:
        with self._blobs._observed("commit"):  # noqa: SLF001
            super().replace(name)
