"""Everything that a manifest refers to."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from staddle_server.base.types import Root
from staddle_server.manifest.columns import Columns, digests_of, entry_at
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
            yield from _of_leaf(digest, page.entries.columns, source, skip)


def _of_leaf(
    digest: bytes, columns: Columns, source: PageSource, skip: Callable[[bytes], bool]
) -> Iterator[References]:
    attributes = [rare.attributes_ref.digest for rare in columns.rare.values() if rare.attributes_ref]
    yield References([digest, *attributes], digests_of(columns))
    for at, rare in columns.rare.items():
        content = entry_at(columns, at).content if rare.root is not None else None
        if content is not None:
            for place, refs in lists_of(content, source, lambda place: skip(place[:DIGEST_BYTES])):
                yield References([place[:DIGEST_BYTES]], [ref.digest for ref in refs])
