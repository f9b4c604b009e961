"""What a new backup refers to without an intact copy; its upload must send it before the commit."""

from __future__ import annotations

from typing import NamedTuple

from staddle_server.base.errors import Damaged
from staddle_server.base.limits import MISSING_CHUNKS_MAX
from staddle_server.base.types import Root
from staddle_server.catalog import Catalog
from staddle_server.manifest.read import Gap
from staddle_server.tenancy.chunk_reader import ChunkReader
from staddle_server.tenancy.losses import Losses
from staddle_server.tenancy.tenant import Tenant


class Lacking(NamedTuple):
    """What must be sent again.

    Attributes:
        chunks: Data chunks, with their lengths.
        paths: Entries whose list of chunks or attributes are lost: only sending the entries restores those.

    """

    chunks: dict[bytes, int]
    paths: list[bytes]

    @property
    def total(self) -> int:
        """How many things must be sent again."""
        return len(self.chunks) + len(self.paths)


def lacking(tenant: Tenant, catalog: Catalog, root: Root) -> Lacking:
    """Return what the backup with this manifest lacks, up to about MISSING_CHUNKS_MAX of it.

    Reads the manifest.

    Raises:
        Damaged: A page of the manifest is unreadable.

    """
    found = Lacking({}, [])
    for loss in Losses(ChunkReader(tenant, catalog)).of(root):
        if isinstance(loss.where, Gap):
            raise Damaged(
                f"a page of the list of entries is damaged: {loss.message}; a FULL backup does not need it"
            )
        if loss.where is None:  # it was readable
            continue
        found.chunks.update((lost.ref.digest, lost.ref.length) for lost in loss.data)
        path = loss.where.path
        if (loss.manifest or loss.message) and found.paths[-1:] != [path]:
            found.paths.append(path)
        if found.total >= MISSING_CHUNKS_MAX:
            break
    return found
