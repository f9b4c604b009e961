"""The table of all REST operations: what is served, and what OpenAPI and the page for people describe."""

from __future__ import annotations

from typing import Final, NamedTuple

from staddle.v1 import resources_pb2 as pb

from staddle_server.api.archive_calls import ArchiveCalls
from staddle_server.api.http.connect import JSON
from staddle_server.api.http.rest import kinds
from staddle_server.api.http.rest.archives import archive_operations
from staddle_server.api.http.rest.calls import Calls
from staddle_server.api.http.rest.datasets import dataset_of
from staddle_server.api.http.rest.files import FileDownloads
from staddle_server.api.http.rest.operations import PATH, Answer, Operation, RestParameter
from staddle_server.base.limits import PAGE_SIZE_MAX, SHORT_PAGE_SIZE_MAX
from staddle_server.base.types import TokenRole
from staddle_server.catalog import Catalog
from staddle_server.restore.browse import Reads
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.events.kinds import KINDS

ANY_TYPE: Final = "*/*"
ONE: Final = "/v1/datasets/{dataset}"
BACKUPS: Final = f"{ONE}/backups"
BACKUP: Final = f"{BACKUPS}/{{backup}}"

DATASET: Final = RestParameter(
    "dataset", kinds.DATASET, 'The dataset. "/" in its name is written %2F.', where=PATH
)
READ: Final = RestParameter(
    "backup",
    kinds.SELECTOR,
    "The backup: its id or the first digits of it, `latest`, or `at=TIME` for the newest that began at that "
    "time or earlier.",
    where=PATH,
)
CHANGED: Final = RestParameter(
    "backup", kinds.BACKUP, "The backup: its id, or the first digits of it.", where=PATH
)


class RestParts(NamedTuple):
    """What operations need that are not calls of the service."""

    catalog: Catalog
    tenants: Tenants
    reads: Reads
    archives: ArchiveCalls


def _pages(most: int) -> tuple[RestParameter, ...]:
    return (
        RestParameter("pageSize", kinds.number(most), "How many at most; a page may be shorter."),
        RestParameter("pageToken", kinds.PAGE_TOKEN, "The `nextPageToken` of the page before."),
    )


PAGES: Final = _pages(SHORT_PAGE_SIZE_MAX)
LONG_PAGES: Final = _pages(PAGE_SIZE_MAX)
NOT_FOUND: Final = ("not_found",)
DAMAGED: Final = ("not_found", "data_loss")
CHANGES: Final = ("not_found", "failed_precondition")


def operations(calls: Calls, parts: RestParts) -> list[Operation]:
    """Return the table."""
    sections = {
        "Datasets and backups": [*_datasets(calls, parts), *_backups(calls)],
        "Files": _files(parts),
        "Archives": archive_operations(parts.archives, BACKUPS, BACKUP, DATASET, READ),
        "Deletion and holds": [*_deletion(calls), *_holds(calls)],
        "Retention": _retention(calls),
        "Runs, expectations and events": [*_runs(calls), *_expectations(calls), *_events(calls)],
        "The server": _server(calls),
    }
    return [each._replace(tag=tag) for tag, rows in sections.items() for each in rows]


def _datasets(calls: Calls, parts: RestParts) -> list[Operation]:
    dataset = Operation(
        "GET",
        ONE,
        "GetDataset",
        TokenRole.READER,
        "One dataset.",
        dataset_of(parts.catalog),
        (Answer(200, "The dataset.", pb.Dataset),),
        (DATASET,),
        errors=NOT_FOUND,
    )
    backups = calls.operation(
        "GET",
        BACKUPS,
        "ListBackups",
        "The backups of a dataset, newest first.",
        (
            DATASET,
            RestParameter(
                "tag",
                kinds.TAG,
                "With this tag: `KEY=VALUE`, or `KEY` for any value.",
                "tags",
                many=True,
            ),
            RestParameter("host", kinds.HOST, "From this host."),
            RestParameter("from", kinds.TIME, "Begun at this time or later.", "sinceTime"),
            RestParameter("to", kinds.TIME, "Begun before this time.", "untilTime"),
            RestParameter("held", kinds.FLAG, "Only those with a legal hold of their own.", "heldOnly"),
            RestParameter("showDeleted", kinds.FLAG, "Also those that can be undeleted."),
            *PAGES,
        ),
        errors=NOT_FOUND,
    )
    every = calls.operation("GET", "/v1/datasets", "ListDatasets", "The datasets, by name.", PAGES)
    return [every, dataset, backups]


def _backups(calls: Calls) -> list[Operation]:
    return [
        calls.operation("GET", BACKUP, "GetBackup", "One backup.", (DATASET, READ), errors=NOT_FOUND),
        calls.operation(
            "GET",
            f"{BACKUP}/entries",
            "ListEntries",
            "The entries of a directory in a backup, in order.",
            (
                DATASET,
                READ,
                RestParameter("path", kinds.PATH_BYTES, "The directory; nothing: the root."),
                RestParameter("recursive", kinds.FLAG, "All below it instead of one level."),
                *LONG_PAGES,
            ),
            errors=DAMAGED,
            more="A path that is not a directory lists itself. Pages after the first are of the same backup.",
        ),
        calls.operation(
            "GET",
            f"{BACKUP}/changes",
            "ListChanges",
            "What differs between an earlier backup and this one, in order.",
            (
                DATASET,
                READ._replace(field="toBackup"),
                RestParameter("from", kinds.SELECTOR, "The earlier backup.", "fromBackup", required=True),
                *LONG_PAGES,
            ),
            errors=DAMAGED,
        ),
    ]


def _files(parts: RestParts) -> list[Operation]:
    described = {
        "ETag": "The content id of the file.",
        "Accept-Ranges": "`bytes`.",
        "Content-Disposition": "`attachment`, with the name of the file.",
        "Staddle-Backup": "The id of the backup.",
    }
    file = Operation(
        "GET",
        f"{BACKUP}/files/{{path...}}",
        "GetFile",
        TokenRole.READER,
        "The bytes of one file, or a range of them.",
        FileDownloads(parts.reads).get,
        (
            Answer(200, "The file.", media_type=ANY_TYPE, headers=described),
            Answer(206, "The range.", media_type=ANY_TYPE, headers=described),
            Answer(304, "The file has the content of If-None-Match."),
            Answer(412, "The file does not have the content of If-Match.", media_type=JSON),
            Answer(416, "The range is behind the end of the file.", media_type=JSON),
        ),
        (
            DATASET,
            READ,
            RestParameter(
                "path",
                kinds.PATH_BYTES,
                'The file. "/" may be written as it is; other bytes are encoded with %.',
                where=PATH,
            ),
        ),
        errors=(*DAMAGED, "failed_precondition"),
        more="Takes one range (`Range: bytes=…`), If-Range, If-None-Match and If-Match. Several ranges get the whole "
        "file. If damage is found after the answer began, the connection is reset.",
        is_stream=True,
    )
    return [file]


def _deletion(calls: Calls) -> list[Operation]:
    return [
        calls.operation(
            "DELETE",
            BACKUP,
            "DeleteBackup",
            "Hides a backup. Until its `purgeTime` it can be undeleted.",
            (DATASET, CHANGED),
            errors=CHANGES,
        ),
        calls.operation(
            "POST",
            f"{BACKUP}/undelete",
            "UndeleteBackup",
            "Shows a deleted backup again.",
            (DATASET, CHANGED),
            errors=CHANGES,
        ),
    ]


def _holds(calls: Calls) -> list[Operation]:
    return [
        calls.operation(
            "PUT",
            f"{BACKUP}/hold",
            "SetHold",
            "Places a legal hold on a backup: nobody can delete it until the hold is released.",
            (DATASET, CHANGED),
            required=("reason",),
            example={"reason": "case 2026-117"},
            errors=NOT_FOUND,
        ),
        calls.operation(
            "DELETE",
            f"{BACKUP}/hold",
            "ReleaseHold",
            "Releases the hold of a backup.",
            (DATASET, CHANGED),
            errors=NOT_FOUND,
        ),
        calls.operation(
            "PUT",
            f"{ONE}/hold",
            "SetHold",
            "Places a legal hold on a dataset with all its backups.",
            (DATASET,),
            without=("backup",),
            required=("reason",),
            example={"reason": "case 2026-117"},
            errors=NOT_FOUND,
            id_="HoldDataset",
        ),
        calls.operation(
            "DELETE",
            f"{ONE}/hold",
            "ReleaseHold",
            "Releases the hold of a dataset.",
            (DATASET,),
            errors=NOT_FOUND,
            id_="ReleaseDataset",
        ),
    ]


def _retention(calls: Calls) -> list[Operation]:
    return [
        calls.operation(
            "PUT",
            f"{BACKUP}/retention",
            "RetainBackup",
            "Prevents the deletion of a backup before a time. An earlier time changes nothing.",
            (DATASET, CHANGED),
            required=("untilTime",),
            example={"untilTime": "2036-01-01T00:00:00Z"},
            errors=NOT_FOUND,
        ),
        calls.operation(
            "GET",
            f"{ONE}/retention",
            "GetRetention",
            "The policy, minimum retention and hold of a dataset.",
            (DATASET,),
            errors=NOT_FOUND,
        ),
        *_set_retention(calls),
        calls.operation(
            "GET",
            f"{ONE}/retention/plan",
            "PlanRetention",
            "What the policy would delete now, with the reasons, and what that would free.",
            (
                DATASET,
                RestParameter(
                    "withoutFreeBytes", kinds.FLAG, "Leave out what it would free: that takes long."
                ),
                *PAGES,
            ),
            errors=(*CHANGES, "aborted"),
        ),
        calls.operation(
            "POST",
            f"{ONE}/retention/apply",
            "ApplyRetention",
            "Deletes exactly what a plan listed, all or nothing.",
            (DATASET,),
            required=("planToken",),
            example={"planToken": "from the plan"},
            errors=(*CHANGES, "aborted"),
        ),
    ]


def _set_retention(calls: Calls) -> list[Operation]:
    return [
        calls.operation(
            "PATCH",
            f"{ONE}/retention",
            "SetRetention",
            "Sets the policy of a dataset, its minimum retention, or both; what is not given stays.",
            (DATASET,),
            example={"policy": {"keepDaily": 7, "keepMonthly": 12}, "minimum": "604800s"},
            errors=NOT_FOUND,
        ),
        calls.operation(
            "PUT",
            f"{ONE}/retention",
            "SetRetention",
            "Sets the policy of a dataset and its minimum retention; what is not given, or null, is none from now on.",
            (DATASET,),
            otherwise={"policy": {}, "minimum": "0s"},
            example={"policy": {"keepDaily": 7, "keepMonthly": 12}, "minimum": "604800s"},
            errors=NOT_FOUND,
            id_="ReplaceRetention",
        ),
    ]


def _runs(calls: Calls) -> list[Operation]:
    runs = (
        RestParameter("from", kinds.TIME, "Begun at this time or later.", "sinceTime"),
        RestParameter("to", kinds.TIME, "Begun before this time.", "untilTime"),
        RestParameter(
            "outcome",
            kinds.one_of(*pb.RunOutcome.keys()[1:]),
            "With this outcome.",
            "outcomes",
            many=True,
        ),
        *PAGES,
    )
    return [
        calls.operation("GET", "/v1/runs", "ListRuns", "Attempts to back up, the latest first.", runs),
        calls.operation(
            "GET",
            f"{ONE}/runs",
            "ListRuns",
            "Attempts to back up one dataset, the latest first.",
            (DATASET, *runs),
            errors=NOT_FOUND,
            id_="ListRunsOfDataset",
        ),
        calls.operation(
            "POST",
            f"{ONE}/runs",
            "ReportRun",
            "Reports that an attempt to back up failed, and why.",
            (DATASET,),
            required=("reason",),
            example={"reason": "pg_dump: exit status 1", "host": "db1"},
            errors=("not_found", "failed_precondition", "already_exists"),
        ),
    ]


def _expectations(calls: Calls) -> list[Operation]:
    return [
        calls.operation(
            "GET", "/v1/status", "GetStatus", "The datasets that need somebody, the worst first.", PAGES
        ),
        calls.operation(
            "GET", "/v1/expectations", "ListExpectations", "The datasets with an expectation, by name.", PAGES
        ),
        calls.operation(
            "PUT",
            f"{ONE}/expectation",
            "SetExpectation",
            "Sets how often a dataset must have a new backup.",
            (DATASET,),
            required=("every",),
            example={"every": "86400s", "grace": "7200s"},
        ),
        calls.operation(
            "DELETE",
            f"{ONE}/expectation",
            "DeleteExpectation",
            "Removes the expectation of a dataset.",
            (DATASET,),
            errors=NOT_FOUND,
        ),
    ]


def _events(calls: Calls) -> list[Operation]:
    events = (
        RestParameter("dataset", kinds.DATASET, "Only those about this dataset."),
        RestParameter("kind", kinds.one_of(*KINDS), "Of this kind.", "kinds", many=True),
        RestParameter("from", kinds.TIME, "Found at this time or later.", "sinceTime"),
        RestParameter("to", kinds.TIME, "Found before this time.", "untilTime"),
        RestParameter("open", kinds.FLAG, "Only those that are not over.", "openOnly"),
        *PAGES,
    )
    return [
        calls.operation(
            "GET", "/v1/events", "ListEvents", "What the service found to be wrong, the newest first.", events
        )
    ]


def _server(calls: Calls) -> list[Operation]:
    return [
        calls.operation(
            "GET",
            "/v1/uploads",
            "ListUploads",
            "The open uploads: who writes them, and how far they are.",
            (RestParameter("dataset", kinds.text(255), "Only those of this dataset."), *PAGES),
        ),
        calls.operation("GET", "/v1/server", "GetServerInfo", "Version, limits and condition of the server."),
    ]
