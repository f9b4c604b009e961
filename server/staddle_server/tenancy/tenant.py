"""What a call needs to work inside one tenant: its keys, chunker, packs and records."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Final

from staddle.chunking import ChunkerParameters, Cutter

from staddle_server.base.errors import Damaged, Fault
from staddle_server.base.memory_budget import DecodedBytes
from staddle_server.base.threads import Semaphore
from staddle_server.base.types import Role, TenantKeys
from staddle_server.catalog import Catalog
from staddle_server.store.blobs import Blobs
from staddle_server.store.keys import KeyStore, Secrets, chunk_id, secrets_of
from staddle_server.store.pack import PackReader
from staddle_server.store.records import Records
from staddle_server.store.segment_cache import SegmentCache

INSPECTED_AT_ONCE: Final = 2
"""Doubted packs read at once; each takes up to STORED_MEMORY_MAX, and the disk has other work."""


@dataclass(frozen=True, eq=False)
class Tenant:
    """One opened tenant. Shared by all calls, so everything in it is thread-safe."""

    id: bytes
    name: str
    keys: TenantKeys
    secrets: Secrets
    cutter: Cutter
    blobs: Blobs
    packs: PackReader
    """Reads the store."""
    cached: PackReader
    """Reads the same, but may take segments from the server's cache: for the data, not for checks of the store."""
    records: Records
    recording: threading.Lock = field(default_factory=threading.Lock)
    """Held while records are written: they become durable in chain order."""
    decoded: DecodedBytes = field(default_factory=DecodedBytes)
    """The server's memory for its calls' decoded data."""
    inspecting: Semaphore = field(default_factory=lambda: Semaphore(INSPECTED_AT_ONCE))
    """Held while a pack with new damage is read."""
    large: threading.Lock = field(default_factory=threading.Lock)
    """Held while an entry with large attributes becomes a message: as objects they take many times their
    encoded size.
    """

    def chunk_id(self, role: Role, digest: bytes) -> bytes:
        """Return the chunk's stored name."""
        return chunk_id(self.secrets.id_key, role, digest)


def keys_damage(keys: KeyStore, tenant: bytes) -> Damaged | None:
    """Return why a tenant's keys in the store do not open; None if they do. Raises Unavailable."""
    try:
        keys.load(tenant)
    except Damaged as error:
        return error
    return None


class Tenants:
    """Opens tenants and keeps them open.

    Attributes:
        decoded: The decoded data that their calls hold.

    """

    def __init__(
        self, blobs: Blobs, catalog: Catalog, keys: KeyStore, cache: SegmentCache | None = None
    ) -> None:
        self._blobs = blobs
        self._cache = cache
        self._catalog = catalog
        self._keys = keys
        self.decoded = DecodedBytes()
        self._inspecting = Semaphore(INSPECTED_AT_ONCE)
        self._open: dict[bytes, Tenant] = {}
        self._lock = threading.Lock()

    def get(self, tenant: bytes) -> Tenant:
        """Return the tenant with this id.

        Raises:
            NotFound, Damaged, Unavailable: Its row or its keys are unreadable.

        """
        with self._lock:
            if tenant not in self._open:
                self._open[tenant] = self._load(tenant)
            return self._open[tenant]

    def require_recording(self, tenant: bytes) -> None:
        """Check, before a decision, that it can be recorded.

        Raises:
            Unavailable: The store refuses writes.

        """
        self.get(tenant).blobs.check_writable()

    def _load(self, tenant: bytes) -> Tenant:
        row = self._catalog.tenants.get(tenant)
        if row is None:
            raise Fault("INTERNAL", f"the catalog has no tenant {tenant.hex()}")
        keys = self._keys.load(tenant)
        secrets = secrets_of(keys)
        packs = PackReader(self._blobs, keys)
        return Tenant(
            id=tenant,
            name=row.name,
            keys=keys,
            secrets=secrets,
            cutter=Cutter(ChunkerParameters(seed=secrets.chunker_seed)),
            blobs=self._blobs,
            packs=packs,
            cached=packs if self._cache is None else PackReader(self._blobs, keys, self._cache),
            records=Records(self._blobs, keys),
            decoded=self.decoded,
            inspecting=self._inspecting,
        )
