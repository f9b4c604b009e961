"""What changed since the base: the scan and the base's entries, both in order, side by side, with flat memory."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from staddle._backup.changes import Changed, Difference, Removed
from staddle._errors import DamageError
from staddle._fs.file_reader import RACY_NS
from staddle._fs.found import Found, Marked, Unsent
from staddle._fs.metadata import type_of
from staddle._protocol.columns import EntryRow
from staddle._protocol.convert import is_below, sort_key
from staddle._protocol.restore_reader import DamageEvent, Event, RowsEvent
from staddle.v1 import resources_pb2 as pb

if TYPE_CHECKING:
    from staddle._backup.cache.recorder import CacheRecorder


SECOND_NS: Final = 10**9
TICK_NS: Final = 20_000_000
"""So far the time of a change may lie before the change: systems take it from a clock that ticks."""


class BaseEntry(NamedTuple):
    """An entry of the base. `whole` is False if it cannot be restored, and so cannot be relied on."""

    path: bytes
    row: EntryRow
    whole: bool
    digest: bytes = b""
    """Of the whole entry; empty: unknown."""


class BaseDamagedError(Exception):
    """A part of the base's list of entries cannot be read, so the changes in it are unknown."""

    def __init__(self, path: bytes, message: str) -> None:
        super().__init__(message)
        self.path = path

    def for_kind(self) -> DamageError:
        """The error if the requested kind of backup needs the base."""
        return DamageError(
            f"The list of the base's entries below {self.path!r} is damaged: {self}. Make a full backup (kind full)."
        )


def base_entries(events: Iterable[Event]) -> Generator[BaseEntry]:
    """The entries of a Restore stream without data, in columns.

    Raises BaseDamagedError if a part of the tree is damaged, ProtocolError if the stream is not as it should be.
    """
    last: BaseEntry | None = None
    for event in events:
        if isinstance(event, RowsEvent):
            for row in event.rows:
                if last is not None:
                    yield last
                last = BaseEntry(row.path, row, True)
        elif isinstance(event, DamageEvent):
            if event.subtree or last is None or event.path != last.path:
                raise BaseDamagedError(event.path, event.message)
            last = last._replace(whole=False)
    if last is not None:
        yield last


@dataclass(slots=True)
class Comparison:
    """Yields changed, new and removed paths from a scan and the base's entries; both must be in order.

    Paths up to `behind` are left out: a resumed backup has them already. Where an earlier run sent them, those that changed since it
    began are not left out, and neither are removals; and of a directory that changed, or on which something is mounted, all below it is
    taken out and sent again: what was moved or mounted there has times from before. `unchanged` counts as it goes.
    """

    scan: Iterable[Found | Marked]
    base: Iterator[BaseEntry]
    rely: bool = True
    """Whether the base describes the current files and what the server has. Otherwise it only gives removals."""
    distrusted: frozenset[bytes] = frozenset()
    """Paths of the base that are damaged."""
    behind: bytes | None = None
    since_ns: int | None = None
    """When, by this machine's clock, the earlier run began that sent what is up to `behind`; None: this run did."""
    mounted: frozenset[bytes] = frozenset()
    """The current mount points; those of the earlier run are unknown."""
    record: CacheRecorder | None = None
    """Gets to know what the backup then holds."""
    unchanged: int = 0
    behind_is_whole: bool = False
    """Of what the base has up to `behind` nothing was removed, and not all of it is scanned."""
    only_counts: bool = False
    """The base only shows how much of it is left: all that is scanned is sent as new. What is gone is reported all the same."""
    reads_all: bool = False
    """What stat proves unchanged is yielded, too, with the digest that the base's entry has."""
    left_out: AbstractSet[bytes] = frozenset()
    """What this run could not read so far, also before it was cut short."""
    unsent: Unsent = field(default_factory=Unsent)
    """What came of the last path that was yielded, where it was not sent."""
    base_count: int = 0
    """Entries of the base so far, without its root."""
    kept_count: int = 0
    """Those of them that the new backup has, too, changed or not."""
    found_count: int = 0
    """Paths of the scan so far that the new backup has, without its root."""
    unchanged_bytes: int = 0
    """Of the unchanged regular files."""
    removed_bytes: int = 0
    """Of the regular files that only the base has."""
    _replaced: set[bytes] = field(default_factory=set)
    """Paths of the base that disappeared when it was their turn, and may come again."""
    _root_gone: bool = False
    """The base has a root, and what is scanned is a single file: everything was removed."""
    _next: BaseEntry | None = None
    _gone: bytes | None = field(default=None)
    """Everything of the base below this path is dealt with."""
    _anew: bytes | None = field(default=None)
    """Everything below this directory is sent again."""

    def __iter__(self) -> Iterator[Difference]:
        behind = None if self.behind is None else sort_key(self.behind)
        self._advance()
        for found in self.scan:
            if isinstance(found, Marked):
                yield found
                continue
            order = sort_key(found.path)
            yield from self._removed_before(order, behind)
            if found.late:
                yield from self._late(found, order, behind)
                continue
            base = self._take(found)
            relies_on_nothing = self.only_counts or self._root_gone
            if behind is not None and order <= behind and not self._root_gone:
                if not self._is_anew(found):
                    self._count_held(
                        found, base, held=found.is_directory() or found.path not in self.left_out
                    )
                    continue
                if found.is_directory() and found.path and found.path.count(b"/") <= self._anew_depth:
                    # This also drops what the earlier run found in it.
                    yield Removed(found.path, sent=True)
                relies_on_nothing = True
            counted, base = base, None if relies_on_nothing else base
            relied = base is not None and self._relies_on(base)
            same = base if base is not None and relied and is_unchanged(found, base) else None
            if same is not None and not self.reads_all:
                self._count_held(found, counted, held=True)
                self.unchanged += 1
                self.unchanged_bytes += found.stat.st_size if found.is_file() else 0
                if self.record is not None:
                    self.record.kept()
                continue
            doubted = base is not None and not relied
            changed = Changed(found, in_base=relied, doubted=doubted, known=same.digest if same else b"")
            yield from self._counted(changed, counted)
            if self.record is not None:
                self.record.settle(changed)
        yield from self._removed_before(None, behind)

    def _counted(self, changed: Changed, base: BaseEntry | None) -> Iterator[Changed]:
        """Yield a path, and count it once it is known whether it could be read."""
        yield changed
        path = changed.found.path
        if changed.held is not None:
            self.found_count += bool(path)
            self.kept_count += bool(path) and (base is not None or path in self._replaced)
            self._replaced.discard(path)
        elif base is not None and self.unsent.replaced is not None:
            self._replaced.add(path)
        elif base is not None:
            self.removed_bytes += base.row.size_bytes

    def _count_held(self, found: Found, base: BaseEntry | None, *, held: bool) -> None:
        """Counts a path that need not be sent."""
        self.found_count += bool(found.path) and held
        self.kept_count += bool(found.path) and held and base is not None

    def _is_anew(self, found: Found) -> bool:
        """Whether a path of an earlier run may have changed since: itself, or a directory above it."""
        if self.since_ns is None:
            return False
        if self._anew is not None and is_below(found.path, self._anew):
            return True
        changed = self._changed_since(found, self.since_ns) or found.path in self.mounted
        if changed and found.is_directory():
            self._anew = found.path
        return changed

    @property
    def _anew_depth(self) -> int:
        """The number of slashes in the path of a directory that is removed completely. The root never is: its directories are."""
        return self._anew.count(b"/") if self._anew else 0

    def _changed_since(self, found: Found, since_ns: int) -> bool:
        newest_ns = max(found.stat.st_mtime_ns, found.stat.st_ctime_ns)
        is_coarse = not newest_ns % SECOND_NS  # as file systems with whole seconds have it
        return newest_ns >= since_ns - (RACY_NS if is_coarse else TICK_NS)

    def _advance(self) -> None:
        self._next = next(self.base, None)
        if self._next is not None:
            self.base_count += bool(self._next.path)

    def _late(self, found: Found, order: bytes, behind: bytes | None) -> Iterator[Difference]:
        """A path out of order. Its removal comes first, at its turn or now: later it would remove what is sent."""
        base = self._next if self._next is not None and self._next.path == found.path else None
        if base is not None:
            yield from self._remove_next(order, behind)
        yield from self._counted(Changed(found, in_base=True), base)

    def _removed_before(self, order: bytes | None, behind: bytes | None) -> Iterator[Removed]:
        while self._next is not None and (order is None or sort_key(self._next.path) < order):
            path, row = self._next.path, self._next.row
            self.removed_bytes += row.size_bytes
            if self.behind_is_whole and behind is not None and sort_key(path) <= behind:
                is_held = row.type == pb.ENTRY_TYPE_DIRECTORY or path not in self.left_out
                self.kept_count += bool(path) and is_held
            yield from self._remove_next(order, behind)

    def _remove_next(self, order: bytes | None, behind: bytes | None) -> Iterator[Removed]:
        """Remove the next entry of the base, unless a directory above it was removed."""
        assert self._next is not None
        path = self._next.path
        self._advance()
        if order is None and not path:
            return  # nothing was scanned at all: to remove the root would take everything
        if self._gone is not None and is_below(path, self._gone):
            return
        self._root_gone = self._root_gone or not path
        self._gone = path
        if behind is None or sort_key(path) > behind or self.since_ns is not None:
            yield Removed(path)

    def _take(self, found: Found) -> BaseEntry | None:
        """The base's entry at this path."""
        if self._next is None or self._next.path != found.path:
            return None
        base = self._next
        self._advance()
        if base.row.type == pb.ENTRY_TYPE_DIRECTORY and not found.is_directory():
            self._gone = found.path  # an entry that is not a directory removes what was below it
        return base

    def _relies_on(self, base: BaseEntry) -> bool:
        return self.rely and base.whole and base.path not in self.distrusted


def is_unchanged(found: Found, base: BaseEntry) -> bool:
    """Whether stat proves that a path is as in the base: type, size, times and inode, unless the base says to read it again."""
    row, status = base.row, found.stat
    return (
        not row.flags
        and row.type == type_of(status)
        and (row.type != pb.ENTRY_TYPE_FILE or row.size_bytes == status.st_size)
        and row.mtime_ns == status.st_mtime_ns
        and row.ctime_ns == status.st_ctime_ns
        and row.inode == status.st_ino
    )
