"""Check that the pack objects that an upload relies on exist; results are cached for minutes."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterable
from typing import Final

from staddle._base.figures import counted

from staddle_server.base.clock import Clock
from staddle_server.base.recent import Recent
from staddle_server.base.threads import Threads
from staddle_server.catalog import WHOLE_PACK, Catalog
from staddle_server.store.blobs import BlobMissing
from staddle_server.store.pack import pack_name
from staddle_server.tenancy.pack_listing import compared_with_listing
from staddle_server.tenancy.tenant import Tenant

log = logging.getLogger(__name__)

SEEN_S: Final = 300.0
"""How long a seen pack is not checked again."""
REMEMBERED_MAX: Final = 65_536
"""Packs that are remembered, at least; at most twice as many."""
AT_ONCE: Final = 16
"""Up to this many packs are checked in sequence; more are shared among this many threads."""

LOOKED_FOR_AT_ONCE: Final = 1000
"""Packs that a listing does not show, and that are looked for together."""


class Presence:
    """Which pack objects were seen lately, by all uploads of a server. Thread-safe."""

    def __init__(self, catalog: Catalog, clock: Clock) -> None:
        self._catalog = catalog
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: Recent[tuple[bytes, bytes], float] = Recent(REMEMBERED_MAX)
        """When each pack of a tenant was seen, by the monotonic clock."""

    def saw(self, tenant: bytes, packs: Iterable[bytes]) -> None:
        """Record that these packs were seen, or written, just now."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            for pack in packs:
                self._seen.put((tenant, pack), now_s)

    def lost(self, tenant: Tenant, packs: Iterable[bytes], since_s: float) -> list[bytes]:
        """Find the live packs whose object is gone or has another size, and mark them as damaged.

        Packs seen after `since_s` (monotonic), and within SEEN_S, are not checked.

        Raises:
            Unavailable: The store does not answer, which says nothing about the packs.

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
                "%s missing on which an upload of tenant %s relied; it stores their chunks again. Run "
                "`staddle-server check`",
                counted(len(marked), "pack is", "packs are"),
                tenant.name,
            )
        return marked

    def lost_of_all(self, tenant: Tenant) -> list[bytes]:
        """Do the same for all live packs of a tenant that are not known to be damaged as a whole.

        One listing of the store shows most of them; the others are looked at, also those seen just now. Memory is
        bounded.
        """
        unseen: list[bytes] = []
        marked: list[bytes] = []
        for pack, is_listed in compared_with_listing(tenant, self._catalog):
            if not is_listed and WHOLE_PACK not in pack.marks:
                unseen.append(pack.id)
                if len(unseen) >= LOOKED_FOR_AT_ONCE:
                    marked += self.lost(tenant, unseen, math.inf)
                    unseen = []
        return marked + self.lost(tenant, unseen, math.inf)

    def _seen_s(self, tenant: bytes, pack: bytes) -> float:
        seen_s = self._seen.get((tenant, pack))
        return float("-inf") if seen_s is None else seen_s


def stored_size(tenant: Tenant, pack: bytes) -> int | None:
    """Return the bytes of a pack's object; None if it is missing. Raises Unavailable."""
    try:
        return tenant.blobs.size(pack_name(tenant.id, pack))
    except BlobMissing:
        return None


def _is_there(tenant: Tenant, pack: bytes, size_bytes: int) -> bool:
    return stored_size(tenant, pack) == size_bytes
