"""A backup as an archive, written to a file object while it arrives.

One stream brings everything, or, where patterns select, the files that are wanted, in batches. A broken stream is resumed, also in the middle of
a file: what is written already is asked for again, compared with what was written, and left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from staddle._errors import DamageError, ProtocolError
from staddle._protocol.archive_formats import (
    ZEROS,
    Archive,
    BadContentError,
    CannotHoldError,
    LinkSources,
)
from staddle._protocol.archive_tar import TarArchive
from staddle._protocol.archive_zip import ZipArchive
from staddle._protocol.convert import backup_of, sort_key
from staddle._protocol.restore_reader import (
    VIEW_BASIC,
    VIEW_DATA,
    DamageEvent,
    DataEvent,
    EntryEvent,
    Event,
    FileEndEvent,
    is_file,
)
from staddle._restore.stats import RestoreTally
from staddle._restore.streams import Streams
from staddle._restore.target_directory import is_in
from staddle._transport.progress import ProgressReporter
from staddle._transport.retry import Retry
from staddle._types.options import BinarySink, RestoreOptions
from staddle._types.reports import ProblemKind, Progress, RestoreReport
from staddle.v1 import resources_pb2 as pb

if TYPE_CHECKING:
    from staddle._transport.calls import Calls

GATHER_BYTES_MAX: Final = 16 * 1024 * 1024
"""A file up to this size is written when all of it has come, so that a damaged one is left out and the rest is written."""
BATCH_PATHS: Final = 2_048
BATCH_PATH_BYTES: Final = 1024 * 1024
ARCHIVES: Final[dict[str, type[Archive]]] = {"tar": TarArchive, "zip": ZipArchive}


class ToArchive:
    """One archive, over as many streams as needed."""

    def __init__(
        self,
        calls: Calls,
        dataset: str,
        selector: pb.BackupSelector,
        sink: BinarySink,
        *,
        archive_format: str,
        options: RestoreOptions,
    ) -> None:
        """Of the options, those count that say what is restored. Raises BadRequestError for a pattern that cannot be meant."""
        self._progress = ProgressReporter(options.progress, self._state)
        retry = Retry(budget_s=options.retry_s, notify=self._progress.report_retry)
        self._streams = Streams(
            calls, dataset, selector, retry, include=options.include, exclude=options.exclude
        )
        self._sink = sink
        self._format = archive_format
        self._options = options
        self._tally = RestoreTally()
        self._made: Archive | None = None
        self._ways: dict[bytes, pb.Entry] | None = None if options.paths else {}
        """Directories that are not restored themselves, and that are added if something below them is; None until they are known."""
        self._above: list[bytes] = []
        """Directories above the last path that were added because of it."""
        self._done: bytes | None = None
        """The last path that was dealt with, or that is in `_pending`."""
        self._pending: dict[bytes, None] = {}
        self._pending_ways: dict[bytes, pb.Entry] = {}
        self._pending_bytes = 0
        self._links = LinkSources()
        self._leaf = b""
        """The last path that is not a directory."""
        self._copies = 0
        self._open: _Gathered | _Passed | None = None
        self._partial: _Partial | None = None
        """A file that is in the archive in part."""

    def run(self) -> RestoreReport:
        """Write the complete archive. Raises StaddleError and the sink's errors; then the archive has no end, and readers refuse it."""
        begun_s = time.monotonic()
        try:
            self._complete()
        except BaseException:
            if self._made is not None:
                self._made.abandon()
            raise
        return self._report(time.monotonic() - begun_s)

    def _complete(self) -> None:
        try:
            self._streams.to_the_end(self._pass, self._where)
            self._archive.finish()
        except BadContentError as error:
            path = self._tally.path
            raise DamageError(
                f"{path!r} {error}, so that no {self._format} archive can hold it: the archive ends there and is not complete. "
                "`--exclude` leaves the file out.",
                facts={"path": ascii(path)},
            ) from error

    @property
    def _archive(self) -> Archive:
        if self._made is None:
            backup = self._streams.backup
            if backup is None:
                raise ProtocolError("The restore began without naming its backup.")
            time_ns = backup.begin_time.seconds * 10**9 + backup.begin_time.nanos
            self._made = ARCHIVES[self._format](self._sink, time_ns)
        return self._made

    def _where(self) -> object:
        return self._done, len(self._pending), 0 if self._partial is None else self._partial.written

    # --- streams

    def _pass(self) -> None:
        """One stream over all entries, from the first that was not dealt with yet."""
        if self._ways is None:
            self._ways = self._streams.ways(self._options.paths)
        if self._streams.selection.takes_all and not self._streams.broken:
            with closing(self._streams.events(VIEW_DATA, self._options.paths)) as events:
                self._write(events, self._ways)
            return
        self._fetch()  # leftovers of an earlier stream
        behind = None if self._done is None else sort_key(self._done)
        with closing(self._streams.events(VIEW_BASIC, self._options.paths)) as events:
            for event in self._streams.selected(events):
                if isinstance(event, DamageEvent):
                    self._tally.note(ProblemKind.DAMAGED, event.path, event.message)
                if isinstance(event, EntryEvent):
                    self._gather(event.path, event.entry, behind)
        self._fetch()

    def _gather(self, path: bytes, entry: pb.Entry, behind: bytes | None) -> None:
        if not self._streams.takes(path, entry) or (behind is not None and sort_key(path) <= behind):
            return
        if len(self._pending) >= BATCH_PATHS or self._pending_bytes >= BATCH_PATH_BYTES:
            self._fetch()
        self._pending_ways.update(self._streams.passed)
        self._pending[path] = None
        self._pending_bytes += len(path)
        self._done = path

    def _fetch(self) -> None:
        """Request the gathered paths, and write them."""
        if self._pending:
            ways = {**(self._ways or {}), **self._pending_ways}
            with closing(self._streams.events(VIEW_DATA, list(self._pending), exact=True)) as events:
                self._write(events, ways)
            if self._pending:
                raise ProtocolError(
                    f"The server left out {len(self._pending)} of the paths that were asked for."
                )
        self._pending_ways.clear()
        self._pending_bytes = 0

    # --- entries

    def _write(self, events: Iterator[Event], ways: dict[bytes, pb.Entry]) -> None:
        self._open = None
        try:
            for event in events:
                if isinstance(event, EntryEvent):
                    self._entry(event, ways)
                elif isinstance(event, DataEvent):
                    self._data(event)
                elif isinstance(event, FileEndEvent):
                    self._end()
                elif isinstance(event, DamageEvent):
                    self._damaged(event)
        finally:
            self._open = None

    def _entry(self, event: EntryEvent, ways: dict[bytes, pb.Entry]) -> None:
        path, entry = event.path, event.entry
        self._tally.path = path
        self._progress.report("restore")
        if self._partial is not None and path != self._partial.path:
            raise ProtocolError(
                f"The server continued with {path!r} in the middle of {self._partial.path!r}."
            )
        if self._leaf and path.startswith(self._leaf + b"/"):
            raise ProtocolError(
                f"The server sent {path!r}, which lies below something other than a directory."
            )
        if entry.type != pb.ENTRY_TYPE_DIRECTORY:
            self._leaf = path
        if not path:
            self._finished(path)  # an archive's root is where it will be unpacked
            return
        if self._partial is None:
            self._add_above(path, ways)
        if event.open:
            self._open = self._opened(path, entry)
        elif self._partial is not None:
            raise ProtocolError(f"{path!r} has another content than before it came to a stop.")
        else:
            if not is_file(entry):
                self._add(path, entry)
            elif not self._link(path, entry):
                self._whole(path, entry, [event.data])
            self._finished(path)

    def _add_above(self, path: bytes, ways: dict[bytes, pb.Entry]) -> None:
        while self._above and not is_in(path, self._above[-1]):
            self._above.pop()
        if not ways:
            return
        start = len(self._above[-1]) + 1 if self._above else 0
        while (end := path.find(b"/", start)) >= 0:
            above = path[:end]
            start = end + 1
            entry = ways.get(above)
            if entry is not None:
                self._above.append(above)
                self._add(above, entry)

    def _add(self, path: bytes, entry: pb.Entry) -> None:
        if entry.type == pb.ENTRY_TYPE_SOCKET:
            self._tally.sockets += 1
            return
        try:
            lost = self._archive.add(path, entry)
        except CannotHoldError as error:
            self._tally.note(ProblemKind.NOT_WRITTEN, path, str(error))
            return
        self._written(path, lost)

    def _link(self, path: bytes, entry: pb.Entry) -> bool:
        """Adds a file as a link to one that is in the archive already."""
        source = self._links.find(entry)
        if source is None:
            return False
        if not self._archive.link(path, entry, source):
            self._copies += 1
            return False
        self._tally.written += 1
        return True

    def _opened(self, path: bytes, entry: pb.Entry) -> _Gathered | _Passed | None:
        partial = self._partial
        if partial is not None:
            if entry.content.content_id != partial.entry.content.content_id:
                raise ProtocolError(f"{path!r} has another content than before it came to a stop.")
            return _Passed(partial.written)
        if self._link(path, entry):
            return None
        if entry.content.size_bytes <= GATHER_BYTES_MAX:
            return _Gathered(path, entry)
        if self._begun(path, entry):
            self._partial = _Partial(path, entry)
            return _Passed(0)
        return None

    def _begun(self, path: bytes, entry: pb.Entry) -> bool:
        try:
            lost = self._archive.begin(path, entry)
        except CannotHoldError as error:
            self._tally.note(ProblemKind.NOT_WRITTEN, path, str(error))
            return False
        self._written(path, lost)
        return True

    def _whole(self, path: bytes, entry: pb.Entry, pieces: list[bytes | memoryview | int]) -> None:
        """Add a file whose bytes are complete and verified; a number stands for that many zeros."""
        if not self._begun(path, entry):
            return
        for piece in pieces:
            if isinstance(piece, int):
                self._archive.write_zeros(piece)
            else:
                self._archive.write(piece)
        self._archive.end()
        self._remember(path, entry)

    def _data(self, event: DataEvent) -> None:
        opened = self._open
        if isinstance(opened, _Gathered):
            opened.pieces.append(event.zero_bytes or event.data)
        elif isinstance(opened, _Passed):
            self._pass_on(opened, event)
        self._progress.report("restore")

    def _pass_on(self, opened: _Passed, event: DataEvent) -> None:
        """Write the bytes of a large file, without those already in the archive."""
        partial = self._partial
        assert partial is not None  # it was made with the file
        zeros = event.zero_bytes
        pieces: Iterator[bytes | memoryview] = iter((event.data,)) if not zeros else _zeros(zeros)
        for data in pieces:
            view = memoryview(data)
            if opened.again:
                before, view = view[: opened.again], view[opened.again :]
                opened.hasher.update(before)
                opened.again -= len(before)
                if not opened.again and opened.hasher.digest() != partial.hasher.digest():
                    raise ProtocolError(
                        f"{partial.path!r}: what came again is not what came before, and is in the archive already."
                    )
            if view:
                partial.hasher.update(view)
                self._archive.write(view)
                partial.written += len(view)

    def _end(self) -> None:
        opened, self._open = self._open, None
        if isinstance(opened, _Gathered):
            self._whole(opened.path, opened.entry, opened.pieces)
        elif isinstance(opened, _Passed):
            partial, self._partial = self._partial, None
            assert partial is not None  # it was made with the file
            self._archive.end()
            self._remember(partial.path, partial.entry)
        self._finished(self._tally.path)

    def _damaged(self, event: DamageEvent) -> None:
        if self._partial is not None and isinstance(self._open, _Passed):
            raise DamageError(
                f"{event.path!r} is damaged in the store ({event.message}), and {self._partial.written} bytes of it are in the archive "
                "already: the archive ends there and is not complete. `--exclude` leaves the file out; a restore to a directory gives all the rest.",
                facts={"path": ascii(event.path)},
            )
        self._tally.note(ProblemKind.DAMAGED, event.path, event.message)
        if self._open is not None or event.path == self._tally.path:
            self._open = None
            self._finished(event.path)

    def _remember(self, path: bytes, entry: pb.Entry) -> None:
        self._tally.data_bytes += entry.content.size_bytes
        self._links.add(path, entry)

    def _written(self, path: bytes, lost: str) -> None:
        self._tally.written += 1
        if lost:
            self._tally.note(ProblemKind.NOT_WRITTEN, path, f"without {lost}")

    def _finished(self, path: bytes) -> None:
        if path in self._pending:
            del self._pending[path]
        else:
            self._done = path

    # --- telling

    def _report(self, seconds: float) -> RestoreReport:
        tally = self._tally
        warnings = [
            f"{count} {words}"
            for count, words in (
                (tally.sockets, "sockets are not in the archive: no restore makes any."),
                (self._copies, "hard links are copies: a zip archive has no links."),
                (tally.problems_dropped, "more paths had problems than are named."),
            )
            if count
        ]
        assert self._streams.backup is not None  # a pass came to its end
        return RestoreReport(
            backup=backup_of(self._streams.backup),
            target="-",
            problems=tuple(tally.problems),
            warnings=(*warnings, *self._streams.selection.warnings()),
            entries_written=tally.written,
            data_bytes=tally.data_bytes,
            seconds=seconds,
        )

    def _state(self) -> Progress:
        tally, whole = self._tally, self._streams.whole(self._options.paths)
        return Progress(
            phase="restore",
            path=tally.path.decode("utf-8", "surrogateescape"),
            entries_done=tally.written,
            entries_total=None if whole is None else whole.entry_count,
            bytes_done=tally.data_bytes + (0 if self._partial is None else self._partial.written),
            bytes_total=None if whole is None else whole.data_bytes,
        )


class _Gathered:
    """A file of which everything is kept until all of it has come."""

    def __init__(self, path: bytes, entry: pb.Entry) -> None:
        self.path = path
        self.entry = entry
        self.pieces: list[bytes | memoryview | int] = []


class _Partial:
    """A large file of which a part is in the archive."""

    def __init__(self, path: bytes, entry: pb.Entry) -> None:
        self.path = path
        self.entry = entry
        self.written = 0
        self.hasher = blake3()


class _Passed:
    """A large file that arrives, possibly again."""

    def __init__(self, again: int) -> None:
        self.again = again
        """So many bytes are in the archive already."""
        self.hasher = blake3()


def _zeros(count: int) -> Iterator[memoryview]:
    while count:
        piece = min(count, len(ZEROS))
        yield memoryview(ZEROS)[:piece]
        count -= piece
