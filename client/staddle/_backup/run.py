"""A directory to a dataset: the life of the upload, whichever way the data takes.

Begin or take over, send, commit; and after a failure that passes: take over again, and go on behind what is durable. How the data is sent
is in `staddle._backup.source_side` (cut here, only what is missing travels) and `staddle._backup.stream_files` (all bytes travel).
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from blake3 import blake3

from staddle._backup.cache.file import CacheError
from staddle._backup.cache.store import Cache
from staddle._backup.cached_comparison import CachedScan
from staddle._backup.changes import Difference, Removed
from staddle._backup.comparison import BaseDamagedError, BaseEntry, Comparison, base_entries
from staddle._backup.entries import Tally
from staddle._backup.selection import (
    ALL_PERCENT,
    NothingReadError,
    check_excludes,
    check_removed,
    emptied,
    excludes_for,
    find_source,
    nothing_read,
    omissions_of,
    patterns_of,
)
from staddle._base.figures import counted
from staddle._errors import (
    CancelledError,
    ConflictError,
    DamageError,
    DatasetNotFoundError,
    MissingChunksError,
    NotFoundError,
    ProtocolError,
    ServerError,
    StaddleError,
    TooMuchRemovedError,
    UnfinishedError,
    UploadClosedError,
    named,
)
from staddle._fs.chosen_paths import Source
from staddle._fs.excludes import UNMATCHED_SHOWN_MAX
from staddle._fs.file_reader import OPEN_FLAGS
from staddle._fs.mounts import mounts_below
from staddle._fs.sync import sync_file_system
from staddle._fs.walk import Clock, Found, Marked, Scan
from staddle._protocol.answers import check_committed
from staddle._protocol.convert import (
    KINDS_TO_WIRE,
    backup_of,
    is_below,
    path_of,
    sort_key,
    split_path,
    time_ns_of,
)
from staddle._transport.advice import retry_words
from staddle._transport.pages import pages_of
from staddle._transport.restore_stream import restored
from staddle._transport.retry import Attempts, Retry, RetryNotice, may_pass
from staddle._types.backups import BackupKind
from staddle._types.options import BackupOptions
from staddle._types.reports import BackupReport, ProblemKind, Progress
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as wire

if TYPE_CHECKING:
    from staddle._backup.cache.file import CacheReader
    from staddle._backup.cache.recorder import Record
    from staddle._transport.calls import Calls

PROGRESS_S: Final = 0.2
DISTRUSTED_MAX: Final = 200_000
"""If more of the base is damaged, nothing of it is relied on."""
DISTRUSTED_BYTES_MAX: Final = 32 * 1024 * 1024
"""Their paths together."""
GOES_ON: Final = frozenset({"RESUME_REQUIRED", "UPLOAD_BUSY"})
"""Conflicts that taking over ends."""
TEXT_BYTES_MAX: Final = {"host": 255, "root": 16 * 1024}


class Attempt(Protocol):
    """One way of sending. Sends all differences to the upload and commits it; the answer is the backup.

    Raises MissingChunksError if the server lost chunks that were relied on.
    """

    def __call__(
        self, upload: pb.Upload, differences: Generator[Difference], tally: Tally, clock: Clock
    ) -> pb.Backup: ...


def backup_directory(
    calls: Calls, paths: bytes | Sequence[bytes], options: BackupOptions, clock: Clock = time.time_ns
) -> BackupReport:
    """Makes a backup of directories and files; see Client.backup. `clock` decides which timestamps are too recent to be trusted.

    Raises StaddleError, or OSError if a path cannot be opened.
    """
    begun_s = time.monotonic()
    tally = Tally(options.profile)
    run = Run(calls, find_source(paths, options), options, tally, clock)
    backup = run.to_end()
    return BackupReport(
        backup=backup_of(backup),
        problems=tuple(tally.problems.values()),
        warnings=run.all_warnings(),
        notes=tuple(tally.notes.values()),
        entries_unchanged=tally.unchanged,
        read_bytes=tally.read_bytes,
        sent_bytes=tally.sent_bytes,
        reused_bytes=tally.reused_bytes,
        seconds=time.monotonic() - begun_s,
        resumed=run.taken_over,
    )


@dataclass(slots=True)
class Opened:
    """An open upload of ours, and what of its base is damaged."""

    upload: pb.Upload
    distrusted: frozenset[bytes]
    rely: bool
    """Whether the base may be relied on at all."""
    pristine: bool = False
    """Nothing was sent to it before: what it holds will be known."""


class Run:
    """One backup, over all its attempts."""

    def __init__(
        self,
        calls: Calls,
        source: Source,
        options: BackupOptions,
        tally: Tally,
        clock: Clock,
        *,
        sync: Callable[[int], None] | None = sync_file_system,
    ) -> None:
        self._calls = calls
        self._root = source.root
        self._chosen = source.chosen
        self._sync = sync
        self._options = options
        self._tally = tally
        self._clock = clock
        self._patterns = patterns_of(options)
        self._excludes = excludes_for(self._patterns, self._root)
        check_excludes(source, self._excludes)
        self._omissions = omissions_of(options)
        self._empty: Sequence[bytes] = ()
        """PATHs of several that have nothing in them."""
        self._removed_any = False
        """Whether something of the base was found to be removed, so that it has to be counted again after a failure."""
        self._skipped_any = False
        self._base_unlisted = False
        """The backup before cannot be listed, so that a full one can be compared only with its number of entries."""
        self._attempt = _attempt_of(calls, options)
        self._retry = Retry(budget_s=options.retry_s, notify=self._tell_retry)
        self._kind = options.kind
        self._durable_position = 0
        self._own_work = False
        """Whether what is durable was sent by this very run, so that its problems are known."""
        self._distrusting = False
        self._cache = (
            None if not options.cache_dir else Cache(options.cache_dir, calls.address, options.dataset)
        )
        self._cache_is_wrong = False
        self._told_s = time.monotonic()
        tally.watch = self._watch
        self.taken_over = False
        self.warnings: list[str] = []
        self.comparison: Comparison | None = None
        """What was compared last with the base's entries as the server lists them."""

    @property
    def host(self) -> str:
        """The host that the backup names as its origin."""
        return _text("host", socket.gethostname() if self._options.host is None else self._options.host)

    @property
    def root_text(self) -> str:
        """The root that it names."""
        return _text("root", os.fsdecode(self._root))

    def to_end(self) -> pb.Backup:
        """Begins, sends, commits, however many attempts that takes."""
        attempts = Attempts(self._retry, self._calls.clock)
        opened: Opened | pb.Backup = self._begin()
        while isinstance(opened, Opened):
            try:
                backup = self._send(opened)
                with named(self._calls.address):
                    check_committed(backup, opened.upload)
                return backup
            except BaseDamagedError as error:
                opened = self._begin_without_base(opened, error)
            except (TooMuchRemovedError, NothingReadError):
                with suppress(StaddleError):  # what is left open expires, and this error says more
                    self._abort(opened)
                raise
            except CacheError:
                self._cache_is_wrong = True
                opened = self._begin_anew(opened)
            except MissingChunksError as error:
                opened = self._begin_distrusting(opened, error)
            except DamageError:
                if self._distrusting:
                    raise
                # What the upload or its base starts from is damaged: another upload, which asks anew, need not rely on it.
                self._distrusting = True
                opened = self._begin_anew(opened)
            except StaddleError as error:
                if self._calls.closed or not _goes_on(error):
                    raise
                opened = self._go_on(opened, attempts, error)
        return opened

    # --- the upload

    def _begin(self) -> Opened:
        options = self._options
        response = self._calls.call(
            "BeginUpload",
            wire.BeginUploadRequest(
                dataset=options.dataset,
                request_id=uuid.uuid4().hex,
                kind=KINDS_TO_WIRE[self._kind],
                scope=self._scope(),
                tags=dict(options.tags),
                host=self.host,
                root=self.root_text,
                new_root=options.new_root,
                take_over=True,
                fingerprint=self._fingerprint(),
            ),
            retry=self._retry,
        )
        self.taken_over = self.taken_over or response.taken_over
        upload: pb.Upload = response.upload
        distrusted = self._distrusted(response)
        self._durable_position = upload.durable.position
        rely = distrusted is not None and not options.new_root
        exact = rely or upload.scope == pb.UPLOAD_SCOPE_WHOLE
        return Opened(upload, distrusted or frozenset(), rely, pristine=exact and not response.taken_over)

    def _scope(self) -> pb.UploadScope.ValueType:
        if self._kind is BackupKind.FULL:
            return pb.UPLOAD_SCOPE_WHOLE
        if self._kind is BackupKind.AUTO and (self._options.new_root or self._newest() is None):
            return pb.UPLOAD_SCOPE_WHOLE
        return pb.UPLOAD_SCOPE_CHANGES

    def _fingerprint(self) -> str:
        options = self._options
        what = (
            self._patterns,
            self._omissions,
            None if self._chosen is None else self._chosen.fingerprint(),
            options.one_file_system,
            options.profile.value,
            sorted(options.tags.items()),
        )
        return blake3(repr(what).encode("utf-8", "surrogateescape")).hexdigest()

    def _distrusted(self, response: wire.BeginUploadResponse) -> frozenset[bytes] | None:
        """The base's damaged paths; None if there are too many to remember. Raises ProtocolError for a list that does not end."""
        paths = set(map(path_of, response.damaged_base_entries))
        if not response.more_damaged_base_entries:
            return frozenset(paths)
        request = wire.GetUploadRequest(upload_id=response.upload.id, page_size=4_096)
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

    def _begin_without_base(self, opened: Opened, error: BaseDamagedError) -> Opened:
        """The base cannot even be listed: what was not asked for by name becomes a full backup."""
        if self._kind is not BackupKind.AUTO:
            raise self.damaged(error) from error
        self.warnings.append(f"The base is damaged below {error.path!r}: this became a full backup.")
        self._kind = BackupKind.FULL
        return self._begin_anew(opened)

    def damaged(self, error: BaseDamagedError) -> DamageError:
        """The error for who asked for a kind that needs the base."""
        return DamageError(
            f"The list of the base's entries below {error.path!r} is damaged: {error}. Make a full backup (kind full)."
        )

    def _begin_anew(self, opened: Opened) -> Opened:
        """Gives up what was sent."""
        self._abort(opened)
        return self._begin()

    def _abort(self, opened: Opened) -> None:
        upload = opened.upload
        self._calls.call("AbortUpload", wire.AbortUploadRequest(upload_id=upload.id, epoch=upload.epoch))

    def _begin_distrusting(self, opened: Opened, error: MissingChunksError) -> Opened:
        """The server lost chunks that were relied on: everything is read again, and asked for."""
        if self._distrusting:
            raise error
        self._distrusting = True
        upload = self._take_over(opened.upload)
        upload.durable.ClearField("last_entry")
        upload.durable.ClearField("open_entry")
        return Opened(upload, opened.distrusted, rely=False)

    def _go_on(self, opened: Opened, attempts: Attempts, error: StaddleError) -> Opened | pb.Backup:
        """After a failure that passes: waits, takes the upload over, and goes on behind what is durable."""
        while True:
            attempts.wait_after(error)
            try:
                upload = self._take_over(opened.upload)
            except UploadClosedError:
                return self._committed(opened.upload)
            except StaddleError as another:
                if not _goes_on(another):
                    raise
                error = another
                continue
            self._own_work = self._own_work or not self.taken_over
            if upload.durable.position > self._durable_position:
                self._durable_position = upload.durable.position
                attempts.progressed()
            return Opened(upload, opened.distrusted, opened.rely)

    def _take_over(self, upload: pb.Upload) -> pb.Upload:
        taken: pb.Upload = self._calls.call(
            "ResumeUpload", wire.ResumeUploadRequest(upload_id=upload.id)
        ).upload
        return taken

    def _committed(self, upload: pb.Upload) -> pb.Backup:
        """The backup of an upload whose commit went through though its answer was lost."""
        known: pb.Upload = self._calls.call("GetUpload", wire.GetUploadRequest(upload_id=upload.id)).upload
        if known.state != pb.UPLOAD_STATE_COMMITTED:
            raise UnfinishedError(
                f"The upload {upload.id} was given up meanwhile: {known.last_failure or 'it was aborted or expired'}. "
                "Nothing of it is a backup; run the backup again.",
                facts={"upload": upload.id},
            )
        selector = pb.BackupSelector(backup=known.backup_id)
        request = wire.GetBackupRequest(dataset=self._options.dataset, backup=selector)
        backup: pb.Backup = self._calls.call("GetBackup", request).backup
        return backup

    # --- one attempt

    def _send(self, opened: Opened) -> pb.Backup:
        with self._recording(opened) as record:
            differences = self.differences(opened, record)
            backup = self._attempt(opened.upload, differences, self._tally, self._clock)
            if self._cache is not None and record is not None:
                self._cache.keep(record, backup.id, full=backup.kind == pb.BACKUP_KIND_FULL)
            return backup

    @contextmanager
    def _recording(self, opened: Opened) -> Iterator[Record | None]:
        """The cache of the backup that is being made. None: what it will hold cannot be told exactly, or nobody wants to know."""
        record = None
        if self._cache is not None and opened.pristine:
            record = self._cache.record(differential=opened.upload.kind == pb.BACKUP_KIND_DIFFERENTIAL)
        try:
            yield record
        finally:
            if self._cache is not None and record is not None:
                self._cache.discard(record)

    def differences(self, opened: Opened, record: Record | None) -> Generator[Difference]:
        """What to send. The base's list is opened by the thread that draws from this, and closed by it."""
        known = self._known(opened)
        if known is None:
            yield from self._compared(opened, record)
            return
        with closing(known):
            scan = CachedScan(
                self._root,
                self._tally.unread,
                excluded=self._excludes,
                one_file_system=self._options.one_file_system,
                clock=self._clock,
                observer=record,
                known=known,
                note=self._tally.note,
                omissions=self._omissions,
                chosen=self._chosen,
                sync=self._sync,
                unsent=self._tally.unsent,
            )
            with closing(iter(scan)) as differences:
                yield from self._watched(differences)
            self._tally.unchanged = scan.unchanged
            self._tally.excluded = scan.excluded_count
            self._empty = scan.empty
            self._check_removed(opened, scan)

    def _known(self, opened: Opened) -> CacheReader | None:
        """The cache of the base, if it may be used. Not where something of the base is damaged: that may be the list of entries itself,
        and then nobody who does not ask for it learns that the next backup has to be a full one.
        """
        upload = opened.upload
        if (
            self._cache is None
            or self._cache_is_wrong
            or not opened.rely
            or opened.distrusted
            or upload.scope != pb.UPLOAD_SCOPE_CHANGES
            or upload.durable.HasField("last_entry")
            or not os.path.isdir(self._root)
        ):
            return None
        return self._cache.find(upload.base_backup_id)

    def _compared(self, opened: Opened, record: Record | None) -> Iterator[Difference]:
        """The differences from the base's entries, as the server lists them."""
        durable = opened.upload.durable
        behind = path_of(durable.last_entry) if durable.HasField("last_entry") else None
        whole = opened.upload.scope == pb.UPLOAD_SCOPE_WHOLE
        skips = behind is not None and self._own_work and not self._removed_any and not self._base_unlisted
        self._skipped_any = self._skipped_any or skips
        since_ns = None if behind is None or self._own_work else self._begun_ns(opened.upload)
        with self._base_of(opened) as base, closing(self._scan(behind, record, skips=skips)) as scan:
            comparison = Comparison(
                scan,
                base,
                rely=opened.rely,
                distrusted=opened.distrusted,
                behind=behind,
                since_ns=since_ns,
                mounted=frozenset() if since_ns is None else mounts_below(os.fsencode(self._root)),
                record=record,
                behind_is_whole=skips,
                only_counts=whole,
                left_out=self._tally.missing,
                unsent=self._tally.unsent,
            )
            self.comparison = comparison
            # To remove the root again would drop the file that is gone on with.
            again = behind is None and durable.HasField("open_entry")
            for difference in self._watched(comparison):
                if isinstance(difference, Removed) and (
                    (whole and not difference.sent) or (again and not difference.path)
                ):
                    continue
                yield difference
            self._tally.unchanged = comparison.unchanged
            self._check_removed(opened, comparison)

    def _begun_ns(self, upload: pb.Upload) -> int:
        """When an upload began, by this machine's clock, as files have their times from it."""
        now_ns = time.time_ns()  # before the call: too early is harmless
        server_ns = time_ns_of(self._calls.call("GetServerInfo", wire.GetServerInfoRequest()).server_time)
        return time_ns_of(upload.begin_time) + now_ns - server_ns

    def _check_removed(self, opened: Opened, seen: Comparison | CachedScan) -> None:
        """Raises TooMuchRemovedError if the source has become empty, or has lost more than it may have."""
        self._check_read(seen)
        most = self._options.max_removed_percent
        excluded = self._tally.excluded > 0
        unread = any(kind is ProblemKind.UNREADABLE and path for kind, path in self._tally.problems)
        nothing = not seen.found_count and not unread and os.path.isdir(self._root)
        if nothing and excluded and not self._skipped_any:
            self.warnings.append(f"Everything in {os.fsdecode(self._root)!r} is excluded.")
        if most is not None and most >= ALL_PERCENT:
            return
        for path in self._empty:
            if self._had_entries(path):
                raise emptied(os.path.join(self._root, path))
        if nothing:  # a differential's base may be older than a backup that was meant to be empty
            before, kept = max(0, self._newest_count() - 1), 0
        elif opened.upload.scope == pb.UPLOAD_SCOPE_CHANGES:
            before, kept = seen.base_count, seen.kept_count
        elif most is not None:
            before, kept = seen.base_count, seen.kept_count
            if self._base_unlisted:
                before = max(0, self._newest_count() - 1)
                kept = min(before, seen.found_count)
        else:
            return
        check_removed(self._root, before, kept, nothing=nothing, excluded=excluded, max_percent=most)

    def _check_read(self, seen: Comparison | CachedScan) -> None:
        """Raises NothingReadError if nothing could be read of all that was asked for."""
        missing = self._tally.missing
        if self._chosen is not None:
            named = self._chosen.named
        elif os.path.isdir(self._root):
            named = frozenset({b""} if not seen.found_count else ())
        else:
            named = frozenset({os.path.basename(os.path.abspath(self._root))})
        if not named or not named <= missing:
            return
        first = min(named, key=sort_key)
        full = self._root if self._chosen is None else os.path.join(self._root, first)
        problem = self._tally.problems.get((ProblemKind.UNREADABLE, first))
        raise nothing_read(full, "it could not be read" if problem is None else problem.message, len(named))

    def _newest_count(self) -> int:
        """The entries of the dataset's newest backup; 0: it has none."""
        newest = self._newest()
        return 0 if newest is None else newest.entry_count

    def _newest(self) -> pb.Backup | None:
        """The dataset's newest backup."""
        request = wire.ListBackupsRequest(dataset=self._options.dataset, page_size=1)
        try:
            backups = self._calls.call("ListBackups", request, retry=self._retry).backups
        except DatasetNotFoundError:
            return None
        return backups[0] if backups else None

    def _had_entries(self, path: bytes) -> bool:
        """Whether the dataset's newest backup has something in a directory."""
        fields: dict[str, Any] = {"dataset": self._options.dataset, **split_path(path)}
        request = wire.ListEntriesRequest(**fields)
        try:
            return any(each != path for each in self._calls.pages("ListEntries", request, "entries", path_of))
        except NotFoundError:
            return False

    def all_warnings(self) -> tuple[str, ...]:
        """What is to be said of the whole, once it is done."""
        tally, warnings = self._tally, list(dict.fromkeys(self.warnings))
        if tally.problems_dropped:
            warnings.append(f"{counted(tally.problems_dropped, 'more path')} had problems.")
        if tally.notes_dropped:
            warnings.append(
                f"{counted(tally.notes_dropped, 'more path')} vanished or {'was' if tally.notes_dropped == 1 else 'were'} left out."
            )
        return (*warnings, *self._unmatched())

    def _unmatched(self) -> list[str]:
        """What to say of patterns that matched nothing; nothing where directories were passed over."""
        patterns = [] if self._skipped_any else self._excludes.unmatched()
        if not patterns:
            return []
        shown = ", ".join(map(repr, patterns[:UNMATCHED_SHOWN_MAX]))
        more = len(patterns) - UNMATCHED_SHOWN_MAX
        shown += f" and {more} more" if more > 0 else ""
        return [
            f"These exclude patterns matched nothing: {shown}. A pattern is relative to PATH, as in .gitignore."
        ]

    @contextmanager
    def _base_of(self, opened: Opened) -> Iterator[Iterator[BaseEntry]]:
        upload = opened.upload
        if upload.scope != pb.UPLOAD_SCOPE_CHANGES:
            with closing(self._before_whole()) as known:
                yield known
            return
        if not upload.base_backup_id:
            raise ProtocolError("The server opened an upload of changes without a base.")
        with self._listed(upload.base_backup_id) as entries:
            yield entries

    def _before_whole(self) -> Generator[BaseEntry]:
        """The entries of the backup before a full one, if it has to be known how much of them is left."""
        most = self._options.max_removed_percent
        if most is None or most >= ALL_PERCENT or self._base_unlisted:
            return
        newest = self._newest()
        if newest is None:
            return
        try:
            with self._listed(newest.id) as entries:
                yield from entries
        except (BaseDamagedError, DamageError, NotFoundError):
            self._base_unlisted = True
            self.warnings.append(
                "The backup before cannot be listed: only its number of entries was compared (--max-removed)."
            )

    @contextmanager
    def _listed(self, backup_id: str) -> Iterator[Iterator[BaseEntry]]:
        """The entries of a backup, as the server lists them."""
        selector = pb.BackupSelector(backup=backup_id)
        request = wire.RestoreRequest(
            dataset=self._options.dataset, backup=selector, view=wire.ENTRY_VIEW_BASIC
        )
        with (
            closing(restored(self._calls, request, retry=self._retry)) as events,
            closing(base_entries(events)) as entries,
        ):
            yield entries

    def _scan(self, behind: bytes | None, record: Record | None, *, skips: bool) -> Generator[Found | Marked]:
        skip = _is_behind(behind) if behind is not None and skips else None
        scan = Scan(
            self._root,
            self._tally.unread,
            excluded=self._excludes,
            one_file_system=self._options.one_file_system,
            skip=skip,
            clock=self._clock,
            observer=record,
            note=self._tally.note,
            omissions=self._omissions,
            chosen=self._chosen,
            sync=self._sync,
            unsent=self._tally.unsent,
        )
        limit = None if behind is None or self._own_work else sort_key(behind)
        for found in scan:
            if (
                limit is not None
                and isinstance(found, Found)
                and found.is_file()
                and sort_key(found.path) <= limit
            ):
                self.probe(found)  # that run's report is lost
            yield found
        self._tally.excluded = scan.excluded_count
        self._empty = scan.empty

    def probe(self, found: Found) -> bool:
        """Whether a file can be opened for reading; if not, that is reported."""
        try:
            os.close(os.open(found.name, OPEN_FLAGS, dir_fd=found.dir_fd))
        except OSError as error:
            self._tally.failed(found.path, error)
            return False
        return True

    def _watched(self, differences: Iterable[Difference]) -> Iterator[Difference]:
        """Passes on, and tells the progress."""
        for difference in differences:
            self._watch()
            self._removed_any = self._removed_any or isinstance(difference, Removed)
            yield difference

    def _watch(self) -> None:
        """Tells the progress, a few times a second."""
        tell = self._options.progress
        if tell is not None and (now_s := time.monotonic()) - self._told_s > PROGRESS_S:
            self._told_s = now_s
            tell(self._progress("send"))

    def _progress(self, phase: str, notice: str = "") -> Progress:
        tally = self._tally
        return Progress(
            phase=phase,
            path=os.fsdecode(tally.path),
            entries_done=tally.entries_done,
            bytes_done=tally.read_bytes,
            new_bytes=tally.sent_bytes,
            reused_bytes=tally.reused_bytes,
            notice=notice,
        )

    def _tell_retry(self, notice: RetryNotice) -> None:
        if self._options.progress is not None:
            self._options.progress(self._progress("retry", retry_words(notice)))


def _attempt_of(calls: Calls, options: BackupOptions) -> Attempt:
    """The way of sending that was asked for; only one of them needs what the extra `cli` installs."""
    if options.thin:
        from staddle._backup.stream_files import ThinAttempt

        return ThinAttempt(calls)
    from staddle._backup.source_side import SourceAttempt

    return SourceAttempt(calls)


def _goes_on(error: StaddleError) -> bool:
    """Whether taking the upload over may help: the failure says nothing against the upload itself."""
    if isinstance(error, ConflictError):
        return error.reason in GOES_ON
    if isinstance(error, ServerError):
        return "code" in error.facts  # a broken stream whose status was lost, not a server that gave a reason
    return may_pass(error) or isinstance(error, UnfinishedError | CancelledError)


def _is_behind(behind: bytes) -> Callable[[bytes], bool]:
    """Whether all of a directory comes before the path `behind`, in order."""
    limit = sort_key(behind)
    return lambda directory: sort_key(directory) < limit and not is_below(behind, directory)


def _text(field: str, value: str) -> str:
    """Text for the wire: what is not Unicode is escaped, what is too long is cut."""
    raw = value.encode("utf-8", "backslashreplace")[: TEXT_BYTES_MAX[field]]
    return raw.decode("utf-8", "ignore")
