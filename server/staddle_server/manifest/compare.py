"""The differences between two manifests, reading only pages that differ."""

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from staddle_server.base.errors import Damaged
from staddle_server.base.types import Entry, Flag, Root, sort_key
from staddle_server.manifest.cursor import Cursor, PageCache, PageFrame, find_entry
from staddle_server.manifest.entries import same, same_content
from staddle_server.manifest.pages import Child, PageSource


class ChangeType(IntEnum):
    """How an entry differs; the numbers are those on the wire."""

    ADDED = 1
    REMOVED = 2
    CONTENT = 3
    METADATA = 4


class Changed(NamedTuple):
    """One difference: `before` is None for ADDED, `after` for REMOVED.

    `uncertain`: the manifest without the path marks the directory above it as incomplete, so the path may
    have existed unread.
    """

    type: ChangeType
    before: Entry | None
    after: Entry | None
    uncertain: bool = False

    @property
    def path(self) -> bytes:
        """The path that differs."""
        entry = self.after or self.before
        assert entry is not None
        return entry.path


class Counts(NamedTuple):
    """How many entries differ, by type."""

    added: int
    content: int
    metadata: int
    removed: int


def compare(a: Root, b: Root, source: PageSource, *, after: bytes | None = None) -> Iterator[Changed]:
    """Yield how `b` differs from `a` in path order, with `after` only later paths. Raises Damaged."""
    pair = _Pair(a, b, source, after)
    doubts = _Doubts(a, source), _Doubts(b, source)
    while (found := pair.next(whole=False)) is not None:
        before, now = found
        assert not isinstance(before, Child)
        assert not isinstance(now, Child)
        changed = _changed(before, now)
        if changed is None:
            continue
        if before is None or now is None:
            changed = changed._replace(uncertain=doubts[now is None].about(changed.path))
        yield changed


def count(a: Root, b: Root, source: PageSource) -> Counts:
    """Return how many entries differ. Counts pages that only one side has without reading them.

    Raises Damaged.
    """
    if not a.entries or not b.entries:
        return Counts(b.entries, 0, 0, a.entries)
    totals = dict.fromkeys(ChangeType, 0)
    pair = _Pair(a, b, source, None)
    while (found := pair.next(whole=True)) is not None:
        before, now = found
        if isinstance(before, Child):
            totals[ChangeType.REMOVED] += before.entries
        elif isinstance(now, Child):
            totals[ChangeType.ADDED] += now.entries
        elif (changed := _changed(before, now)) is not None:
            totals[changed.type] += 1
    return Counts(
        totals[ChangeType.ADDED],
        totals[ChangeType.CONTENT],
        totals[ChangeType.METADATA],
        totals[ChangeType.REMOVED],
    )


def _changed(before: Entry | None, now: Entry | None) -> Changed | None:
    if before is None:
        return Changed(ChangeType.ADDED, None, now)
    if now is None:
        return Changed(ChangeType.REMOVED, before, None)
    if not same_content(before, now):
        return Changed(ChangeType.CONTENT, before, now)
    return None if same(before, now) else Changed(ChangeType.METADATA, before, now)


class _Doubts:
    """Whether paths missing from a manifest may have existed unread. Ask in path order."""

    def __init__(self, root: Root, source: PageSource) -> None:
        self._root = root
        self._load = PageCache(source).load
        self._missing: bytes | None = None
        """A missing path, below which everything is missing, and whose directory is `_directory`."""
        self._directory: bytes | None = None
        self._incomplete = False

    def about(self, path: bytes) -> bool:
        """Return whether the closest directory above a missing path is marked incomplete, or is
        unreadable.
        """
        if self._missing is not None and path.startswith(self._missing + b"/"):
            return self._incomplete
        missing = path
        while missing:
            directory = missing.rpartition(b"/")[0]
            if directory == self._directory or self._look_at(directory):
                self._missing = missing
                return self._incomplete
            missing = directory
        # Everything above is missing too, even the root: the same holds for all below its first component.
        self._missing, self._incomplete = path.partition(b"/")[0], False
        return False

    def _look_at(self, directory: bytes) -> bool:
        """Return whether the manifest has this directory."""
        try:
            entry = find_entry(self._root, directory, self._load)
        except Damaged:
            self._directory, self._incomplete = directory, True
            return True
        if entry is None:
            return False
        self._directory, self._incomplete = directory, bool(entry.flags & Flag.INCOMPLETE)
        return True


_Item = Entry | Child | None


class _Pair:
    """Two cursors in step: what one has passed, the other has passed too, or does not have."""

    def __init__(self, a: Root, b: Root, source: PageSource, after: bytes | None) -> None:
        self._a, self._b = (
            Cursor(a, PageCache(source, kept=1).load),
            Cursor(b, PageCache(source, kept=1).load),
        )
        if a.digest == b.digest:
            return
        for cursor in (self._a, self._b):
            if after is not None:
                cursor.seek(sort_key(after), above=True)
            cursor.open_root()

    def next(self, *, whole: bool) -> tuple[_Item, _Item] | None:
        """Return the next two entries of one path that differ, one of which may be None.

        With `whole`, a page that only one side has comes as a Child beside None.
        """
        a, b = self._a, self._b
        while True:
            left, right = a.frame(), b.frame()
            if left is None and right is None:
                return None
            if left is not None and left.page.level:
                if right is not None and right.page.level:
                    self._both_closed(left, right)
                elif whole and _is_before(a, b):
                    return _skipped(a), None
                else:
                    a.open()
            elif right is not None and right.page.level:
                if whole and _is_before(b, a):
                    return None, _skipped(b)
                b.open()
            elif (entries := self._entries(left, right)) is not None:
                return entries

    def _both_closed(self, left: PageFrame, right: PageFrame) -> None:
        """Pass two equal pages, or open the page that may lead to equal ones: the higher, else the one that
        ends later.
        """
        a, b = self._a, self._b
        mine, other = a.child(), b.child()
        if left.page.level == right.page.level and mine.digest == other.digest:
            a.skip()
            b.skip()
        elif left.page.level != right.page.level:
            (a if left.page.level > right.page.level else b).open()
        else:
            (a if sort_key(mine.last) >= sort_key(other.last) else b).open()

    def _entries(self, left: PageFrame | None, right: PageFrame | None) -> tuple[_Item, _Item] | None:
        """Pass the next entries of open leaves; return them, unless they are equal."""
        if left is not None and right is not None:
            mine, other = left.page.keys[left.index], right.page.keys[right.index]
            if mine == other and left.page.entries.row(left.index) == right.page.entries.row(right.index):
                self._a.skip()
                self._b.skip()
                return None
            if mine < other:
                right = None
            elif mine > other:
                left = None
        before = now = None
        if left is not None:
            before = left.page.entries[left.index]
            self._a.skip()
        if right is not None:
            now = right.page.entries[right.index]
            self._b.skip()
        return before, now


def _is_before(cursor: Cursor, other: Cursor) -> bool:
    """Return whether all of the cursor's next item, a child, precedes the other's next entry or end."""
    frame = other.frame()
    if frame is None:
        return True
    return sort_key(cursor.child().last) < frame.page.keys[frame.index]


def _skipped(cursor: Cursor) -> Child:
    child = cursor.child()
    cursor.skip()
    return child
