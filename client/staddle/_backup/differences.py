"""The differences that a backup sends: the source compared with the dataset, and the limit on removals.

Knows no upload but as a starting point: a dry run compares the same way and sends nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from staddle._backup.cache.base_entries import cached_entries
from staddle._backup.cache.file import CacheError
from staddle._backup.cached_comparison import CachedScan
from staddle._backup.changes import Difference, Removed
from staddle._backup.comparison import BaseDamagedError, BaseEntry, Comparison
from staddle._backup.dataset_backups import DatasetBackups
from staddle._backup.entries import BackupTally
from staddle._backup.selection import (
    ALL_PERCENT,
    check_excludes,
    check_removed,
    emptied,
    excludes_for,
    nothing_read,
    omissions_of,
)
from staddle._base.figures import counted
from staddle._errors import DamageError, NotFoundError, ProtocolError
from staddle._fs.chosen_paths import Source
from staddle._fs.excludes import UNMATCHED_SHOWN_MAX, all_patterns
from staddle._fs.file_reader import OPEN_FLAGS
from staddle._fs.found import Found, Marked, WallClock
from staddle._fs.mounts import mounts_below
from staddle._fs.scan import Scan
from staddle._fs.sync import sync_file_system
from staddle._protocol.convert import is_below, path_of, sort_key, time_ns_of
from staddle._types.options import BackupOptions
from staddle._types.reports import ProblemKind
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

if TYPE_CHECKING:
    from staddle._backup.cache.file import CacheReader
    from staddle._backup.cache.recorder import CacheRecorder
    from staddle._transport.calls import Calls


@dataclass(slots=True)
class Start:
    """The start of an attempt: the state of the upload, and the damage of its base."""

    upload: pb.Upload
    distrusted: frozenset[bytes]
    rely: bool
    """Whether the base may be relied on at all."""
    pristine: bool = False
    """Nothing was sent to it before: what it holds will be known."""
    own: bool = False
    """All that is durable in it was sent by this very run, so that its problems are known."""

    @property
    def reads_all(self) -> bool:
        """Whether everything is read, and what is the same in the base is not sent: a full backup with a base."""
        return self.upload.kind == pb.BACKUP_KIND_FULL and self.upload.scope == pb.UPLOAD_SCOPE_CHANGES


class SourceDifferences:
    """The differences between a source and a dataset. One object serves all attempts of a backup."""

    def __init__(
        self,
        calls: Calls,
        backups: DatasetBackups,
        source: Source,
        options: BackupOptions,
        tally: BackupTally,
        *,
        clock: WallClock,
        sync: Callable[[int], None] | None = sync_file_system,
    ) -> None:
        self._calls = calls
        self._backups = backups
        self._root = source.root
        self._chosen = source.chosen
        self._sync = sync
        self._options = options
        self._tally = tally
        self._clock = clock
        self._patterns = all_patterns("exclude_files", options.exclude_files, options.exclude)
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
        self.warnings: list[str] = []
        self.comparison: Comparison | None = None
        """What was compared last with the base's entries as the server lists them."""

    def describe(self) -> tuple[object, ...]:
        """The options that select paths, for the fingerprint of an upload."""
        return (
            self._patterns,
            self._omissions,
            None if self._chosen is None else self._chosen.fingerprint(),
            self._options.one_file_system,
        )

    def since(
        self,
        start: Start,
        record: CacheRecorder | None = None,
        find_cache: Callable[[], CacheReader | None] = lambda: None,
    ) -> Generator[Difference]:
        """What to send. The base's list, or the cache of it that `find_cache` may find, is opened and closed by the thread that draws from this."""
        known = find_cache()
        if known is None:
            yield from self._compared(start, record)
            return
        with closing(known):
            if start.reads_all:
                yield from self._compared(start, record, known)
                return
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
            self._check_removed(start, scan)

    def _compared(
        self, start: Start, record: CacheRecorder | None, known: CacheReader | None = None
    ) -> Iterator[Difference]:
        """The differences from the base's entries, as the server lists them, or as `known` has them."""
        durable = start.upload.durable
        behind = path_of(durable.last_entry) if durable.HasField("last_entry") else None
        whole = start.upload.scope == pb.UPLOAD_SCOPE_WHOLE
        skips = behind is not None and start.own and not self._removed_any and not self._base_unlisted
        self._skipped_any = self._skipped_any or skips
        since_ns = None if behind is None or start.own else self._begun_ns(start.upload)
        with (
            self._base_of(start, known) as base,
            closing(self._scan(behind, record, probes=not start.own, skips=skips)) as scan,
        ):
            comparison = Comparison(
                scan,
                base,
                rely=start.rely,
                distrusted=start.distrusted,
                behind=behind,
                since_ns=since_ns,
                mounted=frozenset() if since_ns is None else mounts_below(os.fsencode(self._root)),
                record=record,
                behind_is_whole=skips,
                only_counts=whole,
                reads_all=start.reads_all,
                left_out=self._tally.missing,
                unsent=self._tally.unsent,
            )
            self.comparison = comparison
            # To remove the root again would drop the file that is resumed.
            again = behind is None and durable.HasField("open_entry")
            for difference in self._watched(comparison):
                if isinstance(difference, Removed) and (
                    (whole and not difference.sent) or (again and not difference.path)
                ):
                    continue
                yield difference
            self._tally.unchanged = comparison.unchanged
            self._check_removed(start, comparison)

    def _begun_ns(self, upload: pb.Upload) -> int:
        """When an upload began, by this machine's clock, as files have their times from it."""
        now_ns = time.time_ns()  # before the call: too early is harmless
        server_ns = time_ns_of(self._calls.call("GetServerInfo", sv.GetServerInfoRequest()).server_time)
        return time_ns_of(upload.begin_time) + now_ns - server_ns

    def _check_removed(self, start: Start, seen: Comparison | CachedScan) -> None:
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
            if self._backups.had_entries(path):
                raise emptied(os.path.join(self._root, path))
        if nothing:  # a differential's base may be older than a backup that was meant to be empty
            before, kept = int(not self._backups.newest_is_empty()), 0
        elif start.upload.scope == pb.UPLOAD_SCOPE_CHANGES:
            before, kept = seen.base_count, seen.kept_count
        elif most is not None:
            before, kept = seen.base_count, seen.kept_count
            if self._base_unlisted:
                before = max(0, self._backups.newest_count() - 1)
                kept = min(before, seen.found_count)
        else:
            return
        check_removed(self._root, before, kept, nothing=nothing, excluded=excluded, max_percent=most)

    def _check_read(self, seen: Comparison | CachedScan) -> None:
        """Raises NothingReadError if no requested path could be read."""
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

    def _watched(self, differences: Iterable[Difference]) -> Iterator[Difference]:
        """Passes on, and reports progress."""
        for difference in differences:
            self._tally.watch()
            self._removed_any = self._removed_any or isinstance(difference, Removed)
            yield difference

    @contextmanager
    def _base_of(self, start: Start, known: CacheReader | None) -> Iterator[Iterator[BaseEntry]]:
        upload = start.upload
        if start.reads_all:
            if known is None:
                raise CacheError("the cache of the base is gone")
            yield cached_entries(known)
            return
        if upload.scope != pb.UPLOAD_SCOPE_CHANGES:
            with closing(self._before_whole()) as before:
                yield before
            return
        if not upload.base_backup_id:
            raise ProtocolError("The server opened an upload of changes without a base.")
        with self._backups.entries_of(upload.base_backup_id) as entries:
            yield entries

    def _before_whole(self) -> Generator[BaseEntry]:
        """The entries of the backup before a full one, if it has to be known how much of them is left."""
        most = self._options.max_removed_percent
        if most is None or most >= ALL_PERCENT or self._base_unlisted:
            return
        newest = self._backups.newest()
        if newest is None:
            return
        try:
            with self._backups.entries_of(newest.id) as entries:
                yield from entries
        except (BaseDamagedError, DamageError, NotFoundError):
            self._base_unlisted = True
            self.warnings.append(
                "The backup before cannot be listed: only its number of entries was compared (--max-removed)."
            )

    def _scan(
        self, behind: bytes | None, record: CacheRecorder | None, *, probes: bool, skips: bool
    ) -> Generator[Found | Marked]:
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
        limit = sort_key(behind) if probes and behind is not None else None
        for found in scan:
            if (
                limit is not None
                and isinstance(found, Found)
                and found.is_file()
                and sort_key(found.path) <= limit
            ):
                self.probe(found)  # the report of that run is lost
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

    def all_warnings(self) -> tuple[str, ...]:
        """The messages about the complete run."""
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


def _is_behind(behind: bytes) -> Callable[[bytes], bool]:
    """Whether all of a directory comes before the path `behind`, in order."""
    limit = sort_key(behind)
    return lambda directory: sort_key(directory) < limit and not is_below(behind, directory)
