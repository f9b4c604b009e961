"""The existing backups of a dataset, with which the next one is compared and which decide how it begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from staddle._backup.comparison import BaseEntry, base_entries
from staddle._errors import DatasetNotFoundError, NotFoundError
from staddle._protocol.convert import path_of, split_path
from staddle._transport.pages import pages_of
from staddle._transport.restore_stream import restored
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

if TYPE_CHECKING:
    from staddle._transport.calls import Calls
    from staddle._transport.retry import Retry


class DatasetBackups:
    """The backups of one dataset."""

    def __init__(self, calls: Calls, dataset: str, retry: Retry) -> None:
        self._calls = calls
        self._dataset = dataset
        self._retry = retry

    def newest_first(self) -> Iterator[pb.Backup]:
        """All of them; none if the dataset does not exist."""
        request = sv.ListBackupsRequest(dataset=self._dataset, page_size=1)
        with suppress(DatasetNotFoundError):
            for page in pages_of(self._calls, "ListBackups", request, "backups", retry=self._retry):
                yield from page.backups

    def newest(self) -> pb.Backup | None:
        """The newest one."""
        return next(self.newest_first(), None)

    def newest_count(self) -> int:
        """The entries of the dataset's newest backup; 0: it has none."""
        newest = self.newest()
        return 0 if newest is None else newest.entry_count

    def newest_is_empty(self) -> bool:
        """Whether the newest backup has nothing, or its root directory alone; so if there is none."""
        count = self.newest_count()
        # What was a file, and not a directory, has no entry of its root.
        return not count or (count == 1 and not self.had_entries(b""))

    def had_entries(self, path: bytes) -> bool:
        """Whether the dataset's newest backup has entries in a directory."""
        fields: dict[str, Any] = {"dataset": self._dataset, **split_path(path)}
        request = sv.ListEntriesRequest(**fields)
        try:
            return any(each != path for each in self._calls.pages("ListEntries", request, "entries", path_of))
        except NotFoundError:
            return False

    @contextmanager
    def entries_of(self, backup_id: str) -> Iterator[Iterator[BaseEntry]]:
        """The entries of a backup, as the server lists them."""
        selector = pb.BackupSelector(backup=backup_id)
        request = sv.RestoreRequest(
            dataset=self._dataset, backup=selector, view=sv.ENTRY_VIEW_BASIC, columns=True
        )
        with (
            closing(restored(self._calls, request, retry=self._retry)) as events,
            closing(base_entries(events)) as entries,
        ):
            yield entries
