"""The catalog's tables as the code uses them; `migrations/` creates the same ones (a test compares them).

All times are nanoseconds since 1970, all sizes bytes, all ids 16 random bytes. `row` columns are small
internal numbers that keep the big tables small; they never leave this package. Types are those that SQLite
and PostgreSQL share; the few differences are variants here and in the database modules.
"""

from typing import Final

from staddle_server.catalog.schema.backups import (
    IS_KEPT,
    IS_OPEN,
    IS_SHOWN,
    backups,
    datasets,
    pending_records,
    tenants,
    tokens,
    upload_missing,
    upload_requests,
    uploads,
)
from staddle_server.catalog.schema.columns import DIGEST, ID, NAME, ROW, metadata
from staddle_server.catalog.schema.events import (
    DELIVERY_DONE,
    DELIVERY_GIVEN_UP,
    DELIVERY_PENDING,
    IS_HAPPENING,
    IS_PENDING,
    deliveries,
    events,
    space_samples,
    targets,
)
from staddle_server.catalog.schema.packs import (
    FOOTER,
    IS_CONDEMNED,
    IS_WRITING,
    LIVE_WITHOUT_PARITY,
    MARK_DONE,
    MARK_FAILED,
    MARK_WALKED,
    MARK_WALKING,
    PACK_CONDEMNED,
    PACK_LIVE,
    PACK_WRITING,
    WHOLE_PACK,
    chunks,
    claims,
    collections,
    mark_packs,
    mark_roots,
    marks,
    orphans,
    pack_damage,
    packs,
    removed_records,
)
from staddle_server.catalog.schema.replicas import replica_gone, replica_packs, replica_tenants, replicas
from staddle_server.catalog.schema.runs import IS_REPORTED, runs
from staddle_server.catalog.schema.servers import clock, generation, servers, settings, tasks

__all__ = [
    "DELIVERY_DONE",
    "DELIVERY_GIVEN_UP",
    "DELIVERY_PENDING",
    "DIGEST",
    "FOOTER",
    "ID",
    "IS_CONDEMNED",
    "IS_HAPPENING",
    "IS_KEPT",
    "IS_OPEN",
    "IS_PENDING",
    "IS_REPORTED",
    "IS_SHOWN",
    "IS_WRITING",
    "LIVE_WITHOUT_PARITY",
    "MARK_DONE",
    "MARK_FAILED",
    "MARK_WALKED",
    "MARK_WALKING",
    "NAME",
    "PACK_CONDEMNED",
    "PACK_LIVE",
    "PACK_WRITING",
    "REVISION",
    "ROW",
    "WHOLE_PACK",
    "backups",
    "chunks",
    "claims",
    "clock",
    "collections",
    "datasets",
    "deliveries",
    "events",
    "generation",
    "mark_packs",
    "mark_roots",
    "marks",
    "metadata",
    "orphans",
    "pack_damage",
    "packs",
    "pending_records",
    "removed_records",
    "replica_gone",
    "replica_packs",
    "replica_tenants",
    "replicas",
    "runs",
    "servers",
    "settings",
    "space_samples",
    "targets",
    "tasks",
    "tenants",
    "tokens",
    "upload_missing",
    "upload_requests",
    "uploads",
]

REVISION: Final = "r0003"
"""The newest migration, which every catalog must have."""
