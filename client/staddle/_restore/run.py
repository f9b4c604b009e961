"""A backup into a directory.

Into a directory that is empty, or where everything is to be replaced, one stream brings everything. Otherwise a first stream lists what
the backup has, without its bytes, and only what differs is fetched, in batches. Either way a broken stream is resumed where it broke.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Final

from staddle._errors import ProtocolError
from staddle._protocol.convert import backup_of, sort_key
from staddle._protocol.restore_reader import (
    VIEW_BASIC,
    VIEW_DATA,
    VIEW_REFERENCES,
    ChunksEvent,
    DamageEvent,
    DataEvent,
    EntryEvent,
    Event,
    FileEndEvent,
    HeaderEvent,
    is_file,
)
from staddle._restore.dry_run import Preview
from staddle._restore.existing_paths import There
from staddle._restore.extras import Extras, delete_extras
from staddle._restore.folding import target_ignores_case
from staddle._restore.stats import RestoreTally
from staddle._restore.streams import Streams
from staddle._restore.verify import ContentComparison
from staddle._restore.writer import FileInProgress, Writer
from staddle._transport.progress import ProgressReporter
from staddle._transport.retry import Retry
from staddle._types.options import RestoreOptions
from staddle._types.reports import ProblemKind, Progress, RestoreReport
from staddle.v1 import resources_pb2 as pb

if TYPE_CHECKING:
    from staddle._transport.calls import Calls
    from staddle.v1 import service_pb2 as sv

FETCH_PATHS: Final = 2_048
WAYS_MAX: Final = 4_096
"""So many directories are remembered because included paths lie in them, before what was gathered is fetched."""
FETCH_PATH_BYTES: Final = 1024 * 1024


def restore_to_directory(
    calls: Calls, dataset: str, selector: pb.BackupSelector, target: bytes, options: RestoreOptions
) -> RestoreReport:
    """Restores into `target`; see Client.restore. Damage is in the report, and not raised here.

    Raises StaddleError if a stream fails for good, before or after a part was written; OSError if the target cannot be made, or is full.
    """
    return Restore(calls, dataset, selector, target, options).run()


class Restore:
    """One restore, over as many streams as it takes."""

    def __init__(
        self, calls: Calls, dataset: str, selector: pb.BackupSelector, target: bytes, options: RestoreOptions
    ) -> None:
        self._progress = ProgressReporter(options.progress, self._state)
        retry = Retry(budget_s=options.retry_s, notify=self._progress.report_retry)
        self._streams = Streams(
            calls, dataset, selector, retry, include=options.include, exclude=options.exclude
        )
        self._path = target
        self._options = options
        self._tally = RestoreTally(target)
        self._writer: Writer | Preview | None = None
        self._fresh = _is_empty_or_absent(target)
        self._at_once = (
            (self._fresh if options.overwrite != "always" else not target_ignores_case(target))
            and not options.dry_run
            and self._streams.selection.takes_all
        )
        """Everything is to be written, so one stream brings it."""
        self._ways: dict[bytes, pb.Entry] | None = None if options.paths else {}
        """Metadata for the directories above the paths; None until it is known."""
        self._warnings: list[str] = []
        self._done: bytes | None = None
        """The last path that was dealt with, or that is in `_pending`."""
        self._pending: dict[bytes, bool] = {}
        """Files to be fetched, and whether nothing was there when that was decided."""
        self._pending_bytes = 0
        self._open_path = b""
        self._came_bytes = 0
        self._coming_bytes = 0
        """Of the file that is not whole yet."""

    def run(self) -> RestoreReport:
        """To the end."""
        begun_s = time.monotonic()
        with ExitStack() as stack:
            extras = stack.enter_context(closing(self._find_extras())) if self._deletes else None
            try:
                self._streams.to_the_end(self._pass, lambda: (self._done, len(self._pending)))
                self._places.finish_directories(all_of_them=True)
            finally:
                if self._writer is not None:
                    self._writer.close()
            if extras is not None:
                self._warnings += delete_extras(extras, self._tally, dry_run=self._options.dry_run)
        return self._report(time.monotonic() - begun_s)

    @property
    def _whole(self) -> bool:
        """Whether a stream brings everything with its data. After one broke, what came already need not come again."""
        return self._at_once and not self._streams.broken

    @property
    def _places(self) -> Writer | Preview:
        if self._writer is None:
            raise ProtocolError("The restore began without naming its backup.")
        return self._writer

    @property
    def _writing(self) -> Writer:
        places = self._places
        assert isinstance(places, Writer)  # a preview asks for no data
        return places

    # --- what the backup does not have

    @property
    def _deletes(self) -> bool:
        return self._options.delete and not self._fresh

    def _find_extras(self) -> Extras:
        """What is to be deleted in the end. Changes nothing; `confirm_delete` may refuse by raising."""
        found: list[Extras] = []

        def look() -> None:
            while found:
                found.pop().close()
            with closing(self._streams.events(VIEW_BASIC, self._options.paths)) as events:
                for event in events:
                    if isinstance(event, HeaderEvent):
                        found.append(Extras(self._path, self._streams.selection.again()))
                    elif isinstance(event, EntryEvent):
                        self._tally.path = event.path
                        self._progress.report("compare")
                        found[0].add(event.path, event.entry)
                    elif isinstance(event, DamageEvent) and event.subtree:
                        found[0].sure = False
            found[0].end()

        try:
            self._streams.to_the_end(look, lambda: None)
            confirm = self._options.confirm_delete
            if confirm is not None and found[0].count and found[0].sure and not self._options.dry_run:
                confirm(found[0].count)
        except BaseException:
            for each in found:
                each.close()
            raise
        return found[0]

    # --- streams

    def _pass(self) -> None:
        """One stream over all entries, from the first that was not dealt with yet."""
        if self._ways is None:
            self._ways = self._streams.ways(self._options.paths)
        if self._whole:
            with closing(self._events(VIEW_DATA, self._options.paths)) as events:
                self._write(events)
            return
        view = VIEW_REFERENCES if self._options.verify else VIEW_BASIC
        with closing(self._events(view, self._options.paths)) as events:
            self._decide(events)
        self._fetch()

    def _events(
        self, view: sv.EntryView.ValueType, paths: Iterable[bytes], *, exact: bool = False
    ) -> Generator[Event]:
        with closing(self._streams.events(view, paths, exact=exact)) as events:
            for event in events:
                if isinstance(event, HeaderEvent) and self._writer is None:
                    self._begin()
                yield event

    def _begin(self) -> None:
        """The first answer came, so all paths exist: from now on the target is written."""
        if self._options.dry_run:
            self._writer = Preview(
                self._path, self._options.overwrite, self._tally, verify=self._options.verify
            )
            return
        self._writer = Writer(
            self._path,
            self._options.overwrite,
            self._tally,
            fresh=self._fresh,
            verify=self._options.verify,
        )
        self._writer.ways.update(self._ways or {})
        self._writer.begin_ways()

    def _write(self, events: Iterator[Event]) -> None:
        """Entries with their bytes, written as they come."""
        opened: FileInProgress | None = None
        try:
            for event in events:
                if isinstance(event, EntryEvent):
                    opened = self._write_entry(event)
                elif isinstance(event, DataEvent):
                    opened = self._write_data(opened, event)
                elif isinstance(event, FileEndEvent):
                    ended, opened = opened, None
                    self._end_file(ended)
                elif isinstance(event, DamageEvent):
                    ended, opened = opened, None
                    self._damaged(ended, event)
        finally:
            if opened is not None:
                opened.abandon()
            self._coming_bytes = 0
            if isinstance(self._writer, Writer):
                self._writer.drain()  # also if the stream broke: the next one resumes after what came

    def _write_entry(self, event: EntryEvent) -> FileInProgress | None:
        """Writes an entry, or begins the file whose bytes follow."""
        path, entry, writer = event.path, event.entry, self._writing
        self._entered(path)
        self._open_path = path
        self._coming_bytes = len(event.data)
        opened: FileInProgress | None = None
        new = self._pending.get(path, False)
        if not is_file(entry):
            self._make(path, entry)
        elif not writer.link(path, entry, new=new):
            if event.open:
                opened = writer.open_file(path, entry, new=new)
            else:
                writer.whole_file(path, entry, event.data, new=new)
        if not event.open:
            self._finished(path)
        return opened

    def _write_data(self, opened: FileInProgress | None, event: DataEvent) -> FileInProgress | None:
        """Writes bytes; None if the target does not take them, and the rest of the file is let pass."""
        self._coming_bytes += event.zero_bytes or len(event.data)
        self._progress.report("restore")
        if opened is None:
            return None
        try:
            if event.zero_bytes:
                opened.write_zeros(event.zero_bytes)
            else:
                opened.write(event.data)
        except OSError as error:
            opened.abandon()  # if nothing more can be written, the next line raises, and `_write` abandons it again
            self._tally.not_written(opened.path, error)
            return None
        return opened

    def _end_file(self, opened: FileInProgress | None) -> None:
        if opened is not None:
            self._writing.finish_file(opened)
        self._finished(self._open_path)

    def _damaged(self, opened: FileInProgress | None, event: DamageEvent) -> None:
        if opened is not None:
            opened.abandon()
        self._tally.note(ProblemKind.DAMAGED, event.path, event.message)
        self._finished(event.path)

    def _make(self, path: bytes, entry: pb.Entry) -> None:
        if entry.type == pb.ENTRY_TYPE_DIRECTORY:
            self._writing.directory(path, entry)
        else:
            self._writing.special(path, entry)

    # --- what differs

    def _decide(self, events: Iterator[Event]) -> None:
        """Deals with all that needs no bytes, and gathers the files that do; fetches them now and then."""
        behind = None if self._done is None else sort_key(self._done)
        comparison: ContentComparison | None = None
        try:
            for event in self._streams.selected(events):
                if isinstance(event, ChunksEvent):
                    if comparison is not None:
                        comparison = self._compare(comparison, event.chunks)
                    continue
                if comparison is not None:
                    ended, comparison = comparison, None
                    self._decide_compared(ended, event)
                if isinstance(event, DamageEvent):
                    self._tally.note(ProblemKind.DAMAGED, event.path, event.message)
                if not isinstance(event, EntryEvent) or not self._takes(event.path, event.entry):
                    continue
                if behind is not None and sort_key(event.path) <= behind:
                    continue
                self._entered(event.path)
                comparison = self._decide_entry(event.path, event.entry)
                if comparison is None:
                    self._decided(event.path)
        finally:
            if comparison is not None:
                comparison.close()

    def _takes(self, path: bytes, entry: pb.Entry) -> bool:
        """Whether an entry is to be restored. If so, the directories above it may be made, as the backup has them."""
        if not self._streams.takes(path, entry):
            return False
        if not self._streams.passed:
            return True
        ways = self._places.ways
        if len(ways) >= WAYS_MAX + len(self._ways or ()):
            self._fetch()
            self._places.forget_ways(self._ways or {})
        for above, its in self._streams.passed:
            if above not in ways:
                ways[above] = its
                if not above:
                    self._places.begin_ways()
        return True

    def _decided(self, path: bytes) -> None:
        self._done = path
        if len(self._pending) >= FETCH_PATHS or self._pending_bytes >= FETCH_PATH_BYTES:
            self._fetch()

    def _decide_entry(self, path: bytes, entry: pb.Entry) -> ContentComparison | None:
        """Deals with an entry, or has it gathered; or begins to compare it."""
        if entry.type == pb.ENTRY_TYPE_DIRECTORY:
            self._places.directory(path, entry)
            return None
        if entry.type == pb.ENTRY_TYPE_SOCKET:
            self._places.special(path, entry)
            return None
        there = self._places.what_is_there(path, entry)
        if there is There.COMPARE:
            try:
                comparison = ContentComparison(self._places.open_present(path), path, entry)
            except OSError as error:
                self._tally.not_written(path, error)
                return None
            return self._compare(comparison, entry.content.chunks)
        self._replace(path, entry, there)
        return None

    def _compare(
        self, comparison: ContentComparison, chunks: Iterable[pb.ChunkRef]
    ) -> ContentComparison | None:
        """Compares the next chunks; None, noted, if the file cannot be read."""
        try:
            comparison.add(chunks)
        except OSError as error:
            comparison.close()
            self._tally.not_written(comparison.path, error)
            return None
        except BaseException:
            comparison.close()
            raise
        return comparison

    def _decide_compared(self, comparison: ContentComparison, event: Event) -> None:
        """Deals with a file all of whose chunks were compared, before the event that follows."""
        path, entry = comparison.path, comparison.entry
        try:
            if not (isinstance(event, DamageEvent) and event.path == path and not event.subtree):
                same = comparison.is_same()
                self._replace(path, entry, self._places.compared(path, entry, same=same))
        finally:
            comparison.close()
        self._decided(path)

    def _replace(self, path: bytes, entry: pb.Entry, there: There) -> None:
        """Makes what is not there as it should be, or gathers it."""
        if there is There.STAYS:
            return
        new = there is There.NOTHING
        if not is_file(entry):
            self._places.special(path, entry, new=new)
        elif not self._places.link(path, entry, new=new):
            self._pending[path] = new
            self._pending_bytes += len(path)

    def _fetch(self) -> None:
        """Fetches the files that were gathered, and with that the directories that were left have all they get."""
        if self._pending:
            with closing(self._events(VIEW_DATA, self._pending, exact=True)) as events:
                self._write(events)
            if self._pending:
                raise ProtocolError(
                    f"The server left out {len(self._pending)} of the paths that were asked for."
                )
        self._pending_bytes = 0
        self._places.finish_directories()

    def _entered(self, path: bytes) -> None:
        """A path comes; directories that it is not in are finished, unless files for them are still to come."""
        self._tally.path = path
        self._progress.report("restore")
        if path in self._pending:
            return
        writer = self._places
        writer.enter(path)
        if writer.left_is_full and self._pending:
            self._fetch()
        elif writer.left_count and not self._pending:
            writer.finish_directories()

    def _finished(self, path: bytes) -> None:
        self._came_bytes += self._coming_bytes
        self._coming_bytes = 0
        if path in self._pending:
            del self._pending[path]
        elif self._whole:
            self._done = path

    # --- telling

    def _report(self, seconds: float) -> RestoreReport:
        tally, applier = self._tally, self._places.applier
        warnings = [
            f"{count} {words}"
            for count, words in (
                (applier.owners_kept, "paths kept this user as their owner: only root can give files away."),
                (applier.xattrs_kept, "extended attributes were not set: this user or this system cannot."),
                (tally.sockets, "sockets were not made: a restore never makes any."),
                (tally.kept, "paths were there already, and were kept."),
                (tally.problems_dropped, "more paths had problems than are named."),
            )
            if count
        ]
        warnings += [*self._warnings, *self._streams.selection.warnings()]
        assert self._streams.backup is not None  # a pass came to its end
        return RestoreReport(
            backup=backup_of(self._streams.backup),
            target=os.fsdecode(self._path),
            problems=tuple(tally.problems),
            warnings=tuple(warnings),
            entries_written=tally.written,
            entries_unchanged=tally.unchanged,
            data_bytes=tally.data_bytes,
            seconds=seconds,
            entries_deleted=tally.deleted_count,
            deleted_paths=tuple(tally.deleted_paths),
            made=tally.made,
            replaced=tally.replaced,
        )

    def _state(self) -> Progress:
        tally, whole = self._tally, self._streams.whole(self._options.paths)
        return Progress(
            phase="restore",
            path=os.fsdecode(tally.path),
            entries_done=tally.written + tally.unchanged,
            entries_total=None if whole is None else whole.entry_count,
            bytes_done=self._came_bytes + self._coming_bytes,
            bytes_total=None if whole is None else whole.data_bytes,
        )


def _is_empty_or_absent(path: bytes) -> bool:
    try:
        with os.scandir(path) as listing:
            return next(listing, None) is None
    except FileNotFoundError:
        return True
