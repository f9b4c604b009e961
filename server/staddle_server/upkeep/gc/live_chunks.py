"""Live chunks as positions in packs: in memory bounded by about 8 bytes for each chunk."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final

from staddle_server.base.limits import CHUNKS_PER_CALL_MAX
from staddle_server.base.types import ChunkPlace, Role, Root
from staddle_server.catalog import Catalog
from staddle_server.manifest.references import References, references
from staddle_server.tenancy.chunk_reader import ChunkReader
from staddle_server.tenancy.tenant import Tenant

_OFFSET_BITS: Final = 24
"""Bits of an offset in an inflated segment, which has at most 3 MiB."""
_TIDY_MIN: Final = 1024


class Positions:
    """The positions of live chunks in one pack: the segment's, and the chunk's within it."""

    def __init__(self, packed: bytes = b"") -> None:
        self._values = array("Q")
        self._values.frombytes(packed)
        self._tidy_at = max(_TIDY_MIN, 2 * len(self._values))

    def add(self, place: ChunkPlace) -> None:
        """Record that the chunk there is live."""
        self._values.append(self.key(place))
        if len(self._values) >= self._tidy_at:
            self._tidy()
            self._tidy_at = max(_TIDY_MIN, 2 * len(self._values))

    def whole(self) -> set[int]:
        """Return all of them, for many lookups; see `key`."""
        return set(self._values)

    @staticmethod
    def key(place: ChunkPlace) -> int:
        """Return what `whole` has for a place."""
        return place.segment.offset << _OFFSET_BITS | place.offset

    def pack(self) -> bytes:
        """Return them as bytes for storage; each position once, in order."""
        self._tidy()
        return self._values.tobytes()

    def __len__(self) -> int:
        self._tidy()
        return len(self._values)

    def _tidy(self) -> None:
        self._values = array("Q", sorted(set(self._values)))


class Reached:
    """What the walked manifests keep alive in one tenant's packs.

    Of several copies of a chunk one is enough: an undamaged one in the first pack. If all copies are damaged,
    all of them count: some may still be saved. Not thread-safe.
    """

    def __init__(self, tenant: Tenant, catalog: Catalog, behind: Reached | None = None) -> None:
        """Start empty.

        Leaves out pages that were walked for `behind`, with everything that they keep alive.
        """
        self.packs: dict[bytes, Positions] = {}
        """By pack id."""
        self.chunks = 0
        """Digests looked up; a digest in two pages counts twice."""
        self.missing = 0
        """Those of them that no pack has."""
        self.pages: set[bytes] = set()
        """Pages and list chunks already walked."""
        self._tenant = tenant
        self._catalog = catalog
        self._reader = ChunkReader(tenant, catalog)
        self._pages_behind = behind.pages if behind is not None else frozenset()
        self._changed: set[bytes] = set()

    def restore(self, pack: bytes, packed: bytes) -> None:
        """Restore what an earlier walk reached in a pack, and saved."""
        if packed:
            self.packs[pack] = Positions(packed)

    def changed(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield what was reached in each pack that changed since the last call, to save; see `restore`."""
        changed, self._changed = self._changed, set()
        for pack in sorted(changed):
            yield pack, self.packs[pack].pack()

    def walk(self, root: Root, tick: Callable[[], None] = lambda: None) -> None:
        """Add everything that a manifest refers to. `tick` is called at each page, and may raise to stop.

        Raises:
            Damaged: A page is unreadable, and may refer to anything.

        """
        data: list[bytes] = []
        manifest: list[bytes] = []
        for found in self._new_pages(root):
            tick()
            manifest += found.manifest
            data += found.data
            if len(data) + len(manifest) >= CHUNKS_PER_CALL_MAX:
                self._add(Role.MANIFEST, manifest)
                self._add(Role.DATA, data)
                data, manifest = [], []
        self._add(Role.MANIFEST, manifest)
        self._add(Role.DATA, data)

    def _new_pages(self, root: Root) -> Iterator[References]:
        for found in references(root, self._reader, skip=self._is_known):
            # The first of them is the page itself; later ones are of other kinds and may be pages of another
            # manifest.
            self.pages.add(found.manifest[0])
            yield found

    def _is_known(self, digest: bytes) -> bool:
        return digest in self.pages or digest in self._pages_behind

    def _add(self, role: Role, digests: Iterable[bytes]) -> None:
        rest = iter(dict.fromkeys(digests))
        while batch := list(islice(rest, CHUNKS_PER_CALL_MAX)):
            ids = [self._tenant.chunk_id(role, digest) for digest in batch]
            self.chunks += len(ids)
            self._keep(ids)

    def _keep(self, ids: list[bytes]) -> None:
        sound = self._catalog.chunks.find(self._tenant.id, ids)
        lost = [chunk_id for chunk_id in ids if chunk_id not in sound]
        damaged = self._catalog.chunks.find(self._tenant.id, lost, include_damaged=True) if lost else {}
        self.missing += len(lost) - len(damaged)
        for places in sound.values():
            self._reach(min(places, key=lambda place: place.segment.pack))
        for places in damaged.values():
            for place in places:
                self._reach(place)

    def _reach(self, place: ChunkPlace) -> None:
        positions = self.packs.get(place.segment.pack)
        if positions is None:
            positions = self.packs[place.segment.pack] = Positions()
        positions.add(place)
        self._changed.add(place.segment.pack)
