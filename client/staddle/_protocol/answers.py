"""What a server answers, looked at in one place before anything is made of it: how much it is, and whether it is an answer to what was asked.

A server is not believed. A few bytes can stand for a large object, so what a message repeats is counted before it is decoded. An answer that is
about another upload or backup than the request, or counts what cannot be counted, is ProtocolError. Each call of the service has a
rule; a test walks them. The parts of a Restore stream are looked at in `staddle._protocol.restore_reader`, and what a list says over its pages in `staddle._transport.pages`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from google.protobuf.message import DecodeError, Message

from staddle._base.figures import counted
from staddle._errors import ProtocolError
from staddle._protocol.convert import (
    backup_of,
    datetime_of,
    hold_of,
    open_upload_of,
    path_of,
    retention_of,
    server_info_of,
)
from staddle._protocol.convert_runs import event_of, expectation_of, run_of, trouble_of
from staddle._protocol.encoding import field, tag
from staddle._protocol.entry_rules import check_entry
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

PAGE_MAX: Final = 1_000
"""Items of a page, unless the protocol allows more."""
ENTRY_PAGE_MAX: Final = 10_000
LISTED_MAX: Final = 4_096
"""Digests and damaged entries in one answer about an upload."""
PARTS_MAX: Final = 65_536
OTHER_FIELDS_MAX: Final = 1_024
"""Fields of a message beside those of its list, also such as only later versions know."""
FEW_FIELDS: Final = 16
COUNT_MAX: Final = 2**62
"""Nothing that is counted comes near to it, and what is added to it still fits."""
FILE_BYTES_MAX: Final = 2**62
TOKEN_CHARACTERS_MAX: Final = 64 * 1024
ID_DIGITS: Final = 32
_HEX_DIGITS: Final = frozenset("0123456789abcdef")
Check = Callable[[Any, Any], None]
"""Takes request and answer. Raises ProtocolError with what came."""


class Rule(NamedTuple):
    """The expected form of a method's answers."""

    type: type[Message]
    check: Check
    items_max: int = 0
    """How many items its lists may have."""


def decoded(method: str, data: bytes) -> Any:
    """The message of an answer. Raises ProtocolError for invalid bytes, and for more items than allowed."""
    rule = RULES[method]
    fields_max = rule.items_max + OTHER_FIELDS_MAX
    # Messages of a few large fields are counted field by field, others mostly enough by bytes: both are fast.
    at = _behind(data, 0, FEW_FIELDS)
    if at < len(data) and sum(data.count(each, at) for each in _TAGS[method]) > fields_max:
        at = _behind(data, at, fields_max - FEW_FIELDS)
        if at < len(data):
            raise ProtocolError(f"a message of over {counted(fields_max, 'field')}")
    try:
        return rule.type.FromString(data)
    except DecodeError as error:
        raise ProtocolError(f"{len(data)} bytes that are no {rule.type.DESCRIPTOR.name}") from error


def check(method: str, request: Message | bytes, answer: Any, *, count: int = 0) -> None:
    """Raises ProtocolError, with what came, for an answer that is none to this request. `count`: what an encoded request has of items."""
    if isinstance(request, bytes):
        _ENCODED[method](count, answer)
    else:
        RULES[method].check(request, answer)


def check_id(what: str, found: str) -> None:
    """Raises ProtocolError for an invalid id of an upload or backup."""
    if len(found) != ID_DIGITS or not _HEX_DIGITS.issuperset(found):
        raise ProtocolError(f"{what} {_shown(found)}, which is not one: 32 hexadecimal digits")


def check_backup(dataset: str, backup: pb.Backup) -> None:
    """Raises ProtocolError for an invalid backup, or one of another dataset."""
    check_id("the backup id", backup.id)
    _same("a backup of the dataset", backup.dataset, dataset)
    _counts(backup.entry_count, backup.data_bytes, backup.number)
    backup_of(backup)


def check_picked(dataset: str, selector: pb.BackupSelector, backup: pb.Backup) -> None:
    """Raises ProtocolError for another backup than was asked for."""
    check_backup(dataset, backup)
    if selector.backup.lower() != "latest":
        _begins(backup.id, selector.backup)


def _begins(found: str, asked: str) -> None:
    if not found.startswith(asked.lower()):
        raise ProtocolError(f"the backup {found}, asked for was {_shown(asked)}")


def check_made(response: sv.BackupResponse, upload: pb.Upload) -> None:
    """Raises ProtocolError for the answer to a Backup stream of another upload than this one."""
    if response.HasField("upload") and response.upload.id != upload.id:
        raise ProtocolError(
            f"The server answered for the upload {response.upload.id}, and not for {upload.id}."
        )
    check_committed(response.backup if response.HasField("backup") else None, upload)


def check_committed(backup: pb.Backup | None, upload: pb.Upload) -> None:
    """Raises ProtocolError for what is not the backup that an upload has become."""
    if backup is None:
        raise ProtocolError("The server ended the upload with success and without a backup.")
    if backup.dataset != upload.dataset:
        raise ProtocolError(
            f"The server answered with a backup of {_shown(backup.dataset)}, and not of {_shown(upload.dataset)}."
        )


def _behind(data: bytes, at: int, fields: int) -> int:
    """Where so many fields end that begin at `at`, or the end of the data."""
    for _ in range(fields):
        if at >= len(data):
            break
        at = field(data, at)[-1]
    return at


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:80] + "…")


def _same(what: str, found: str, asked: str) -> None:
    if found != asked:
        raise ProtocolError(f"{what} {_shown(found)}, asked for was {_shown(asked)}")


def _counts(*counts: int) -> None:
    for count in counts:
        if count > COUNT_MAX:
            raise ProtocolError(f"a count of {count}")


def _at_most(what: str, found: int, most: int) -> None:
    if found > most:
        raise ProtocolError(f"{found:,} {what}, over {most:,}")


def _positions(what: str, found: Sequence[int], count: int) -> None:
    """Positions in a list of the request, ascending."""
    _at_most(what, len(found), count)
    if any(map(int.__ge__, found, found[1:])) or (found and found[-1] >= count):
        raise ProtocolError(f"{what} that are not ascending positions among {count}")


def _entries(entries: Sequence[pb.Entry]) -> None:
    for entry in entries:
        check_entry(path_of(entry), entry)


def _anything(_request: Message, _answer: Message) -> None:
    """The stream of Restore is looked at part by part."""


# --- uploads


def _upload(upload: pb.Upload, *, dataset: str = "", upload_id: str = "") -> None:
    check_id("the upload id", upload.id)
    if upload_id:
        _same("the upload", upload.id, upload_id.lower())
    if dataset:
        _same("an upload of the dataset", upload.dataset, dataset)
    if upload.state not in pb.UploadState.values() or upload.state == pb.UPLOAD_STATE_UNSPECIFIED:
        raise ProtocolError(f"an upload in the unknown state {upload.state}")
    if not upload.epoch:
        raise ProtocolError("an upload without an epoch")
    for named in filter(None, (upload.base_backup_id, upload.backup_id)):
        check_id("the backup id", named)
    _counts(upload.epoch)
    check_durable(upload.durable)


def check_durable(durable: pb.DurablePoint) -> None:
    """Raises ProtocolError for a durable point that no upload can have."""
    _counts(
        durable.position,
        durable.entry_count,
        durable.data_bytes,
        durable.open_offset_bytes,
        durable.put_entries_number,
    )
    _entries([durable.last_entry, durable.open_entry])


def _begin_upload(request: sv.BeginUploadRequest, answer: sv.BeginUploadResponse) -> None:
    _upload(answer.upload, dataset=request.dataset)
    if answer.upload.scope != (request.scope or pb.UPLOAD_SCOPE_WHOLE):
        raise ProtocolError(f"an upload of the scope {answer.upload.scope}, asked for was {request.scope}")
    _damaged_base(answer)


def _damaged_base(answer: sv.BeginUploadResponse | sv.GetUploadResponse) -> None:
    _at_most("damaged entries", len(answer.damaged_base_entries), LISTED_MAX)
    _entries(answer.damaged_base_entries)


def _get_upload(request: sv.GetUploadRequest, answer: sv.GetUploadResponse) -> None:
    # One that was taken over is found by the request id of that, too, and has the one that began it.
    _upload(answer.upload, upload_id=request.upload_id)
    _at_most("missing digests", len(answer.missing_digests), LISTED_MAX)
    _damaged_base(answer)
    _token(answer.next_page_token)


def _this_upload(request: Any, answer: Any) -> None:
    _upload(answer.upload, upload_id=request.upload_id)


def _checkpoint(_: sv.CheckpointUploadRequest, answer: sv.CheckpointUploadResponse) -> None:
    check_durable(answer.durable)


def _renew(_: sv.RenewUploadRequest, answer: sv.RenewUploadResponse) -> None:
    datetime_of(answer.lease_expire_time)
    datetime_of(answer.expire_time)


def _commit(_: sv.CommitUploadRequest, answer: sv.CommitUploadResponse) -> None:
    check_backup(answer.backup.dataset, answer.backup)


def _backup(_: sv.BackupRequest, answer: sv.BackupResponse) -> None:
    if answer.HasField("upload"):
        _upload(answer.upload)
    if answer.HasField("backup"):
        check_backup(answer.backup.dataset, answer.backup)


def _find_missing(request: sv.FindMissingChunksRequest, answer: sv.FindMissingChunksResponse) -> None:
    _positions("missing chunks", answer.missing, len(request.digests))


def _put_chunks(count: int, answer: sv.PutChunksResponse) -> None:
    _at_most("stored chunks", answer.stored, count)


def _put_entries(count: int, answer: sv.PutEntriesResponse) -> None:
    _positions("incomplete entries", answer.incomplete, count)


# --- looking


def _token(token: str) -> None:
    _at_most("characters of a page token", len(token), TOKEN_CHARACTERS_MAX)


def _page(items: str, most: int, each: Callable[[Any, Any], None]) -> Check:
    """A page of a list: no more than was asked for, each as `each` wants it."""

    def look(request: Any, answer: Any) -> None:
        found = getattr(answer, items)
        _at_most(items, len(found), min(request.page_size or most, most))
        _token(answer.next_page_token)
        for item in found:
            each(request, item)

    return look


def _dataset(_: sv.ListDatasetsRequest, dataset: pb.Dataset) -> None:
    datetime_of(dataset.create_time)
    if dataset.HasField("newest_backup"):
        check_backup(dataset.name, dataset.newest_backup)


def _listed_backup(request: sv.ListBackupsRequest, backup: pb.Backup) -> None:
    check_backup(request.dataset, backup)
    if request.host:
        _same("a backup from the host", backup.host, request.host)
    for asked in request.tags:
        found = backup.tags.get(asked.key)
        if found is None or (asked.HasField("value") and found != asked.value):
            raise ProtocolError(f"a backup without the tag {_shown(asked.key)}, which was asked for")


def _listed_upload(request: sv.ListUploadsRequest, upload: pb.Upload) -> None:
    _upload(upload, dataset=request.dataset)
    open_upload_of(upload)


def _listed_entry(_: sv.ListEntriesRequest, entry: pb.Entry) -> None:
    _entries([entry])


def _list_entries(request: sv.ListEntriesRequest, answer: sv.ListEntriesResponse) -> None:
    """A page of entries, or of columns, each of which is looked at where it becomes entries."""
    _page("entries", ENTRY_PAGE_MAX, _listed_entry)(request, answer)
    count = sum(len(columns.types) for columns in answer.columns)
    _at_most("entries in columns", count, min(request.page_size or ENTRY_PAGE_MAX, ENTRY_PAGE_MAX))
    if answer.entries if request.columns else answer.columns:
        raise ProtocolError("entries in another form than was requested")


def _change(_: sv.ListChangesRequest, change: sv.Change) -> None:
    if not (change.HasField("before") or change.HasField("after")):
        raise ProtocolError("a change of nothing")
    _entries([change.before, change.after])


def _planned(request: sv.PlanRetentionRequest, planned: sv.PlannedBackup) -> None:
    check_backup(request.dataset, planned.backup)


def _get_backup(request: sv.GetBackupRequest, answer: sv.GetBackupResponse) -> None:
    check_picked(request.dataset, request.backup, answer.backup)


def _read_range(request: sv.ReadRangeRequest, answer: sv.ReadRangeResponse) -> None:
    check_id("the backup id", answer.backup_id)
    _at_most("bytes", len(answer.data), request.length_bytes)
    _at_most("bytes as a file's size", answer.file_size_bytes, FILE_BYTES_MAX)
    _at_most("bytes of a content id", len(answer.content_id), 32)


# --- retention


def _named_backup(request: Any, answer: Any) -> None:
    """An answer about the backup whose id, or the first digits of it, the request has."""
    check_backup(request.dataset, answer.backup)
    _begins(answer.backup.id, request.backup)


def _hold(request: Any, answer: Any) -> None:
    if request.backup:
        _named_backup(request, answer)


def _set_hold(request: sv.SetHoldRequest, answer: sv.SetHoldResponse) -> None:
    _hold(request, answer)
    _same("a hold with the reason", answer.hold.reason, request.reason)
    hold_of(answer.hold)


def _retention(_: Any, answer: Any) -> None:
    retention_of(answer.retention)


def _apply(_: sv.ApplyRetentionRequest, answer: sv.ApplyRetentionResponse) -> None:
    _at_most("deleted backups", len(answer.deleted_backup_ids), PAGE_MAX)
    for found in answer.deleted_backup_ids:
        check_id("the backup id", found)
    datetime_of(answer.purge_time)


# --- runs


def _run(run: pb.Run, *, dataset: str) -> None:
    check_id("the run id", run.id)
    if dataset:
        _same("a run of the dataset", run.dataset, dataset)
    if run.backup_id:
        check_id("the backup id", run.backup_id)
    _counts(run.entry_count, run.data_bytes, run.stored_bytes, run.problem_count)
    run_of(run)


def _listed_run(request: sv.ListRunsRequest, run: pb.Run) -> None:
    _run(run, dataset=request.dataset)
    if request.outcomes and run.outcome not in request.outcomes:
        raise ProtocolError(f"a run with the outcome {run.outcome}, which was not asked for")


def _report_run(request: sv.ReportRunRequest, answer: sv.ReportRunResponse) -> None:
    _run(answer.run, dataset=request.dataset)


def _set_expectation(request: sv.SetExpectationRequest, answer: sv.SetExpectationResponse) -> None:
    _same("an expectation of the dataset", answer.expectation.dataset, request.dataset)
    expectation_of(answer.expectation)


def _listed_expectation(_: sv.ListExpectationsRequest, expectation: pb.Expectation) -> None:
    expectation_of(expectation)


def _get_status(request: sv.GetStatusRequest, answer: sv.GetStatusResponse) -> None:
    _page("troubles", PAGE_MAX, _trouble)(request, answer)
    _counts(answer.dataset_count, answer.expected_count, answer.muted_count)
    datetime_of(answer.oldest_success_time)


def _trouble(_: sv.GetStatusRequest, trouble: pb.Trouble) -> None:
    if trouble.HasField("run"):
        _run(trouble.run, dataset=trouble.dataset)
    if trouble_of(trouble).run is None and not trouble.HasField("late_since_time"):
        raise ProtocolError(
            f"the dataset {_shown(trouble.dataset)} as one that needs somebody, without a reason"
        )


def _listed_event(request: sv.ListEventsRequest, event: pb.Event) -> None:
    check_id("the event id", event.id)
    if request.dataset:
        _same("an event of the dataset", event.dataset, request.dataset)
    if request.kinds and event.kind not in request.kinds:
        raise ProtocolError(f"an event of the kind {_shown(event.kind)}, which was not asked for")
    if request.open_only and event.HasField("over_time"):
        raise ProtocolError("an event that is over, asked for were open ones")
    event_of(event)


def _info(_: sv.GetServerInfoRequest, answer: sv.GetServerInfoResponse) -> None:
    _at_most("servers", len(answer.servers), PAGE_MAX)
    _at_most("warnings", len(answer.condition.warnings), PAGE_MAX)
    server_info_of(answer)


RULES: Final = {
    "Backup": Rule(sv.BackupResponse, _backup),
    "BeginUpload": Rule(sv.BeginUploadResponse, _begin_upload, LISTED_MAX),
    "GetUpload": Rule(sv.GetUploadResponse, _get_upload, 2 * LISTED_MAX),
    "ResumeUpload": Rule(sv.ResumeUploadResponse, _this_upload),
    "CheckpointUpload": Rule(sv.CheckpointUploadResponse, _checkpoint),
    "RenewUpload": Rule(sv.RenewUploadResponse, _renew),
    "CommitUpload": Rule(sv.CommitUploadResponse, _commit),
    "AbortUpload": Rule(sv.AbortUploadResponse, _this_upload),
    "ListUploads": Rule(sv.ListUploadsResponse, _page("uploads", PAGE_MAX, _listed_upload), PAGE_MAX),
    "FindMissingChunks": Rule(sv.FindMissingChunksResponse, _find_missing, LISTED_MAX),
    "PutChunks": Rule(sv.PutChunksResponse, lambda request, answer: _put_chunks(len(request.chunks), answer)),
    "PutEntries": Rule(
        sv.PutEntriesResponse,
        lambda request, answer: _put_entries(len(request.changes), answer),
        LISTED_MAX,
    ),
    "Restore": Rule(sv.RestoreResponse, _anything, PARTS_MAX),
    "ReadRange": Rule(sv.ReadRangeResponse, _read_range),
    "ListDatasets": Rule(sv.ListDatasetsResponse, _page("datasets", PAGE_MAX, _dataset), PAGE_MAX),
    "ListBackups": Rule(sv.ListBackupsResponse, _page("backups", PAGE_MAX, _listed_backup), PAGE_MAX),
    "GetBackup": Rule(sv.GetBackupResponse, _get_backup),
    "ListEntries": Rule(sv.ListEntriesResponse, _list_entries, ENTRY_PAGE_MAX),
    "ListChanges": Rule(sv.ListChangesResponse, _page("changes", ENTRY_PAGE_MAX, _change), ENTRY_PAGE_MAX),
    "DeleteBackup": Rule(sv.DeleteBackupResponse, _named_backup),
    "UndeleteBackup": Rule(sv.UndeleteBackupResponse, _named_backup),
    "SetHold": Rule(sv.SetHoldResponse, _set_hold),
    "ReleaseHold": Rule(sv.ReleaseHoldResponse, _hold),
    "RetainBackup": Rule(sv.RetainBackupResponse, _named_backup),
    "GetRetention": Rule(sv.GetRetentionResponse, _retention),
    "SetRetention": Rule(sv.SetRetentionResponse, _retention),
    "PlanRetention": Rule(sv.PlanRetentionResponse, _page("backups", PAGE_MAX, _planned), PAGE_MAX),
    "ApplyRetention": Rule(sv.ApplyRetentionResponse, _apply, PAGE_MAX),
    "ListRuns": Rule(sv.ListRunsResponse, _page("runs", PAGE_MAX, _listed_run), PAGE_MAX),
    "ReportRun": Rule(sv.ReportRunResponse, _report_run),
    "SetExpectation": Rule(sv.SetExpectationResponse, _set_expectation),
    "DeleteExpectation": Rule(sv.DeleteExpectationResponse, _anything),
    "ListExpectations": Rule(
        sv.ListExpectationsResponse, _page("expectations", PAGE_MAX, _listed_expectation), PAGE_MAX
    ),
    "GetStatus": Rule(sv.GetStatusResponse, _get_status, PAGE_MAX),
    "ListEvents": Rule(sv.ListEventsResponse, _page("events", PAGE_MAX, _listed_event), PAGE_MAX),
    "GetServerInfo": Rule(sv.GetServerInfoResponse, _info, PAGE_MAX),
}
_TAGS: Final = {
    method: [
        bytes([tag(rule.type, repeated.name)[0] | longer])
        for repeated in rule.type.DESCRIPTOR.fields
        if repeated.is_repeated
        for longer in (0, 0x80)
    ]
    for method, rule in RULES.items()
}
"""With which byte an item of a list begins: as it is written, and in the longer ways that are allowed, too."""
_ENCODED: Final[dict[str, Callable[[int, Any], None]]] = {
    "PutChunks": _put_chunks,
    "PutEntries": _put_entries,
}
