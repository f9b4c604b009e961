"""The bytes of one file of a backup, from any byte to any other: verified, in order, a few segments ahead."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor
from itertools import takewhile
from typing import Final

from staddle_server.base.errors import Precondition
from staddle_server.base.types import ChunkRef, Content, Entry, Role, Root
from staddle_server.catalog import Catalog
from staddle_server.manifest.content import chunks_of
from staddle_server.manifest.entries import shown
from staddle_server.manifest.read import Manifest
from staddle_server.restore.restore import path_not_found, segments_ahead, take_ahead
from staddle_server.tenancy.chunk_reader import DATA_KEPT_BYTES, ChunkReader
from staddle_server.tenancy.tenant import Tenant

WINDOW_CHUNKS: Final = 256
"""Chunks that are looked up at once."""


class FileBytes:
    """One file of a backup, opened for reading. For one thread.

    Attributes:
        entry: The file.
        content: What it holds.

    """

    def __init__(
        self,
        tenant: Tenant,
        catalog: Catalog,
        root: Root,
        path: bytes,
        *,
        opener: Executor,
        check: Callable[[], None],
    ) -> None:
        """Find the file; nothing of its content is read yet.

        Raises:
            NotFound: PATH_NOT_FOUND.
            Precondition: NOT_A_FILE.
            Damaged: A page on the way to it is unreadable.

        """
        self._tenant = tenant
        self._catalog = catalog
        self._opener = opener
        self._check = check
        self._lists = ChunkReader(tenant, catalog, check=check)
        entry = Manifest(root, self._lists).find(path)
        if entry is None and path:
            raise path_not_found(path)
        if entry is None or entry.content is None:
            raise Precondition(
                "NOT_A_FILE", f"'{shown(path)}' is a {_described(entry)}, and has no bytes", path=shown(path)
            )
        self.entry = entry
        self.content: Content = entry.content

    def pieces(self, start: int, end: int) -> Generator[memoryview, None, None]:
        """Yield the bytes from `start` up to `end`, or to the end of the file.

        Raises:
            Damaged: A chunk of them is unreadable; what was yielded before it is right.

        """
        reader = ChunkReader(self._tenant, self._catalog, DATA_KEPT_BYTES, self._check)
        wanted = takewhile(lambda each: each[0] < end, chunks_of(self.content, self._lists, start))
        while window := [each for _, each in zip(range(WINDOW_CHUNKS), wanted, strict=False)]:
            for offset, chunk in self._window(window, reader):
                yield chunk[max(0, start - offset) : end - offset]

    def _window(
        self, window: list[tuple[int, ChunkRef]], reader: ChunkReader
    ) -> Iterator[tuple[int, memoryview]]:
        digests = [ref.digest for _, ref in window]
        places = reader.locate(Role.DATA, set(digests))
        reader.expect(Role.DATA, digests)
        ahead = segments_ahead(self._tenant, reader, self._opener, digests, places)
        try:
            for offset, ref in window:
                take_ahead(ahead, reader, ref.digest)
                yield offset, reader.data(ref, places.get(ref.digest, ()))
        finally:
            ahead.close()


def _described(entry: Entry | None) -> str:
    if entry is None:  # the root, which a backup need not have as an entry
        return "directory"
    name = entry.type.name.lower().replace("_", " ")
    return name if entry.link_target is None else f"{name} to '{shown(entry.link_target)}'"
