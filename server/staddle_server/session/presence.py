"""Whether the pack objects that an upload relies on are there: one look at each, remembered for minutes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import Final

from staddle_server.catalog import Catalog
from staddle_server.session.clock import Clock
from staddle_server.session.tenant import Tenant
from staddle_server.store.blobs import BlobMissing
from staddle_server.store.pack import pack_name
from staddle_server.threads import Threads

log = logging.getLogger(__name__)

SEEN_S: Final = 300.0
"""For so long nobody looks again for a pack that was seen."""
REMEMBERED_MAX: Final = 65_536
"""Packs that are remembered, at least; at most twice as many."""
AT_ONCE: Final = 16
"""Packs of which one thread looks for itself; more are shared among so many threads."""


class Presence:
    """Which pack objects were seen lately, by all uploads of a server. Thread-safe."""

    def __init__(self, catalog: Catalog, clock: Clock) -> None:
        self._catalog = catalog
        self._clock = clock
        self._lock = threading.Lock()
        self._new: dict[tuple[bytes, bytes], float] = {}
        self._old: dict[tuple[bytes, bytes], float] = {}

    def saw(self, tenant: bytes, packs: Iterable[bytes]) -> None:
        """These packs are there, or were written just now."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            for pack in packs:
                self._new[tenant, pack] = now_s
                if len(self._new) >= REMEMBERED_MAX:
                    self._old, self._new = self._new, {}

    def lost(self, tenant: Tenant, packs: Iterable[bytes], since_s: float) -> list[bytes]:
        """Those of the live packs of which the object is gone or has another size. They are marked as damaged.

        A pack that was seen after `since_s` (monotonic), and within SEEN_S, is not looked for.

        Raises:
            Unavailable: the store does not answer, which says nothing about the packs.

        """
        since_s = max(since_s, self._clock.monotonic_s() - SEEN_S)
        with self._lock:
            unseen = [pack for pack in packs if self._seen_s(tenant.id, pack) < since_s]
        if not unseen:
            return []
        sizes = self._catalog.packs.live_sizes(tenant.id, unseen)
        if len(sizes) <= AT_ONCE:
            there = [_is_there(tenant, *item) for item in sizes.items()]
        else:
            with Threads(AT_ONCE, thread_name_prefix="look") as threads:
                there = list(threads.map(lambda item: _is_there(tenant, *item), sizes.items()))
        found = dict(zip(sizes, there, strict=True))
        self.saw(tenant.id, [pack for pack, is_there in found.items() if is_there])
        gone = [pack for pack, is_there in found.items() if not is_there]
        if not gone:
            return []
        marked = self._catalog.packs.mark_lost(tenant.id, gone)
        if marked:
            log.error(
                "%d packs that an upload of tenant %s relied on are gone; the upload stores their chunks anew. Run "
                "`staddle-server check`",
                len(marked),
                tenant.name,
            )
        return marked

    def _seen_s(self, tenant: bytes, pack: bytes) -> float:
        key = (tenant, pack)
        return self._new.get(key) or self._old.get(key, float("-inf"))


def stored_size(tenant: Tenant, pack: bytes) -> int | None:
    """The bytes of a pack's object; None: there is none. Raises Unavailable."""
    try:
        return tenant.blobs.size(pack_name(tenant.id, pack))
    except BlobMissing:
        return None


def _is_there(tenant: Tenant, pack: bytes, size_bytes: int) -> bool:
    return stored_size(tenant, pack) == size_bytes
