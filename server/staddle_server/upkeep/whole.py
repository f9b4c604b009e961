"""Which backups could be restored whole, as far as is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from staddle_server.catalog import Catalog
from staddle_server.errors import Damaged
from staddle_server.limits import CHUNKS_PER_CALL_MAX
from staddle_server.manifest.references import references
from staddle_server.session.reading import ChunkReader
from staddle_server.session.tenant import Tenant
from staddle_server.types import Role, Root


class Wholeness:
    """Looks whether all that manifests refer to is there and not known to be damaged. Reads pages, and no data.

    What many manifests share is looked at once. Not thread-safe.
    """

    def __init__(self, tenant: Tenant, catalog: Catalog, tick: Callable[[], None] = lambda: None) -> None:
        self._reader = ChunkReader(tenant, catalog)
        self._tick = tick
        self._sound: set[bytes] = set()
        """Pages and list chunks of which all below them is sound."""

    def is_whole(self, root: Root) -> bool:
        """Whether a backup can be given back, all of it. Raises Unavailable where the store does not answer."""
        seen: set[bytes] = set()
        data: set[bytes] = set()
        manifest: set[bytes] = set()
        try:
            for found in references(
                root, self._reader, skip=lambda page: page in self._sound or page in seen
            ):
                self._tick()
                seen.add(found.manifest[0])
                manifest.update(found.manifest)
                data.update(found.data)
                if len(data) + len(manifest) >= CHUNKS_PER_CALL_MAX:
                    if not self._has(Role.MANIFEST, manifest) or not self._has(Role.DATA, data):
                        return False
                    data, manifest = set(), set()
        except Damaged:
            return False
        if not self._has(Role.MANIFEST, manifest) or not self._has(Role.DATA, data):
            return False
        self._sound |= seen
        return True

    def _has(self, role: Role, digests: Iterable[bytes]) -> bool:
        wanted = set(digests)
        return self._reader.sound(role, wanted) == wanted
