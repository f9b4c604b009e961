"""What keeps backups: holds, retention times and policies; and deleting what a plan says, all or nothing."""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, or_, select, update

from staddle_server.base import errors
from staddle_server.base.types import Root
from staddle_server.catalog import schema
from staddle_server.catalog.database import Database
from staddle_server.catalog.decisions import is_protected, keep_pending, require_unprotected
from staddle_server.catalog.rows import backup_of, dataset_row, hold_of, lock_backup, select_backups
from staddle_server.catalog.tenants import TenantRows
from staddle_server.catalog.validation import NS, batches
from staddle_server.catalog.values import (
    Applied,
    Backup,
    Hold,
    PendingRecord,
    Retention,
    RetentionState,
    StandingRoots,
)

_b = schema.backups.c
_d = schema.datasets.c
_u = schema.uploads.c
_KEPT = _b.purged_ns.is_(None)
_SHOWN = _b.deleted_ns.is_(None)


class Retentions:
    """The retention of all tenants' datasets and backups. What cannot be found is DATASET_NOT_FOUND or BACKUP_NOT_FOUND."""

    def __init__(self, database: Database, tenants: TenantRows) -> None:
        self._database = database
        self._tenants = tenants

    # --- looking

    def get(self, tenant: bytes, dataset: str) -> Retention:
        """What keeps a dataset's backups."""
        with self._database.read() as connection:
            return _retention(dataset_row(connection, self._tenants.row(connection, tenant), dataset))

    def with_policy(self, since_ns: int, ahead_ns: int) -> list[tuple[bytes, str]]:
        """Of all tenants: the datasets that have a policy, unchanged since then or before, by tenant and name.

        And those that were changed after `ahead_ns`, by a clock that was ahead.
        """
        query = (
            select(schema.tenants.c.id, _d.name)
            .join_from(schema.datasets, schema.tenants, _d.tenant == schema.tenants.c.row)
            .where(_d.policy != "", or_(_d.policy_ns <= since_ns, _d.policy_ns > ahead_ns))
            .order_by(schema.tenants.c.name, _d.name)
        )
        with self._database.read() as connection:
            return [(tenant, name) for tenant, name in connection.execute(query)]

    def state(self, tenant: bytes, dataset: str) -> RetentionState:
        """All that a plan rests on."""
        with self._database.read() as connection:
            row = dataset_row(connection, self._tenants.row(connection, tenant), dataset)
            return _state(connection, row)

    def standing(self, tenant: bytes, now_ns: int) -> StandingRoots:
        """What stays reachable once all is purged that is deleted and not protected."""
        roots = (_b.id, _b.root_level, _b.root_digest, _b.entry_count, _b.data_bytes)
        with self._database.read() as connection:
            mine = self._tenants.row(connection, tenant)
            backups = (
                select(*roots)
                .join_from(schema.backups, schema.datasets, _b.dataset == _d.row)
                .where(_b.tenant == mine, _KEPT, _SHOWN | is_protected(now_ns))
            )
            opened = select(_u.base).where(_u.tenant == mine, schema.IS_OPEN)
            bases = select(*roots).where(_b.tenant == mine, _b.id.in_(opened))
            claimed = (
                select(schema.packs.c.id)
                .join_from(schema.claims, schema.uploads, schema.claims.c.upload == _u.id)
                .join(schema.packs, schema.claims.c.pack == schema.packs.c.row)
                .where(_u.tenant == mine, schema.IS_OPEN)
                .distinct()
            )
            return StandingRoots(
                _roots(connection, backups),
                _roots(connection, bases),
                set(connection.execute(claimed).scalars()),
            )

    # --- holds

    def hold_dataset(
        self, tenant: bytes, dataset: str, reason: str, now_ns: int, record: PendingRecord
    ) -> Hold:
        """Holds a dataset with all its backups. The same hold again changes nothing, and `record` is then not kept."""
        with self._database.write() as connection:
            row = self._locked(connection, tenant, dataset)
            hold = hold_of(row.hold_ns, row.hold_reason)
            if hold is None or hold.reason != reason:
                hold = Hold(reason, now_ns)
                _update_dataset(connection, row, hold_ns=now_ns, hold_reason=reason)
                keep_pending(connection, row.tenant, [record])
            return hold

    def release_dataset(self, tenant: bytes, dataset: str, record: PendingRecord) -> None:
        """Releases a dataset's hold; those of its backups stay. Where there is none, `record` is not kept."""
        with self._database.write() as connection:
            row = self._locked(connection, tenant, dataset)
            if row.hold_ns is not None:
                _update_dataset(connection, row, hold_ns=None, hold_reason="")
                keep_pending(connection, row.tenant, [record])

    def hold_backup(
        self, tenant: bytes, backup: bytes, reason: str, now_ns: int, record: PendingRecord
    ) -> Backup:
        """Holds a backup, also a deleted one. The same hold again changes nothing, and `record` is then not kept."""
        with self._database.write() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            found = lock_backup(connection, tenant_row, backup)
            if found.hold is not None and found.hold.reason == reason:
                return found
            keep_pending(connection, tenant_row, [record])
            return _update_backup(connection, backup, hold_ns=now_ns, hold_reason=reason)

    def release_backup(self, tenant: bytes, backup: bytes, record: PendingRecord) -> Backup:
        """Releases a backup's own hold; that of its dataset stays. Where there is none, `record` is not kept."""
        with self._database.write() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            found = lock_backup(connection, tenant_row, backup)
            if found.hold is None:
                return found
            keep_pending(connection, tenant_row, [record])
            return _update_backup(connection, backup, hold_ns=None, hold_reason="")

    # --- retention times

    def retain(self, tenant: bytes, backup: bytes, until_ns: int, record: PendingRecord) -> Backup:
        """Keeps a backup from being deleted before `until_ns`. Where that is no later than before, `record` is not kept."""
        with self._database.write() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            found = lock_backup(connection, tenant_row, backup)
            if until_ns <= found.retain_until_ns:
                return found
            keep_pending(connection, tenant_row, [record])
            return _update_backup(connection, backup, retain_until_ns=until_ns)

    def change(
        self,
        tenant: bytes,
        dataset: str,
        *,
        policy: str | None,
        minimum_s: int | None,
        now_ns: int,
        record: Callable[[Retention], PendingRecord],
        retained: Callable[[bytes, int], PendingRecord],
    ) -> Retention:
        """Sets the policy, the minimum, or both; None: as it is. `record` is asked only if that changes anything.

        Where the minimum is more than it was, the backups that are there get it, too: each whose time moves later has a record
        that `retained` makes. No time is ever moved earlier.
        """
        with self._database.write() as connection:
            row = self._locked(connection, tenant, dataset)
            before = _retention(row)
            after = Retention(
                before.policy if policy is None else policy,
                before.minimum_s if minimum_s is None else minimum_s,
                before.hold,
            )
            if after == before:
                return after
            _update_dataset(connection, row, policy=after.policy, min_retention_s=after.minimum_s)
            if after.policy != before.policy:
                _update_dataset(connection, row, policy_ns=now_ns)
            records = [record(after)]
            if after.minimum_s > before.minimum_s:
                moved = _move_later(connection, row, after.minimum_s * NS)
                records += [retained(backup, until_ns) for backup, until_ns in moved]
            keep_pending(connection, row.tenant, records)
            return after

    # --- plans

    def applied(self, tenant: bytes, dataset: str, plan: str) -> Applied | None:
        """What applying this plan deleted, if it was the last one that was applied; without what was undeleted since."""
        with self._database.read() as connection:
            row = dataset_row(connection, self._tenants.row(connection, tenant), dataset)
            return _applied(connection, row, plan)

    def apply(
        self,
        tenant: bytes,
        dataset: str,
        plan: str,
        *,
        expected: RetentionState,
        backups: Sequence[bytes],
        now_ns: int,
        deleted: Callable[[bytes], PendingRecord],
    ) -> Applied:
        """Deletes `backups`, all or none, if everything that decides is as `expected`: PLAN_CHANGED otherwise.

        A plan that was the last one to be applied is answered as it was then. PROTECTED if the plan names what may not be
        deleted. Each deletion has a record that `deleted` makes.
        """
        with self._database.write() as connection:
            row = self._locked(connection, tenant, dataset)
            known = _applied(connection, row, plan)
            if known is not None:
                return known
            of_dataset = select(_b.id).where(_b.dataset == row.row, _SHOWN, _KEPT).order_by(_b.id)
            connection.execute(of_dataset.with_for_update())
            present = _state(connection, row)
            if present.decisive() != expected.decisive():
                raise plan_changed(dataset)
            going = set(backups)
            for backup in present.backups:
                if backup.id in going:
                    require_unprotected(backup, now_ns)
            for some in batches(backups):
                connection.execute(update(schema.backups).where(_b.id.in_(some)).values(deleted_ns=now_ns))
            _update_dataset(connection, row, applied_plan=plan, applied_ns=now_ns)
            keep_pending(connection, row.tenant, map(deleted, backups))
            return _applied(connection, dataset_row(connection, row.tenant, dataset), plan) or Applied(
                now_ns, []
            )

    def _locked(self, connection: Connection, tenant: bytes, dataset: str) -> Row[Any]:
        """The dataset's row, and nobody else places a hold or commits a backup before this transaction ends."""
        tenant_row = self._tenants.row(connection, tenant)
        this = select(_d.row).where(_d.tenant == tenant_row, _d.name == dataset)
        connection.execute(this.with_for_update(key_share=True))
        return dataset_row(connection, tenant_row, dataset)


def plan_changed(dataset: str) -> errors.Precondition:
    """The error for a plan that no longer holds."""
    return errors.Precondition(
        "PLAN_CHANGED",
        f"The backups of dataset {dataset!r}, their protection or its policy are no longer what the plan rests on; nothing was "
        "deleted: make a new plan",
        dataset=dataset,
    )


def _retention(row: Row[Any]) -> Retention:
    return Retention(row.policy, row.min_retention_s, hold_of(row.hold_ns, row.hold_reason))


def _state(connection: Connection, row: Row[Any]) -> RetentionState:
    backups = select_backups().where(_b.dataset == row.row, _SHOWN, _KEPT).order_by(_b.number.desc())
    return RetentionState(
        _retention(row), row.applied_ns, [backup_of(each) for each in connection.execute(backups)]
    )


def _roots(connection: Connection, query: Select[Any]) -> dict[bytes, Root]:
    return {row[0]: Root(*row[1:]) for row in connection.execute(query)}


def _update_dataset(connection: Connection, row: Row[Any], **values: object) -> None:
    connection.execute(update(schema.datasets).where(_d.row == row.row).values(**values))


def _update_backup(connection: Connection, backup: bytes, **values: object) -> Backup:
    connection.execute(update(schema.backups).where(_b.id == backup).values(**values))
    return backup_of(connection.execute(select_backups().where(_b.id == backup)).one())


def _move_later(connection: Connection, row: Row[Any], minimum_ns: int) -> list[tuple[bytes, int]]:
    """Gives the dataset's backups a minimum retention, where that is later than what they have; says which, and until when."""
    query = select(_b.id, _b.commit_ns).where(
        _b.dataset == row.row, _KEPT, _b.retain_until_ns < _b.commit_ns + minimum_ns
    )
    moved = [(each.id, each.commit_ns + minimum_ns) for each in connection.execute(query.with_for_update())]
    for some in batches([backup for backup, _ in moved]):
        connection.execute(
            update(schema.backups).where(_b.id.in_(some)).values(retain_until_ns=_b.commit_ns + minimum_ns)
        )
    return moved


def _applied(connection: Connection, row: Row[Any], plan: str) -> Applied | None:
    if row.applied_plan != plan:
        return None
    gone = select_backups().where(_b.dataset == row.row, _KEPT, _b.deleted_ns == row.applied_ns)
    return Applied(
        row.applied_ns,
        [backup_of(each) for each in connection.execute(gone.order_by(_b.number.desc()))],
    )
