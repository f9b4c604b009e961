"""Proof that a backup can be restored: all of it is read as for a client, and checked as a client checks it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

from blake3 import blake3
from staddle._base.figures import counted
from staddle.chunking import ContentHasher

from staddle_server.base.errors import Damaged
from staddle_server.base.types import Entry, Root
from staddle_server.catalog import Catalog
from staddle_server.manifest.entries import shown
from staddle_server.restore.restore import (
    Event,
    Restore,
    SentDamage,
    SentData,
    SentEntry,
    SentZeros,
)
from staddle_server.tenancy.tenant import Tenant


@dataclass
class Proof:
    """What was read, and what is wrong with it.

    Attributes:
        entries: Entries read.
        data_bytes: Bytes of their content.
        faults: Paths that cannot be restored as they were.
        first: The first fault, in words.

    """

    entries: int = 0
    data_bytes: int = 0
    faults: int = 0
    first: str = ""

    def fault(self, path: bytes, message: str) -> None:
        """Count a path that cannot be restored."""
        self.first = self.first or f"'{shown(path)}': {message}"
        self.faults += 1


def prove(
    tenant: Tenant,
    catalog: Catalog,
    root: Root,
    opener: Executor,
    *,
    check: Callable[[], None] = lambda: None,
    pace: Callable[[], None] = lambda: None,
) -> Proof:
    """Read all of a backup, and compare the content of every file with its content id; write nothing.

    `check` raises to end it; `pace` is called after each entry and chunk, and may wait.
    """
    proof = Proof()
    restore = Restore(tenant, catalog, root, opener, data=True, check=check)
    try:
        _read(restore.events((), exact=False), tenant, proof, pace)
    except Damaged as e:
        proof.fault(b"", e.message)
    if not proof.faults and proof.entries != root.entries:
        proof.fault(b"", f"it has {counted(proof.entries, 'entry', 'entries')} instead of {root.entries:,}")
    return proof


def _read(events: Iterator[Event], tenant: Tenant, proof: Proof, pace: Callable[[], None]) -> None:
    zeros = tenant.cutter.zeros.digest
    file: _ReadFile | None = None
    for event in events:
        if isinstance(event, SentEntry):
            if file is not None:
                file.end(proof)
            proof.entries += 1
            content = event.entry.content
            file = None if content is None else _ReadFile(event.entry)
            data = event.data or b""
            assert isinstance(data, bytes | memoryview)  # pieces are for clients that ask for them
            pace()
            if file is not None and data:
                file.add(len(data), blake3(data).digest())
        elif isinstance(event, SentData):
            assert file is not None
            file.add(len(event.data), blake3(event.data).digest())
            pace()
        elif isinstance(event, SentZeros):
            assert file is not None
            file.add(event.length, zeros)
        elif isinstance(event, SentDamage):
            file = None
            proof.fault(event.path, event.message)
    if file is not None:
        file.end(proof)


class _ReadFile:
    """A file that is being read."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._hasher = ContentHasher()
        self._size = 0

    def add(self, length: int, digest: bytes) -> None:
        self._hasher.add(length, digest)
        self._size += length

    def end(self, proof: Proof) -> None:
        """Compare what was read with what the entry says."""
        content = self._entry.content
        assert content is not None
        proof.data_bytes += self._size
        if self._size != content.size or self._hasher.content_id() != content.content_id:
            proof.fault(self._entry.path, "its content is not what was backed up")
