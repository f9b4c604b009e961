"""A backup into a directory.

Into a directory that is empty, or where everything is to be replaced, one stream brings everything. Otherwise a first stream tells what
there is, without its bytes, and only what differs is fetched, in batches. Either way a broken stream is gone on with where it broke.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Final, cast

from staddle._convert import backup_of, sort_key
from staddle._errors import ProtocolError, StaddleError
from staddle._retry import Attempts, Retry, RetryNotice, may_pass
from staddle._stream import (
    VIEW_BASIC,
    VIEW_DATA,
    DamageEvent,
    DataEvent,
    EntryEvent,
    Event,
    FileEndEvent,
    HeaderEvent,
    is_file,
    read_restore,
)
from staddle._target import Target
from staddle._types import ProblemKind, Progress, RestoreOptions, RestoreReport
from staddle._write import OpenedFile, Writer, WriteTally
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as wire

if TYPE_CHECKING:
    from staddle._calls import Calls
    from staddle._client import Client

FETCH_PATHS: Final = 2_048
FETCH_PATH_BYTES: Final = 1024 * 1024
LEFT_DIRECTORIES_MAX: Final = 4_096
PROGRESS_S: Final = 0.2


def restore_to_directory(
    client: Client, dataset: str, selector: pb.BackupSelector, target: bytes, options: RestoreOptions
) -> RestoreReport:
    """Restores into `target`; see Client.restore. Damage is in the report, and raised by nobody here.

    Raises StaddleError if a stream fails for good, before or after a part was written; OSError if the target cannot be made, or is full.
    """
    calls = client._calls  # noqa: SLF001 - one library; the clock of retries has no public name
    return Restore(calls, dataset, selector, target, options).run()


class Restore:
    """One restore, over as many streams as it takes."""

    def __init__(
        self, calls: Calls, dataset: str, selector: pb.BackupSelector, target: bytes, options: RestoreOptions
    ) -> None:
        self._calls = calls
        self._dataset = dataset
        self._selector = selector
        self._path = target
        self._options = options
        self._tally = WriteTally()
        self._retry = Retry(budget_s=options.retry_s, notify=self._tell_retry)
        self._backup: pb.Backup | None = None
        self._target: Target | None = None
        self._writer: Writer | None = None
        self._whole = options.overwrite == "always" or _is_empty_or_absent(target)
        self._done: bytes | None = None
        """The order of the last path that was dealt with, or that is in `_pending`."""
        self._pending: dict[bytes, None] = {}
        self._pending_bytes = 0
        self._told_s = 0.0

    def run(self) -> RestoreReport:
        """To the end."""
        begun_s = time.monotonic()
        attempts = Attempts(self._retry, self._calls.clock)
        try:
            while True:
                before = (self._done, len(self._pending))
                try:
                    self._pass()
                    break
                except StaddleError as error:
                    if self._backup is None or not may_pass(error):
                        raise
                    if (self._done, len(self._pending)) != before:
                        attempts.progressed()
                    attempts.wait_after(error)
                    self._whole = False  # what came already need not come again
            self._writing.finish_directories(all_of_them=True)
        finally:
            if self._target is not None:
                self._target.close()
        return self._report(time.monotonic() - begun_s)

    @property
    def _writing(self) -> Writer:
        if self._writer is None:
            raise ProtocolError("The restore began without naming its backup.")
        return self._writer

    # --- streams

    def _pass(self) -> None:
        """One stream over all entries, from the first that was not dealt with yet."""
        if self._whole:
            with closing(self._events(self._request(VIEW_DATA))) as events:
                self._write(events)
            return
        with closing(self._events(self._request(VIEW_BASIC))) as events:
            self._decide(events)
        self._fetch()

    def _request(self, view: wire.EntryView.ValueType) -> wire.RestoreRequest:
        request = wire.RestoreRequest(dataset=self._dataset, backup=self._selector, view=view)
        _add_paths(request, self._options.paths)
        return request

    def _events(self, request: wire.RestoreRequest) -> Generator[Event]:
        messages = cast("Generator[wire.RestoreResponse]", self._calls.stream("Restore", request, retry=self._retry))
        with closing(messages):
            for event in read_restore(messages, view=request.view):
                if isinstance(event, HeaderEvent):
                    self._begin(event.backup)
                yield event

    def _begin(self, backup: pb.Backup) -> None:
        """The first answer came, so all paths are there: from now on things are written, and from this backup."""
        if self._backup is not None:
            if backup.id != self._backup.id:
                raise ProtocolError("The server answered with another backup than it was asked for.")
            return
        self._backup = backup
        self._selector = pb.BackupSelector(backup=backup.id)
        replace = self._options.overwrite != "never"
        self._target = Target(self._path, replace=replace)
        self._writer = Writer(self._target, self._options.overwrite, self._tally)

    def _write(self, events: Iterator[Event]) -> None:
        """Entries with their bytes, written as they come."""
        open_file: OpenedFile | None = None
        try:
            for event in events:
                if isinstance(event, EntryEvent):
                    open_file = self._write_entry(event)
                elif isinstance(event, DataEvent):
                    open_file = self._write_data(open_file, event)
                elif isinstance(event, FileEndEvent):
                    if open_file is not None:
                        opened, open_file = open_file, None
                        self._writing.finish_file(opened)
                elif isinstance(event, DamageEvent):
                    if open_file is not None:
                        opened, open_file = open_file, None
                        opened.abandon()
                    self._tally.note(ProblemKind.DAMAGED, event.path, event.message)
        finally:
            if open_file is not None:
                open_file.abandon()

    def _write_entry(self, event: EntryEvent) -> OpenedFile | None:
        """Writes an entry, or begins the file whose bytes follow."""
        path, entry = event.path, event.entry
        self._step(path)
        writer = self._writing
        if not is_file(entry):
            self._write_other(path, entry)
            return None
        if writer.link(path, entry):
            return None
        if event.open:
            return writer.open_file(path, entry)
        writer.whole_file(path, entry)
        return None
