"""Decisions: what protects a backup from deletion, and records kept in the catalog until they are durable."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, Connection, insert, select, update

from staddle_server.base import errors
from staddle_server.base.types import Place, record_link
from staddle_server.catalog import schema
from staddle_server.catalog.database import Query, later, locking
from staddle_server.catalog.validation import check_id, rfc3339
from staddle_server.catalog.values import Backup, DeletionRefusal, PendingRecord

_t = schema.tenants.c
_b = schema.backups.c
_d = schema.datasets.c


class NewDamageError(Exception):
    """Damage was found since the caller checked that what it relies on is there: it checks again."""


def keep_pending(
    connection: Connection,
    tenant_row: int,
    records: Iterable[PendingRecord],
    *,
    purges: bytes | None = None,
) -> None:
    """Keep records in the transaction of the decision, and give each its place in the tenant's chain.

    The caller writes them to the store before it answers. `purges` names the backup that they end.
    """
    records = list(records)
    if records:
        chain = connection.execute(*locked_chain(tenant_row)).one()
        append_pending(connection, chain, records, purges=purges)


def locked_chain(tenant_row: int) -> Query:
    """Return the query for the tenant's row with the end of its chain, locked until the transaction ends."""
    columns = (_t.row, _t.id, _t.grace_s, _t.records_sequence, _t.records_link, _t.damage_epoch)
    return Query(locking(select(*columns).where(_t.row == tenant_row)))


def append_pending(
    connection: Connection,
    chain: Any,
    records: Iterable[PendingRecord],
    *,
    purges: bytes | None = None,
    damage_epoch: int | None = None,
) -> None:
    """Keep records as `keep_pending` does, after the end of the chain that `locked_chain` found.

    With `damage_epoch`, the decision holds only if no damage was marked since the tenant had it: otherwise
    NewDamageError. The tenant's row stays locked, so none is marked before this transaction ends.
    """
    if damage_epoch not in (None, chain.damage_epoch):
        raise NewDamageError
    sequence, link = chain.records_sequence, chain.records_link
    rows = []
    for record in records:
        check_id("record", record.id)
        sequence += 1
        place = Place(sequence, link)
        rows.append(
            {"id": record.id, "tenant": chain.row, "body": record.body, "purges": purges, **place._asdict()}
        )
        link = record_link(chain.id, record.id, place, record.body)
    later(connection, insert(schema.pending_records), rows)
    newest = {"records_sequence": sequence, "records_link": link}
    later(connection, update(schema.tenants).where(_t.row == chain.row).values(**newest))


def protection_of(backup: Backup, now_ns: int) -> DeletionRefusal | None:
    """Return why the backup cannot be deleted now; None if it can.

    A protection without an end comes first.
    """
    if backup.hold is not None:
        since = rfc3339(backup.hold.since_ns)
        return DeletionRefusal("hold", None, f"a legal hold since {since}: {backup.hold.reason}")
    if backup.dataset_hold is not None:
        since = rfc3339(backup.dataset_hold.since_ns)
        return DeletionRefusal(
            "dataset_hold", None, f"a legal hold on the dataset since {since}: {backup.dataset_hold.reason}"
        )
    if backup.retain_until_ns > now_ns:
        until_ns = backup.retain_until_ns
        return DeletionRefusal("retention", until_ns, f"retained until {rfc3339(until_ns)}")
    return None


def is_protected(now_ns: int) -> ColumnElement[bool]:
    """Return the same as a condition on a row of backups, joined with that of its dataset.

    To delete or purge by it, lock the dataset's row and then the backup's, so as to see every acknowledged
    hold.
    """
    return _b.hold_ns.is_not(None) | _d.hold_ns.is_not(None) | (_b.retain_until_ns > now_ns)


def require_unprotected(backup: Backup, now_ns: int) -> None:
    """Raise PROTECTED, with what protects the backup and until when."""
    protection = protection_of(backup, now_ns)
    if protection is None:
        return
    end = "only its release ends it"
    until = {}
    if protection.until_ns is not None:
        end, until = "it cannot be deleted earlier", {"until": rfc3339(protection.until_ns)}
    error = errors.Precondition(
        "PROTECTED",
        f"Backup {backup.id.hex()} of dataset {backup.dataset!r} cannot be deleted: {protection.words} ({end})",
        dataset=backup.dataset,
        backup=backup.id.hex(),
        by=protection.by,
    )
    error.facts.update(until)
    raise error
