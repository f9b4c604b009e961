"""Final removal: backups past their grace period, condemned packs, left-overs, orphans, records of purged
backups.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from staddle_server.base.clock import NS
from staddle_server.catalog.validation import batches
from staddle_server.store.blobs import BlobMissing
from staddle_server.store.pack import pack_name, packs_prefix, parse_pack_name
from staddle_server.store.parity import remove_parity
from staddle_server.store.records import SPANS_MAX, ForgottenRecord, PurgedRecord, record_id_of, sequence_of
from staddle_server.tenancy.records import as_pending, finish_missing
from staddle_server.upkeep.gc.preflight import Decided, Objects
from staddle_server.upkeep.gc.tenant_run import Turn
from staddle_server.upkeep.record_chain import merge_spans


def purge(turn: Turn) -> None:
    """Purge the backups whose grace period is over; their records are durable on return."""
    removal, tenant = turn.catalog.purge, turn.tenant.id
    for found in removal.purgeable(tenant, turn.clock.now_ns(), turn.graces.purge_s):
        turn.tick()
        now_ns = turn.clock.now_ns()
        record = as_pending(tenant, PurgedRecord(backup=found.backup, at_ns=now_ns))
        purged = removal.purge(tenant, turn.fence, found.backup, now_ns, record, grace_s=turn.graces.purge_s)
        turn.report.backups_purged += purged
    finish_missing(turn.tenant, turn.catalog)


def sweep_left_over(turn: Turn) -> None:
    """Remove packs that dead uploads and dead collectors began and can never publish: the object, then its
    row.
    """
    while packs := turn.catalog.packs.writing_left_over(turn.tenant.id):
        for left in packs:
            turn.tick()
            _delete(turn, left.pack)
            turn.catalog.packs.drop_left_over(turn.tenant.id, left.pack)
            turn.report.packs_left_over += 1


def reap(turn: Turn) -> None:
    """Remove the objects of packs past their reap grace, each before its row: after a crash the row lets it
    continue.
    """
    removal = turn.catalog.purge
    while packs := removal.condemned(turn.tenant.id, turn.reaped_before_ns(), turn.clock.now_ns()):
        for pack in packs:
            turn.tick()
            turn.show("removing packs", turn.report.packs_reaped, 0)
            _delete(turn, pack.pack)
            removal.drop_condemned(turn.tenant.id, turn.fence, pack.pack)
            turn.report.packs_reaped += 1
            turn.report.bytes_freed += pack.size_bytes
    tell_waiting(turn)


def tell_waiting(turn: Turn) -> None:
    """Report what becomes free later, and when."""
    report = turn.report
    hidden, report.purge_from_ns = turn.catalog.purge.hidden(
        turn.tenant.id, turn.clock.now_ns(), turn.graces.purge_s
    )
    report.backups_hidden = hidden
    waiting = turn.catalog.purge.waiting(turn.tenant.id, turn.graces.reap_s * NS)
    turn.report.packs_waiting, turn.report.bytes_waiting = waiting.packs, waiting.size_bytes
    turn.report.free_from_ns, turn.report.free_by_ns = waiting.first_ns, waiting.last_ns


def sweep_orphans(turn: Turn, found: Objects, before_ns: int) -> None:
    """Remove objects without a row that were seen so at `before_ns` or earlier; record the others.

    While a live pack is missing, all of them stay: one may hold its content.
    """
    removal = turn.catalog.purge
    noted = removal.orphans(packs_prefix(turn.tenant.id))
    removal.drop_orphans(turn.fence, [name for name in noted if name not in found.orphans])
    removal.note_orphans(
        turn.fence,
        {name: size for name, size in found.orphans.items() if name not in noted},
        turn.clock.now_ns(),
    )
    old = [name for name in found.orphans if name in noted and noted[name].seen_ns <= before_ns]
    for name in () if found.absent else old:
        turn.tick()
        _delete(turn, parse_pack_name(name)[1])
        removal.drop_orphans(turn.fence, [name])
        turn.report.bytes_freed += found.orphans.pop(name)
    turn.report.packs_absent = found.absent
    turn.report.orphans, turn.report.bytes_orphaned = len(found.orphans), sum(found.orphans.values())


def forget(turn: Turn, decided: Decided) -> None:
    """Remove the records of backups purged at least a reap grace ago, and their rows; and superseded `noted`
    records.

    That these records may be absent is durable before the first one is removed. A backup's `purged` record
    goes last: a `committed` one without it would bring the backup back at a rebuild, without its data, and
    would make this catalog look older than the store.
    """
    before_ns = turn.reaped_before_ns()
    rows = [gone.backup for gone in decided.gone]
    # Purged before this catalog existed: only the records are left of these.
    rest = [
        backup
        for backup, (_, at_ns) in decided.purged.items()
        if backup not in decided.known and at_ns <= before_ns
    ]
    names = {backup: _records_of(backup, decided) for backup in [*rows, *rest]}
    of_backups = [name for of_backup in names.values() for name in of_backup]
    folded = _say_forgotten(turn, decided, [*of_backups, *decided.noted])
    if of_backups:
        ids = [record_id_of(name) for name in of_backups]
        turn.catalog.purge.remove_records(turn.tenant.id, turn.fence, ids, turn.clock.now_ns())
    for backup in rows:
        _remove_records(turn, names[backup])
        turn.catalog.purge.forget(turn.tenant.id, turn.fence, backup)
        turn.report.backups_forgotten += 1
    for backup in rest:
        _remove_records(turn, names[backup])
        turn.report.backups_forgotten += 1
    # In the order of their numbers, so that `purged` ones go last here, too.
    _remove_records(turn, [*folded, *decided.noted, *decided.late])


def _records_of(backup: bytes, decided: Decided) -> list[str]:
    purged = [decided.purged[backup][0]] if backup in decided.purged else []
    return [*decided.others.get(backup, ()), *purged]


def _say_forgotten(turn: Turn, decided: Decided, names: list[str]) -> list[str]:
    """Record that the records of these names may be absent; return the names of earlier such records that
    this one replaces.
    """
    numbers = [sequence for name in names if (sequence := sequence_of(name)) is not None]
    if not numbers:
        return []
    new = merge_spans((number, number) for number in numbers)
    earlier = [(sequence_of(name) or 0,) * 2 for name in decided.forgotten]
    spans = merge_spans([*new, *earlier, *(span for spans in decided.forgotten.values() for span in spans)])
    folded = list(decided.forgotten)
    if len(spans) > SPANS_MAX:
        spans, folded = new, []
    tenants, tenant = turn.catalog.tenants, turn.tenant.id
    with tenants.deciding(tenant, turn.clock.now_ns()) as at_ns:
        records = [
            as_pending(tenant, ForgottenRecord([(first, last) for first, last in some], at_ns))
            for some in batches(spans, SPANS_MAX)
        ]
        tenants.keep_records(tenant, records)
    finish_missing(turn.tenant, turn.catalog)
    return folded


def _remove_records(turn: Turn, names: Iterable[str]) -> None:
    for name in names:
        turn.tick()  # there may be thousands, each confirmed by the disk
        turn.tenant.records.copies.remove(name)


def _delete(turn: Turn, pack: bytes) -> None:
    """Remove a pack's object and its parity, if they exist."""
    tenant = turn.tenant
    remove_parity(tenant.blobs, tenant.id, pack)
    with suppress(BlobMissing):
        tenant.blobs.delete(pack_name(tenant.id, pack))
