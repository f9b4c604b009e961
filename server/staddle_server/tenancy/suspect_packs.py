"""Damage found by chance: nothing else in its pack is trusted until all of the pack was read."""

from __future__ import annotations

import logging

from staddle._base.figures import counted

from staddle_server.catalog import Catalog
from staddle_server.tenancy.pack_check import Inspector
from staddle_server.tenancy.tenant import Tenant

log = logging.getLogger(__name__)


def doubt(tenant: Tenant, catalog: Catalog, pack: bytes, segment_offset: int) -> None:
    """Mark a segment as damaged; read the rest of its pack, once, and mark all other damage in it.

    Until then, the whole pack counts as damaged. If it cannot be read now, that lasts until the scrubber or a
    check has read it. `segment_offset` may be any offset above 0: outside any segment, it stands for the
    space between segments.

    Raises:
        Unavailable: The catalog does not answer.

    """
    if not catalog.packs.doubt(tenant.id, pack, segment_offset):
        return
    with tenant.inspecting:
        found = catalog.verification.live_pack(tenant.id, pack)
        if found is None:
            return
        seen = Inspector(tenant, catalog).inspect(found)
    if seen.gone:
        return
    fields = {"tenant": tenant.name, "pack": pack.hex(), "segment": segment_offset}
    if seen.all_tried and not seen.unanswered:
        catalog.packs.believe(tenant.id, pack)
        segments = len(seen.marks() | {segment_offset})
        log.error("damage found: %s of a pack", counted(segments, "part"), extra={"fields": fields})
    else:
        log.error("damage found, and the rest of the pack cannot be read", extra={"fields": fields})
