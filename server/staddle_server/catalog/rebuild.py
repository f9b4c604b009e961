"""Fill a new catalog from the store, in bulk, while it has no other users."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from msgspec import structs
from sqlalchemy import Connection, insert, select

from staddle_server.base.types import Authors, ChangeCounts, Kind, PackSummary, Root, Scope
from staddle_server.catalog import schema
from staddle_server.catalog.chunks import index_pack
from staddle_server.catalog.engine import Catalog
from staddle_server.catalog.expectations import expectation_columns
from staddle_server.catalog.packs import raise_damage_epoch
from staddle_server.catalog.rows import dataset_row
from staddle_server.catalog.run_values import Expectation
from staddle_server.catalog.validation import ID_BYTES, pack_authors, pack_tags
from staddle_server.catalog.values import TenantRow

_NO_UPLOAD = b""
"""The uploader of a rebuilt pack: no object of the store names it."""
_LOST_PACK = bytes(ID_BYTES)
"""Never a pack's id: those are random."""


@dataclass(frozen=True, slots=True)
class RebuiltPack:
    """A pack of the store. `damage` has the offsets of unreadable parts; None stands for the whole pack."""

    summary: PackSummary
    damage: tuple[int | None, ...] = ()


@dataclass(frozen=True, slots=True)
class RebuiltDataset:
    """A dataset according to its records.

    `hold_ns` is None without a hold; `policy` is JSON, empty for none; `success_ns` is the newest commit, 0 for
    none known.
    """

    name: str
    created_ns: int
    host: str
    root: str
    last_number: int
    min_retention_s: int
    hold_ns: int | None
    hold_reason: str
    policy: str
    policy_ns: int
    success_ns: int
    expectation: Expectation | None


@dataclass(frozen=True, slots=True)
class RebuiltBackup:
    """A backup according to its records.

    `deleted_ns` and `hold_ns` are None if it is not deleted or not held.
    """

    id: bytes
    number: int
    kind: Kind
    scope: Scope
    base: bytes
    upload: bytes
    request_id: str
    principal: str
    authors: Authors
    begin_ns: int
    commit_ns: int
    deleted_ns: int | None
    root: Root
    stored_bytes: int
    changes: ChangeCounts
    tags: dict[str, str]
    host: str
    source_root: str
    retain_until_ns: int
    hold_ns: int | None
    hold_reason: str


class Rebuild:
    """Writes into a newly created catalog. Each method is one transaction."""

    def __init__(self, catalog: Catalog) -> None:
        self._database = catalog.database
        self._tenants = catalog.tenants

    def add_tenant(self, tenant: TenantRow, grace_s: int, decided_ns: int, newest: int, link: bytes) -> None:
        """Add a tenant, which is not collected until an operator allows it.

        Its newest decision was made at `decided_ns`; its newest record has the number `newest` and this link.
        """
        with self._database.write() as connection:
            connection.execute(
                insert(schema.tenants),
                {
                    "id": tenant.id,
                    "name": tenant.name,
                    "created_ns": tenant.created_ns,
                    "keys_version": tenant.keys_version,
                    "wrapped_keys": tenant.wrapped_keys,
                    "records_sequence": newest,
                    "records_link": link,
                    "records_rebuilt": newest,
                    "grace_s": grace_s,
                    "gc_waits": True,
                    "decided_ns": decided_ns,
                },
            )

    def add_packs(self, tenant: bytes, packs: Iterable[RebuiltPack], now_ns: int) -> None:
        """Add live packs with their chunks and their damage. No upload claims them."""
        with self._database.write() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            for pack in packs:
                _add_pack(connection, tenant_row, pack, now_ns)

    def add_dataset(self, tenant: bytes, dataset: RebuiltDataset) -> None:
        """Add a dataset, without backups yet."""
        with self._database.write() as connection:
            columns = {
                "tenant": self._tenants.row(connection, tenant),
                "name": dataset.name,
                "created_ns": dataset.created_ns,
                "host": dataset.host,
                "root": dataset.root,
                "last_number": dataset.last_number,
                "min_retention_s": dataset.min_retention_s,
                "hold_ns": dataset.hold_ns,
                "hold_reason": dataset.hold_reason,
                "policy": dataset.policy,
                "policy_ns": dataset.policy_ns,
                "success_ns": dataset.success_ns,
                **expectation_columns(dataset.expectation),
            }
            connection.execute(insert(schema.datasets), columns)

    def add_backups(self, tenant: bytes, dataset: str, backups: Iterable[RebuiltBackup]) -> None:
        """Add backups of a known dataset. Their records are durable."""
        with self._database.write() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            row = dataset_row(connection, tenant_row, dataset).row
            columns = [_backup_columns(backup, tenant_row, row) for backup in backups]
            connection.execute(insert(schema.backups), columns)

    def add_lost_pack(self, tenant: bytes, now_ns: int) -> None:
        """Add a damaged pack without object or chunks, in place of lost ones of which nothing else is known.

        It makes the tenant count as damaged, so that the server reports to uploads which entries of their
        base to send again.
        """
        self.add_packs(tenant, [RebuiltPack(PackSummary(_LOST_PACK, 0, []), (None,))], now_ns)


def _add_pack(connection: Connection, tenant_row: int, pack: RebuiltPack, now_ns: int) -> None:
    summary = pack.summary
    this = {"tenant": tenant_row, "id": summary.pack}
    connection.execute(
        insert(schema.packs),
        {
            **this,
            "state": schema.PACK_LIVE,
            "upload": _NO_UPLOAD,
            "epoch": 0,
            "size_bytes": summary.size_bytes,
            "chunk_count": len(summary.chunks),
            "damaged": bool(pack.damage),
            "created_ns": now_ns,
        },
    )
    pack_row = connection.execute(select(schema.packs.c.row).filter_by(**this)).scalar_one()
    index_pack(connection, pack_row, summary)
    marks = {schema.WHOLE_PACK if offset is None else offset for offset in pack.damage}
    if marks:
        rows = [{"pack": pack_row, "segment_offset": offset} for offset in sorted(marks)]
        connection.execute(insert(schema.pack_damage), rows)
        raise_damage_epoch(connection, tenant_row)


def _backup_columns(backup: RebuiltBackup, tenant_row: int, dataset_row: int) -> dict[str, Any]:
    return {
        "id": backup.id,
        "tenant": tenant_row,
        "dataset": dataset_row,
        "number": backup.number,
        "kind": backup.kind.value,
        "scope": backup.scope.value,
        "base": backup.base,
        "upload": backup.upload,
        "request_id": backup.request_id,
        "principal": backup.principal,
        "authors": pack_authors(backup.authors),
        "begin_ns": backup.begin_ns,
        "commit_ns": backup.commit_ns,
        "deleted_ns": backup.deleted_ns,
        "root_level": backup.root.level,
        "root_digest": backup.root.digest,
        "entry_count": backup.root.entries,
        "data_bytes": backup.root.data_bytes,
        "stored_bytes": backup.stored_bytes,
        **structs.asdict(backup.changes),
        "tags": pack_tags(backup.tags),
        "host": backup.host,
        "source_root": backup.source_root,
        "retain_until_ns": backup.retain_until_ns,
        "hold_ns": backup.hold_ns,
        "hold_reason": backup.hold_reason,
    }
