"""Records: what was decided in the catalog, written to the store before anybody is told."""

from __future__ import annotations

import logging
import os

from msgspec.structs import replace

from staddle_server.catalog import Backup, Catalog, MissingRecords, PendingRecord
from staddle_server.catalog import Tenant as TenantRow
from staddle_server.errors import Fault, StaddleError
from staddle_server.session.tenant import Tenant, Tenants
from staddle_server.store.blobs import BlobExists
from staddle_server.store.records import (
    ChangeCounts,
    CommittedRecord,
    Decision,
    TenantRecord,
    decode_record,
    encode_record,
    record_name,
)

log = logging.getLogger(__name__)


def as_pending(tenant: bytes, record: Decision) -> PendingRecord:
    """A decision's record, to be kept in the transaction that decides."""
    return PendingRecord(os.urandom(16), tenant, encode_record(record))


def finish_tenant(tenant: Tenant, catalog: Catalog, row: TenantRow) -> None:
    """Writes the record of a new tenant. Durable on return."""
    tenant.records.put(TenantRecord(name=row.name, created_ns=row.created_ns), row.created_ns, row.id)
    catalog.tenants.mark_record_written(row.id)


def finish_backup(tenant: Tenant, catalog: Catalog, backup: Backup) -> None:
    """Writes a committed backup's record, unless that was done before. Durable on return.

    Raises:
        Unavailable, Exhausted: the backup is committed all the same; a replay of the commit, or a restart, finishes it.

    """
    if not backup.record_written:
        _put_committed(tenant, backup)
        catalog.backups.mark_record_written(tenant.id, backup.id)


def finish_pending(tenant: Tenant, catalog: Catalog, pending: PendingRecord) -> None:
    """Writes a record that the catalog has decided on. Durable on return."""
    record = decode_record(pending.body, f"pending {pending.id.hex()}")
    if isinstance(record, TenantRecord | CommittedRecord):
        raise Fault("INTERNAL", f"the pending record {pending.id.hex()} is of a kind that is never pending")
    tenant.records.put(record, record.at_ns, pending.id)
    catalog.backups.mark_pending_written(tenant.id, pending.id)


def finish_all(tenants: Tenants, catalog: Catalog) -> int:
    """What start-up does before it serves: writes every record that a crash has left out; gives how many.

    A tenant whose keys are damaged, or a full disk, does not keep the server from its other work, above all from
    restoring: what cannot be written stays missing, is said in the log, and is tried again at the next start or replay.
    """
    missing = catalog.backups.records_missing()
    concerned = {row.id for row in missing.tenants}
    concerned.update(backup.tenant for backup in missing.backups)
    concerned.update(record.tenant for record in missing.pending)
    written = 0
    for tenant in sorted(concerned):
        try:
            written += _finish(tenants.get(tenant), catalog, missing)
        except StaddleError as e:
            log.error("records of tenant %s could not be written: %s", tenant.hex(), e.message)  # noqa: TRY400 - no fault of ours
    return written


def finish_missing(tenant: Tenant, catalog: Catalog) -> int:
    """Writes every record of a tenant that was decided on and is not durable; gives how many."""
    return _finish(tenant, catalog, catalog.backups.records_missing())


def _finish(tenant: Tenant, catalog: Catalog, missing: MissingRecords) -> int:
    """Records of one backup are written in the order in which they were decided: committed before deleted."""
    rows = [row for row in missing.tenants if row.id == tenant.id]
    backups = [backup for backup in missing.backups if backup.tenant == tenant.id]
    pending = [record for record in missing.pending if record.tenant == tenant.id]
    for row in rows:
        finish_tenant(tenant, catalog, row)
    for backup in backups:
        finish_backup(tenant, catalog, backup)
    for record in pending:
        finish_pending(tenant, catalog, record)
    return len(rows) + len(backups) + len(pending)


def _put_committed(tenant: Tenant, backup: Backup) -> None:
    record = committed_record(backup)
    try:
        tenant.records.put(record, backup.commit_ns, backup.id)
    except BlobExists:
        # An earlier try wrote it, and did not hear so. If its retention was raised meanwhile, that has a record of its own.
        written = tenant.records.read(record_name(tenant.id, backup.commit_ns, backup.id))
        if not isinstance(written, CommittedRecord) or record != replace(
            written, retain_until_ns=record.retain_until_ns
        ):
            raise


def committed_record(backup: Backup) -> CommittedRecord:
    """What the store is told of a backup."""
    return CommittedRecord(
        backup=backup.id,
        dataset=backup.dataset,
        number=backup.number,
        kind=backup.kind,
        scope=backup.scope,
        base=backup.base,
        begin_ns=backup.begin_ns,
        commit_ns=backup.commit_ns,
        root=backup.root,
        stored_bytes=backup.stored_bytes,
        changes=ChangeCounts(*backup.changes),
        tags=dict(backup.tags),
        host=backup.host,
        source_root=backup.source_root,
        principal=backup.principal,
        upload=backup.upload,
        request_id=backup.request_id,
        retain_until_ns=backup.retain_until_ns,
    )
