"""A dataset's policy: set, planned, applied; by callers, and by the server on a schedule."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import msgspec
from blake3 import blake3
from staddle._base.figures import counted

from staddle_server.base.clock import NS, Clock
from staddle_server.base.errors import Precondition, StaddleError, Unavailable
from staddle_server.catalog import (
    Applied,
    Backup,
    Catalog,
    Principal,
    Retention,
    RetentionState,
    protection_of,
)
from staddle_server.catalog.retention import plan_changed
from staddle_server.store.records import DeletedRecord, PolicyRecord, RetainedRecord
from staddle_server.tenancy.chunk_reader import ChunkReader
from staddle_server.tenancy.clock_guard import JUMP_S, ClockGuard
from staddle_server.tenancy.losses import Losses
from staddle_server.tenancy.records import as_pending, finish_missing
from staddle_server.tenancy.tenant import Tenant, Tenants
from staddle_server.upkeep.lifecycle.freed_bytes import Freed, freed_by
from staddle_server.upkeep.lifecycle.planning import Planning
from staddle_server.upkeep.lifecycle.retention import (
    Candidate,
    Planned,
    Policy,
    decode_policy,
    encode_policy,
    plan,
)
from staddle_server.upkeep.schedule import Stopping

log = logging.getLogger(__name__)

TASK = "retention"
TOKEN_BYTES = 16

Tick = Callable[[], None]
"""Called from time to time by long work; raises to stop it."""


class Plan(NamedTuple):
    """The plan for each backup of a dataset, the newest first; `token` identifies all of it."""

    token: str
    state: RetentionState
    planned: list[Planned]

    @property
    def going(self) -> list[bytes]:
        """Return the backups to delete."""
        return [each.id for each in self.planned if each.goes]

    def require(self, dataset: str, token: str) -> None:
        """Raise PLAN_CHANGED unless this is the plan with that token."""
        if self.token != token:
            raise plan_changed(dataset)


def _no_tick() -> None:
    pass


def _go_on(stopping: Stopping) -> None:
    """Raise Unavailable once the server is about to end."""
    if stopping():
        raise Unavailable("DRAINING", "the server is about to end")


class Policies:
    """The policies of all tenants' datasets. Unknown ones raise NotFound."""

    def __init__(self, catalog: Catalog, tenants: Tenants, clock: Clock, every_s: float) -> None:
        """`every_s`: how often `run` is called, and how long it ignores a policy that was just set."""
        self._every_ns = int(every_s * NS)
        self._catalog = catalog
        self._tenants = tenants
        self._clock = clock
        self._guard = ClockGuard(catalog, clock)
        self.planning = Planning()
        """What plans that somebody asks for are counted by."""

    def get(self, principal: Principal, dataset: str) -> Retention:
        """Return what protects a dataset's backups."""
        return self._catalog.retention.get(principal.tenant, dataset)

    def change(
        self, principal: Principal, dataset: str, policy: Policy | None, minimum_s: int | None
    ) -> Retention:
        """Set policy, minimum retention, or both; None leaves it unchanged.

        A policy without a rule means none.

        Raises:
            BadRequest: BAD_FIELD, a value is out of its range.
            Exhausted, Unavailable: It is decided, but no record of that is durable; a replay writes it.

        """
        self._tenants.require_recording(principal.tenant)
        tenant, now_ns = principal.tenant, self._guard.look().latest_ns
        with self._catalog.tenants.deciding(tenant, now_ns) as at_ns:
            retention = self._catalog.retention.change(
                tenant,
                dataset,
                policy=None if policy is None else encode_policy(policy),
                minimum_s=minimum_s,
                now_ns=now_ns,
                record=lambda after: as_pending(
                    tenant, PolicyRecord(dataset, after.policy, after.minimum_s, at_ns)
                ),
                retained=lambda backup, until_ns: as_pending(tenant, RetainedRecord(backup, until_ns, at_ns)),
            )
        finish_missing(self._tenants.get(tenant), self._catalog)
        return retention

    def plan(self, tenant: bytes, dataset: str, tick: Tick = _no_tick) -> Plan:
        """Return what the dataset's policy would do now. Changes nothing.

        Raises:
            Unavailable: This server cannot apply the policy, or the store does not answer.

        """
        opened = self._tenants.get(tenant)
        state = self._catalog.retention.state(tenant, dataset, _tag_keys)
        policy = decode_policy(state.retention.policy)
        damaged = self._damaged(opened, state.backups, tick) if policy.has_rule else set()
        planned = _planned(policy, state.backups, damaged, self._guard.look().earliest_ns)
        return Plan(_token(opened, dataset, state, planned), state, planned)

    def backup(self, tenant: bytes, backup: bytes) -> Backup:
        """Return a backup of a plan with all its fields."""
        return self._catalog.backups.get(tenant, backup)

    def freed(self, tenant: bytes, made: Plan, tick: Tick = _no_tick) -> Freed:
        """Return what purging the backups of a plan would free."""
        going = set(made.going)
        if not going:
            return Freed(0)
        standing = self._catalog.retention.standing(tenant, self._guard.look().earliest_ns)
        for backup in going:
            standing.backups.pop(backup, None)
        roots = [backup.root for backup in made.state.backups if backup.id in going]
        return freed_by(self._tenants.get(tenant), self._catalog, roots, standing, tick)

    def apply(self, tenant: bytes, dataset: str, token: str, tick: Tick = _no_tick) -> Applied:
        """Delete exactly what the plan with this token says, all or nothing.

        A replay returns the first call's answer.

        Raises:
            Precondition: PLAN_CHANGED, nothing was deleted.
            Exhausted, Unavailable: It is decided, but no record of that is durable; a replay writes it.

        """
        applied = self._catalog.retention.applied(tenant, dataset, token)
        if applied is None:
            made = self.plan(tenant, dataset, tick)
            made.require(dataset, token)
            return self._apply(tenant, dataset, made, tick)
        finish_missing(self._tenants.get(tenant), self._catalog)
        return applied

    def run(self, stopping: Stopping) -> str:
        """Apply the policies of all tenants' datasets; return a short summary.

        A failure in one does not stop the others. A new policy is not applied in its first period, to leave
        time to check its plan.

        Raises:
            ClockInDoubt: The clock has jumped, and the jump is not confirmed.

        """
        deleted = failed = 0
        now_ns = self._guard.require()
        for tenant, dataset in self._catalog.retention.with_policy(
            now_ns - self._every_ns, now_ns + JUMP_S * NS
        ):
            try:
                deleted += self._follow(tenant, dataset, lambda: _go_on(stopping))
            except Precondition as e:  # a backup or a hold arrived between the plan and its application
                log.info("retention of dataset %r waits for its next turn: %s", dataset, e.message)
            except StaddleError as e:
                if stopping():
                    break
                failed += 1
                log.error("retention of dataset %r failed: %s", dataset, e.message)  # noqa: TRY400 - no fault of ours
            except Exception:
                failed += 1
                log.exception("a fault in the retention of dataset %r", dataset)
        words = [f"{counted(deleted, 'backup')} deleted"] if deleted else []
        words += [f"{counted(failed, 'dataset')} failed: see the log"] if failed else []
        return ", ".join(words)

    def _follow(self, tenant: bytes, dataset: str, tick: Tick) -> int:
        """Delete what a dataset's policy allows; return the number of backups."""
        tick()
        now_ns = self._guard.require()
        state = self._catalog.retention.state(tenant, dataset, _tag_keys)
        policy = decode_policy(state.retention.policy)
        # Damage only ever keeps more. If nothing would go even without any, do not walk manifests hour after
        # hour to find some.
        if not any(each.goes for each in _planned(policy, state.backups, set(), now_ns)):
            return 0
        made = self.plan(tenant, dataset, tick)
        if not made.going:
            return 0
        self._guard.require()
        gone = self._apply(tenant, dataset, made, tick).backups
        log.info(
            "retention deleted %s of dataset %r: %s", counted(len(gone), "backup"), dataset, _listed(gone)
        )
        return len(gone)

    def _apply(self, tenant: bytes, dataset: str, made: Plan, tick: Tick) -> Applied:
        self._tenants.require_recording(tenant)
        now_ns = self._guard.look().latest_ns
        with self._catalog.tenants.deciding(tenant, now_ns) as at_ns:
            tick()
            applied = self._catalog.retention.apply(
                tenant,
                dataset,
                made.token,
                expected=made.state,
                backups=made.going,
                now_ns=now_ns,
                deleted=lambda backup: as_pending(tenant, DeletedRecord(backup, at_ns)),
            )
        finish_missing(self._tenants.get(tenant), self._catalog)
        return applied

    def _damaged(self, tenant: Tenant, backups: list[Backup], tick: Tick) -> set[bytes]:
        """Return the backups with known damage or missing data.

        Without known damage in the tenant, only checks the newest: the plan depends on its being intact.
        """
        losses = Losses(ChunkReader(tenant, self._catalog), share=True, tick=tick)
        newest = max(backups, key=lambda each: each.number, default=None)
        if newest is None or (
            not self._catalog.packs.damaged_count(tenant.id) and losses.is_whole(newest.root)
        ):
            return set()
        return {backup.id for backup in backups if not losses.is_whole(backup.root)}


def _tag_keys(policy: str) -> set[str]:
    """Return the keys of the tags that decide what a policy keeps."""
    return {tag.key for tag in decode_policy(policy).keep_tags}


def _planned(policy: Policy, backups: list[Backup], damaged: set[bytes], now_ns: int) -> list[Planned]:
    return plan(policy, [_candidate(each, damaged, now_ns) for each in backups], now_ns)


def _candidate(backup: Backup, damaged: set[bytes], now_ns: int) -> Candidate:
    protection = protection_of(backup, now_ns)
    return Candidate(
        backup.id,
        backup.number,
        backup.begin_ns,
        backup.tags,
        damaged=backup.id in damaged,
        protection=protection.words if protection is not None else "",
    )


def _token(tenant: Tenant, dataset: str, state: RetentionState, planned: list[Planned]) -> str:
    """Return a token that only this tenant can have for this plan: any other plan, state or policy gives
    another one.
    """
    becomes = [(each.id, each.goes, each.damaged) for each in planned]
    body = msgspec.msgpack.encode(("retention plan", dataset, state.decisive(), becomes))
    return blake3(body, key=tenant.secrets.token_key).hexdigest(TOKEN_BYTES)


def _listed(backups: list[Backup]) -> str:
    return ", ".join(f"{backup.id.hex()} (number {backup.number})" for backup in backups)
