"""Deleting and undeleting backups: decided in the catalog, recorded in the store, then answered."""

from __future__ import annotations

from staddle_server.base.clock import Clock
from staddle_server.catalog import Backup, Catalog, Principal
from staddle_server.store.records import DeletedRecord, UndeletedRecord
from staddle_server.tenancy.clock_guard import ClockGuard
from staddle_server.tenancy.records import as_pending, finish_missing
from staddle_server.tenancy.tenant import Tenants


class Deletion:
    """Soft deletion: a deleted backup is never listed, picked or used as a base, and loses no data."""

    def __init__(self, catalog: Catalog, tenants: Tenants, clock: Clock) -> None:
        self._catalog = catalog
        self._tenants = tenants
        self._clock = clock
        self._guard = ClockGuard(catalog, clock)

    def delete(self, principal: Principal, dataset: str, prefix: str) -> Backup:
        """Delete a backup. Deleting a deleted one changes nothing.

        Raises:
            NotFound: DATASET_NOT_FOUND, BACKUP_NOT_FOUND.
            BadRequest: AMBIGUOUS_BACKUP.
            Precondition: PROTECTED, for every role, until its hold is released or its retention ends.
            Exhausted, Unavailable: It is deleted, but no record of that is durable; a replay writes it.

        """
        found = self._find(principal, dataset, prefix)
        standing = self._guard.look()
        now_ns = standing.latest_ns
        with self._catalog.tenants.deciding(principal.tenant, now_ns) as at_ns:
            record = as_pending(principal.tenant, DeletedRecord(backup=found.id, at_ns=at_ns))
            backup, _ = self._catalog.backups.delete(
                principal.tenant, found.id, now_ns, record, protected_ns=standing.earliest_ns
            )
        return self._recorded(backup)

    def undelete(self, principal: Principal, dataset: str, prefix: str) -> Backup:
        """Undelete a backup, until it is purged; one that is not deleted stays unchanged.

        Raises as `delete` does.
        """
        found = self._find(principal, dataset, prefix)
        now_ns = self._clock.now_ns()
        # A catalog restored from a copy may not know the last deletion, but this backup does.
        latest_ns = max(now_ns, (found.deleted_ns or 0) + 1)
        with self._catalog.tenants.deciding(principal.tenant, latest_ns) as at_ns:
            record = as_pending(principal.tenant, UndeletedRecord(backup=found.id, at_ns=at_ns))
            backup, _ = self._catalog.backups.undelete(principal.tenant, found.id, now_ns, record)
        return self._recorded(backup)

    def _recorded(self, backup: Backup) -> Backup:
        """Return the backup, once all decisions are recorded, including those that an earlier call could not
        write.
        """
        finish_missing(self._tenants.get(backup.tenant), self._catalog)
        return backup

    def _find(self, principal: Principal, dataset: str, prefix: str) -> Backup:
        """Return the backup, if decisions about it can be recorded."""
        self._tenants.require_recording(principal.tenant)
        return self._catalog.backups.resolve(principal.tenant, dataset, backup=prefix, include_deleted=True)
