"""Chunks by digest: look-up, reading, checking, and what happens when one is damaged."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Final

from staddle_server.base.errors import Damaged
from staddle_server.base.limits import CHUNKS_PER_CALL_MAX, MIB
from staddle_server.base.types import ChunkPlace, ChunkRef, Role, SegmentRef
from staddle_server.catalog import Catalog
from staddle_server.manifest.cursor import PAGES_KEPT
from staddle_server.manifest.pages import PageKind
from staddle_server.store.blobs import BlobUnreadable
from staddle_server.store.keys import keys_name
from staddle_server.store.pack import Segment
from staddle_server.tenancy.suspect_packs import doubt
from staddle_server.tenancy.tenant import Tenant

PAGES_KEPT_BYTES: Final = MIB // 2
"""What a reader of manifest pages keeps of inflated segments."""
DATA_KEPT_BYTES: Final = 1 * MIB
"""The same of a reader of data: the last segment, and what is expected of the ones before it."""
DECODED_FACTOR: Final = 8
"""Bytes of memory of a decoded page for each of its encoded ones: 5 for files, 8 for the smallest entries."""
SAVED_BYTES_MAX: Final = 8 * MIB
"""So much is kept of what is expected; the segments of the rest are opened once more."""
_ATTRIBUTES: Final = bytes([PageKind.ATTRIBUTES])


class ChunkReader:
    """Reads one tenant's chunks for one call; not thread-safe.

    Every chunk is checked against its digest before it is answered. A chunk of which one copy is damaged is read from another
    one, and the damaged copy is marked in the catalog with all else that is damaged in its pack, so that the next upload of the same
    bytes heals it.
    """

    def __init__(
        self,
        tenant: Tenant,
        catalog: Catalog,
        kept_bytes: int = PAGES_KEPT_BYTES,
        check: Callable[[], None] | None = None,
    ) -> None:
        """`check` raises once the caller has gone: every loop over what is stored comes through here.

        What is read is going to be decoded, and counts for the tenant for as long as the reader lives. With `check`, reading waits where
        the tenant's calls hold too much.
        """
        self._tenant = tenant
        self._catalog = catalog
        self._kept_bytes = kept_bytes
        self._check = check
        self.held = tenant.decoded.held(tenant.id, check)
        """What is decoded of what was read, and what else its caller counts there."""
        self._pages: deque[int] = deque()
        """What the last pages take decoded: so many are kept by who walks over them."""
        self._segments: OrderedDict[SegmentRef, Segment] = OrderedDict()
        self._cached_bytes = 0
        self._marked: set[SegmentRef] = set()
        """Segments that this reader found damaged."""
        self._inside: dict[tuple[Role, bytes], tuple[SegmentRef, int, int]] = {}
        """Where the chunks of the cached segments are."""
        self._expected: Counter[tuple[Role, bytes]] = Counter()
        self._saved: dict[tuple[Role, bytes], memoryview] = {}
        """Expected chunks of segments that are not cached any more."""
        self._saved_bytes = 0

    def locate(self, role: Role, digests: Iterable[bytes]) -> dict[bytes, list[ChunkPlace]]:
        """Where chunks lie, undamaged copies first; those that are nowhere are left out."""
        return dict(self._places_of(role, digests, include_damaged=True))

    def sound(self, role: Role, digests: Iterable[bytes]) -> dict[bytes, int]:
        """Those of the chunks that have a copy that is not known to be damaged, and how many bytes they have."""
        found = self._places_of(role, digests, include_damaged=False)
        return {digest: places[0].length for digest, places in found}

    def _places_of(
        self, role: Role, digests: Iterable[bytes], *, include_damaged: bool
    ) -> Iterator[tuple[bytes, list[ChunkPlace]]]:
        ids = {self._tenant.chunk_id(role, digest): digest for digest in digests}
        wanted = list(ids)
        for start in range(0, len(wanted), CHUNKS_PER_CALL_MAX):
            batch = wanted[start : start + CHUNKS_PER_CALL_MAX]
            found = self._catalog.chunks.find(self._tenant.id, batch, include_damaged=include_damaged)
            for chunk_id, places in found.items():
                yield ids[chunk_id], places

    def expect(self, role: Role, digests: Iterable[bytes]) -> None:
        """What is going to be read, each as often as it stands here: when its segment leaves the cache, it stays.

        A segment that many places refer to is opened once for all of them. What was expected before is forgotten.
        """
        self._expected = Counter((role, digest) for digest in digests)
        self._saved.clear()
        self._saved_bytes = 0

    def read(self, digest: bytes) -> bytes:
        """A chunk of role manifest: what manifest pages, list chunks and attributes are read through.

        Raises:
            Damaged: no copy of it can be read.
            Exhausted: TOO_MANY, the tenant's calls hold too much already.

        """
        data = bytes(self.chunk(Role.MANIFEST, digest))
        # Attributes stay encoded until they are sent.
        size = len(data) if data[:1] == _ATTRIBUTES else len(data) * DECODED_FACTOR
        oldest = self._pages[0] if len(self._pages) >= PAGES_KEPT else 0
        self.held.change(size - oldest)
        if oldest:
            self._pages.popleft()
        self._pages.append(size)
        return data

    def data(self, ref: ChunkRef, places: Iterable[ChunkPlace] | None = None) -> memoryview:
        """The bytes of a chunk of role data, as many as an entry says that it has; see `chunk`."""
        data = self.chunk(Role.DATA, ref.digest, places)
        if len(data) != ref.length:
            raise Damaged(f"chunk {ref.digest.hex()} has {len(data)} bytes where {ref.length} should be")
        return data

    def chunk(self, role: Role, digest: bytes, places: Iterable[ChunkPlace] | None = None) -> memoryview:
        """The bytes of a chunk, from wherever a good copy is.

        Args:
            role: What the chunk is for.
            digest: Its plain digest.
            places: From `locate`, if that was asked already.

        Raises:
            Damaged: no copy of it can be read.
            Unavailable: the store does not answer, which says nothing about the chunk.

        """
        if self._check is not None:
            self._check()
        key = (role, digest)
        data = self._saved.get(key)
        if data is None:
            data = self._cached(key) or self._find(role, digest, places)
        left = self._expected.pop(key, 0) - 1
        if left > 0:
            self._expected[key] = left
        elif self._saved.pop(key, None) is not None:
            self._saved_bytes -= len(data)
        return data

    def _cached(self, key: tuple[Role, bytes]) -> memoryview | None:
        inside = self._inside.get(key)
        if inside is None:
            return None
        ref, offset, length = inside
        return self._segments[ref].chunk(offset, length, key[1])

    def _find(self, role: Role, digest: bytes, places: Iterable[ChunkPlace] | None) -> memoryview:
        error: Damaged | None = None
        tried: set[ChunkPlace] = set()
        fresh = list(places or ())
        while True:
            for place in fresh:
                try:
                    return self._read_place(role, digest, place)
                except Damaged as e:
                    error = e
                except BlobUnreadable as e:
                    error = self._unreadable(e)
            tried.update(fresh)
            # Chunks move while a restore runs: a collection may have brought them into another pack since they were looked up.
            fresh = [place for place in self._places(role, digest) if place not in tried]
            if not fresh:
                raise error or Damaged(f"chunk {digest.hex()} is missing from the store")

    def _unreadable(self, error: BlobUnreadable) -> Damaged:
        """The error for one unreadable place of a disk that otherwise answers: lost to this call, but not marked, as it may be read again.

        Raises:
            Unavailable: it does not answer otherwise, either.

        """
        with suppress(Damaged):  # whatever it says, it answers
            self._tenant.blobs.read(keys_name(self._tenant.id, max(self._tenant.keys.pack_keys)), 0, 1)
        return Damaged(f"{error.message}: a bad sector? Look at the disk; it was not marked as damaged")

    def _places(self, role: Role, digest: bytes) -> list[ChunkPlace]:
        return self.locate(role, [digest]).get(digest, [])

    def _read_place(self, role: Role, digest: bytes, place: ChunkPlace) -> memoryview:
        try:
            segment = self.segment(place.segment)
            if not segment.reaches(place.offset + place.length):
                self._drop(place.segment)
                segment = self.segment(place.segment)
            if segment.role is not role:
                raise Damaged(
                    f"pack {place.segment.pack.hex()} has a segment of another role at {place.segment.offset}"
                )
            return segment.chunk(place.offset, place.length, digest)
        except Damaged:
            if place.segment not in self._marked:
                self._marked.add(place.segment)
                doubt(self._tenant, self._catalog, place.segment.pack, place.segment.offset)
            raise

    def segment(self, ref: SegmentRef) -> Segment:
        """A segment, opened and inflated; the last few are kept."""
        segment = self._segments.get(ref)
        if segment is None:
            segment = self._tenant.cached.segment(ref)
            self.keep(ref, segment)
        return segment

    def has(self, ref: SegmentRef) -> bool:
        """Whether a segment is in the cache."""
        return ref in self._segments

    def keep(self, ref: SegmentRef, segment: Segment) -> None:
        """Puts an opened segment into the cache, and the oldest ones out."""
        if ref in self._segments:
            return
        self._segments[ref] = segment
        self._cached_bytes += len(segment.data)
        offset = 0
        for chunk in segment.table:
            if segment.reaches(offset + chunk.length):
                self._inside[(segment.role, chunk.digest)] = (ref, offset, chunk.length)
            offset += chunk.length
        while self._cached_bytes > self._kept_bytes and len(self._segments) > 1:
            self._drop(next(iter(self._segments)))

    def _drop(self, ref: SegmentRef) -> None:
        """Takes a segment out of the cache; what is expected of it is kept."""
        segment = self._segments.pop(ref)
        self._cached_bytes -= len(segment.data)
        for chunk in segment.table:
            key = (segment.role, chunk.digest)
            if self._inside.get(key, (None,))[0] == ref:
                self._save(segment, key)
                del self._inside[key]

    def _save(self, segment: Segment, key: tuple[Role, bytes]) -> None:
        _, offset, length = self._inside[key]
        if not self._expected.get(key) or key in self._saved or self._saved_bytes + length > SAVED_BYTES_MAX:
            return
        with suppress(Damaged):  # it will be looked for when it is read
            self._saved[key] = memoryview(bytes(segment.chunk(offset, length, key[1])))
            self._saved_bytes += length
