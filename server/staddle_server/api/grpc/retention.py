"""Calls that delete, undelete and protect backups, and those of retention policies."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from staddle.v1 import service_pb2 as sv

from staddle_server.api import convert, convert_policy
from staddle_server.api.convert import bad
from staddle_server.api.gate import Call
from staddle_server.api.page_tokens import PageTokens
from staddle_server.base import limits
from staddle_server.catalog import Backup
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.lifecycle.deletion import Deletion
from staddle_server.upkeep.lifecycle.holds import Holds
from staddle_server.upkeep.lifecycle.policies import Plan, Policies

PAGE_BYTES: Final = 2 * limits.MIB
NamesBackup = (
    sv.DeleteBackupRequest
    | sv.UndeleteBackupRequest
    | sv.SetHoldRequest
    | sv.ReleaseHoldRequest
    | sv.RetainBackupRequest
)
NamesDataset = (
    sv.GetRetentionRequest | sv.SetRetentionRequest | sv.PlanRetentionRequest | sv.ApplyRetentionRequest
)


class RetentionCalls:
    """Answers these calls."""

    def __init__(self, deletion: Deletion, protection: Holds, policies: Policies, tenants: Tenants) -> None:
        self._deletion = deletion
        self._protection = protection
        self._policies = policies
        self._tenants = tenants

    # ------------------------------------------------------------------ hiding

    def delete_backup(self, request: sv.DeleteBackupRequest, call: Call) -> sv.DeleteBackupResponse:
        backup = self._deletion.delete(call.principal, *_backup_named(request, call))
        return sv.DeleteBackupResponse(backup=convert.backup_out(backup))

    def undelete_backup(self, request: sv.UndeleteBackupRequest, call: Call) -> sv.UndeleteBackupResponse:
        backup = self._deletion.undelete(call.principal, *_backup_named(request, call))
        return sv.UndeleteBackupResponse(backup=convert.backup_out(backup))

    # ------------------------------------------------------------------ protecting

    def set_hold(self, request: sv.SetHoldRequest, call: Call) -> sv.SetHoldResponse:
        reason = convert.words(request.reason, "reason", limits.HOLD_REASON_BYTES_MAX, empty=False)
        if not request.backup:
            hold = self._protection.hold_dataset(call.principal, _dataset_named(request, call), reason)
            return sv.SetHoldResponse(hold=convert.hold_out(hold))
        backup = self._protection.hold_backup(call.principal, *_backup_named(request, call), reason)
        out = convert.backup_out(backup)
        return sv.SetHoldResponse(hold=out.hold, backup=out)

    def release_hold(self, request: sv.ReleaseHoldRequest, call: Call) -> sv.ReleaseHoldResponse:
        if not request.backup:
            self._protection.release_dataset(call.principal, _dataset_named(request, call))
            return sv.ReleaseHoldResponse()
        backup = self._protection.release_backup(call.principal, *_backup_named(request, call))
        return sv.ReleaseHoldResponse(backup=convert.backup_out(backup))

    def retain_backup(self, request: sv.RetainBackupRequest, call: Call) -> sv.RetainBackupResponse:
        if not request.HasField("until_time"):
            raise bad("until_time", "required")
        until_ns = convert.ns_of(request.until_time, "until_time")
        backup = self._protection.retain(call.principal, *_backup_named(request, call), until_ns)
        return sv.RetainBackupResponse(backup=convert.backup_out(backup))

    # ------------------------------------------------------------------ policies

    def get_retention(self, request: sv.GetRetentionRequest, call: Call) -> sv.GetRetentionResponse:
        retention = self._policies.get(call.principal, _dataset_named(request, call))
        return sv.GetRetentionResponse(retention=convert_policy.retention_out(retention))

    def set_retention(self, request: sv.SetRetentionRequest, call: Call) -> sv.SetRetentionResponse:
        dataset = _dataset_named(request, call)
        asked = convert_policy.policy_of(request.policy) if request.HasField("policy") else None
        minimum_s = None
        if request.HasField("minimum"):
            minimum_s = convert_policy.whole_seconds(request.minimum, "minimum", limits.RETENTION_S_MAX)
        if asked is None and minimum_s is None:
            raise bad("policy", "give a policy, a minimum, or both")
        retention = self._policies.change(call.principal, dataset, asked, minimum_s)
        return sv.SetRetentionResponse(retention=convert_policy.retention_out(retention))

    def plan_retention(self, request: sv.PlanRetentionRequest, call: Call) -> sv.PlanRetentionResponse:
        dataset = _dataset_named(request, call)
        limit = convert.size(
            request.page_size, "page_size", limits.SHORT_PAGE_SIZE_MAX, limits.SHORT_PAGE_SIZE_MAX
        )
        tokens = PageTokens(self._tenants.get(call.principal.tenant).secrets.token_key)
        query, start, expected = ("plan", dataset), 0, ""
        if request.page_token:
            expected, start = tokens.read(query, request.page_token, tuple[str, int])
        with self._policies.planning.of(call.principal.tenant):
            response = self._planned(
                call, dataset, start, limit, expected, free=not request.without_free_bytes
            )
        if start + len(response.backups) < response.delete_count + response.keep_count:
            position = (response.plan_token, start + len(response.backups))
            response.next_page_token = tokens.make(query, position)
        call.facts["entries"] = len(response.backups)
        return response

    def _planned(
        self, call: Call, dataset: str, start: int, limit: int, expected: str, *, free: bool
    ) -> sv.PlanRetentionResponse:
        """Return a page of the current plan; `expected` is the plan of the first page, which must not have
        changed.
        """
        tick = call.check
        made = self._policies.plan(call.principal.tenant, dataset, tick)
        if expected:
            made.require(dataset, expected)
        whole = partial(self._policies.backup, call.principal.tenant)
        response = _plan_out(made, start, limit, whole)
        if free and not expected:
            freed = self._policies.freed(call.principal.tenant, made, tick)
            response.free_bytes_unknown = freed.unknown
            if freed.stored_bytes is not None:
                response.free_bytes = freed.stored_bytes
        return response

    def apply_retention(self, request: sv.ApplyRetentionRequest, call: Call) -> sv.ApplyRetentionResponse:
        dataset = _dataset_named(request, call)
        if not request.plan_token:
            raise bad("plan_token", "required: call PlanRetention to get it")
        with self._policies.planning.of(call.principal.tenant):
            applied = self._policies.apply(call.principal.tenant, dataset, request.plan_token, call.check)
        call.facts["deleted"] = len(applied.backups)
        response = sv.ApplyRetentionResponse(
            deleted_backup_ids=[backup.id.hex() for backup in applied.backups]
        )
        times = [backup.purge_ns for backup in applied.backups if backup.purge_ns is not None]
        if times:
            response.purge_time.CopyFrom(convert.timestamp(min(times)))
        return response


def _plan_out(
    made: Plan, start: int, limit: int, whole: Callable[[bytes], Backup]
) -> sv.PlanRetentionResponse:
    """Convert a page of a plan, with the plan's totals; `whole` returns a backup with all its fields."""
    some = (
        sv.PlannedBackup(
            backup=convert.backup_out(whole(each.id)),
            goes=each.goes,
            reasons=each.reasons,
            damaged=each.damaged,
        )
        for each in made.planned[start : start + limit]
    )
    return sv.PlanRetentionResponse(
        backups=convert.fitting(some, PAGE_BYTES),
        plan_token=made.token,
        delete_count=len(made.going),
        keep_count=len(made.planned) - len(made.going),
    )


def _dataset_named(request: NamesDataset | sv.SetHoldRequest | sv.ReleaseHoldRequest, call: Call) -> str:
    call.facts["dataset"] = request.dataset
    return convert.dataset_name(request.dataset)


def _backup_named(request: NamesBackup, call: Call) -> tuple[str, str]:
    call.facts.update(dataset=request.dataset, backup=request.backup)
    prefix = request.backup.lower()
    if not 4 <= len(prefix) <= 32 or set(prefix) - set("0123456789abcdef"):
        raise bad("backup", "use the 4 to 32 hexadecimal digits of the backup")
    return convert.dataset_name(request.dataset), prefix
