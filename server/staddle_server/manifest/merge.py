"""Runs over a base: a full manifest that reuses every untouched subtree of the base by its digest, unread.

The result equals, digest for digest, the manifest built from the resulting list of entries. That list is:

- An entry of the runs is in it unless something newer removes it (runs.py); it replaces the base's at its
  path.
- An entry of the base is in it unless the runs replace or remove it.
- A missing directory above an entry is added as implied, except the root, which may be missing. A directory
  of the base, implied or not, stays until it is removed, even if it is empty.
- A remaining entry below one that is not a directory is a PATH_CONFLICT.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from staddle_server.base import errors
from staddle_server.base.types import Entry, EntryType, Flag, Root, sort_key
from staddle_server.manifest.columns import CheckedColumns
from staddle_server.manifest.cursor import Cursor, Load, PageCache, entry_at, find_entry, subtree_end
from staddle_server.manifest.entries import implied_directory, same, same_content, shown
from staddle_server.manifest.pages import FORMAT, PageRules, PageSink, PageSource
from staddle_server.manifest.runs import Change, beginning, fold, merge_runs
from staddle_server.manifest.tree import TreeBuilder

_READ_AGAIN: Final = Flag.READ_AGAIN.value
_INCOMPLETE: Final = Flag.INCOMPLETE.value

__all__ = ["Merged", "join", "merge", "merge_runs"]


class Merged(NamedTuple):
    """A full manifest, and how many entries kept the reference's metadata instead of the sent metadata."""

    root: Root
    metadata_kept: int


def merge(
    base: Root,
    runs: Sequence[Iterable[Entry]],
    source: PageSource,
    sink: PageSink,
    page_key: bytes,
    *,
    reference: Root | None = None,
    rules: PageRules = FORMAT,
) -> Merged:
    """Merge sorted runs, oldest first, over `base` (EMPTY_ROOT for none), in bounded memory.

    With `reference` (DIFFERENTIAL), an entry whose content the reference has at its path keeps the
    reference's metadata. The reference must be the base, unless the base is empty.

    Raises BadRequest PATH_CONFLICT (path), Damaged if a page of base or reference is unreadable, ValueError
    if a run is not sorted.
    """
    if reference is not None and base.entries and reference != base:
        raise ValueError("a reference beside another base is not supported")
    return _Merge(base, source, TreeBuilder(sink, page_key, rules), reference).run(fold(runs))


def copy_until(cursor: Cursor, builder: TreeBuilder, key: bytes | None) -> None:
    """Copy what a tree has before `key` (None: all that is left), in whole subtrees if possible."""
    while (frame := cursor.frame()) is not None:
        page = frame.page
        if page.level:
            child = page.children[frame.index]
            level = page.level - 1
            if (
                (key is None or page.keys[frame.index] < key)
                and not cursor.straddles
                and builder.takes(child, level, at_end=frame.rightmost and frame.index == len(page) - 1)
            ):
                builder.add_subtree(child, level)
                cursor.skip()
            else:
                cursor.open()
            continue
        stop = len(page) if key is None else bisect_left(page.keys, key, lo=frame.index)
        builder.extend(page.entries, frame.index, stop)
        cursor.skip_to(stop)
        if stop < len(page):
            return


def join(
    trees: Sequence[Root],
    rest: Iterable[CheckedColumns],
    source: PageSource,
    sink: PageSink,
    page_key: bytes,
    *,
    rules: PageRules = FORMAT,
) -> Root:
    """Build one tree from several in consecutive order and the entries after them. Copies whole pages unread.

    The trees have no removals. The result equals the tree built from all entries. Raises ValueError if they
    are out of order, Damaged if a required page is unreadable.
    """
    builder = TreeBuilder(sink, page_key, rules)
    load: Load = PageCache(source).load
    for root in trees:
        cursor = Cursor(root, load)
        cursor.open_root()
        copy_until(cursor, builder, None)
    for entries in rest:
        builder.extend(entries)
    return builder.finish(source)


class _Above:
    """A path above the current one, or the current one: its first `length` bytes."""

    __slots__ = ("gone", "length", "type")

    def __init__(self, length: int, kind: EntryType | None, *, gone: bool) -> None:
        self.length = length
        self.type = kind
        """What the result has at this path; None for nothing, or not checked."""
        self.gone = gone
        """The base has nothing left below."""


class _Merge:
    """One merge: a cursor in the base, the tree in construction, and the path down to the entry
    added last.
    """

    def __init__(self, base: Root, source: PageSource, builder: TreeBuilder, reference: Root | None) -> None:
        self._source = source
        self._builder = builder
        load: Load = PageCache(source).load
        self._base_root = base
        self._load = load
        self._base = Cursor(base, load)
        self._base.open_root()
        self._above: list[_Above] = []
        self._last_key = b""
        self._kept = 0
        self._reference: Cursor | None = None
        if reference is not None and reference.entries:
            self._reference = Cursor(reference, PageCache(source).load)
            self._reference.open_root()

    def run(self, changes: Iterator[Change]) -> Merged:
        changed = False
        for change in changes:
            changed = True
            copy_until(self._base, self._builder, change.key)
            self._place(change)
        if not changed:
            return Merged(self._base_root, 0)
        copy_until(self._base, self._builder, None)
        return Merged(self._builder.finish(self._source), self._kept)

    def _place(self, change: Change) -> None:
        key, entry, cut = change
        above = self._above
        while above and not key.startswith(beginning(self._last_key, above[-1].length)):
            above.pop()
        self._last_key = key
        gone = above[-1].gone if above else False
        path = key.replace(b"\0", b"/")
        if entry is not None:
            self._find_parents(path)
            above = self._above
        if cut or (entry is not None and entry.type != EntryType.DIRECTORY):
            gone = True
            self._leave_out(path)
        elif (frame := self._base.frame()) is not None and frame.page.keys[frame.index] == key:
            self._base.skip()
        if entry is not None:
            self._add(entry, key)
        above.append(_Above(len(path), None if entry is None else entry.type, gone=gone))

    def _leave_out(self, path: bytes) -> None:
        """Skip what the base has at and below a path."""
        end = subtree_end(path)
        while end is None and self._base.frame() is not None:
            self._base.skip_page()
        if end is not None:
            self._base.seek(end)

    def _find_parents(self, path: bytes) -> None:
        """Ensure that every path above `path` is a directory of the result, adding missing ones."""
        above = self._above
        length = path.rfind(b"/")
        if length < 0:
            return
        if above and above[-1].length == length and above[-1].type is not None:
            # It was added or seen before, and so was everything above it.
            self._see_directory(above[-1], path)
            return
        self._complete(path)
        for place in self._above:
            if place.length:
                self._see_directory(place, path)

    def _complete(self, path: bytes) -> None:
        """Fill the gaps in the path down to `path`."""
        known = {place.length: place for place in self._above}
        way = [known[0]] if 0 in known else []
        length = path.find(b"/")
        while length >= 0:
            way.append(known.get(length) or _Above(length, None, gone=bool(way) and way[-1].gone))
            length = path.find(b"/", length + 1)
        self._above = way

    def _see_directory(self, place: _Above, path: bytes) -> None:
        if place.type is None:
            above = path[: place.length]
            if not place.gone:
                place.type = self._type_in_base(above)
            if place.type is None:
                place.type = EntryType.DIRECTORY
                self._add(implied_directory(above), sort_key(above))
        if place.type != EntryType.DIRECTORY:
            below, file = shown(path), shown(path[: place.length])
            raise errors.BadRequest(
                "PATH_CONFLICT",
                f"{below!r} lies below {file!r}, which is not a directory; remove or replace that first.",
                path=below,
            )

    def _type_in_base(self, path: bytes) -> EntryType | None:
        """Return the base's type of a path above the cursor.

        A full manifest has all parents of its entries: if the base has the path, the entry passed last lies
        there or below.
        """
        past = self._base.past
        if past is None:
            return None
        if past == path:
            if self._base.past_type is not None:
                return self._base.past_type
            entry = find_entry(self._base_root, past, self._load)
            return None if entry is None else entry.type
        return EntryType.DIRECTORY if past.startswith(path + b"/") else None

    def _add(self, entry: Entry, key: bytes) -> None:
        """Add an entry that is not the base's."""
        if self._reference is not None:
            entry = self._as_reference(entry, key, self._reference)
        self._builder.add(entry)

    def _as_reference(self, entry: Entry, key: bytes, reference: Cursor) -> Entry:
        found = entry_at(reference, key)
        if found is None or not same_content(found, entry):
            return entry
        # These are warnings about a read, not metadata: keep the new one's, and drop the reference's
        # incomplete.
        flags = found.flags & ~_INCOMPLETE | entry.flags & (_INCOMPLETE | _READ_AGAIN)
        kept = found if flags == found.flags else msgspec.structs.replace(found, flags=flags)
        if not same(kept, entry) and not entry.flags & Flag.IMPLIED:
            self._kept += 1
        return kept
