"""Report the paths of backups that cannot be restored completely, from the catalog's view of chunks, without
reading data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from staddle._base.figures import counted

from staddle_server.base.types import Entry, Role
from staddle_server.catalog import WHOLE_PACK, Backup, Catalog
from staddle_server.manifest.entries import shown
from staddle_server.manifest.read import Gap
from staddle_server.tenancy.chunk_reader import ChunkReader
from staddle_server.tenancy.losses import Loss, Losses, LostChunk
from staddle_server.tenancy.tenant import Tenant
from staddle_server.upkeep.integrity.findings import DAMAGE, Emit, Finding


class _Lost(NamedTuple):
    """The losses of one path: the first of its `chunks` lost chunks, and why its list of chunks is
    unreadable.
    """

    first: LostChunk | None
    chunks: int
    message: str


class LostPaths:
    """Walks the manifests of one tenant's backups; reads shared and intact parts once. Not thread-safe."""

    def __init__(self, tenant: Tenant, catalog: Catalog) -> None:
        self._tenant = tenant
        self._reader = ChunkReader(tenant, catalog)
        self._losses = Losses(self._reader, share=True)
        self._places: set[tuple[bytes, int]] = set()
        """The places of damaged copies of lost chunks: pack, and offset of the segment."""
        self._blind = False
        """A page or list was unreadable, so it is unknown what that needs."""

    @property
    def chunks(self) -> int:
        """References looked up so far; a chunk that several pages name counts for each."""
        return self._losses.chunks

    def has_root(self, backup: Backup) -> bool:
        """Return whether the first page of a backup has an intact copy."""
        return not backup.root.entries or bool(self._reader.sound(Role.MANIFEST, [backup.root.digest]))

    def name(self, backup: Backup, emit: Emit) -> int:
        """Report the losses of every damaged path of a backup, and return their number."""
        paths = 0
        for where, losses in groupby(self._losses.of(backup.root), key=lambda loss: loss.where):
            lost = self._summed(losses)
            if where is None:  # a readable page: nothing is lost with it
                continue
            is_gap = isinstance(where, Gap)
            emit(_gap(self._tenant, backup, where) if is_gap else _path(self._tenant, backup, where, lost))
            paths += 1
        return paths

    def needs(self, pack: bytes, segment_offset: int) -> bool:
        """Return whether anything walked needs, or may need, the damage there (WHOLE_PACK: anywhere in the
        pack).
        """
        return self._blind or (pack, segment_offset) in self._places

    def _summed(self, losses: Iterable[Loss]) -> _Lost:
        """Sum up the losses of one path, and record which places they need."""
        first, chunks, message = None, 0, ""
        for loss in losses:
            for chunk in (*loss.manifest, *loss.data):
                first = first or chunk
                chunks += 1
                for place in chunk.places:
                    self._places |= {
                        (place.segment.pack, place.segment.offset),
                        (place.segment.pack, WHOLE_PACK),
                    }
            message = message or loss.message
        self._blind = self._blind or bool(message)
        return _Lost(first, chunks, message)


def each_backup(catalog: Catalog, tenant: bytes) -> Iterator[Backup]:
    """Yield all unpurged backups of a tenant, deleted ones included."""
    after = b""
    while page := catalog.verification.backups(tenant, after=after):
        yield from page
        after = page[-1].id


def _path(tenant: Tenant, backup: Backup, entry: Entry, lost: _Lost) -> Finding:
    path = shown(entry.path)
    said = f"{path or '(the root)'} in backup {backup.id.hex()} ({backup.dataset} #{backup.number}) cannot be restored completely: "
    chunk = "" if lost.first is None else lost.first.ref.digest.hex()
    place = lost.first.places[0].segment if lost.first is not None and lost.first.places else None
    if lost.first is None:
        said += lost.message
    elif place is None:
        said += f"chunk {chunk} is in no pack"
    else:
        said += f"chunk {chunk} is damaged in pack {place.pack.hex()}"
    if lost.chunks > 1:
        said += f", and {counted(lost.chunks - 1, 'more chunk is', 'more chunks are')} lost"
    return Finding(
        "path",
        DAMAGE,
        said + "; the next backup of the same data heals it",
        tenant=tenant.name,
        pack="" if place is None else place.pack.hex(),
        segment=-1 if place is None else place.offset,
        chunk=chunk,
        chunks=lost.chunks,
        dataset=backup.dataset,
        backup=backup.id.hex(),
        number=backup.number,
        path=path,
    )


def _gap(tenant: Tenant, backup: Backup, gap: Gap) -> Finding:
    after = "from the beginning" if gap.after is None else f"after {shown(gap.after)}"
    upto = "to the end" if gap.upto is None else f"up to {shown(gap.upto)}"
    return Finding(
        "manifest",
        DAMAGE,
        f"what lies {after} {upto} in backup {backup.id.hex()} ({backup.dataset} #{backup.number}) cannot be restored: "
        f"{gap.message}; a FULL backup of the same data heals it",
        tenant=tenant.name,
        dataset=backup.dataset,
        backup=backup.id.hex(),
        number=backup.number,
        path="" if gap.upto is None else shown(gap.upto),
    )
