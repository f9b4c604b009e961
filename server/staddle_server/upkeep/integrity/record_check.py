"""Compare the records in the store with the catalog: which are missing, and which the catalog
does not know.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import NamedTuple

from staddle_server.base.errors import Damaged
from staddle_server.catalog import Backup, BackupFacts, Catalog, DatasetFacts, Facts, TenantRow
from staddle_server.store.blobs import BlobMissing
from staddle_server.store.records import (
    DeletedRecord,
    ForgottenRecord,
    HeldRecord,
    PolicyRecord,
    PurgedRecord,
    Record,
    ReleasedRecord,
    RetainedRecord,
    TenantRecord,
    TenantSettingsRecord,
    UndeletedRecord,
    is_forgotten_name,
)
from staddle_server.tenancy.records import committed_record, expected_record
from staddle_server.tenancy.tenant import Tenant
from staddle_server.upkeep.record_chain import Chain, Span
from staddle_server.upkeep.record_history import History


class Wanted(NamedTuple):
    """A record that the catalog implies and the store lacks: its content in words."""

    what: str
    record: Record


@dataclass
class Said:
    """The content of a tenant's records, and those that do not open, with the reason.

    `missing`: numbers of records that the catalog decided on, and that are gone without a record that permits
    it. `rebuilt`: records up to this number come from an earlier catalog.
    """

    history: History = field(default_factory=History)
    chain: Chain = field(default_factory=Chain)
    count: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    missing: list[Span] = field(default_factory=list)
    rebuilt: int = 0


def read_records(tenant: Tenant) -> Said:
    """Read all records of a tenant. Raises Unavailable."""
    said = Said()
    for name in tenant.records.list():
        try:
            stored = tenant.records.stored(name)
        except BlobMissing:
            continue  # it existed a moment ago: the chain says whether it may be gone
        except Damaged as e:
            said.damaged[name] = e.message
            said.chain.take(name, None)
            continue
        said.history.add(stored.record, name)
        said.chain.take(name, stored)
        said.count += 1
    return said


def lost_records(tenant: Tenant, catalog: Catalog) -> list[Span]:
    """Return the numbers of records that were durable, and are gone.

    Lists the records once, and opens only `forgotten` ones. Raises Unavailable.
    """
    recorded = catalog.verification.recorded(tenant.id)
    chain = Chain()
    forgotten: list[str] = []
    for name in tenant.records.list():
        chain.take(name, None)
        if is_forgotten_name(name):
            forgotten.append(name)
    for name in forgotten if chain.missing(recorded) else ():
        with contextlib.suppress(BlobMissing, Damaged):
            record = tenant.records.read(name)
            if isinstance(record, ForgottenRecord):
                chain.forget(record.spans)
    return chain.missing(recorded)


def missing_records(
    tenant: Tenant, catalog: Catalog, row: TenantRow, now_ns: int
) -> tuple[Said, list[Wanted]]:
    """Return the content of the records, and which ones are missing.

    Decisions in progress do not count as missing: only what two consecutive reads find missing does.
    """
    said, wanted = _look(tenant, catalog, row, now_ns)
    if not wanted and not said.missing:
        return said, []
    before = {each.what for each in wanted}
    said, wanted = _look(tenant, catalog, row, now_ns)
    return said, [each for each in wanted if each.what in before]


def _look(tenant: Tenant, catalog: Catalog, row: TenantRow, now_ns: int) -> tuple[Said, list[Wanted]]:
    facts = catalog.verification.facts(tenant.id)
    said = read_records(tenant)
    said.missing, said.rebuilt = said.chain.missing(facts.recorded), facts.rebuilt
    wanted: list[Wanted] = []
    if tenant.id not in facts.pending and not said.history.tenant_made:
        record = TenantRecord(name=row.name, created_ns=row.created_ns)
        wanted.append(Wanted(f"the tenant {row.name} was created", record))
    # A pending decision may be about anything; the record of a backup or of the tenant is about that alone.
    if not facts.pending - facts.backups.keys() - {tenant.id}:
        # A new statement is later than all earlier ones, or it would not count.
        wanted += _wanted(catalog, tenant.id, facts, said.history, max(now_ns, said.history.last_ns + 1))
    return said, wanted


def _wanted(catalog: Catalog, tenant: bytes, facts: Facts, said: History, at_ns: int) -> list[Wanted]:
    wanted: list[Wanted] = []
    if facts.grace_s != said.grace_s:
        record = TenantSettingsRecord(grace_s=facts.grace_s, at_ns=at_ns)
        wanted.append(Wanted(f"deleted backups stay for {facts.grace_s} s", record))
    for dataset in facts.datasets.values():
        wanted += _of_dataset(dataset, said, at_ns)
    for backup in facts.backups.values():
        if backup.id not in said.committed and backup.id not in facts.pending:
            wanted += _committed(catalog.backups.get(tenant, backup.id))
        wanted += _of_backup(backup, said, at_ns)
    return wanted


def _committed(backup: Backup) -> list[Wanted]:
    what = f"backup {backup.id.hex()} ({backup.dataset} #{backup.number}) was committed"
    return [Wanted(what, committed_record(backup))]


def _of_dataset(dataset: DatasetFacts, said: History, at_ns: int) -> list[Wanted]:
    wanted: list[Wanted] = []
    if (dataset.policy, dataset.min_retention_s) != said.retention(dataset.name):
        policy = PolicyRecord(
            dataset=dataset.name, policy=dataset.policy, min_retention_s=dataset.min_retention_s, at_ns=at_ns
        )
        wanted.append(Wanted(f"the retention of dataset {dataset.name}", policy))
    if dataset.expectation != said.expectation(dataset.name):
        expected = expected_record(dataset.name, dataset.expectation, at_ns)
        wanted.append(Wanted(f"the expectation of dataset {dataset.name}", expected))
    wanted += _hold(b"", dataset.name, dataset.hold, said, at_ns)
    return wanted


def _of_backup(backup: BackupFacts, said: History, at_ns: int) -> list[Wanted]:
    name = f"backup {backup.id.hex()} of {backup.dataset}"
    wanted: list[Wanted] = []
    if backup.purged_ns is not None:
        if not said.is_purged(backup.id):
            purged = PurgedRecord(backup=backup.id, at_ns=backup.purged_ns)
            wanted.append(Wanted(f"{name} was purged", purged))
        return wanted
    if backup.deleted_ns is not None and not said.is_deleted(backup.id):
        deleted = DeletedRecord(backup=backup.id, at_ns=at_ns)
        wanted.append(Wanted(f"{name} was deleted", deleted))
    if backup.deleted_ns is None and said.is_deleted(backup.id):
        undeleted = UndeletedRecord(backup=backup.id, at_ns=at_ns)
        wanted.append(Wanted(f"{name} was undeleted", undeleted))
    if backup.retain_until_ns > said.retain_until_ns(backup.id):
        retained = RetainedRecord(backup=backup.id, until_ns=backup.retain_until_ns, at_ns=at_ns)
        wanted.append(Wanted(f"{name} is retained", retained))
    wanted += _hold(backup.id, backup.dataset, backup.hold, said, at_ns)
    return wanted


def _hold(backup: bytes, dataset: str, reason: str | None, said: History, at_ns: int) -> list[Wanted]:
    there = said.hold(backup, dataset)
    what = f"backup {backup.hex()}" if backup else f"dataset {dataset}"
    if reason is not None and reason != there:
        held = HeldRecord(backup=backup, dataset=dataset, reason=reason, at_ns=at_ns)
        return [Wanted(f"{what} is held", held)]
    if reason is None and there is not None:
        return [Wanted(f"{what} was released", ReleasedRecord(backup=backup, dataset=dataset, at_ns=at_ns))]
    return []


def unknown_backups(said: Said, facts: Facts) -> list[bytes]:
    """Return backups in the records, not purged, that the catalog lacks: then the catalog is older than the
    store.
    """
    history = said.history
    return [
        backup
        for backup in history.committed
        if backup not in facts.backups and not history.is_purged(backup)
    ]
