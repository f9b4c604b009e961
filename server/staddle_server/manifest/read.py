"""Read a manifest: one path, a directory, a whole tree; a damaged page loses only its own content."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from copy import copy
from typing import NamedTuple

from staddle_server.base import errors
from staddle_server.base.types import Entry, EntryType, Root, sort_key
from staddle_server.manifest.cursor import Cursor, PageCache, find_entry, subtree_end
from staddle_server.manifest.pages import PageSource


class Gap(NamedTuple):
    """An unreadable page: what lies after `after`, up to and including `upto`, is unknown.

    `after` None: from the beginning; `upto` None: to the end.
    """

    after: bytes | None
    upto: bytes | None
    message: str


class ReadablePage(NamedTuple):
    """A page with its entries in order; none for an index page."""

    digest: bytes
    place: bytes
    """See Cursor.place."""
    entries: list[Entry]


class Manifest:
    """One manifest, for reading. Keeps a few decoded pages. Not thread-safe."""

    def __init__(self, root: Root, source: PageSource) -> None:
        self.root = root
        pages = PageCache(source)
        self._load = pages.load

    def beside(self, root: Root) -> Manifest:
        """Return another manifest that shares the decoded pages with this one."""
        other = copy(self)
        other.root = root
        return other

    def find(self, path: bytes) -> Entry | None:
        """Return the entry at exactly this path.

        Raises Damaged if a page on the way to it is unreadable.
        """
        return find_entry(self.root, path, self._load)

    def walk(self, below: bytes = b"", *, after: bytes | None = None) -> Iterator[Entry | Gap]:
        """Yield everything at or below a path in order, with `after` only what comes after that path.

        Yields a Gap for an unreadable page, even if it may hold nothing of interest.
        """
        start, end = sort_key(below), subtree_end(below)
        cursor = Cursor(self.root, self._load)
        if after is not None and sort_key(after) >= start:
            cursor.seek(sort_key(after), above=True)
        else:
            cursor.seek(start)
        gap = _open_root(cursor)
        if gap is not None:
            yield gap
        while (frame := cursor.frame()) is not None:
            page = frame.page
            if page.level:
                gap = _open(cursor)
                if gap is not None:
                    yield gap
                    if end is not None and gap.upto is not None and sort_key(gap.upto) >= end:
                        return  # nothing after the gap is requested
                continue
            first, last = frame.index, len(page)
            if end is not None and page.keys[last - 1] >= end:
                last = bisect_left(page.keys, end, lo=first)
            entries = page.entries[first:last]
            yield from entries
            if last < len(page) or _is_all(entries, below):
                return
            cursor.skip_page()

    def pages(
        self, *, after: bytes | None = None, skip: Callable[[bytes], bool]
    ) -> Iterator[ReadablePage | Gap]:
        """Yield every page in order, parents first; with `after`, only entries after that path.

        If `skip` accepts a page's place (see Cursor.place), that page and everything below it is left out.
        Yields a Gap for an unreadable page.
        """
        digest = self.root.digest
        cursor = Cursor(self.root, self._load)
        place = cursor.place()
        if skip(place):
            return
        if after is not None:
            cursor.seek(sort_key(after), above=True)
        gap = _open_root(cursor)
        if gap is not None:
            yield gap
        elif self.root.level:
            yield ReadablePage(digest, place, [])
        while (frame := cursor.frame()) is not None:
            if not frame.page.level:
                yield ReadablePage(digest, place, frame.page.entries[frame.index :])
                cursor.skip_page()
                continue
            digest, place = cursor.child().digest, cursor.place()
            if skip(place):
                cursor.skip()
                continue
            gap = _open(cursor)
            if gap is not None:
                yield gap
            elif frame.page.level > 1:
                yield ReadablePage(digest, place, [])

    def children(self, path: bytes, *, after: bytes | None = None) -> Iterator[Entry | Gap]:
        """Yield the direct children of a directory in order; with `after`, those after that path and what is
        below it.

        Skips subtrees. Yields a Gap for an unreadable page.
        """
        prefix = sort_key(path) + b"\0" if path else b""
        start, end = sort_key(path), subtree_end(path)
        cursor = Cursor(self.root, self._load)
        cursor.seek(start, above=True)
        if after is not None and sort_key(after) > start:
            _pass_component(cursor, sort_key(after), prefix)
        gap = _open_root(cursor)
        if gap is not None:
            yield gap
        while (frame := cursor.frame()) is not None:
            if frame.page.level:
                gap = _open(cursor)
                if gap is not None:
                    yield gap
                continue
            entries, at = frame.page.entries, frame.index
            key = entries.keys[at]
            if end is not None and key >= end:
                return
            # A deeper entry: its parent was in a gap, already yielded.
            deeper = b"\0" in key[len(prefix) :]
            if not deeper:
                yield entries[at]
            if deeper or entries.columns.types[at] == EntryType.DIRECTORY:
                _pass_component(cursor, key, prefix)
            else:
                cursor.skip()


def entries_of(root: Root, source: PageSource) -> Iterator[Entry]:
    """Yield all entries of a run, removals included, in order. Raises Damaged."""
    cursor = Cursor(root, PageCache(source, run=True, kept=1).load, run=True)
    cursor.open_root()
    before: Entry | None = None
    while (frame := cursor.frame()) is not None:
        if frame.page.level:
            cursor.open()
            continue
        entries = frame.page.entries[frame.index :]
        if (
            before is not None
            and before.path == entries[0].path
            and (before.type != EntryType.REMOVED or entries[0].type == EntryType.REMOVED)
        ):
            raise errors.Damaged("A manifest is damaged: a run has a path twice.")
        before = entries[-1]
        yield from entries
        cursor.skip_page()


def _is_all(entries: list[Entry], below: bytes) -> bool:
    """Return whether the request is for one entry that has no children, which saves reading the next page."""
    return len(entries) == 1 and entries[0].path == below and entries[0].type != EntryType.DIRECTORY


def _pass_component(cursor: Cursor, key: bytes, prefix: bytes) -> None:
    """Move past the item directly below `prefix` that `key` is or lies in."""
    component_end = key.find(b"\0", len(prefix))
    cursor.seek((key if component_end < 0 else key[:component_end]) + b"\1")


def _open_root(cursor: Cursor) -> Gap | None:
    try:
        cursor.open_root()
    except errors.Damaged as error:
        return Gap(None, None, error.message)
    return None


def _open(cursor: Cursor) -> Gap | None:
    """Open the next item, or pass it and return the gap."""
    try:
        cursor.open()
    except errors.Damaged as error:
        gap = Gap(cursor.past, cursor.child().last, error.message)
        cursor.skip()
        return gap
    return None
