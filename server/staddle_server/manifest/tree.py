"""Build the tree of pages from entries in order, page by page, reusing whole subtrees of other trees where
they fit.
"""

from collections.abc import Iterable

from staddle_server.base import errors, limits
from staddle_server.base.types import EMPTY_ROOT, Entry, EntryType, Root, sort_key
from staddle_server.manifest.entries import check_whole, shown
from staddle_server.manifest.pages import (
    FORMAT,
    Child,
    PageRules,
    PageSink,
    PageSource,
    encoder,
    index_of,
    leaf_of,
    load_page,
    path_hash,
)


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
        self._levels = [_Level(rules.mask(0))]
        self._last_key: bytes | None = None
        self._last_removed = False

    def add(self, entry: Entry) -> None:
        """Add the next entry. Raises BadRequest if it breaks a rule, ValueError if it is out of order."""
        check_whole(entry)
        self.add_checked(entry, sort_key(entry.path))

    def add_checked(self, entry: Entry, key: bytes) -> None:
        """Add the next entry, decoded from a page or known to be valid; `key` is its sort_key."""
        self._follow(entry, key)
        encoded = self._levels[0].encoded
        before = len(encoded)
        encoder.encode_into(entry, encoded, -1)
        content = entry.content
        self._added(entry.path, len(encoded) - before, 0 if content is None else content.size)

    def add_packed(self, key: bytes, packed: bytes, data_bytes: int) -> None:
        """Add as add_checked does, an encoded entry that is not a removal; `data_bytes` is the size of its
        content.
        """
        last = self._last_key
        if last is not None and key <= last:
            raise ValueError(f"{shown(key)!r} is out of order")
        self._last_key = key
        self._last_removed = False
        self._levels[0].encoded += packed
        self._added(key.replace(b"\0", b"/"), len(packed), data_bytes)

    def _added(self, path: bytes, size: int, data_bytes: int) -> None:
        """Count the entry that was written into the leaf, and end the leaf if the rules say so."""
        if size > limits.ENTRY_BYTES_MAX:
            raise ValueError(
                f"{shown(path)!r} is too large for a page: its attributes were not stored separately"
            )
        leaf = self._levels[0]
        leaf.count += 1
        leaf.entries += 1
        leaf.data_bytes += data_bytes
        leaf.last = path
        hash_of_path = path_hash(self._page_key, path)
        if hash_of_path & leaf.mask == 0 or len(leaf.encoded) >= self._rules.page_bytes:
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
        return not at_end or path_hash(self._page_key, child.last) & self._rules.mask(level) == 0

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
        self._rise(child, level, path_hash(self._page_key, child.last))

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
        page = index_of(level, ended.encoded, ended.count) if level else leaf_of(ended.encoded, ended.count)
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
