"""Build the tree of pages from entries in order, page by page, reusing whole subtrees of other trees where
they fit.
"""

from collections.abc import Iterable
from typing import Final

from staddle_server.base import errors, limits
from staddle_server.base.types import EMPTY_ROOT, Entry, EntryType, Root, sort_key
from staddle_server.manifest.columns import CheckedColumns, Columns
from staddle_server.manifest.entries import check_whole, shown
from staddle_server.manifest.leaves import LeafWriter, weight_of
from staddle_server.manifest.pages import (
    FORMAT,
    Child,
    PageRules,
    PageSink,
    PageSource,
    encoder,
    index_of,
    leaf_page,
    load_page,
    path_hash,
)

_STRETCH: Final = 4
"""Fewer entries than this are added as objects: a stretch of columns takes longer."""


class _Level:
    """The unfinished page of one level, and the level's history."""

    __slots__ = (
        "count",
        "data_bytes",
        "encoded",
        "entries",
        "first",
        "first_is_reused",
        "last",
        "mask",
        "pages",
    )

    def __init__(self, mask: int) -> None:
        self.mask = mask
        self.encoded = bytearray()
        """Of an index page: its children."""
        self.count = 0
        self.entries = 0
        self.data_bytes = 0
        self.last = b""
        self.pages = 0
        self.first: Child | None = None
        self.first_is_reused = False

    def ended(self, child: Child, *, reused: bool) -> None:
        """Record a complete page of this level."""
        self.pages += 1
        if self.first is None:
            self.first = child
            self.first_is_reused = reused

    def clear(self) -> None:
        self.encoded = bytearray()
        self.count = self.entries = self.data_bytes = 0


class TreeBuilder:
    """Takes entries in order and writes pages as soon as they end; holds one page of each level.

    The result depends on the entries only, not on which arrived in subtrees. With `run`, entries may be
    removals, and a removal may be followed by an entry of the same path.
    """

    def __init__(
        self, sink: PageSink, page_key: bytes, rules: PageRules = FORMAT, *, run: bool = False
    ) -> None:
        self._sink = sink
        self._page_key = page_key
        self._rules = rules
        self._run = run
        self._leaf = LeafWriter()
        self._levels = [_Level(rules.mask(0))]
        self._last_key: bytes | None = None
        self._last_removed = False

    def add(self, entry: Entry) -> None:
        """Add the next entry. Raises BadRequest if it breaks a rule, ValueError if it is out of order."""
        check_whole(entry)
        self._add(entry, sort_key(entry.path))

    def _add(self, entry: Entry, key: bytes) -> None:
        self._follow(entry, key)
        self._leaf.add(entry)
        content = entry.content
        self._added(entry.path, 1, 0 if content is None else content.size, self._hash(entry.path))

    def extend(self, entries: CheckedColumns, start: int = 0, stop: int | None = None) -> None:
        """Add the entries from one position up to another, which have no removals.

        Raises ValueError if they are out of order.
        """
        stop = len(entries) if stop is None else stop
        if stop - start < _STRETCH:
            for at in range(start, stop):
                self._add(entries[at], entries.keys[at])
            return
        last, keys, paths = self._last_key, entries.keys, entries.columns.paths
        if last is not None and keys[start] <= last:
            raise ValueError(f"{shown(paths[start])!r} is out of order")
        self._last_key = keys[stop - 1]
        self._last_removed = False
        mask = self._levels[0].mask
        begin = start
        for at in range(start, stop):
            hash_of_path = self._hash(paths[at])
            if hash_of_path & mask == 0 or at == stop - 1:
                self._extend(entries.columns.part(begin, at + 1), hash_of_path)
                begin = at + 1

    def _extend(self, columns: Columns, hash_of_path: int) -> None:
        """Add entries of which at most the last ends a leaf by its path, which has this hash."""
        weight = weight_of(columns)
        if self._leaf.weight + weight < self._rules.page_bytes or len(columns) == 1:
            self._leaf.extend(columns, weight)
            self._added(columns.paths[-1], len(columns), sum(columns.sizes), hash_of_path)
            return
        for at in range(len(columns)):
            self._extend(columns.part(at, at + 1), self._hash(columns.paths[at]))

    def _hash(self, path: bytes) -> int:
        return path_hash(self._page_key, path)

    def _added(self, path: bytes, count: int, data_bytes: int, hash_of_path: int) -> None:
        """Count entries that were added to the leaf, and end it if the rules say so of the last one."""
        leaf = self._levels[0]
        leaf.count += count
        leaf.entries += count
        leaf.data_bytes += data_bytes
        leaf.last = path
        if hash_of_path & leaf.mask == 0 or self._leaf.weight >= self._rules.page_bytes:
            self._rise(self._end(0), 0, hash_of_path)

    def _follow(self, entry: Entry, key: bytes) -> None:
        """Check that an entry may come next."""
        last = self._last_key
        removed = entry.type == EntryType.REMOVED
        if removed and not self._run:
            raise ValueError("removals are only valid in runs")
        if last is not None and key <= last and not (self._last_removed and not removed and key == last):
            raise ValueError(f"{shown(entry.path)!r} is out of order")
        self._last_key = key
        self._last_removed = removed

    def aligned(self, level: int) -> bool:
        """Return whether a page of this level would begin with the next entry."""
        return all(not below.count for below in self._levels[: level + 1])

    def takes(self, child: Child, level: int, *, at_end: bool) -> bool:
        """Return whether a page of another tree fits here unchanged: it would begin here, and ended by a
        rule.

        `at_end`: no page followed it in its level, so it may have ended with the data.
        """
        if not self.aligned(level):
            return False
        return not at_end or self._hash(child.last) & self._rules.mask(level) == 0

    def add_subtree(self, child: Child, level: int) -> None:
        """Add a whole page of this level, unread.

        It must have ended by a rule, not because its tree ended there. Raises ValueError if the tree is not
        aligned, or the page is out of order.
        """
        key = sort_key(child.last)
        if self._run or not self.aligned(level) or (self._last_key is not None and key <= self._last_key):
            raise ValueError(f"the page that ends with {shown(child.last)!r} does not fit here")
        self._last_key = key
        self._last_removed = False
        # The number of pages below is unknown. This says "more than one"; finish() reads the page if that
        # matters.
        for below in range(level):
            self._level(below).pages += 2
        self._level(level).ended(child, reused=True)
        self._rise(child, level, self._hash(child.last))

    def finish(self, source: PageSource | None = None) -> Root:
        """End all pages and return the root: the lowest page that has everything below it.

        `source` is required if subtrees were added: finding the root may need to read the only one.
        """
        level = 0
        while True:
            current = self._levels[level]
            if current.count:
                child = self._end(level)
                if current.pages > 1:
                    self._push(child, level + 1)
            if current.pages == 0:
                return EMPTY_ROOT
            if current.pages == 1 and current.first is not None:
                return self._root(current.first, level, source if current.first_is_reused else None)
            level += 1

    def _root(self, child: Child, level: int, source: PageSource | None) -> Root:
        """Return a reused page may be an index page with one child, which is never a root."""
        while level and source is not None:
            children = load_page(source, child.digest, level).children
            if len(children) > 1:
                break
            child, level = children[0], level - 1
        return Root(level, child.digest, child.entries, child.data_bytes)

    def _rise(self, child: Child, level: int, hash_of_path: int) -> None:
        """Pass a completed page to the level above, and end that one too if the rules say so."""
        while True:
            level += 1
            above = self._push(child, level)
            if hash_of_path & above.mask and len(above.encoded) < self._rules.page_bytes:
                return
            child = self._end(level)

    def _push(self, child: Child, level: int) -> _Level:
        above = self._level(level)
        encoder.encode_into(child, above.encoded, -1)
        above.count += 1
        above.entries += child.entries
        above.data_bytes += child.data_bytes
        above.last = child.last
        return above

    def _end(self, level: int) -> Child:
        """Write the page of a level."""
        ended = self._levels[level]
        page = index_of(level, ended.encoded, ended.count) if level else leaf_page(self._leaf.take())
        child = Child(ended.last, self._sink.write(page), ended.entries, ended.data_bytes)
        ended.clear()
        ended.ended(child, reused=False)
        return child

    def _level(self, level: int) -> _Level:
        while len(self._levels) <= level:
            if len(self._levels) >= limits.TREE_HEIGHT_MAX:
                # Entries alone never reach this: a page that was added unread states a false level.
                raise errors.Damaged("A manifest is damaged: it would be higher than a tree may be.")
            self._levels.append(_Level(self._rules.mask(len(self._levels))))
        return self._levels[level]


def write_run(entries: Iterable[Entry], sink: PageSink, page_key: bytes, rules: PageRules = FORMAT) -> Root:
    """Write a sorted run (see runs.py) as a manifest of its own."""
    builder = TreeBuilder(sink, page_key, rules, run=True)
    for entry in entries:
        builder.add(entry)
    return builder.finish()
