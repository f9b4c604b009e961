"""Deletion, holds and retention: the methods that `Client` has for them, and their values on the wire."""

import datetime
from itertools import chain
from typing import Any, Final

from staddle._errors import BadRequestError, ProtocolError, named
from staddle._protocol.arguments import duration_to_wire, timestamp_to_wire
from staddle._protocol.convert import COUNTS, backup_of, datetime_of, hold_of, retention_of, text
from staddle._transport.calls import Calls
from staddle._transport.pages import pages_of
from staddle._types.backups import Backup, Hold
from staddle._types.retention import (
    AppliedRetention,
    PlannedBackup,
    Retention,
    RetentionPlan,
    RetentionPolicy,
)
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

PLAN_PAGE: Final = 1_000
COUNT_MAX: Final = 1_000_000


class RetentionMethods:
    """The methods of `Client` for deletion, holds and retention. All but the looking ones need the role admin."""

    _calls: Calls

    # ------------------------------------------------------------------------------------------- deleting

    def delete_backup(self, dataset: str, backup: str) -> Backup:
        """Hides a backup, named by its id or the first digits of it: it is no longer listed, picked or used as a base.

        It can be undeleted until its `purge_time`. Raises ProtectedError if a hold or a retention time protects it.
        """
        request = sv.DeleteBackupRequest(dataset=text("dataset", dataset), backup=text("backup", backup))
        return backup_of(self._calls.call("DeleteBackup", request).backup)

    def undelete_backup(self, dataset: str, backup: str) -> Backup:
        """Shows a deleted backup again."""
        request = sv.UndeleteBackupRequest(dataset=text("dataset", dataset), backup=text("backup", backup))
        return backup_of(self._calls.call("UndeleteBackup", request).backup)

    # ------------------------------------------------------------------------------------------- protecting

    def set_hold(self, dataset: str, backup: str | None = None, *, reason: str) -> Hold:
        """Places a legal hold on a backup, also a deleted one, or on the dataset with all its backups, until `release_hold`."""
        request = sv.SetHoldRequest(
            dataset=text("dataset", dataset),
            backup=text("backup", backup or ""),
            reason=text("reason", reason),
        )
        return hold_of(self._calls.call("SetHold", request).hold)

    def release_hold(self, dataset: str, backup: str | None = None) -> None:
        """Releases the hold of a backup, or that of the dataset; each leaves the other alone."""
        request = sv.ReleaseHoldRequest(dataset=text("dataset", dataset), backup=text("backup", backup or ""))
        self._calls.call("ReleaseHold", request)

    def retain_backup(self, dataset: str, backup: str, until: datetime.datetime) -> Backup:
        """Keeps a backup from being deleted before a time (without a zone: local). An earlier time than it has changes nothing."""
        request = sv.RetainBackupRequest(
            dataset=text("dataset", dataset),
            backup=text("backup", backup),
            until_time=timestamp_to_wire("until", until),
        )
        return backup_of(self._calls.call("RetainBackup", request).backup)

    # ------------------------------------------------------------------------------------------- policies

    def get_retention(self, dataset: str) -> Retention:
        """A dataset's policy, minimum retention and hold."""
        request = sv.GetRetentionRequest(dataset=text("dataset", dataset))
        return retention_of(self._calls.call("GetRetention", request).retention)

    def set_retention(
        self,
        dataset: str,
        policy: RetentionPolicy | None = None,
        *,
        minimum: datetime.timedelta | None = None,
    ) -> Retention:
        """Sets a dataset's policy, its minimum retention, or both; None leaves it unchanged. `RetentionPolicy()` removes the policy.

        A backup cannot be deleted for `minimum` after its commit. Raising it also protects existing backups; lowering it
        applies to later ones only.
        """
        request = sv.SetRetentionRequest(dataset=text("dataset", dataset))
        if policy is not None:
            request.policy.CopyFrom(policy_to_wire(policy))
        if minimum is not None:
            request.minimum.CopyFrom(duration_to_wire("minimum", minimum))
        return retention_of(self._calls.call("SetRetention", request).retention)

    def plan_retention(self, dataset: str, *, free_bytes: bool = True) -> RetentionPlan:
        """What the dataset's policy would delete now, why, and how many bytes it would free. Changes nothing; role reader.

        `free_bytes` reads the manifests of all backups of the tenant: without it the plan returns at once.
        """
        request = sv.PlanRetentionRequest(
            dataset=text("dataset", dataset), without_free_bytes=not free_bytes, page_size=PLAN_PAGE
        )
        pages = pages_of(self._calls, "PlanRetention", request, "backups")
        first = next(pages)
        backups: list[PlannedBackup] = []
        for page in chain([first], pages):
            with named(self._calls.address):
                backups += map(_planned, page.backups)
                if len(backups) > first.delete_count + first.keep_count:
                    raise ProtocolError("The server's plan has more backups than it says.")
        return RetentionPlan(
            dataset,
            first.plan_token,
            tuple(backups),
            first.free_bytes if first.HasField("free_bytes") else None,
            first.free_bytes_unknown,
        )

    def apply_retention(self, dataset: str, plan_token: str) -> AppliedRetention:
        """Deletes exactly what the plan with this token said, all or nothing.

        Raises PlanChangedError, and deletes nothing, if anything has changed since.
        """
        request = sv.ApplyRetentionRequest(
            dataset=text("dataset", dataset), plan_token=text("plan_token", plan_token)
        )
        answer = self._calls.call("ApplyRetention", request)
        return AppliedRetention(
            tuple(answer.deleted_backup_ids),
            datetime_of(answer.purge_time) if answer.HasField("purge_time") else None,
        )


def _planned(message: sv.PlannedBackup) -> PlannedBackup:
    return PlannedBackup(backup_of(message.backup), message.goes, tuple(message.reasons), message.damaged)


def policy_to_wire(policy: RetentionPolicy) -> pb.RetentionPolicy:
    """A policy as a message. Raises BadRequestError for values that it cannot hold."""
    counts: dict[str, Any] = {name: getattr(policy, name) for name in COUNTS}
    for name, count in counts.items():
        if not 0 <= count <= COUNT_MAX:
            raise BadRequestError(
                f"{name} must be from 0 to {COUNT_MAX:,}, not {count}.", facts={"field": name}
            )
    return pb.RetentionPolicy(
        keep_within=duration_to_wire("keep_within", policy.keep_within) if policy.keep_within else None,
        keep_tags=[
            pb.RetentionTag(
                key=text("keep_tags", tag.key),
                value=None if tag.value is None else text("keep_tags", tag.value),
            )
            for tag in policy.keep_tags
        ],
        time_zone=text("time_zone", policy.time_zone),
        **counts,
    )
