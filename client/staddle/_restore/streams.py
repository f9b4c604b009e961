"""The Restore streams of one backup: which one it is, what is asked for, and how often that is tried again."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Final

from staddle._errors import ProtocolError, StaddleError
from staddle._protocol.convert import directories_above, field_for, sort_key
from staddle._protocol.restore_reader import (
    VIEW_BASIC,
    VIEW_DATA,
    DamageEvent,
    EntryEvent,
    Event,
    HeaderEvent,
)
from staddle._protocol.segments import Segments, can_open
from staddle._restore.selection import Choice, Selection, selection_of
from staddle._restore.target_directory import is_in
from staddle._transport.restore_stream import restored
from staddle._transport.retry import Retry, may_pass
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

if TYPE_CHECKING:
    from collections.abc import Sequence

    from staddle._transport.calls import Calls

WAYS_AT_ONCE: Final = 8_192


class Streams:
    """Asks for a backup until all of it has come. The first answer decides which backup it is."""

    def __init__(
        self,
        calls: Calls,
        dataset: str,
        selector: pb.BackupSelector,
        retry: Retry,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> None:
        """Raises BadRequestError for a pattern that cannot be meant."""
        self._calls = calls
        self._dataset = dataset
        self._selector = selector
        self._retry = retry
        self._patterns = (tuple(include), tuple(exclude))
        self.selection: Selection = selection_of(*self._patterns)
        """What is taken of the backup; it knows the backup's root once the first answer came."""
        self.backup: pb.Backup | None = None
        self.broken = False
        """A stream broke: what came already need not come again."""
        self.passed: list[tuple[bytes, pb.Entry]] = []
        """Directories above the last entry given to `takes` that are not included themselves."""
        self._segments = can_open()
        """Whether data is asked for as it is stored."""

    def whole(self, paths: Sequence[bytes]) -> pb.Backup | None:
        """The backup, if all of it is wanted and it is known: then its counts are those of what will come."""
        return self.backup if not paths and self.selection.takes_all else None

    def to_the_end(self, work: Callable[[], None], where: Callable[[], object]) -> None:
        """Repeat `work` until its stream does not break; `where` gives its position. Raises StaddleError if it breaks for good."""
        attempts = self._calls.attempts(self._retry)
        while True:
            before = where()
            try:
                work()
                return
            except ProtocolError:
                if self.backup is None or not self._segments:
                    raise
                self._segments = False  # the server opens them itself then, and names what is damaged
            except StaddleError as error:
                if self.backup is None or not may_pass(error):
                    raise
                if where() != before:
                    attempts.progressed()
                attempts.wait_after(error)
            self.broken = True

    def events(
        self, view: sv.EntryView.ValueType, paths: Iterable[bytes] = (), *, exact: bool = False
    ) -> Generator[Event]:
        """One stream; see RestoreRequest for the arguments."""
        request = sv.RestoreRequest(
            dataset=self._dataset,
            backup=self._selector,
            view=view,
            exact=exact,
            segments=self._segments and view == VIEW_DATA,
            columns=self._segments and view == VIEW_DATA,
        )
        for path in paths:
            field, value = field_for("paths", path)
            getattr(request, field).append(value)
        with ExitStack() as stack:
            segments = stack.enter_context(closing(Segments())) if request.segments else None
            events = restored(self._calls, request, retry=self._retry, segments=segments)
            for event in stack.enter_context(closing(events)):
                if isinstance(event, HeaderEvent):
                    self._pick(event.backup)
                yield event

    def selected(self, events: Iterable[Event]) -> Iterator[Event]:
        """The events of a stream that is filtered on arrival, without damage that affects no selected path.

        A page of the tree that cannot be read is named by the path before it. If that is below an excluded directory, the next entry
        shows whether all of the page was: only then it is left out.
        """
        doubtful: DamageEvent | None = None
        for event in events:
            if isinstance(event, DamageEvent):
                if event.subtree and self.selection.is_below_excluded(event.path):
                    doubtful = event
                elif event.subtree or not self.selection.is_left_out(event.path):
                    yield event
                continue
            if doubtful is not None:
                if not (isinstance(event, EntryEvent) and self.selection.is_below_excluded(event.path)):
                    yield doubtful
                doubtful = None
            yield event

    def takes(self, path: bytes, entry: pb.Entry) -> bool:
        """Whether the next entry of a stream that is filtered on arrival is to be restored."""
        if self.selection.takes_all:
            return True
        while self.passed and not is_in(path, self.passed[-1][0]):
            self.passed.pop()
        choice = self.selection.choose(path, is_directory=entry.type == pb.ENTRY_TYPE_DIRECTORY)
        if choice is Choice.ON_THE_WAY:
            self.passed.append((path, entry))
        return choice is Choice.TAKEN

    def ways(self, paths: Iterable[bytes]) -> dict[bytes, pb.Entry]:
        """The directories above paths, as the backup has them.

        The paths are asked for with them, so that one that is not there fails before anything is written.
        """
        asked = set(paths)
        above = {each for path in asked if path for each in directories_above(path)} - asked
        found: dict[bytes, pb.Entry] = {}
        wanted = sorted(above | asked, key=sort_key)
        for start in range(0, len(wanted), WAYS_AT_ONCE):
            with closing(self.events(VIEW_BASIC, wanted[start : start + WAYS_AT_ONCE], exact=True)) as events:
                for event in events:
                    if isinstance(event, EntryEvent) and event.path in above:
                        found[event.path] = event.entry
        return found

    def _pick(self, backup: pb.Backup) -> None:
        """From now on it is this backup."""
        if self.backup is not None:
            if backup.id != self.backup.id:
                raise ProtocolError("The server answered with another backup than it was asked for.")
            return
        self.selection = selection_of(*self._patterns, root=backup.root)
        self.backup = backup
        self._selector = pb.BackupSelector(backup=backup.id)
