"""Finding, walking and listing agree with the list of entries, and a damaged page costs only its own entries."""

import random

import pytest
from extent import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest_model import (
    PAGE_KEY,
    SMALL,
    TINY,
    Pages,
    build,
    directory,
    entries,
    file,
    forged_leaf,
    full_list,
    grown_tree,
    in_order,
    is_below,
    paths,
)
from staddle_server.base import errors
from staddle_server.base.types import EMPTY_ROOT, Entry, Root, sort_key
from staddle_server.manifest.entries import removal
from staddle_server.manifest.pages import decode_index
from staddle_server.manifest.read import Gap, Manifest, entries_of
from staddle_server.manifest.tree import write_run


@settings(max_examples=examples(400), deadline=None)
@given(st.lists(entries, max_size=30), paths | st.just(b""), paths | st.none())
def test_find_walk_and_children_agree_with_the_list(
    said: list[Entry], path: bytes, after: bytes | None
) -> None:
    pages = Pages()
    tree = full_list(said)
    manifest = Manifest(build(tree, pages), pages)
    assert manifest.find(path) == next((entry for entry in tree if entry.path == path), None)
    behind = [entry for entry in tree if after is None or sort_key(entry.path) > sort_key(after)]
    assert list(manifest.walk(path, after=after)) == [
        entry for entry in behind if entry.path == path or is_below(entry.path, path)
    ]
    prefix = path + b"/" if path else b""
    assert list(manifest.children(path, after=after)) == [
        entry for entry in behind if is_below(entry.path, path) and b"/" not in entry.path[len(prefix) :]
    ]


@pytest.mark.parametrize("recursive", [True, False])
def test_a_listing_resumes_after_any_entry_and_reads_little(recursive: bool) -> None:
    pages = Pages()
    root = build(grown_tree(3000, 5), pages, SMALL)
    manifest = Manifest(root, pages)
    listing = manifest.walk if recursive else manifest.children
    whole = list(listing(b""))
    for at in random.Random(5).sample(range(len(whole)), 20):
        entry = whole[at]
        assert isinstance(entry, Entry)
        pages.forget_counts()
        rest = Manifest(root, pages)
        stream = (rest.walk if recursive else rest.children)(b"", after=entry.path)
        assert next(stream, None) == (whole[at + 1] if at + 1 < len(whole) else None)
        assert len(pages.read_digests) <= 2 * (root.level + 1)
        assert list(stream) == whole[at + 2 :]


def test_listing_a_directory_skips_deeper_entries() -> None:
    pages = Pages()
    tree = [directory(b"big"), *(file(b"big/%05d" % n) for n in range(5000)), file(b"c")]
    root = build(tree, pages, SMALL)
    pages.forget_counts()
    assert list(Manifest(root, pages).children(b"")) == [directory(b"big"), file(b"c")]
    assert len(pages.read_digests) <= 2 * (root.level + 1)


def test_finding_in_order_reads_each_page_once() -> None:
    pages = Pages()
    tree = grown_tree(2000, 6)
    root = build(tree, pages, SMALL)
    pages.forget_counts()
    manifest = Manifest(root, pages)
    assert all(manifest.find(entry.path) == entry for entry in tree)
    assert len(pages.read_digests) == len(set(pages.read_digests))


def test_a_damaged_page_is_a_gap_and_the_walk_continues() -> None:
    pages = Pages()
    tree = grown_tree(800, 7)
    root = build(tree, pages)
    for digest in random.Random(7).sample(sorted(pages.stored), 60):
        pages.damaged = {digest}
        found = list(Manifest(root, pages).walk())
        gaps = [item for item in found if isinstance(item, Gap)]
        assert len(gaps) == 1
        [gap] = gaps
        lost = [entry for entry in tree if _is_in(entry.path, gap)]
        assert lost
        assert [item for item in found if isinstance(item, Entry)] == [e for e in tree if e not in lost]
        position = found.index(gap)
        before = found[position - 1].path if position else None  # type: ignore[union-attr] # there is one gap
        assert gap.after == before
        with pytest.raises(errors.Damaged):
            Manifest(root, pages).find(lost[0].path)


def _is_in(path: bytes, gap: Gap) -> bool:
    key = sort_key(path)
    return (gap.after is None or key > sort_key(gap.after)) and (
        gap.upto is None or key <= sort_key(gap.upto)
    )


def test_listing_a_directory_with_a_gap_gives_its_readable_entries_only() -> None:
    pages = Pages()
    tree = in_order(
        [directory(b"d%02d" % n) for n in range(40)]
        + [file(b"d%02d/%02d" % (n, m)) for n in range(40) for m in range(20)]
    )
    root = build(tree, pages)
    for digest in random.Random(8).sample(sorted(pages.stored), 60):
        pages.damaged = {digest}
        found = list(Manifest(root, pages).children(b""))
        gaps = [item for item in found if isinstance(item, Gap)]
        listed = [item.path for item in found if isinstance(item, Entry)]
        wanted = [b"d%02d" % n for n in range(40)]
        assert listed == [path for path in wanted if not any(_is_in(path, gap) for gap in gaps)]


def test_a_listing_continues_after_a_gap() -> None:
    pages = Pages()
    tree = grown_tree(800, 9)
    root = build(tree, pages)
    leaves = sorted(digest for digest, data in pages.stored.items() if data[0] == 1)
    pages.damaged = {leaves[3]}
    found = list(Manifest(root, pages).walk())
    [position] = [at for at, item in enumerate(found) if isinstance(item, Gap)]
    gap = found[position]
    assert isinstance(gap, Gap)
    assert list(Manifest(root, pages).walk(after=gap.upto)) == found[position + 1 :]


def test_a_page_in_place_of_another_is_damage() -> None:
    pages = Pages()
    root = build(grown_tree(800, 10), pages)
    level, children = decode_index(pages.stored[root.digest])
    other = Pages()
    build(grown_tree(800, 11), other)
    swapped = next(data for data in other.stored.values() if data[0] == (2 if level > 1 else 1))
    pages.stored[children[0].digest] = swapped
    items = list(Manifest(root, pages).walk())
    assert isinstance(items[0], Gap)
    assert items[0].upto == children[0].last


@pytest.mark.parametrize("said", [{"modes": 0o10000}, {"paths": b"\0b\0c/../d\0e"}, {"owners": 1}])
def test_a_leaf_with_an_impossible_entry_is_damage_to_every_search_and_walk(said: dict[str, object]) -> None:
    pages = Pages()
    leaf = [directory(b"", mode=None), file(b"b"), file(b"c"), file(b"e")]
    data_bytes = sum(entry.content.size for entry in leaf if entry.content)
    root = Root(0, pages.write(forged_leaf(leaf, **said)), len(leaf), data_bytes)
    manifest = Manifest(root, pages)
    for path in (b"b", b"c/../d", b"e", b"missing"):
        with pytest.raises(errors.Damaged):
            manifest.find(path)
    [gap] = manifest.walk()
    assert isinstance(gap, Gap)


def test_a_page_that_a_search_has_read_is_not_read_again_for_a_walk() -> None:
    pages = Pages()
    tree = [directory(b""), file(b"b"), file(b"e")]
    manifest = Manifest(build(tree, pages), pages)
    assert manifest.find(b"b") == tree[1]
    assert list(manifest.walk()) == tree
    assert len(pages.read_digests) == len(set(pages.read_digests))


def test_an_empty_manifest_has_nothing() -> None:
    manifest = Manifest(EMPTY_ROOT, Pages())
    assert manifest.find(b"") is None
    assert list(manifest.walk()) == list(manifest.children(b"")) == []


def test_an_unreadable_root_is_one_gap_from_beginning_to_end() -> None:
    pages = Pages()
    root = build(grown_tree(20, 1), pages)
    pages.damaged = {root.digest}
    [gap] = Manifest(root, pages).walk()
    assert isinstance(gap, Gap)
    assert (gap.after, gap.upto) == (None, None)


def test_a_run_reads_back_as_written_even_if_a_page_ends_inside_a_pair() -> None:
    pages = Pages()
    run = [
        item
        for n in range(300)
        for item in (removal(b"%03d" % n), directory(b"%03d" % n), file(b"%03d/x" % n))
    ]
    root = write_run(run, pages, PAGE_KEY, TINY)
    assert root.entries == 900
    assert list(entries_of(root, pages)) == run
    with pytest.raises(errors.Damaged):
        list(_only_entries(Manifest(root, pages)))


def _only_entries(manifest: Manifest) -> list[Entry]:
    for item in manifest.walk():
        if isinstance(item, Gap):
            raise errors.Damaged(item.message)
    return []
