"""Builds the tree of pages from entries in order, a page at a time, and takes whole subtrees of another tree where they fit."""

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
    """The page of one level that is being filled, and what its level has had before."""

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
        """Notes a page of this level that is complete."""
        self.pages += 1
        if self.first is None:
            self.first = child
            self.first_is_reused = reused

    def clear(self) -> None:
        self.encoded = bytearray()
        self.count = self.entries = self.data_bytes = 0


class TreeBuilder:
    """Takes entries in order and writes pages as soon as they end; holds one page of each level.

    The result depends on the entries alone, not on which of them came in subtrees. With `run`, entries may be removals, and
    a removal may be followed by an entry of the same path.
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
        """Adds the next entry. Raises BadRequest where it breaks a rule, ValueError where it is out of order."""
        check_whole(entry)
        self.add_checked(entry, sort_key(entry.path))

    def add_checked(self, entry: Entry, key: bytes) -> None:
        """Adds the next entry, which was decoded from a page or is known to be right; `key` is its sort_key."""
        self._follow(entry, key)
        encoded = self._levels[0].encoded
        before = len(encoded)
        encoder.encode_into(entry, encoded, -1)
        content = entry.content
        self._added(entry.path, len(encoded) - before, 0 if content is None else content.size)

    def add_packed(self, key: bytes, packed: bytes, data_bytes: int) -> None:
        """As add_checked, for an entry as pages hold it, which is no removal; `data_bytes` is the size of its content."""
        last = self._last_key
        if last is not None and key <= last:
            raise ValueError(f"{shown(key)!r} is out of order")
        self._last_key = key
        self._last_removed = False
        self._levels[0].encoded += packed
        self._added(key.replace(b"\0", b"/"), len(packed), data_bytes)

    def _added(self, path: bytes, size: int, data_bytes: int) -> None:
        """Counts the entry that was written into the leaf, and ends the leaf where the rules say so."""
        if size > limits.ENTRY_BYTES_MAX:
            raise ValueError(f"{shown(path)!r} is too large for a page: its attributes were not stored")
        leaf = self._levels[0]
        leaf.count += 1
        leaf.entries += 1
        leaf.data_bytes += data_bytes
        leaf.last = path
        hash_of_path = path_hash(self._page_key, path)
        if hash_of_path & leaf.mask == 0 or len(leaf.encoded) >= self._rules.page_bytes:
            self._rise(self._end(0), 0, hash_of_path)

    def _follow(self, entry: Entry, key: bytes) -> None:
        """Checks that an entry may come next."""
        last = self._last_key
        removed = entry.type == EntryType.REMOVED
        if removed and not self._run:
            raise ValueError("removals stand only in runs")
        if last is not None and key <= last and not (self._last_removed and not removed and key == last):
            raise ValueError(f"{shown(entry.path)!r} is out of order")
        self._last_key = key
        self._last_removed = removed

    def aligned(self, level: int) -> bool:
        """Whether a page of this level would begin with what comes next."""
        return all(not below.count for below in self._levels[: level + 1])

    def takes(self, child: Child, level: int, *, at_end: bool) -> bool:
        """Whether a page of another tree would come out just so here: it begins here, and ended by a rule.

        `at_end`: nothing followed it in its level, so that it may have ended with the data.
        """
        if not self.aligned(level):
            return False
        return not at_end or path_hash(self._page_key, child.last) & self._rules.mask(level) == 0

    def add_subtree(self, child: Child, level: int) -> None:
        """Adds a whole page of this level, unread. It must have ended by a rule, not because its tree ended there.

        Raises ValueError where the tree is not aligned, or the page is out of order.
        """
        key = sort_key(child.last)
        if self._run or not self.aligned(level) or (self._last_key is not None and key <= self._last_key):
            raise ValueError(f"the page that ends with {shown(child.last)!r} does not fit here")
        self._last_key = key
        self._last_removed = False
        # How many pages lie below is not known. More than one, says this; finish() looks at the page if that matters.
        for below in range(level):
            self._level(below).pages += 2
        self._level(level).ended(child, reused=True)
        self._rise(child, level, path_hash(self._page_key, child.last))

    def finish(self, source: PageSource | None = None) -> Root:
        """Ends all pages and answers the root: the lowest page that has everything below it.

        `source` is needed where subtrees were added: the only one may have to be read to find the root in it.
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
        """A page that was reused may be an index page with one child, which is never a root."""
        while level and source is not None:
            children = load_page(source, child.digest, level).children
            if len(children) > 1:
                break
            child, level = children[0], level - 1
        return Root(level, child.digest, child.entries, child.data_bytes)

    def _rise(self, child: Child, level: int, hash_of_path: int) -> None:
        """Hands a page that ended to the level above, and ends that as well where the rules say so."""
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
        """Writes the page of a level."""
        ended = self._levels[level]
        page = index_of(level, ended.encoded, ended.count) if level else leaf_of(ended.encoded, ended.count)
        child = Child(ended.last, self._sink.write(page), ended.entries, ended.data_bytes)
        ended.clear()
        ended.ended(child, reused=False)
        return child

    def _level(self, level: int) -> _Level:
        while len(self._levels) <= level:
            if len(self._levels) >= limits.TREE_HEIGHT_MAX:
                # Entries alone never come to that: a page that was taken unread lies about its level.
                raise errors.Damaged("A manifest is damaged: it would be higher than a tree can be.")
            self._levels.append(_Level(self._rules.mask(len(self._levels))))
        return self._levels[level]


def write_run(entries: Iterable[Entry], sink: PageSink, page_key: bytes, rules: PageRules = FORMAT) -> Root:
    """Writes a sorted run (see runs.py) as a manifest of its own."""
    builder = TreeBuilder(sink, page_key, rules, run=True)
    for entry in entries:
        builder.add(entry)
    return builder.finish()
