"""What a backup would do: the same scan and the same comparison, with calls that only read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from staddle._backup.changes import Changed, Removed
from staddle._backup.comparison import BaseDamagedError
from staddle._backup.dataset_backups import DatasetBackups
from staddle._backup.differences import SourceDifferences, Start
from staddle._backup.entries import BackupTally, progress_of
from staddle._backup.origin import host_of, root_text
from staddle._backup.selection import find_source
from staddle._errors import NoBaseError, RootDiffersError
from staddle._fs.metadata import OwnerNames, entry_of
from staddle._protocol.convert import KINDS_TO_WIRE, backup_of
from staddle._transport.retry import Retry
from staddle._types.backups import BackupKind
from staddle._types.options import BackupOptions
from staddle._types.plan import Amount, BackupPlan, PlannedChange, PlannedPath, PlannedPathCallback
from staddle.v1 import resources_pb2 as pb

if TYPE_CHECKING:
    from staddle._fs.chosen_paths import Source
    from staddle._fs.found import WallClock
    from staddle._transport.calls import Calls


def plan_backup(
    calls: Calls,
    paths: bytes | Sequence[bytes],
    options: BackupOptions,
    clock: WallClock = time.time_ns,
    each: PlannedPathCallback | None = None,
) -> BackupPlan:
    """See Client.plan_backup. Begins no upload, and neither reads nor writes the client's cache."""
    source = find_source(paths, options)
    return _Plan(calls, source, replace(options, cache_dir=None), clock, each).made()


class _Plan:
    def __init__(
        self,
        calls: Calls,
        source: Source,
        options: BackupOptions,
        clock: WallClock,
        each: PlannedPathCallback | None,
    ) -> None:
        self._options = options
        self._each = each
        self._tally = BackupTally(options.profile)
        progress = progress_of(self._tally, options)
        retry = Retry(budget_s=options.retry_s, notify=progress.report_retry)
        self._root = source.root
        self._backups = DatasetBackups(calls, options.dataset, retry)
        self._differences = SourceDifferences(
            calls, self._backups, source, options, self._tally, clock=clock, sync=None
        )
        self._names = OwnerNames()
        self._warnings: list[str] = []
        self._new = Amount()
        self._changed = Amount()

    def made(self) -> BackupPlan:
        begun_s = time.monotonic()
        newest = self._backups.newest()
        self._check_origin(newest)
        kind, base = self._start(newest)
        try:
            self._look(kind, base)
        except BaseDamagedError as error:
            if self._options.kind is not BackupKind.AUTO:
                raise error.for_kind() from error
            self._warnings.append(
                f"The base is damaged below {error.path!r}: this would become a full backup."
            )
            kind, base = BackupKind.FULL, None
            self._new = self._changed = Amount()
            self._look(kind, base)
        seen = self._differences.comparison
        assert seen is not None  # both ways end with one
        return BackupPlan(
            dataset=self._options.dataset,
            kind=kind,
            base=None if base is None else backup_of(base),
            new=self._new,
            changed=self._changed,
            removed=Amount()
            if base is None
            else Amount(seen.base_count - seen.kept_count, seen.removed_bytes),
            unchanged=Amount(seen.unchanged, seen.unchanged_bytes),
            excluded_entries=self._tally.excluded,
            problems=tuple(self._tally.problems.values()),
            warnings=(*self._warnings, *self._differences.all_warnings()),
            notes=tuple(self._tally.notes.values()),
            seconds=time.monotonic() - begun_s,
        )

    # --- what it would start from

    def _check_origin(self, newest: pb.Backup | None) -> None:
        if newest is None or self._options.new_root:
            return
        for said, known in ((host_of(self._options), newest.host), (root_text(self._root), newest.root)):
            if said and known and said != known:
                raise RootDiffersError(
                    f"Dataset {self._options.dataset!r} holds {newest.root!r} of host {newest.host!r}: use another dataset, "
                    "or declare a new root",
                    facts={"dataset": self._options.dataset, "host": newest.host, "root": newest.root},
                )

    def _start(self, newest: pb.Backup | None) -> tuple[BackupKind, pb.Backup | None]:
        """The kind and base that the server would choose. Raises NoBaseError."""
        kind = self._options.kind
        if kind is BackupKind.AUTO:
            if newest is None or self._options.new_root:
                return BackupKind.FULL, None
            return BackupKind.INCREMENTAL, newest
        if kind is BackupKind.FULL:
            return kind, None
        base = newest
        if kind is BackupKind.DIFFERENTIAL:
            base = next(
                (each for each in self._backups.newest_first() if each.kind == pb.BACKUP_KIND_FULL), None
            )
        if base is None:
            what = "full backup" if kind is BackupKind.DIFFERENTIAL else "backup"
            raise NoBaseError(
                f"Dataset {self._options.dataset!r} has no {what} to start from: begin with a full one",
                facts={"dataset": self._options.dataset},
            )
        return kind, base

    # --- what differs

    def _look(self, kind: BackupKind, base: pb.Backup | None) -> None:
        upload = pb.Upload(
            dataset=self._options.dataset,
            kind=KINDS_TO_WIRE[kind],
            scope=pb.UPLOAD_SCOPE_WHOLE if base is None else pb.UPLOAD_SCOPE_CHANGES,
            base_backup_id="" if base is None else base.id,
        )
        start = Start(upload, frozenset(), rely=not self._options.new_root)
        with closing(self._differences.since(start)) as differences:
            for difference in differences:
                if isinstance(difference, Changed):
                    self._take(difference)
                elif isinstance(difference, Removed):
                    self._say(PlannedChange.REMOVED, difference.path, 0)

    def _take(self, changed: Changed) -> None:
        found = changed.found
        is_readable = entry_of(found, self._names, self._tally) is not None
        if not is_readable or (found.is_file() and not self._differences.probe(found)):
            if changed.in_base:
                self._say(PlannedChange.REMOVED, found.path, 0)
            return
        changed.holds(found.stat, read_again=False)
        size = found.stat.st_size if found.is_file() else 0
        self._tally.path = found.path
        self._tally.entries_done += 1
        if changed.in_base or changed.doubted:
            self._changed = self._changed.plus(size)
            self._say(PlannedChange.CHANGED, found.path, size)
        else:
            self._new = self._new.plus(size)
            self._say(PlannedChange.NEW, found.path, size)

    def _say(self, change: PlannedChange, path: bytes, size: int) -> None:
        if self._each is not None:
            self._each(PlannedPath(change, path, size))
