"""A position in a tree of pages, which only moves forward and opens pages only if necessary."""

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from blake3 import blake3

from staddle_server.base import errors
from staddle_server.base.types import Entry, EntryType, Root, sort_key
from staddle_server.manifest.pages import Child, Page, PageSource, encoder, load_page

PAGES_KEPT: Final = 6
"""Decoded pages in a PageCache: a path down from the root, and a few leaves."""

Load = Callable[[bytes, int], Page]


class PageCache:
    """Reads pages and keeps the last few, since lookups come in order. Not thread-safe."""

    def __init__(self, source: PageSource, *, run: bool = False, kept: int = PAGES_KEPT) -> None:
        self._source = source
        self._run = run
        self._kept = kept
        self._pages: OrderedDict[tuple[bytes, int], Page] = OrderedDict()

    def load(self, digest: bytes, level: int) -> Page:
        """Return the page with this digest. Raises Damaged."""
        page = self._pages.pop((digest, level), None)
        if page is None:
            page = load_page(self._source, digest, level, run=self._run)
        self._pages[digest, level] = page
        if len(self._pages) > self._kept:
            self._pages.popitem(last=False)
        return page


def subtree_end(path: bytes) -> bytes | None:
    """Return the least sort key after everything at or below `path`; None if none can follow."""
    return sort_key(path) + b"\1" if path else None


class PageFrame:
    """An open page: `index` is the next item."""

    __slots__ = ("before", "index", "page", "rightmost")

    def __init__(self, page: Page, index: int, before: bytes | None, *, rightmost: bool) -> None:
        self.page = page
        self.before = before
        """The sort key of the last path before this page; None for the first page of its level."""
        self.index = index
        self.rightmost = rightmost
        """No page follows in its level: the page may have ended with the data."""


class Cursor:
    """Walks a tree. The next item is an entry of an open leaf, or an unopened child of an open index page.

    `past` is the last path passed (None: none yet), `past_type` its type if its leaf was open.
    `straddles`: the next item, a child, may hold paths that a seek has passed.

    A page must fit to be opened: it begins after the previous page, ends where its index page says, and has
    the stated entries and bytes. So paths rise over the whole walk and no page comes twice, even in a damaged
    or forged tree: a walk takes no longer than the stored pages.
    """

    def __init__(self, root: Root, load: Load, *, run: bool = False) -> None:
        """In a `run` a page may begin with the last path of the previous page."""
        self._load = load
        self._run = run
        self._root = root
        self._frames: list[PageFrame] = []
        self._floor: bytes | None = None
        self._above_floor = False
        self.past: bytes | None = None
        self.past_type: EntryType | None = None
        self.straddles = False
        self._unopened: Root | None = root if root.entries else None

    def open_root(self) -> None:
        """Read the first page; call it before all others.

        Raises Damaged, and leaves the cursor at the end.
        """
        root, self._unopened = self._unopened, None
        if root is not None:
            page = self._load(root.digest, root.level)
            if (page.entries_below, page.data_bytes) != (root.entries, root.data_bytes):
                raise errors.Damaged("A manifest is damaged: its entries do not match its root.")
            self._push(page, None, rightmost=True)

    def frame(self) -> PageFrame | None:
        """Return the page of the next item; None at the end."""
        frames = self._frames
        while frames:
            top = frames[-1]
            if top.index < len(top.page):
                return top
            frames.pop()
        return None

    def skip(self) -> None:
        """Pass the next item."""
        frame = self._frames[-1]
        self._pass(frame, frame.index + 1)
        self.straddles = False

    def skip_to(self, index: int) -> None:
        """Pass the items of the open page up to this index."""
        self._pass(self._frames[-1], index)
        self.straddles = False

    def skip_page(self) -> None:
        """Pass the rest of the open page."""
        frame = self._frames[-1]
        self._pass(frame, len(frame.page))
        self.straddles = False

    def _pass(self, frame: PageFrame, index: int) -> None:
        if index == frame.index:
            return
        frame.index = index
        page = frame.page
        self.past = page.last(index - 1)
        self.past_type = None if page.level else EntryType(page.entries.columns.types[index - 1])

    def child(self) -> Child:
        """Return the next item, which must be a child; its level is one below its page's."""
        frame = self._frames[-1]
        return frame.page.children[frame.index]

    def place(self) -> bytes:
        """Return a digest of the next, unopened page and its position.

        If it is the same in another tree, the page fits in both positions or in neither.
        """
        if not self._frames:
            return blake3(encoder.encode(self._root)).digest()
        return blake3(encoder.encode((self._before_next(), self.child()))).digest()

    def _before_next(self) -> bytes | None:
        """Return the sort key of the last path before the next item, a child."""
        frame = self._frames[-1]
        return frame.page.keys[frame.index - 1] if frame.index else frame.before

    def open(self) -> None:
        """Open the next item, a child. On Damaged the cursor stays before it."""
        frame = self._frames[-1]
        child = frame.page.children[frame.index]
        rightmost = frame.rightmost and frame.index == len(frame.page) - 1
        level = frame.page.level - 1
        before = self._before_next()
        page = self._load(child.digest, level)
        if (page.last(len(page) - 1), page.entries_below, page.data_bytes) != (
            child.last,
            child.entries,
            child.data_bytes,
        ):
            raise errors.Damaged("A manifest is damaged: the entries of a page do not match its index page.")
        first = page.keys[0]
        if before is not None and (first < before or (first == before and not self._run)):
            raise errors.Damaged("A manifest is damaged: a page does not begin after the previous page.")
        # If the item before is the last of its page, the way back up leads past this child.
        frame.index += 1
        self._push(page, before, rightmost=rightmost)

    def _push(self, page: Page, before: bytes | None, *, rightmost: bool) -> None:
        frame = PageFrame(page, 0, before, rightmost=rightmost)
        self._frames.append(frame)
        if self._floor is not None and self.straddles:
            self._pass(frame, self._position(page, 0))

    def seek(self, key: bytes, *, above: bool = False) -> None:
        """Move forward to the first path whose sort key is at least `key` (`above`: greater).

        Opens nothing.
        """
        self._floor, self._above_floor = key, above
        self.straddles = True
        frames = self._frames
        while frames:
            frame = frames[-1]
            index = self._position(frame.page, frame.index)
            self._pass(frame, index)
            if index < len(frame.page):
                return
            frames.pop()

    def _position(self, page: Page, start: int) -> int:
        """Return where the floor is in a page, from `start` on."""
        floor = self._floor
        assert floor is not None
        keys = page.keys
        # Lookups come in order: usually it is the next item or the one after it.
        for index in range(start, min(start + 2, len(keys))):
            key = keys[index]
            if key > floor or (key == floor and not self._above_floor):
                return index
        return (bisect_right if self._above_floor else bisect_left)(keys, floor, lo=start)


def entry_at(cursor: Cursor, key: bytes) -> Entry | None:
    """Move a cursor forward to a sort key and return the entry there, if any. Raises Damaged."""
    cursor.seek(key)
    while (frame := cursor.frame()) is not None:
        if frame.page.level == 0:
            page = frame.page
            return page.entries[frame.index] if page.keys[frame.index] == key else None
        cursor.open()
    return None


def find_entry(root: Root, path: bytes, load: Load) -> Entry | None:
    """Return the entry at a path, searching from the root down. Raises Damaged."""
    cursor = Cursor(root, load)
    key = sort_key(path)
    cursor.seek(key)
    cursor.open_root()
    return entry_at(cursor, key)
