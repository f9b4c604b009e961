"""A directory to a dataset: the life of the upload, whichever way the data takes.

Begin or take over, send, commit; and after a temporary failure: take over again, and resume after what is durable. How the data is sent
is in `staddle._backup.source_side` (cut here, only what is missing travels) and `staddle._backup.stream_files` (all bytes travel).
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, Protocol

from blake3 import blake3

from staddle._backup.cache.file import CacheError
from staddle._backup.cache.store import Cache
from staddle._backup.changes import Difference
from staddle._backup.comparison import BaseDamagedError
from staddle._backup.dataset_backups import DatasetBackups
from staddle._backup.differences import SourceDifferences, Start
from staddle._backup.entries import BackupTally, progress_of
from staddle._backup.origin import host_of, root_text
from staddle._backup.selection import (
    NothingReadError,
    find_source,
)
from staddle._errors import (
    DamageError,
    MissingChunksError,
    NoBaseError,
    StaddleError,
    TooMuchRemovedError,
    UnfinishedError,
    UploadClosedError,
    named,
)
from staddle._fs.chosen_paths import Source
from staddle._fs.found import WallClock
from staddle._protocol.answers import check_committed
from staddle._protocol.convert import (
    KINDS_TO_WIRE,
    backup_of,
    path_of,
)
from staddle._transport.failure_report import FailureReport
from staddle._transport.pages import pages_of
from staddle._transport.retry import Attempts, Retry, may_resume
from staddle._types.backups import BackupKind
from staddle._types.options import BackupOptions
from staddle._types.reports import BackupReport
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

if TYPE_CHECKING:
    from staddle._backup.cache.file import CacheReader
    from staddle._backup.cache.recorder import CacheRecorder
    from staddle._transport.calls import Calls

DISTRUSTED_MAX: Final = 200_000
"""If more of the base is damaged, the backup does not rely on any of it."""
DISTRUSTED_BYTES_MAX: Final = 32 * 1024 * 1024
"""Their paths together."""


class Attempt(Protocol):
    """One way of sending. Sends all differences to the upload and commits it; the answer is the backup.

    Raises MissingChunksError if the server lost chunks that were relied on.
    """

    def __call__(
        self, upload: pb.Upload, differences: Generator[Difference], tally: BackupTally, clock: WallClock
    ) -> pb.Backup: ...


def backup_directory(
    calls: Calls, paths: bytes | Sequence[bytes], options: BackupOptions, clock: WallClock = time.time_ns
) -> BackupReport:
    """Makes a backup of directories and files; see Client.backup. `clock` decides which timestamps are too recent to be trusted.

    Raises StaddleError, or OSError if a path cannot be opened.
    """
    begun_s = time.monotonic()
    tally = BackupTally(options.profile)
    with FailureReport(calls, options.dataset, host_of(options)) as failure:
        run = BackupRun(calls, find_source(paths, options), options, tally, clock, failure=failure)
        backup = run.to_end()
    return BackupReport(
        backup=backup_of(backup),
        problems=tuple(tally.problems.values()),
        warnings=run.warnings(),
        notes=tuple(tally.notes.values()),
        entries_unchanged=tally.unchanged,
        read_bytes=tally.read_bytes,
        sent_bytes=tally.sent_bytes,
        reused_bytes=tally.reused_bytes,
        seconds=time.monotonic() - begun_s,
        resumed=run.taken_over,
    )


class BackupRun:
    """One backup, over all its attempts."""

    def __init__(
        self,
        calls: Calls,
        source: Source,
        options: BackupOptions,
        tally: BackupTally,
        clock: WallClock,
        *,
        failure: FailureReport,
    ) -> None:
        progress = progress_of(tally, options)
        self._calls = calls
        self._root = source.root
        self._options = options
        self._tally = tally
        self._clock = clock
        self._failure = failure
        self._attempt = _attempt_of(calls, options)
        self._retry = Retry(budget_s=options.retry_s, notify=progress.report_retry)
        self._backups = DatasetBackups(calls, options.dataset, self._retry)
        self._differences = SourceDifferences(calls, self._backups, source, options, tally, clock=clock)
        self._kind = options.kind
        self._durable_position = 0
        self._distrusting = False
        self._cache = (
            None if not options.cache_dir else Cache(options.cache_dir, calls.service, options.dataset)
        )
        self._cache_is_wrong = False
        self._sends_all = options.thin or options.new_root
        """A full backup does not take over what is the same in another one."""
        self.taken_over = False

    def to_end(self) -> pb.Backup:
        """Begins, sends, commits, however many attempts that takes."""
        attempts = self._calls.attempts(self._retry)
        start: Start | pb.Backup = self._begin()
        while isinstance(start, Start):
            try:
                backup = self._send(start)
                with named(self._calls.address):
                    check_committed(backup, start.upload)
                return backup
            except BaseDamagedError as error:
                start = self._begin_without_base(start, error)
            except (TooMuchRemovedError, NothingReadError):
                with suppress(StaddleError):  # what is left open expires, and this error says more
                    self._abort(start)
                raise
            except CacheError:
                self._cache_is_wrong = True
                start = self._begin_anew(start)
            except (MissingChunksError, DamageError) as error:
                start = self._begin_distrusting(start, error)
            except StaddleError as error:
                if self._calls.closed or not may_resume(error):
                    raise
                start = self._resume(start, attempts, error)
        return start

    def warnings(self) -> tuple[str, ...]:
        """What is to be said of the whole, once it is done."""
        return self._differences.all_warnings()

    # --- the upload

    def _begin(self) -> Start:
        base = self._base_to_name()
        try:
            start = self._begin_from(base)
        except NoBaseError:
            if not base:
                raise
            self._sends_all = True  # it was deleted a moment ago
            return self._begin_from("")
        other = start.upload.base_backup_id != base  # that of an upload which is taken over
        if start.reads_all and (other or start.distrusted or not start.rely):
            return self._begin_sending_all(start)
        return start

    def _base_to_name(self) -> str:
        """The backup that a full one takes over from what is the same: the newest, if the cache knows it. Empty: none."""
        if (
            self._kind is not BackupKind.FULL
            or self._sends_all
            or self._cache is None
            or self._cache_is_wrong
            or not os.path.isdir(self._root)
        ):
            return ""
        newest = self._backups.newest()
        return newest.id if newest is not None and self._cache.has_all(newest.id, newest.entry_count) else ""

    def _begin_sending_all(self, start: Start) -> Start:
        """Gives up what was sent: something of the base is damaged or lost, and only sending all of it is sure to heal that."""
        self._sends_all = True
        return self._begin_anew(start)

    def _begin_from(self, base: str) -> Start:
        """Begins, or takes over; `base` is the backup that a full one names as its base."""
        options = self._options
        response = self._calls.call(
            "BeginUpload",
            sv.BeginUploadRequest(
                dataset=options.dataset,
                request_id=uuid.uuid4().hex,
                kind=KINDS_TO_WIRE[self._kind],
                scope=pb.UPLOAD_SCOPE_CHANGES if base else self._scope(),
                base_backup_id=base,
                tags=dict(options.tags),
                host=host_of(options),
                root=root_text(self._root),
                new_root=options.new_root,
                take_over=True,
                fingerprint=self._fingerprint(),
            ),
            retry=self._retry,
        )
        self.taken_over = self.taken_over or response.taken_over
        upload: pb.Upload = response.upload
        self._failure.upload_id = upload.id
        distrusted = self._distrusted(response)
        self._durable_position = upload.durable.position
        rely = distrusted is not None and not options.new_root
        exact = rely or upload.scope == pb.UPLOAD_SCOPE_WHOLE
        new = not response.taken_over
        return Start(upload, distrusted or frozenset(), rely, pristine=exact and new, own=new)

    def _scope(self) -> pb.UploadScope.ValueType:
        if self._kind is BackupKind.FULL:
            return pb.UPLOAD_SCOPE_WHOLE
        if self._kind is BackupKind.AUTO and (self._options.new_root or self._backups.newest() is None):
            return pb.UPLOAD_SCOPE_WHOLE
        return pb.UPLOAD_SCOPE_CHANGES

    def _fingerprint(self) -> str:
        options = self._options
        what = (*self._differences.describe(), options.profile.value, sorted(options.tags.items()))
        return blake3(repr(what).encode("utf-8", "surrogateescape")).hexdigest()

    def _distrusted(self, response: sv.BeginUploadResponse) -> frozenset[bytes] | None:
        """The base's damaged paths; None if there are too many to remember. Raises ProtocolError for a list that does not end."""
        paths = set(map(path_of, response.damaged_base_entries))
        if not response.more_damaged_base_entries:
            return frozenset(paths)
        request = sv.GetUploadRequest(upload_id=response.upload.id, page_size=4_096)
        lists = ("damaged_base_entries", "missing_digests")
        count = path_bytes = 0
        for page in pages_of(self._calls, "GetUpload", request, *lists, retry=self._retry):
            found = list(map(path_of, page.damaged_base_entries))
            count, path_bytes = count + len(found), path_bytes + sum(map(len, found))
            paths.update(found)
            is_more = bool(page.next_page_token)
            if is_more and (count > DISTRUSTED_MAX or path_bytes > DISTRUSTED_BYTES_MAX):
                return None
        return frozenset(paths)

    def _begin_without_base(self, start: Start, error: BaseDamagedError) -> Start:
        """The base cannot even be listed: what was not asked for by name becomes a full backup."""
        if self._kind is not BackupKind.AUTO:
            raise error.for_kind() from error
        self._differences.warnings.append(
            f"The base is damaged below {error.path!r}: this became a full backup."
        )
        self._kind = BackupKind.FULL
        return self._begin_sending_all(start)

    def _begin_anew(self, start: Start) -> Start:
        """Gives up what was sent."""
        self._abort(start)
        self._tally.entries_done = self._tally.reused_bytes = 0
        return self._begin()

    def _abort(self, start: Start) -> None:
        upload = start.upload
        self._calls.call("AbortUpload", sv.AbortUploadRequest(upload_id=upload.id, epoch=upload.epoch))

    def _begin_distrusting(self, start: Start, error: MissingChunksError | DamageError) -> Start:
        """The server lost chunks that were relied on: everything is read again, and asked for. If the upload or its base
        relies on damaged data, a new upload asks again, and need not rely on it.
        """
        if start.reads_all:
            return self._begin_sending_all(start)
        if self._distrusting:
            raise error
        self._distrusting = True
        if isinstance(error, DamageError):
            return self._begin_anew(start)
        upload = self._take_over(start.upload)
        upload.durable.ClearField("last_entry")
        upload.durable.ClearField("open_entry")
        return Start(upload, start.distrusted, rely=False, own=start.own)

    def _resume(self, start: Start, attempts: Attempts, error: StaddleError) -> Start | pb.Backup:
        """After a temporary failure: waits, takes the upload over, and resumes it after what is durable."""
        if self._options.thin and attempts.repeats(error):
            return start
        while True:
            attempts.wait_after(error)
            try:
                upload = self._take_over(start.upload)
            except UploadClosedError:
                return self._committed(start.upload)
            except StaddleError as another:
                if not may_resume(another):
                    raise
                error = another
                continue
            if upload.durable.position > self._durable_position:
                self._durable_position = upload.durable.position
                attempts.progressed()
            return Start(upload, start.distrusted, start.rely, own=start.own)

    def _take_over(self, upload: pb.Upload) -> pb.Upload:
        taken: pb.Upload = self._calls.call(
            "ResumeUpload", sv.ResumeUploadRequest(upload_id=upload.id)
        ).upload
        return taken

    def _committed(self, upload: pb.Upload) -> pb.Backup:
        """The backup of an upload whose commit went through though its answer was lost."""
        known: pb.Upload = self._calls.call("GetUpload", sv.GetUploadRequest(upload_id=upload.id)).upload
        if known.state != pb.UPLOAD_STATE_COMMITTED:
            raise UnfinishedError(
                f"The upload {upload.id} was given up meanwhile: {known.last_failure or 'it was aborted or expired'}. "
                "Nothing of it is a backup; run the backup again.",
                facts={"upload": upload.id},
            )
        selector = pb.BackupSelector(backup=known.backup_id)
        request = sv.GetBackupRequest(dataset=self._options.dataset, backup=selector)
        backup: pb.Backup = self._calls.call("GetBackup", request).backup
        return backup

    # --- one attempt

    def _send(self, start: Start) -> pb.Backup:
        with self._recording(start) as record:
            differences = self._differences.since(start, record, lambda: self._known(start))
            backup = self._attempt(start.upload, differences, self._tally, self._clock)
            if self._cache is not None and record is not None:
                self._cache.keep(record, backup.id, full=backup.kind == pb.BACKUP_KIND_FULL)
            return backup

    @contextmanager
    def _recording(self, start: Start) -> Iterator[CacheRecorder | None]:
        """The cache of the current backup. None without a cache, or where the backup's exact content is unknown."""
        record = None
        if self._cache is not None and start.pristine:
            record = self._cache.record(differential=start.upload.kind == pb.BACKUP_KIND_DIFFERENTIAL)
        try:
            yield record
        finally:
            if self._cache is not None and record is not None:
                self._cache.discard(record)

    def _known(self, start: Start) -> CacheReader | None:
        """The cache of the base, if it may be used. Not where something of the base is damaged: that may be the list of entries itself,
        and without asking for that list, no client learns that the next backup has to be a full one.
        """
        upload = start.upload
        if (
            self._cache is None
            or self._cache_is_wrong
            or not start.rely
            or start.distrusted
            or upload.scope != pb.UPLOAD_SCOPE_CHANGES
            or (upload.durable.HasField("last_entry") and not start.reads_all)
            or not os.path.isdir(self._root)
        ):
            return None
        return self._cache.find(upload.base_backup_id)


def _attempt_of(calls: Calls, options: BackupOptions) -> Attempt:
    """The way of sending that was asked for; only one of them needs what the extra `cli` installs."""
    if options.thin:
        from staddle._backup.stream_files import ThinAttempt

        return ThinAttempt(calls)
    from staddle._backup.source_side import SourceAttempt

    return SourceAttempt(calls)
