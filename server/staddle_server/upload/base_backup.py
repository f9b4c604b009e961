"""The backup that an upload starts from, as read by its writer."""

from __future__ import annotations

from staddle_server.base.errors import Damaged, Precondition
from staddle_server.base.types import Content, Entry, Root
from staddle_server.catalog import Catalog
from staddle_server.manifest.entries import shown
from staddle_server.manifest.read import Manifest
from staddle_server.tenancy.chunk_reader import ChunkReader
from staddle_server.tenancy.losses import Losses
from staddle_server.tenancy.tenant import Tenant


class Base:
    """The base's manifest; under the writer's lock."""

    def __init__(self, tenant: Tenant, catalog: Catalog, root: Root) -> None:
        self.root = root
        self._tenant = tenant
        self._catalog = catalog
        self._manifest = Manifest(root, ChunkReader(tenant, catalog))

    def damage_known(self) -> bool:
        """Return whether any stored data is known to be damaged."""
        return bool(self._catalog.packs.damaged_count(self._tenant.id))

    def content(self, path: bytes, *, check: bool) -> Content:
        """Return the content at a path; with `check`, only if no chunk of it is known to be damaged.

        Raises:
            Precondition: NOT_IN_BASE, it does not exist or cannot be restored.

        """
        try:
            entry = self._manifest.find(path)
            whole = not check or entry is None or self._has_content(entry)
        except Damaged:
            entry, whole = None, False
        if entry is None or entry.content is None or not whole:
            what = "the base has no file" if whole else "damage: the base cannot restore"
            raise Precondition("NOT_IN_BASE", f"{what} {shown(path)}; send it", path=shown(path))
        return entry.content

    def _has_content(self, entry: Entry) -> bool:
        return Losses(ChunkReader(self._tenant, self._catalog)).is_content_whole(entry)
