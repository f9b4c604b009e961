"""Values as JSON objects. Sizes are exact, times are RFC 3339 in UTC; what is not set is left out of entries.

A name that is UTF-8 stands as it is. One that is not stands escaped, and exactly in a field `…_base64` beside it.
"""

import base64
import datetime
from dataclasses import fields
from typing import Any

from staddle import (
    Backup,
    Change,
    Dataset,
    Drill,
    Entry,
    EntryType,
    Event,
    Expectation,
    Hold,
    PathProblem,
    PlannedBackup,
    Retention,
    RetentionPolicy,
    Run,
    SecondSite,
    ServerInfo,
    StoreLock,
    Trouble,
)
from staddle._types.entries import path_to_bytes
from staddle.command.text import escaped, is_utf8, kind, rfc3339, rfc3339_of

Record = dict[str, Any]


def name(field: str, value: bytes | str) -> Record:
    """A name under `field`, and exactly beside it if it is not UTF-8."""
    raw = path_to_bytes(value)
    if is_utf8(raw):
        return {field: raw.decode()}
    return {field: escaped(raw), f"{field}_base64": base64.b64encode(raw).decode()}


def of_backup(backup: Backup) -> Record:
    """A backup."""
    changes = backup.changes
    return {
        "id": backup.id,
        "dataset": backup.dataset,
        "number": backup.number,
        "kind": kind(backup),
        "base_backup_id": backup.base_backup_id or None,
        "begin_time": rfc3339(backup.begin_time_ns),
        "commit_time": rfc3339_of(backup.commit_time),
        "entry_count": backup.entry_count,
        "data_bytes": backup.data_bytes,
        "stored_bytes": backup.stored_bytes,
        "changes": {
            "added": changes.added,
            "removed": changes.removed,
            "content_changed": changes.content_changed,
            "metadata_changed": changes.metadata_changed,
            "metadata_kept": changes.metadata_kept,
        },
        "tags": dict(backup.tags),
        "host": backup.host,
        "root": backup.root,
        "principal": backup.principal,
        "begun_by": backup.begun_by,
        "written_by": list(backup.written_by),
        "more_writers": backup.more_writers,
        "scope": backup.scope.value,
        "manifest_digest": backup.manifest_digest,
        "delete_time": _time(backup.delete_time),
        "purge_time": _time(backup.purge_time),
        "retain_until_time": _time(backup.retain_until_time),
        "hold": of_hold(backup.hold),
        "dataset_hold": of_hold(backup.dataset_hold),
    }


def _time(moment: datetime.datetime | None) -> str | None:
    return None if moment is None else rfc3339_of(moment)


def of_hold(hold: Hold | None) -> Record | None:
    """A legal hold."""
    return None if hold is None else {"reason": hold.reason, "time": rfc3339_of(hold.time)}


def of_policy(policy: RetentionPolicy) -> Record:
    """A retention policy: only the rules that there are, and the time zone."""
    record = {each.name: getattr(policy, each.name) for each in fields(policy)}
    record["keep_within_s"] = int(record.pop("keep_within").total_seconds())
    record["keep_tags"] = [{"key": tag.key, "value": tag.value} for tag in policy.keep_tags]
    return {name: value for name, value in record.items() if value}


def of_retention(retention: Retention) -> Record:
    """What keeps the backups of a dataset."""
    return {
        "policy": None if retention.policy is None else of_policy(retention.policy),
        "minimum_s": int(retention.minimum.total_seconds()),
        "hold": of_hold(retention.hold),
    }


def of_planned(planned: PlannedBackup) -> Record:
    """What a plan does to a backup."""
    return {
        "goes": planned.goes,
        "reasons": list(planned.reasons),
        "damaged": planned.damaged,
        "backup": of_backup(planned.backup),
    }


def of_dataset(dataset: Dataset) -> Record:
    """A dataset, with its newest backup."""
    newest = dataset.newest_backup
    return {
        "name": dataset.name,
        "create_time": rfc3339_of(dataset.create_time),
        "backup_count": dataset.backup_count,
        "host": dataset.host,
        "root": dataset.root,
        "newest_backup": None if newest is None else of_backup(newest),
        "drill": None if dataset.drill is None else _of_drill(dataset.drill),
    }


def _of_drill(drill: Drill) -> Record:
    proven = drill.proven_time
    return {
        "end_time": rfc3339_of(drill.end_time),
        "fault": drill.fault,
        "proven_time": None if proven is None else rfc3339_of(proven),
        "proven_number": drill.proven_number,
    }


def of_entry(entry: Entry) -> Record:
    """An entry; only `path` and `type` are always there, and of a file its size and content id."""
    record: Record = {**name("path", entry.path_bytes), "type": entry.type.value}
    if entry.type is EntryType.FILE:
        record |= {"size_bytes": entry.size_bytes, "content_id": entry.content_id}
    if entry.type is EntryType.SYMLINK:
        record |= name("link_target", entry.link_target_bytes)
    set_ones = {
        "mode": None if entry.mode is None else f"{entry.mode:04o}",
        "uid": entry.uid,
        "gid": entry.gid,
        "owner": entry.owner or None,
        "group": entry.group or None,
        "mtime": None if entry.mtime_ns is None else rfc3339(entry.mtime_ns),
        "mtime_ns": entry.mtime_ns,
        "ctime_ns": entry.ctime_ns,
        "inode": entry.inode,
        "device": None if entry.device is None else list(entry.device),
        "link_group": entry.link_group.hex() or None,
        "xattrs": [_of_xattr(xattr.name, xattr.value) for xattr in entry.xattrs] or None,
        "holes": [[hole.offset_bytes, hole.length_bytes] for hole in entry.holes] or None,
        "file_digest": entry.file_digest or None,
        "digest_origin": entry.digest_origin.value if entry.digest_origin else None,
        "read_again": entry.read_again or None,
        "implied": entry.implied or None,
        "incomplete": entry.incomplete or None,
    }
    return record | {key: value for key, value in set_ones.items() if value is not None}


def _of_xattr(xattr_name: bytes, value: bytes) -> Record:
    return {**name("name", xattr_name), "value_base64": base64.b64encode(value).decode()}


def of_change(change: Change) -> Record:
    """A difference at one path."""
    return {
        "change": change.type.value,
        **name("path", change.path_bytes),
        "before": None if change.before is None else of_entry(change.before),
        "after": None if change.after is None else of_entry(change.after),
        **({"uncertain": True} if change.uncertain else {}),
    }


def of_note(note: PathProblem) -> dict[str, object]:
    """A path that a backup leaves out by intention."""
    record = of_problem(note)
    return {"note": record.pop("problem"), **record}


def of_problem(problem: PathProblem) -> Record:
    """A path with which something went wrong."""
    return {"problem": problem.kind.value, **name("path", problem.path_bytes), "message": problem.message}


def of_run(run: Run) -> Record:
    """An attempt to back up."""
    return {
        "id": run.id,
        "dataset": run.dataset,
        "outcome": run.outcome.value,
        "reason": run.reason,
        "principal": run.principal,
        "host": run.host,
        "begin_time": rfc3339_of(run.begin_time),
        "end_time": _time(run.end_time),
        "entry_count": run.entry_count,
        "data_bytes": run.data_bytes,
        "stored_bytes": run.stored_bytes,
        "problem_count": run.problem_count,
        "backup_id": run.backup_id or None,
        "reported": run.reported,
    }


def of_expectation(expectation: Expectation) -> Record:
    """How often a dataset must have a new backup."""
    return {
        "dataset": expectation.dataset,
        "every_s": int(expectation.every.total_seconds()),
        "grace_s": int(expectation.grace.total_seconds()),
        "mute_until": _time(expectation.mute_until),
        "set_time": rfc3339_of(expectation.set_time),
        "success_time": _time(expectation.success_time),
        "late_time": rfc3339_of(expectation.late_time),
    }


def of_trouble(trouble: Trouble) -> Record:
    """A dataset that needs somebody."""
    return {
        "dataset": trouble.dataset,
        "late_since": _time(trouble.late_since),
        "success_time": _time(trouble.success_time),
        "expectation": None if trouble.expectation is None else of_expectation(trouble.expectation),
        "run": None if trouble.run is None else of_run(trouble.run),
    }


def of_event(event: Event) -> Record:
    """What the service found to be wrong."""
    return {
        "id": event.id,
        "kind": event.kind,
        "severity": event.severity.value,
        "dataset": event.dataset or None,
        "of_service": event.of_service,
        "server": event.server or None,
        "text": event.text,
        "advice": event.advice or None,
        "since_time": rfc3339_of(event.since_time),
        "begin_time": rfc3339_of(event.begin_time),
        "over_time": _time(event.over_time),
    }


def of_info(info: ServerInfo) -> Record:
    """A server. The seed of the chunker stays out: it is kept like a credential."""
    chunker, condition = info.chunker, info.condition
    return {
        "version": info.version,
        "tenant": info.tenant,
        "principal": info.principal,
        "role": info.role,
        "server_time": rfc3339_of(info.server_time),
        "chunker": {
            "min_bytes": chunker.min_bytes,
            "avg_bytes": chunker.avg_bytes,
            "max_bytes": chunker.max_bytes,
            "normalization": chunker.normalization,
            "fixed_bytes": chunker.fixed_bytes,
        },
        "limits": dict(info.limits),
        "condition": {
            "takes_backups": condition.takes_backups,
            "clock_in_doubt": condition.clock_in_doubt,
            "clock_jump_s": condition.clock_jump.total_seconds(),
            "clock_wait_s": condition.clock_wait.total_seconds(),
            "damaged_packs": condition.damaged_packs,
            "damaged_segments": condition.damaged_segments,
            "damaged_footers": condition.damaged_footers,
            "warnings": list(condition.warnings),
            "missing_objects": condition.missing_objects,
            "hidden_objects": condition.hidden_objects,
            "lock": _of_lock(condition.lock),
            "second_site": _of_second_site(condition.second_site),
        },
        "servers": [
            {
                "endpoint": each.endpoint,
                "state": each.state,
                "version": each.version,
                "start_time": rfc3339_of(each.start_time),
            }
            for each in info.servers
        ],
    }


def _of_lock(lock: StoreLock | None) -> Record | None:
    if lock is None:
        return None
    return {
        "promise_s": lock.promise.total_seconds(),
        "packs_until": lock.packs_until and rfc3339_of(lock.packs_until),
        "records_until": lock.records_until and rfc3339_of(lock.records_until),
        "late": lock.late,
    }


def _of_second_site(site: SecondSite | None) -> Record | None:
    if site is None:
        return None
    return {
        "lag_s": None if site.lag is None else site.lag.total_seconds(),
        "bytes_behind": site.bytes_behind,
        "late": site.late,
    }
