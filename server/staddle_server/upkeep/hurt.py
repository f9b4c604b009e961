"""Which backups, and which paths in them, cannot be given back whole: by what the catalog knows of chunks, without reading data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

from staddle_server.catalog import WHOLE_PACK, Backup, Catalog
from staddle_server.errors import Damaged
from staddle_server.limits import CHUNKS_PER_CALL_MAX
from staddle_server.manifest.content import chunks_of
from staddle_server.manifest.entries import shown
from staddle_server.manifest.read import Gap, Manifest
from staddle_server.manifest.references import references
from staddle_server.session.reading import ChunkReader
from staddle_server.session.tenant import Tenant
from staddle_server.types import ChunkPlace, Entry, Role
from staddle_server.upkeep.findings import DAMAGE, Emit, Finding

ENTRIES_AT_ONCE: Final = 1024


class Lost(NamedTuple):
    """A chunk without a sound copy; `places` are the damaged ones, if there are any."""

    digest: bytes
    places: list[ChunkPlace]


class Hurt:
    """Walks the manifests of one tenant's backups. Not thread-safe.

    Attributes:
        chunks: references looked up so far; the same chunk may count again in another page.

    """

    def __init__(self, tenant: Tenant, catalog: Catalog, tick: Callable[[], None] = lambda: None) -> None:
        self.chunks = 0
        self._places: set[tuple[bytes, int]] = set()
        """Where the chunks lie that are lost: pack, and offset of the segment."""
        self._blind = False
        """A page could not be read, so that nobody knows what it needs."""
        self._tenant = tenant
        self._catalog = catalog
        self._reader = ChunkReader(tenant, catalog)
        self._tick = tick
        self._pages: set[bytes] = set()

    def is_whole(self, backup: Backup) -> bool:
        """Whether everything that a backup refers to has a sound copy. What an earlier backup shares with it is not walked again.

        So once it has said no, it is of no more use.
        """
        try:
            found = references(backup.root, self._reader, skip=self._pages.__contains__)
            while batch := list(islice(found, 256)):
                self._pages.update(page.manifest[0] for page in batch)
                manifest = [digest for page in batch for digest in page.manifest]
                data = [digest for page in batch for digest in page.data]
                if self._lost(Role.MANIFEST, manifest) or self._lost(Role.DATA, data):
                    return False
                self._tick()
        except Damaged:
            return False
        return True

    def has_root(self, backup: Backup) -> bool:
        """Whether the first page of a backup has a sound copy."""
        return not backup.root.entries or not self._lost(Role.MANIFEST, [backup.root.digest])

    def name(self, backup: Backup, emit: Emit) -> int:
        """Says of every path of a backup that is hurt what is lost, and gives their number."""
        hurt = 0
        reader = ChunkReader(self._tenant, self._catalog)
        entries = Manifest(backup.root, reader).walk()
        while batch := list(islice(entries, ENTRIES_AT_ONCE)):
            lost = self._lost_inline([entry for entry in batch if isinstance(entry, Entry)])
            for entry in batch:
                if isinstance(entry, Gap):
                    self._blind = True
                    emit(_gap(self._tenant, backup, entry))
                    hurt += 1
                    continue
                found, message = self._lost_of(entry, lost, reader)
                if found or message:
                    emit(_path(self._tenant, backup, entry, found, message))
                    hurt += 1
            self._tick()
        return hurt

    def needs(self, pack: bytes, segment_offset: int) -> bool:
        """Whether something that was walked needs what is damaged there (WHOLE_PACK: anywhere in the pack), or may need it."""
        return self._blind or (pack, segment_offset) in self._places

    # --- parts

    def _lost(self, role: Role, digests: Iterable[bytes]) -> list[Lost]:
        """Those of the chunks of which no copy is known to be sound."""
        ids = {self._tenant.chunk_id(role, digest): digest for digest in digests}
        self.chunks += len(ids)
        wanted = iter(ids)
        lost: list[Lost] = []
        while batch := list(islice(wanted, CHUNKS_PER_CALL_MAX)):
            sound = self._catalog.chunks.find(self._tenant.id, batch)
            hurt = [chunk_id for chunk_id in batch if chunk_id not in sound]
            if hurt:
                placed = self._catalog.chunks.find(self._tenant.id, hurt, include_damaged=True)
                lost += [Lost(ids[chunk_id], placed.get(chunk_id, [])) for chunk_id in hurt]
        for each in lost:
            for place in each.places:
                self._places |= {(place.segment.pack, place.segment.offset), (place.segment.pack, WHOLE_PACK)}
        return lost

    def _lost_inline(self, entries: list[Entry]) -> dict[bytes, Lost]:
        """What is lost of the chunks that these entries name themselves, looked up at once."""
        data = [ref.digest for entry in entries if entry.content is not None for ref in entry.content.chunks]
        attributes = [entry.attributes_ref.digest for entry in entries if entry.attributes_ref is not None]
        lost = [*self._lost(Role.DATA, data), *self._lost(Role.MANIFEST, attributes)]
        return {each.digest: each for each in lost}

    def _lost_of(
        self, entry: Entry, inline: dict[bytes, Lost], reader: ChunkReader
    ) -> tuple[list[Lost], str]:
        """What is lost of an entry; in words where its list of chunks cannot be read."""
        found = []
        if entry.attributes_ref is not None and entry.attributes_ref.digest in inline:
            found.append(inline[entry.attributes_ref.digest])
        if entry.content is None:
            return found, ""
        found += [inline[ref.digest] for ref in entry.content.chunks if ref.digest in inline]
        if entry.content.root is None:
            return found, ""
        try:
            refs = chunks_of(entry.content, reader)
            while batch := [ref.digest for _, ref in islice(refs, CHUNKS_PER_CALL_MAX)]:
                found += self._lost(Role.DATA, batch)
        except Damaged as e:
            self._blind = True
            return found, e.message
        return found, ""


def each_backup(catalog: Catalog, tenant: bytes) -> Iterator[Backup]:
    """All backups of a tenant that are not purged, deleted ones too."""
    after = b""
    while page := catalog.verification.backups(tenant, after=after):
        yield from page
        after = page[-1].id


def _path(tenant: Tenant, backup: Backup, entry: Entry, lost: list[Lost], message: str) -> Finding:
    path = shown(entry.path)
    said = f"{path or '(the root)'} in backup {backup.id.hex()} ({backup.dataset} #{backup.number}) cannot be given back whole: "
    first = lost[0] if lost else None
    place = first.places[0].segment if first is not None and first.places else None
    if first is None:
        said += message
    elif place is None:
        said += f"chunk {first.digest.hex()} is in no pack"
    else:
        said += f"chunk {first.digest.hex()} is damaged in pack {place.pack.hex()}"
    if len(lost) > 1:
        said += f", and {len(lost) - 1} more chunks are lost"
    return Finding(
        "path",
        DAMAGE,
        said + "; the next backup of the same data brings it back",
        tenant=tenant.name,
        pack="" if place is None else place.pack.hex(),
        segment=-1 if place is None else place.offset,
        chunk="" if first is None else first.digest.hex(),
        chunks=len(lost),
        dataset=backup.dataset,
        backup=backup.id.hex(),
        number=backup.number,
        path=path,
    )


def _gap(tenant: Tenant, backup: Backup, gap: Gap) -> Finding:
    after = "from the beginning" if gap.after is None else f"behind {shown(gap.after)}"
    upto = "to the end" if gap.upto is None else f"up to {shown(gap.upto)}"
    return Finding(
        "manifest",
        DAMAGE,
        f"what lies {after} {upto} in backup {backup.id.hex()} ({backup.dataset} #{backup.number}) cannot be given back: "
        f"{gap.message}; a FULL backup of the same data brings it back",
        tenant=tenant.name,
        dataset=backup.dataset,
        backup=backup.id.hex(),
        number=backup.number,
        path="" if gap.upto is None else shown(gap.upto),
    )
