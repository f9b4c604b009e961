"""What protects backups: holds, retention times and policies; and applying a deletion plan, all
or nothing.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, Select, or_, select, update

from staddle_server.base import errors
from staddle_server.base.clock import NS
from staddle_server.base.types import Authors, Root
from staddle_server.catalog import schema
from staddle_server.catalog.database import Database, locking
from staddle_server.catalog.decisions import is_protected, keep_pending, require_unprotected
from staddle_server.catalog.rows import backup_of, dataset_row, hold_of, lock_backup, select_backups
from staddle_server.catalog.tenants import TenantRows
from staddle_server.catalog.validation import batches
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


def _no_tags(_policy: str) -> Collection[str]:
    return ()


class Retentions:
    """The retention of all tenants' datasets and backups.

    Unknown ones raise DATASET_NOT_FOUND or BACKUP_NOT_FOUND.
    """

    def __init__(self, database: Database, tenants: TenantRows) -> None:
        self._database = database
        self._tenants = tenants

    # --- looking

    def get(self, tenant: bytes, dataset: str) -> Retention:
        """Return what protects a dataset's backups."""
        with self._database.read() as connection:
            return _retention(dataset_row(connection, self._tenants.row(connection, tenant), dataset))

    def with_policy(self, since_ns: int, ahead_ns: int) -> list[tuple[bytes, str]]:
        """Return datasets of all tenants whose policy last changed then or earlier, by tenant and name.

        Includes those changed after `ahead_ns`, by a clock that was ahead.
        """
        query = (
            select(schema.tenants.c.id, _d.name)
            .join_from(schema.datasets, schema.tenants, _d.tenant == schema.tenants.c.row)
            .where(_d.policy != "", or_(_d.policy_ns <= since_ns, _d.policy_ns > ahead_ns))
            .order_by(schema.tenants.c.name, _d.name)
        )
        with self._database.read() as connection:
            return [(tenant, name) for tenant, name in connection.execute(query)]

    def state(
        self, tenant: bytes, dataset: str, tag_keys: Callable[[str], Collection[str]] = _no_tags
    ) -> RetentionState:
        """Return everything that a plan depends on: of the tags, those with the keys that `tag_keys` gives
        for the policy.
        """
        with self._database.read() as connection:
            row = dataset_row(connection, self._tenants.row(connection, tenant), dataset)
            return _state(connection, row, tag_keys(row.policy))

    def standing(self, tenant: bytes, now_ns: int) -> StandingRoots:
        """Return what stays reachable once everything deleted and unprotected is purged."""
        roots = (_b.id, _b.root_level, _b.root_digest, _b.entry_count, _b.data_bytes)
        with self._database.read() as connection:
            mine = self._tenants.row(connection, tenant)
            backups = (
                select(*roots)
                .join_from(schema.backups, schema.datasets, _b.dataset == _d.row)
                .where(_b.tenant == mine, schema.IS_KEPT, schema.IS_SHOWN | is_protected(now_ns))
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
        """Hold a dataset with all its backups.

        An identical hold changes nothing, and `record` is then not kept.
        """
        with self._database.write() as connection:
            row = self._locked(connection, tenant, dataset)
            hold = hold_of(row.hold_ns, row.hold_reason)
            if hold is None or hold.reason != reason:
                hold = Hold(reason, now_ns)
                _update_dataset(connection, row, hold_ns=now_ns, hold_reason=reason)
                keep_pending(connection, row.tenant, [record])
            return hold

    def release_dataset(self, tenant: bytes, dataset: str, record: PendingRecord) -> None:
        """Release a dataset's hold; those of its backups stay. Without a hold, `record` is not kept."""
        with self._database.write() as connection:
            row = self._locked(connection, tenant, dataset)
            if row.hold_ns is not None:
                _update_dataset(connection, row, hold_ns=None, hold_reason="")
                keep_pending(connection, row.tenant, [record])

    def hold_backup(
        self, tenant: bytes, backup: bytes, reason: str, now_ns: int, record: PendingRecord
    ) -> Backup:
        """Hold a backup, also a deleted one.

        An identical hold changes nothing, and `record` is then not kept.
        """
        with self._database.write() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            found = lock_backup(connection, tenant_row, backup)
            if found.hold is not None and found.hold.reason == reason:
                return found
            keep_pending(connection, tenant_row, [record])
            return _update_backup(connection, backup, hold_ns=now_ns, hold_reason=reason)

    def release_backup(self, tenant: bytes, backup: bytes, record: PendingRecord) -> Backup:
        """Release a backup's own hold; that of its dataset stays. Without a hold, `record` is not kept."""
        with self._database.write() as connection:
            tenant_row = self._tenants.row(connection, tenant)
            found = lock_backup(connection, tenant_row, backup)
            if found.hold is None:
                return found
            keep_pending(connection, tenant_row, [record])
            return _update_backup(connection, backup, hold_ns=None, hold_reason="")

    # --- retention times

    def retain(self, tenant: bytes, backup: bytes, until_ns: int, record: PendingRecord) -> Backup:
        """Protect a backup from deletion before `until_ns`.

        If that is no later than before, `record` is not kept.
        """
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
        """Set the policy, the minimum, or both; None leaves it unchanged.

        `record` is called only for a change. A longer minimum also applies to existing backups: each one
        whose time moves later gets a record made by `retained`. No time ever moves earlier.
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
        """Return what applying this plan deleted, without what was undeleted since; None unless it was the
        last one applied.
        """
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
        """Delete `backups`, all or none, if everything decisive is as `expected`; otherwise PLAN_CHANGED.

        Replaying the plan applied last returns its original answer. PROTECTED if the plan names a protected
        backup. Each deletion has a record made by `deleted`.
        """
        with self._database.write() as connection:
            row = self._locked(connection, tenant, dataset)
            known = _applied(connection, row, plan)
            if known is not None:
                return known
            of_dataset = (
                select(_b.id).where(_b.dataset == row.row, schema.IS_SHOWN, schema.IS_KEPT).order_by(_b.id)
            )
            connection.execute(locking(of_dataset))
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
        """Return the dataset's row, locked: until this transaction ends, no hold is placed and no backup
        committed.
        """
        tenant_row = self._tenants.row(connection, tenant)
        this = select(_d.row).where(_d.tenant == tenant_row, _d.name == dataset)
        connection.execute(locking(this))
        return dataset_row(connection, tenant_row, dataset)


def plan_changed(dataset: str) -> errors.Precondition:
    """Return the error for a plan that no longer holds."""
    return errors.Precondition(
        "PLAN_CHANGED",
        f"The backups of dataset {dataset!r}, their protection or its policy have changed since the plan was made; nothing was "
        "deleted: make a new plan",
        dataset=dataset,
    )


def _retention(row: Row[Any]) -> Retention:
    return Retention(row.policy, row.min_retention_s, hold_of(row.hold_ns, row.hold_reason))


def _state(connection: Connection, row: Row[Any], tag_keys: Collection[str] = ()) -> RetentionState:
    query = (
        select_backups()
        .where(_b.dataset == row.row, schema.IS_SHOWN, schema.IS_KEPT)
        .order_by(_b.number.desc())
    )
    backups = [_slim(backup_of(each), tag_keys) for each in connection.execute(query)]
    return RetentionState(_retention(row), row.applied_ns, backups)


def _slim(backup: Backup, tag_keys: Collection[str]) -> Backup:
    """Return the backup without what may be large: a dataset has any number of them."""
    tags = {key: backup.tags[key] for key in tag_keys if key in backup.tags}
    return replace(backup, tags=tags, host="", source_root="", authors=Authors(""))


def _roots(connection: Connection, query: Select[Any]) -> dict[bytes, Root]:
    return {row[0]: Root(*row[1:]) for row in connection.execute(query)}


def _update_dataset(connection: Connection, row: Row[Any], **values: object) -> None:
    connection.execute(update(schema.datasets).where(_d.row == row.row).values(**values))


def _update_backup(connection: Connection, backup: bytes, **values: object) -> Backup:
    connection.execute(update(schema.backups).where(_b.id == backup).values(**values))
    return backup_of(connection.execute(select_backups().where(_b.id == backup)).one())


def _move_later(connection: Connection, row: Row[Any], minimum_ns: int) -> list[tuple[bytes, int]]:
    """Apply a minimum retention to the dataset's backups where it is later than theirs; return which, and
    until when.
    """
    query = select(_b.id, _b.commit_ns).where(
        _b.dataset == row.row, schema.IS_KEPT, _b.retain_until_ns < _b.commit_ns + minimum_ns
    )
    moved = [(each.id, each.commit_ns + minimum_ns) for each in connection.execute(locking(query))]
    for some in batches([backup for backup, _ in moved]):
        connection.execute(
            update(schema.backups).where(_b.id.in_(some)).values(retain_until_ns=_b.commit_ns + minimum_ns)
        )
    return moved


def _applied(connection: Connection, row: Row[Any], plan: str) -> Applied | None:
    if row.applied_plan != plan:
        return None
    gone = select_backups().where(_b.dataset == row.row, schema.IS_KEPT, _b.deleted_ns == row.applied_ns)
    return Applied(
        row.applied_ns,
        [backup_of(each) for each in connection.execute(gone.order_by(_b.number.desc()))],
    )
