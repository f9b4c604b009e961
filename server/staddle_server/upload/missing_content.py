"""What a new backup refers to and no sound copy holds, so that its upload sends it before it can be committed."""

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
    """What has to be sent again.

    Attributes:
        chunks: Data chunks, with their lengths.
        paths: Entries whose list of chunks or attributes are lost: only the entries themselves bring those back.

    """

    chunks: dict[bytes, int]
    paths: list[bytes]

    @property
    def total(self) -> int:
        """How many things have to be sent again."""
        return len(self.chunks) + len(self.paths)


def lacking(tenant: Tenant, catalog: Catalog, root: Root) -> Lacking:
    """What the backup with this manifest lacks, or the first MISSING_CHUNKS_MAX of it and a few more. Reads the manifest.

    Raises:
        Damaged: a page of the manifest cannot be read.

    """
    found = Lacking({}, [])
    for loss in Losses(ChunkReader(tenant, catalog)).of(root):
        if isinstance(loss.where, Gap):
            raise Damaged(
                f"a page of the list of entries is damaged: {loss.message}; a backup of the kind FULL needs nothing of it"
            )
        if loss.where is None:  # it could be read
            continue
        found.chunks.update((lost.ref.digest, lost.ref.length) for lost in loss.data)
        path = loss.where.path
        if (loss.manifest or loss.message) and found.paths[-1:] != [path]:
            found.paths.append(path)
        if found.total >= MISSING_CHUNKS_MAX:
            break
    return found
