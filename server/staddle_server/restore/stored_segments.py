"""Segments sent as stored, to clients that open them: such a restore neither inflates nor hashes, and sends
half the bytes.

The seal proves that the bytes are the stored ones, whose chunks were all verified on arrival; the client
    checks each file against its content id. A segment is sent this way only if
- its pack was written for a backup that exists and is not deleted, so that the caller may read all of it; and
- about as much of it is needed as is stored, or the client has it already.

Everything else is inflated here, including segments that do not open: damage is then found and reported in
one place.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Final, NamedTuple

from staddle_server.base.errors import Damaged
from staddle_server.base.limits import SEGMENTS_REFERRED_MAX
from staddle_server.base.recent import Recent
from staddle_server.base.types import ChunkPlace, Role, SegmentRef
from staddle_server.catalog import Catalog
from staddle_server.store.blobs import BlobUnreadable
from staddle_server.store.pack import StoredSegment
from staddle_server.tenancy.prefetch import Ahead
from staddle_server.tenancy.tenant import Tenant

USED_PERCENT_MIN: Final = 80
"""The share of a segment's stored length that must be needed, in inflated bytes."""
PACKS_REMEMBERED: Final = 32_768
"""Packs whose readability a restore remembers, at least; at most twice as many."""


class Piece(NamedTuple):
    """A whole chunk: bytes of an inflated segment sent earlier."""

    segment: int
    offset: int
    length: int


class AsStored:
    """What one restore sends as stored. Not thread-safe."""

    def __init__(self, tenant: Tenant, catalog: Catalog, opener: Executor) -> None:
        self._tenant = tenant
        self._catalog = catalog
        self._opener = opener
        self._may_be_read: Recent[bytes, bool] = Recent(PACKS_REMEMBERED)
        self._count = 0
        self._sent: OrderedDict[SegmentRef, tuple[int, int]] = OrderedDict()
        """The segments that the client still has: their numbers, and their inflated sizes."""
        self._places: Mapping[bytes, ChunkPlace] = {}
        self._refused: set[SegmentRef] = set()
        """In this window: segments that did not open, and segments that would be sent twice."""
        self._ahead: Ahead[StoredSegment] | None = None

    def choose(self, digests: Sequence[bytes], places: Mapping[bytes, Sequence[ChunkPlace]]) -> set[bytes]:
        """Begin a window of chunks in order of need. Return which may be sent as pieces; `close` ends it."""
        wanted = {digest: places[digest][0] for digest in digests if places.get(digest)}
        needed: Counter[SegmentRef] = Counter()
        for place in wanted.values():
            needed[place.segment] += place.length
        used = {
            ref
            for ref, size in needed.items()
            if ref in self._sent or size * 100 >= ref.length * USED_PERCENT_MIN
        }
        readable = self._readable({ref.pack for ref in used})
        chosen = {ref for ref in used if ref.pack in readable}
        self._refused = set()
        self._places = {digest: place for digest, place in wanted.items() if place.segment in chosen}
        order: dict[SegmentRef, bytes] = {}
        for digest, place in self._places.items():
            order.setdefault(place.segment, digest)
        self._ahead = Ahead(
            self._opener,
            self._tenant.cached.stored,
            lambda ref: ref not in self._sent,
            ((digest, ref) for ref, digest in order.items()),
        )
        return set(self._places)

    def _readable(self, packs: Iterable[bytes]) -> set[bytes]:
        """Return which packs were written for a backup that exists."""
        known = self._may_be_read
        unknown = {pack for pack in packs if known.get(pack) is None}
        if unknown:
            found = self._catalog.packs.of_live_backups(self._tenant.id, unknown)
            for pack in unknown:
                known.put(pack, pack in found)
        return {pack for pack in packs if known.get(pack)}

    def segment_for(self, digest: bytes) -> StoredSegment | None:
        """Return the segment to send before the piece of this chunk, unless the client has it."""
        place = self._places.get(digest)
        if place is None or place.segment in self._sent or place.segment in self._refused:
            return None
        ref = place.segment
        self._refused.add(ref)  # unless all succeeds; and a segment that the client dropped is not sent again
        try:
            segment = self._opened(digest, ref)
        except (Damaged, BlobUnreadable):
            return None  # inflating it raises the same error, and handles it
        if segment.role is not Role.DATA:
            return None
        self._sent[ref] = (self._count, segment.raw_bytes)
        self._count += 1
        if len(self._sent) > SEGMENTS_REFERRED_MAX:
            self._sent.popitem(last=False)
        return segment

    def _opened(self, digest: bytes, ref: SegmentRef) -> StoredSegment:
        taken = self._ahead.take(digest) if self._ahead is not None else None
        return taken[1] if taken is not None and taken[0] == ref else self._tenant.cached.stored(ref)

    def piece(self, digest: bytes, length: int) -> Piece | None:
        """Return where the client finds a chunk of this length; None if it must be sent."""
        place = self._places.get(digest)
        sent = None if place is None else self._sent.get(place.segment)
        if place is None or sent is None or place.length != length or place.offset + length > sent[1]:
            return None
        return Piece(sent[0], place.offset, length)

    def close(self) -> None:
        """Drop opened segments that were not needed."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
