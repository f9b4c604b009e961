"""The part of the client that looks at what is stored, and reads single files."""

import datetime
import io
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import Any, Final, cast

from staddle._errors import BackupNotFoundError, BadRequestError
from staddle._protocol.arguments import timestamp_to_wire
from staddle._protocol.columns import entry_of_row, rows_in
from staddle._protocol.convert import (
    backup_of,
    change_of,
    dataset_of,
    open_upload_of,
    server_info_of,
    split_path,
    text,
)
from staddle._protocol.selectors import LATEST, selector_of
from staddle._remote_file import RemoteFile, open_file, read_file
from staddle._transport.calls import Calls
from staddle._types.backups import Backup, Change, Dataset, OpenUpload
from staddle._types.entries import Entry, PathLike
from staddle._types.options import At
from staddle._types.server import ServerInfo
from staddle.v1 import service_pb2 as sv

LIST_PAGE: Final = 1_000
ENTRY_PAGE: Final = 10_000


class BrowseMethods:
    """The methods of `Client` that list, compare and read."""

    _calls: Calls

    def info(self) -> ServerInfo:
        """The server's version, limits and condition, and the role of this token."""
        return server_info_of(self._calls.call("GetServerInfo", sv.GetServerInfoRequest()))

    def datasets(self) -> Iterator[Dataset]:
        """All datasets, by name."""
        request = sv.ListDatasetsRequest(page_size=LIST_PAGE)
        return self._calls.pages("ListDatasets", request, "datasets", dataset_of)

    def backups(
        self,
        dataset: str,
        *,
        limit: int | None = None,
        since: datetime.datetime | None = None,
        until: datetime.datetime | None = None,
        tags: Mapping[str, str | None] | None = None,
        host: str = "",
        held: bool = False,
        show_deleted: bool = False,
    ) -> Iterator[Backup]:
        """A dataset's backups, newest first: the newest `limit`, or all.

        Only those that began at `since` or later, and before `until` (without a zone: local), have all of these `tags` (a value that is None: any),
        are from `host`, and, with `held`, have a legal hold of their own. With `show_deleted`, also those that can be undeleted.
        """
        if limit is not None and limit < 0:
            raise BadRequestError(f"limit: {limit} is negative.", facts={"field": "limit"})
        request = sv.ListBackupsRequest(
            dataset=text("dataset", dataset),
            show_deleted=show_deleted,
            page_size=LIST_PAGE if limit is None else max(1, min(limit, LIST_PAGE)),
            tags=[
                sv.TagFilter(key=text("tags", key), value=None if value is None else text("tags", value))
                for key, value in (tags or {}).items()
            ],
            host=text("host", host),
            since_time=None if since is None else timestamp_to_wire("since", since),
            until_time=None if until is None else timestamp_to_wire("until", until),
            held_only=held,
        )
        return islice(self._calls.pages("ListBackups", request, "backups", backup_of), limit)

    def uploads(self, dataset: str = "") -> Iterator[OpenUpload]:
        """Open uploads of the tenant, or of one dataset, by id. Needs an admin token."""
        request = sv.ListUploadsRequest(dataset=text("dataset", dataset), page_size=LIST_PAGE)
        return self._calls.pages("ListUploads", request, "uploads", open_upload_of)

    def abort_upload(self, upload: OpenUpload) -> None:
        """Aborts an upload: the server refuses further writes to it and drops its data. Cannot be undone.

        Raises ConflictError if it was resumed since it was listed, UploadClosedError if it has ended.
        """
        self._calls.call("AbortUpload", sv.AbortUploadRequest(upload_id=upload.id, epoch=upload.epoch))

    def get_backup(self, dataset: str, backup: str | None = None, *, at: At | None = None) -> Backup:
        """One backup, picked as in `restore`."""
        request = sv.GetBackupRequest(dataset=text("dataset", dataset), backup=selector_of(backup, at))
        return backup_of(self._calls.call("GetBackup", request).backup)

    def entries(
        self,
        dataset: str,
        path: PathLike = "",
        *,
        backup: str | None = None,
        at: At | None = None,
        recursive: bool = False,
    ) -> Iterator[Entry]:
        """What lies in the directory `path` (empty: the root), or all below it; another entry lists itself. In order, component by component."""
        request = sv.ListEntriesRequest(
            dataset=text("dataset", dataset),
            backup=selector_of(backup, at),
            recursive=recursive,
            page_size=ENTRY_PAGE,
            columns=True,
            **cast("Any", split_path(path)),
        )
        rows = chain.from_iterable(self._calls.pages("ListEntries", request, "columns", rows_in))
        return map(entry_of_row, rows)

    def changes(self, dataset: str, a: str | None = None, b: str | None = None) -> Iterator[Change]:
        """What differs from backup `a` to backup `b`, in order. Without `b`: to the newest; without both: between the last two."""
        older = selector_of(a) if a is not None else selector_of(self._second_newest(dataset).id)
        request = sv.ListChangesRequest(
            dataset=text("dataset", dataset),
            from_backup=older,
            to_backup=selector_of(b or LATEST),
            page_size=ENTRY_PAGE,
        )
        return self._calls.pages("ListChanges", request, "changes", change_of)

    def _second_newest(self, dataset: str) -> Backup:
        newest = self.backups(dataset)
        if next(newest, None) is None or (second := next(newest, None)) is None:
            raise BackupNotFoundError(
                f"The dataset {dataset} has fewer than two backups: there is nothing to compare.",
                facts={"dataset": dataset},
            )
        return second

    # ------------------------------------------------------------------------------------------- reading

    def read(
        self,
        dataset: str,
        path: PathLike,
        *,
        backup: str | None = None,
        at: At | None = None,
        offset: int = 0,
        length: int | None = None,
    ) -> bytes:
        """Bytes of one file: `length` of them from `offset`, fewer where the file ends; None: all. The backup is picked as in `restore`."""
        file = RemoteFile(self._calls, text("dataset", dataset), path, selector_of(backup, at))
        return read_file(file, offset, length)

    def open(
        self, dataset: str, path: PathLike, *, backup: str | None = None, at: At | None = None
    ) -> io.BufferedReader:
        """One file of a backup as a seekable, read-only binary file. It stays with the backup that it was opened in."""
        return open_file(RemoteFile(self._calls, text("dataset", dataset), path, selector_of(backup, at)))
