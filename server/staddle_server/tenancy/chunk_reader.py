"""Chunks by digest: lookup, reading, verification, and the handling of damage."""

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
"""Inflated segments that a reader of manifest pages caches."""
DATA_KEPT_BYTES: Final = 1 * MIB
"""The same for a reader of data: the last segment, and what is expected of earlier ones."""
DECODED_FACTOR: Final = 8
"""Memory of a decoded page for each encoded byte: 5 for files, 8 for the smallest entries."""
SAVED_BYTES_MAX: Final = 8 * MIB
"""The limit for expected chunks that are kept; the segments of others are opened again."""
_ATTRIBUTES: Final = bytes([PageKind.ATTRIBUTES])


class ChunkReader:
    """Reads one tenant's chunks for one call; not thread-safe.

    Verifies every chunk against its digest. If one copy is damaged it reads another, and marks the damage in
    the catalog with all other damage of that pack, so that the next upload of the same bytes heals it.
    """

    def __init__(
        self,
        tenant: Tenant,
        catalog: Catalog,
        kept_bytes: int = PAGES_KEPT_BYTES,
        check: Callable[[], None] | None = None,
    ) -> None:
        """`check` raises once the caller is gone: every loop over stored data passes here.

        What is read will be decoded, and counts for the tenant as long as the reader lives. With `check`,
        reads wait if the tenant's calls hold too much.
        """
        self._tenant = tenant
        self._catalog = catalog
        self._kept_bytes = kept_bytes
        self._check = check
        self.held = tenant.decoded.held(tenant.id, check)
        """The memory of the decoded data, and of what the caller counts there."""
        self._pages: deque[int] = deque()
        """The decoded sizes of the last pages, which a walk keeps."""
        self._segments: OrderedDict[SegmentRef, Segment] = OrderedDict()
        self._cached_bytes = 0
        self._marked: set[SegmentRef] = set()
        """Segments that this reader found damaged."""
        self._inside: dict[tuple[Role, bytes], tuple[SegmentRef, int, int]] = {}
        """The positions of chunks in the cached segments."""
        self._located: dict[bytes, list[ChunkPlace]] = {}
        """The places of pages that were looked up and not read yet."""
        self._expected: Counter[tuple[Role, bytes]] = Counter()
        self._saved: dict[tuple[Role, bytes], memoryview] = {}
        """Expected chunks of segments that have left the cache."""
        self._saved_bytes = 0

    def locate(self, role: Role, digests: Iterable[bytes]) -> dict[bytes, list[ChunkPlace]]:
        """Return where chunks lie, undamaged copies first; chunks without a place are left out."""
        return dict(self._places_of(role, digests, include_damaged=True))

    def look_up_pages(self, digests: Iterable[bytes]) -> None:
        """Look up at once where manifest pages lie that are read next."""
        self._located = self.locate(Role.MANIFEST, digests)

    def sound(self, role: Role, digests: Iterable[bytes]) -> dict[bytes, int]:
        """Return which chunks have a copy without known damage, and their lengths."""
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
        """Announce what will be read, as often as it is listed: such chunks stay when their segment leaves
        the cache.

        A segment that many places refer to is opened once for all of them. Earlier announcements are
        forgotten.
        """
        self._expected = Counter((role, digest) for digest in digests)
        self._saved.clear()
        self._saved_bytes = 0

    def read(self, digest: bytes) -> bytes:
        """Return a chunk of role manifest: manifest pages, list chunks and attributes are read through this.

        Raises:
            Damaged: No copy of it is readable.
            Exhausted: TOO_MANY, the tenant's calls hold too much already.

        """
        data = bytes(self.chunk(Role.MANIFEST, digest, self._located.pop(digest, None)))
        # Attributes stay encoded until they are sent.
        size = len(data) if data[:1] == _ATTRIBUTES else len(data) * DECODED_FACTOR
        oldest = self._pages[0] if len(self._pages) >= PAGES_KEPT else 0
        self.held.change(size - oldest)
        if oldest:
            self._pages.popleft()
        self._pages.append(size)
        return data

    def data(self, ref: ChunkRef, places: Iterable[ChunkPlace] | None = None) -> memoryview:
        """Return the bytes of a chunk of role data, with the length that an entry states; see `chunk`."""
        data = self.chunk(Role.DATA, ref.digest, places)
        if len(data) != ref.length:
            raise Damaged(f"chunk {ref.digest.hex()} has {len(data)} bytes instead of {ref.length}")
        return data

    def chunk(self, role: Role, digest: bytes, places: Iterable[ChunkPlace] | None = None) -> memoryview:
        """Return the bytes of a chunk from any intact copy.

        Args:
            role: What the chunk is for.
            digest: Its plain digest.
            places: The result of `locate`, if known.

        Raises:
            Damaged: No copy of it is readable.
            Unavailable: The store does not answer, which says nothing about the chunk.

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
            # Chunks move during a restore: a collection may have moved them into another pack since the
            # lookup.
            fresh = [place for place in self._places(role, digest) if place not in tried]
            if not fresh:
                raise error or Damaged(f"chunk {digest.hex()} is missing from the store")

    def _unreadable(self, error: BlobUnreadable) -> Damaged:
        """Return the error for an unreadable place on a disk that otherwise works: lost to this call, but not
        marked.

        It may be readable again later.

        Raises:
            Unavailable: The disk does not answer otherwise, either.

        """
        with suppress(Damaged):  # any answer will do
            self._tenant.blobs.read(keys_name(self._tenant.id, max(self._tenant.keys.pack_keys)), 0, 1)
        return Damaged(f"{error.message}: a bad sector? Check the disk; the damage was not marked")

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
        """Return a segment, opened and inflated; the last few are cached."""
        segment = self._segments.get(ref)
        if segment is None:
            segment = self._tenant.cached.segment(ref)
            self.keep(ref, segment)
        return segment

    def has(self, ref: SegmentRef) -> bool:
        """Return whether a segment is in the cache."""
        return ref in self._segments

    def keep(self, ref: SegmentRef, segment: Segment) -> None:
        """Put an opened segment into the cache, and drop the oldest ones."""
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
        """Drop a segment from the cache; keep what is expected of it."""
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
        with suppress(Damaged):  # the read will search for it
            self._saved[key] = memoryview(bytes(segment.chunk(offset, length, key[1])))
            self._saved_bytes += length
