"""The table of all REST operations: what is served, and what OpenAPI and the page for people describe."""

from __future__ import annotations

from typing import Final

from staddle_server.api.http.rest import kinds
from staddle_server.api.http.rest.calls import Calls
from staddle_server.api.http.rest.operations import PATH, Operation, RestParameter
from staddle_server.base.limits import PAGE_SIZE_MAX, SHORT_PAGE_SIZE_MAX

DATASETS: Final = "/v1/datasets"
ONE: Final = f"{DATASETS}/{{dataset}}"
BACKUPS: Final = f"{ONE}/backups"
BACKUP: Final = f"{BACKUPS}/{{backup}}"

DATASET: Final = RestParameter(
    "dataset", kinds.DATASET, 'The dataset. "/" in its name is written %2F.', where=PATH
)
READ: Final = RestParameter(
    "backup",
    kinds.SELECTOR,
    "The backup: its id or the first digits of it, `latest`, or `at=TIME` for the newest that began at that time or "
    "earlier.",
    where=PATH,
)
CHANGED: Final = RestParameter(
    "backup", kinds.BACKUP, "The backup: its id, or the first digits of it.", where=PATH
)


def pages(most: int) -> tuple[RestParameter, ...]:
    """Return the parameters of a list that comes in pages."""
    return (
        RestParameter(
            "pageSize", kinds.number(most), "How many at most; 0 or nothing: as many as is useful."
        ),
        RestParameter("pageToken", kinds.PAGE_TOKEN, "The `nextPageToken` of the page before."),
    )


SHORT_PAGES: Final = pages(SHORT_PAGE_SIZE_MAX)
LONG_PAGES: Final = pages(PAGE_SIZE_MAX)


def operations(calls: Calls) -> list[Operation]:
    """Return the table."""
    return _looking(calls)


def _looking(calls: Calls) -> list[Operation]:
    return [
        calls.operation("GET", DATASETS, "ListDatasets", "The datasets, by name.", SHORT_PAGES),
        calls.operation("GET", BACKUP, "GetBackup", "One backup.", (DATASET, READ), errors=("not_found",)),
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
            errors=("not_found", "data_loss"),
        ),
    ]
