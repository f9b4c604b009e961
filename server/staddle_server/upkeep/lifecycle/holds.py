"""Legal holds and retention times: decided in the catalog, recorded in the store, then answered."""

from __future__ import annotations

from staddle_server.base.clock import NS, Clock
from staddle_server.base.errors import BadRequest
from staddle_server.base.limits import RETENTION_S_MAX
from staddle_server.catalog import Backup, Catalog, Hold, Principal
from staddle_server.catalog.validation import rfc3339
from staddle_server.store.records import HeldRecord, ReleasedRecord, RetainedRecord
from staddle_server.tenancy.records import as_pending, finish_missing
from staddle_server.tenancy.tenant import Tenants


class Holds:
    """What protects backups from deletion by anyone, administrators included.

    All methods raise NotFound and AMBIGUOUS_BACKUP for what they cannot find, and Exhausted or Unavailable if
    it is decided but no record of that is durable: a replay writes it.
    """

    def __init__(self, catalog: Catalog, tenants: Tenants, clock: Clock) -> None:
        self._catalog = catalog
        self._tenants = tenants
        self._clock = clock

    def hold_dataset(self, principal: Principal, dataset: str, reason: str) -> Hold:
        """Hold a dataset with all its backups, also later ones, until it is released."""
        self._tenants.require_recording(principal.tenant)
        now_ns = self._clock.now_ns()
        with self._catalog.tenants.deciding(principal.tenant, now_ns) as at_ns:
            record = HeldRecord(backup=b"", dataset=dataset, reason=reason, at_ns=at_ns)
            hold = self._catalog.retention.hold_dataset(
                principal.tenant, dataset, reason, now_ns, as_pending(principal.tenant, record)
            )
        self._finish(principal)
        return hold

    def hold_backup(self, principal: Principal, dataset: str, prefix: str, reason: str) -> Backup:
        """Hold a backup until it is released; a deleted one is not purged meanwhile."""
        found, now_ns = self._find(principal, dataset, prefix), self._clock.now_ns()
        with self._catalog.tenants.deciding(principal.tenant, now_ns) as at_ns:
            record = HeldRecord(backup=found.id, dataset=dataset, reason=reason, at_ns=at_ns)
            backup = self._catalog.retention.hold_backup(
                principal.tenant, found.id, reason, now_ns, as_pending(principal.tenant, record)
            )
        self._finish(principal)
        return backup

    def release_dataset(self, principal: Principal, dataset: str) -> None:
        """Release the dataset's hold. Its backups' own holds stay."""
        self._tenants.require_recording(principal.tenant)
        now_ns = self._clock.now_ns()
        with self._catalog.tenants.deciding(principal.tenant, now_ns) as at_ns:
            record = ReleasedRecord(backup=b"", dataset=dataset, at_ns=at_ns)
            self._catalog.retention.release_dataset(
                principal.tenant, dataset, as_pending(principal.tenant, record)
            )
        self._finish(principal)

    def release_backup(self, principal: Principal, dataset: str, prefix: str) -> Backup:
        """Release a backup's own hold. That of its dataset stays."""
        found, now_ns = self._find(principal, dataset, prefix), self._clock.now_ns()
        with self._catalog.tenants.deciding(principal.tenant, now_ns) as at_ns:
            record = ReleasedRecord(backup=found.id, dataset=dataset, at_ns=at_ns)
            backup = self._catalog.retention.release_backup(
                principal.tenant, found.id, as_pending(principal.tenant, record)
            )
        self._finish(principal)
        return backup

    def retain(self, principal: Principal, dataset: str, prefix: str, until_ns: int) -> Backup:
        """Protect a backup from deletion before a time; an earlier time than it has changes nothing.

        BAD_FIELD for a time that has passed (unless the backup has it already: a replay), or over a hundred
        years away.
        """
        found, now_ns = self._find(principal, dataset, prefix), self._clock.now_ns()
        if not 0 <= until_ns <= now_ns + RETENTION_S_MAX * NS:
            raise BadRequest(
                "BAD_FIELD", "until_time: the limit is a hundred years from now", field="until_time"
            )
        if until_ns <= now_ns and until_ns != found.retain_until_ns:
            raise BadRequest(
                "BAD_FIELD",
                f"until_time: {rfc3339(until_ns)} has passed (the server's clock says {rfc3339(now_ns)}), so it would retain nothing",
                field="until_time",
            )
        with self._catalog.tenants.deciding(principal.tenant, now_ns) as at_ns:
            record = RetainedRecord(backup=found.id, until_ns=until_ns, at_ns=at_ns)
            backup = self._catalog.retention.retain(
                principal.tenant, found.id, until_ns, as_pending(principal.tenant, record)
            )
        self._finish(principal)
        return backup

    def _find(self, principal: Principal, dataset: str, prefix: str) -> Backup:
        """Return the backup of a decision."""
        self._tenants.require_recording(principal.tenant)
        return self._catalog.backups.resolve(principal.tenant, dataset, backup=prefix, include_deleted=True)

    def _finish(self, principal: Principal) -> None:
        finish_missing(self._tenants.get(principal.tenant), self._catalog)
