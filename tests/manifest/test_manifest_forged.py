"""Forged trees of valid pages: each reader names the damage, and reads no page repeatedly."""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import msgspec
import pytest
from blake3 import blake3
from manifest_model import (
    PAGE_KEY,
    TINY,
    Pages,
    build,
    digest_of,
    directory,
    file,
    forged_leaf,
    grown_tree,
    in_order,
)
from staddle_server.base import errors
from staddle_server.base.limits import TREE_HEIGHT_MAX
from staddle_server.base.types import (
    EMPTY_ROOT,
    Attributes,
    Content,
    Entry,
    EntryType,
    ListRoot,
    Root,
    sort_key,
)
from staddle_server.manifest.compare import compare, count
from staddle_server.manifest.content import ITEM, chunks_of
from staddle_server.manifest.entries import removal
from staddle_server.manifest.merge import join, merge
from staddle_server.manifest.pages import (
    Child,
    PageKind,
    decode_index,
    encode_attributes,
    encode_index,
    encode_leaf,
)
from staddle_server.manifest.read import Gap, Manifest, entries_of
from staddle_server.manifest.references import references

HIGHEST = TREE_HEIGHT_MAX - 1


class Counted(Pages):
    """Pages of which a reader that ends reads each a few times at the most."""

    def read(self, ref_digest: bytes) -> bytes:
        assert len(self.read_digests) < 100 + 20 * len(self.stored), "a page is read repeatedly"
        return super().read(ref_digest)


def leaf(pages: Pages, entries: list[Entry]) -> Child:
    data_bytes = sum(entry.content.size for entry in entries if entry.content)
    return Child(entries[-1].path, pages.write(encode_leaf(entries)), len(entries), data_bytes)


def index(pages: Pages, level: int, children: list[Child]) -> Child:
    return Child(
        children[-1].last,
        pages.write(encode_index(level, children)),
        sum(child.entries for child in children),
        sum(child.data_bytes for child in children),
    )


def root_of(level: int, top: Child) -> Root:
    return Root(level, top.digest, top.entries, top.data_bytes)


def two_leaves(pages: Pages) -> list[Child]:
    return [leaf(pages, [file(b"a"), file(b"b")]), leaf(pages, [file(b"c"), file(b"d")])]


def as_said(pages: Pages, **said: object) -> Root:
    """A tree whose index page contradicts its second leaf."""
    first, second = two_leaves(pages)
    return root_of(1, index(pages, 1, [first, msgspec.structs.replace(second, **said)]))


def overlapping(pages: Pages) -> Root:
    first = leaf(pages, [file(b"b"), file(b"c")])
    return root_of(1, index(pages, 1, [first, leaf(pages, [file(b"a"), file(b"d")])]))


def shared(pages: Pages) -> Root:
    """Each page of a level has all pages of the next one up to its own last path: some 10^9 ways down through 240 pages."""
    level = [leaf(pages, [file(b"%02d" % number)]) for number in range(16)]
    for height in range(1, HIGHEST):
        level = [index(pages, height, level[: at + 1]) for at in range(len(level))]
    return root_of(HIGHEST, index(pages, HIGHEST, level))


def level_that_does_not_fall(pages: Pages) -> Root:
    below = index(pages, 2, [index(pages, 1, two_leaves(pages))])
    return root_of(2, index(pages, 2, [below]))


def level_that_falls_by_two(pages: Pages) -> Root:
    return root_of(2, index(pages, 2, two_leaves(pages)))


def in_place_of_a_leaf(data: bytes) -> Callable[[Pages], Root]:
    return lambda pages: as_said(pages, digest=pages.write(data))


def root_as_said(level: int = 1, more_entries: int = 0, more_bytes: int = 0) -> Callable[[Pages], Root]:
    def make(pages: Pages) -> Root:
        top = index(pages, 1, two_leaves(pages))
        return Root(level, top.digest, top.entries + more_entries, top.data_bytes + more_bytes)

    return make


FORGED: dict[str, Callable[[Pages], Root]] = {
    "a page overlaps the one before it": overlapping,
    "pages that are shared all the way down": shared,
    "a level that does not fall": level_that_does_not_fall,
    "a level that falls by two": level_that_falls_by_two,
    "a page ends elsewhere": lambda pages: as_said(pages, last=b"e"),
    "a page has other entries": lambda pages: as_said(pages, entries=3),
    "a page has other bytes": lambda pages: as_said(pages, data_bytes=3),
    "more entries than a number can say": lambda pages: as_said(pages, entries=2**63 - 1),
    "more bytes than a number can say": lambda pages: as_said(pages, data_bytes=2**63 - 1),
    "an empty leaf": in_place_of_a_leaf(forged_leaf([file(b"a")], paths=b"", types=b"")),
    "an empty index page": in_place_of_a_leaf(encode_index(1, [])),
    "a list of chunks as a page": in_place_of_a_leaf(bytes([PageKind.LIST, 0]) + ITEM.pack(1, bytes(32))),
    "attributes as a page": in_place_of_a_leaf(encode_attributes(Attributes((), ()))),
    "a root of a level that nothing has": root_as_said(level=10**9),
    "a root below zero": root_as_said(level=-1),
    "a root that has other entries": root_as_said(more_entries=1),
    "a root that has other bytes": root_as_said(more_bytes=1),
}


def shown(items: Iterable[Entry | Gap]) -> None:
    """Raises Damaged at the first gap, as who wants everything does; what comes before it is in order."""
    paths: list[bytes] = []
    gap: Gap | None = None
    for item in items:
        if isinstance(item, Gap):
            gap = gap or item
        else:
            paths.append(sort_key(item.path))
    assert all(before < after for before, after in pairwise(paths))
    if gap is not None:
        raise errors.Damaged(gap.message)


def every_page(root: Root, pages: Pages) -> None:
    for opened in Manifest(root, pages).pages(skip=lambda _: False):
        if isinstance(opened, Gap):
            raise errors.Damaged(opened.message)


def every_path(root: Root, pages: Pages) -> None:
    manifest = Manifest(root, pages)
    for path in [b"a", b"b", b"c", b"d", *(b"%02d" % number for number in range(16))]:
        manifest.find(path)


def good(pages: Pages) -> Root:
    named = [file(b"%s%d" % (name, n)) for name in (b"0", b"b", b"c") for n in range(20)]
    return build([directory(b""), *in_order(named)], pages)


READERS: dict[str, Callable[[Root, Pages], object]] = {
    "walk": lambda root, pages: shown(Manifest(root, pages).walk()),
    "walk below a path": lambda root, pages: shown(
        item for path in (b"0", b"14", b"c", b"d") for item in Manifest(root, pages).walk(path)
    ),
    "walk behind a path": lambda root, pages: shown(Manifest(root, pages).walk(after=b"0")),
    "children": lambda root, pages: shown(Manifest(root, pages).children(b"")),
    "pages": every_page,
    "find": every_path,
    "run": lambda root, pages: list(entries_of(root, pages)),
    "compare from it": lambda root, pages: list(compare(root, good(pages), pages)),
    "compare to it": lambda root, pages: list(compare(good(pages), root, pages)),
    "count from it": lambda root, pages: count(root, good(pages), pages),
    "count to it": lambda root, pages: count(good(pages), root, pages),
    "merge over it": lambda root, pages: merge(
        root, [[file(name) for name in (b"0", b"14", b"bb", b"cc", b"e")]], pages, pages, PAGE_KEY, rules=TINY
    ),
    "merge with it as a reference": lambda root, pages: merge(
        EMPTY_ROOT,
        [[file(name) for name in (b"0", b"14", b"bb", b"cc", b"e")]],
        pages,
        pages,
        PAGE_KEY,
        reference=root,
        rules=TINY,
    ),
    "join": lambda root, pages: join([root], [], pages, pages, PAGE_KEY, rules=TINY),
}
LOOKS_AT_LITTLE = {
    "find",
    "walk below a path",
    "merge with it as a reference",
    "count from it",
    "count to it",
    "join",
}
"""These need not open the page that lies; what they read of the others may be right."""


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("forged", FORGED)
def test_each_reader_reports_a_forged_tree_as_damaged_without_repeated_reads(
    forged: str, reader: str
) -> None:
    pages = Counted()
    root = FORGED[forged](pages)
    try:
        READERS[reader](root, pages)
    except errors.Damaged:
        return
    assert reader in LOOKS_AT_LITTLE


@pytest.mark.parametrize("forged", FORGED)
def test_a_forged_tree_keeps_everything_reachable_alive_and_is_walked_once(forged: str) -> None:
    pages = Counted()
    root = FORGED[forged](pages)
    known: set[bytes] = set()
    data: set[bytes] = set()
    try:
        for found in references(root, pages, skip=known.__contains__):
            known.add(found.manifest[0])
            data.update(found.data)
    except errors.Damaged:
        return  # nothing is collected
    for item in Manifest(root, pages).walk():
        if isinstance(item, Entry) and item.content is not None:
            assert data >= {ref.digest for ref in item.content.chunks}


def same_path_in_a_run(pages: Pages, entry: Entry) -> Root:
    """One path 16 to the 15th times, through 16 pages."""
    below = leaf(pages, [entry])
    for height in range(1, HIGHEST + 1):
        below = index(pages, height, [below] * 16)
    return root_of(HIGHEST, below)


@pytest.mark.parametrize("entry", [directory(b"a"), removal(b"a")], ids=["an entry", "a removal"])
def test_a_run_that_repeats_one_path_endlessly_is_damaged(entry: Entry) -> None:
    pages = Counted()
    root = same_path_in_a_run(pages, entry)
    with pytest.raises(errors.Damaged):
        list(entries_of(root, pages))


def test_a_run_may_split_a_removal_and_its_entry_across_pages() -> None:
    pages = Pages()
    said = [[removal(b"a")], [directory(b"a"), removal(b"b")], [file(b"b"), file(b"c")]]
    root = root_of(1, index(pages, 1, [leaf(pages, entries) for entries in said]))
    assert list(entries_of(root, pages)) == [entry for entries in said for entry in entries]


def test_pages_match_in_two_trees_only_if_they_fit_in_both_or_neither() -> None:
    pages = Pages()
    honest = build(grown_tree(300, 1), pages)
    assert honest.level > 1
    known = set(places(honest, pages))
    assert known == set(places(honest, pages))
    level, children = decode_index(pages.stored[honest.digest])
    first, second = children[:2]
    for before, after in (
        (first, msgspec.structs.replace(second, entries=second.entries + 1)),
        (first, msgspec.structs.replace(second, data_bytes=second.data_bytes + 1)),
        (first, msgspec.structs.replace(second, last=second.last + b"!")),
        (msgspec.structs.replace(first, last=first.last + b"!"), second),
    ):
        forged = root_of(level, index(pages, level, [before, after]))
        found = list(Manifest(forged, pages).pages(skip=known.__contains__))
        assert len(found) > 1, "only pages that fit in the same place are left out"
        assert any(isinstance(page, Gap) for page in found)


def places(root: Root, pages: Pages) -> Iterator[bytes]:
    for page in Manifest(root, pages).pages(skip=lambda _: False):
        assert not isinstance(page, Gap)
        yield page.place


def listed(pages: Pages, level: int, items: list[tuple[int, bytes]]) -> tuple[int, bytes]:
    data = bytes([PageKind.LIST, level]) + b"".join(ITEM.pack(*item) for item in items)
    return sum(length for length, _ in items), pages.write(data)


def lists(make: Callable[[Pages], tuple[int, int, bytes]]) -> Callable[[Pages], Content]:
    def content(pages: Pages) -> Content:
        level, size, digest = make(pages)
        return Content(size, blake3(b"").digest(), root=ListRoot(level, digest))

    return content


def of_other_length(pages: Pages) -> tuple[int, int, bytes]:
    length, digest = listed(pages, 0, [(100, digest_of("1"))])
    return 1, *listed(pages, 1, [(length, digest), (length + 1, digest)])


def of_other_level(pages: Pages) -> tuple[int, int, bytes]:
    return 2, *listed(pages, 2, [listed(pages, 0, [(100, digest_of("1"))])])


FORGED_LISTS = {
    "an item of another length": of_other_length,
    "a level that falls by two": of_other_level,
    "an empty list": lambda pages: (0, 100, pages.write(bytes([PageKind.LIST, 0]))),
    "an item without bytes": lambda pages: (
        0,
        *listed(pages, 0, [(0, digest_of("1")), (50, digest_of("2"))]),
    ),
    "a page as a list": lambda pages: (0, 100, pages.write(encode_leaf([file(b"a")]))),
}


@pytest.mark.parametrize("forged", FORGED_LISTS)
def test_a_forged_chunk_list_is_damaged(forged: str) -> None:
    pages = Counted()
    content = lists(FORGED_LISTS[forged])(pages)
    with pytest.raises(errors.Damaged):
        list(chunks_of(content, pages))
    entry = Entry(b"f", EntryType.FILE, content=content)
    with pytest.raises(errors.Damaged):
        list(references(root_of(0, leaf(pages, [entry])), pages))
