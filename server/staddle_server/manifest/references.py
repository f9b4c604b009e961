"""Everything that a manifest refers to."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from staddle_server.base.types import Entry, Root
from staddle_server.manifest.content import lists_of
from staddle_server.manifest.entries import DIGEST_BYTES
from staddle_server.manifest.pages import PageSource, load_page


class References(NamedTuple):
    """What one page or list chunk refers to, itself included; digests in no order, possibly repeated."""

    manifest: list[bytes]
    """Pages, list chunks and attributes."""
    data: list[bytes]


def _never(_: bytes) -> bool:
    return False


def references(
    root: Root, source: PageSource, *, run: bool = False, skip: Callable[[bytes], bool] = _never
) -> Iterator[References]:
    """Yield all digests that a manifest (`run`: a run) refers to, in memory bounded by one page of each
    level.

    Parents come first. If `skip` accepts a page or list chunk, it and everything below it is left out: the
    mark was there already. Raises Damaged: an unreadable page may refer to anything.
    """
    if not root.entries:
        return
    # A stack: it holds at most the rest of one page of each level.
    waiting = [(root.digest, root.level)]
    while waiting:
        digest, level = waiting.pop()
        if skip(digest):
            continue
        page = load_page(source, digest, level, run=run)
        if level:
            yield References([digest], [])
            waiting.extend((child.digest, level - 1) for child in reversed(page.children))
        else:
            yield from _of_leaf(digest, page.entries, source, skip)


def _of_leaf(
    digest: bytes, entries: list[Entry], source: PageSource, skip: Callable[[bytes], bool]
) -> Iterator[References]:
    own = References([digest], [])
    for entry in entries:
        if entry.attributes_ref is not None:
            own.manifest.append(entry.attributes_ref.digest)
        if entry.content is not None:
            own.data.extend(ref.digest for ref in entry.content.chunks)
    yield own
    for entry in entries:
        if entry.content is not None:
            lists = lists_of(entry.content, source, lambda place: skip(place[:DIGEST_BYTES]))
            for place, refs in lists:
                yield References([place[:DIGEST_BYTES]], [ref.digest for ref in refs])
