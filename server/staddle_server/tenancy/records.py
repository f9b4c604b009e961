"""Write the catalog's decisions to the store as records, before the caller gets an answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from staddle_server.base.errors import StaddleError
from staddle_server.catalog import Backup, Catalog, Expectation, PendingRecord
from staddle_server.catalog.validation import batches
from staddle_server.store.records import (
    CommittedRecord,
    ExpectedRecord,
    NotedRecord,
    Record,
    encode_record,
    new_record_id,
    record_name,
)
from staddle_server.tenancy.tenant import Tenant, Tenants

log = logging.getLogger(__name__)

STEP_RECORDS: Final = 64
"""How many records are written before the catalog marks them as durable."""


def as_pending(tenant: bytes, record: Record) -> PendingRecord:
    """Return a decision's record, to keep in the transaction that decides."""
    return PendingRecord(new_record_id(record), tenant, encode_record(record))


def as_noted(tenant: bytes, what: str) -> PendingRecord:
    """Return a record that a decision exists which only the catalog keeps.

    The decision comes first, with this record as pending, and the record second. After a kill between them
    the catalog is ahead of its store, and the next start writes the record. In the other order, a good
    catalog would look outdated.
    """
    return as_pending(tenant, NotedRecord(what))


def finish_record(tenant: Tenant, catalog: Catalog, record_id: bytes) -> int:
    """Write the record with this id, unless it is durable, after those that precede it in the chain.

    Durable on return; returns how many it wrote.

    Raises: Unavailable, Exhausted: The decisions stand all the same; a replay of the call, or a restart,
        writes the records.

    """
    return _finish(tenant, catalog, record_id)


def finish_missing(tenant: Tenant, catalog: Catalog) -> int:
    """Write every pending record of a tenant; return how many. Raises as `finish_record` does."""
    return _finish(tenant, catalog, None)


def finish_all(tenants: Tenants, catalog: Catalog) -> int:
    """Write every pending record of all tenants; return how many. A start does this before it serves.

    Damaged keys of a tenant, or a full disk, must not keep a server from other work, such as restores or the
    revocation of tokens: the record stays pending, the log names the reason, and the next start, command or
    replay retries.
    """
    written = 0
    for tenant in sorted({record.tenant for record in catalog.backups.pending_records()}):
        try:
            written += finish_missing(tenants.get(tenant), catalog)
        except StaddleError as e:
            log.error(  # noqa: TRY400 - no fault of ours
                "records of tenant %s could not be written, and the next start retries: %s",
                tenant.hex(),
                e.message,
            )
    return written


def _finish(tenant: Tenant, catalog: Catalog, upto: bytes | None) -> int:
    """Write pending records in chain order, so that a record is durable only with all before it."""
    with tenant.recording:
        pending = catalog.backups.pending_records(tenant.id)
        if upto is not None:
            ids = [record.id for record in pending]
            pending = pending[: ids.index(upto) + 1] if upto in ids else []
        if not pending:
            return 0
        # In steps, so that a disk that fills up loses only the last one.
        for some in batches(pending, STEP_RECORDS):
            for record in some:
                tenant.records.put(record.body, record.place, record.id)
            tenant.records.head.write(some[-1].place.sequence)
            if catalog.backups.mark_records_written(tenant.id, [record.id for record in some]) < len(some):
                _after_another_server(tenant, catalog, some)
        return len(pending)


def _after_another_server(tenant: Tenant, catalog: Catalog, records: Sequence[PendingRecord]) -> None:
    """Undo what came too late: another server has written these records too, maybe long ago.

    Since then their backups may have been purged, and the records removed. The collector notes that in the
    catalog before it removes any: so either this finds the note, or the collector finds the record.
    """
    removed = catalog.purge.removed_records(tenant.id, [record.id for record in records])
    for record in records:
        if record.id in removed:
            name = record_name(tenant.id, record.place.sequence, record.id)
            log.warning("the record %s was written after it had been removed: it is removed again", name)
            tenant.records.copies.remove(name)
    tenant.records.head.write(catalog.verification.recorded(tenant.id))


def committed_record(backup: Backup) -> CommittedRecord:
    """Return the record of a backup."""
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
        changes=backup.changes,
        tags=dict(backup.tags),
        host=backup.host,
        source_root=backup.source_root,
        principal=backup.principal,
        begun_by=backup.authors.begun_by,
        written_by=backup.authors.written_by,
        more_writers=backup.authors.more_writers,
        upload=backup.upload,
        request_id=backup.request_id,
        retain_until_ns=backup.retain_until_ns,
    )


def expected_record(dataset: str, expectation: Expectation | None, at_ns: int) -> ExpectedRecord:
    """Return the record that a dataset has this expectation from now on; None: none any more."""
    said = expectation or Expectation(0, 0, 0)
    return ExpectedRecord(
        dataset=dataset,
        every_s=said.every_s,
        grace_s=said.grace_s,
        since_ns=said.since_ns,
        mute_until_ns=said.mute_until_ns,
        at_ns=at_ns,
    )


def encode_committed(backup: Backup) -> bytes:
    """Return the backup's record encoded, as the catalog keeps it in the commit's transaction."""
    return encode_record(committed_record(backup))
