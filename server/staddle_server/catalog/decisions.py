"""Decisions: what protects a backup from being deleted, and records that are kept with what they say until they are durable."""

from collections.abc import Iterable

from sqlalchemy import ColumnElement, Connection, insert

from staddle_server import errors
from staddle_server.catalog import schema
from staddle_server.catalog.values import Backup, PendingRecord, Protection
from staddle_server.catalog.words import check_id, rfc3339

_b = schema.backups.c
_d = schema.datasets.c


def keep_pending(
    connection: Connection, tenant_row: int, now_ns: int, records: Iterable[PendingRecord]
) -> None:
    """Keeps records in the transaction that decides what they say. Whoever called writes them before it answers."""
    rows = []
    for record in records:
        check_id("record", record.id)
        rows.append({"id": record.id, "tenant": tenant_row, "body": record.body, "created_ns": now_ns})
    if rows:
        connection.execute(insert(schema.pending_records), rows)


def protection_of(backup: Backup, now_ns: int) -> Protection | None:
    """Why nobody can delete the backup now; None: nothing protects it. What has no end comes first."""
    if backup.hold is not None:
        since = rfc3339(backup.hold.since_ns)
        return Protection("hold", None, f"a legal hold since {since}: {backup.hold.reason}")
    if backup.dataset_hold is not None:
        since = rfc3339(backup.dataset_hold.since_ns)
        return Protection(
            "dataset_hold", None, f"a legal hold on the dataset since {since}: {backup.dataset_hold.reason}"
        )
    if backup.retain_until_ns > now_ns:
        until_ns = backup.retain_until_ns
        return Protection("retention", until_ns, f"retained until {rfc3339(until_ns)}")
    return None


def is_protected(now_ns: int) -> ColumnElement[bool]:
    """The same as a condition on a row of backups, joined with that of its dataset.

    Whoever deletes or purges by it locks the dataset's row and then the backup's, so that it sees every hold that was answered.
    """
    return _b.hold_ns.is_not(None) | _d.hold_ns.is_not(None) | (_b.retain_until_ns > now_ns)


def require_unprotected(backup: Backup, now_ns: int) -> None:
    """PROTECTED, with what protects it and until when."""
    protection = protection_of(backup, now_ns)
    if protection is None:
        return
    end = "its release alone ends it"
    until = {}
    if protection.until_ns is not None:
        end, until = "nobody can delete it before then", {"until": rfc3339(protection.until_ns)}
    error = errors.Precondition(
        "PROTECTED",
        f"Backup {backup.id.hex()} of dataset {backup.dataset!r} cannot be deleted: {protection.words} ({end})",
        dataset=backup.dataset,
        backup=backup.id.hex(),
        by=protection.by,
    )
    error.facts.update(until)
    raise error
