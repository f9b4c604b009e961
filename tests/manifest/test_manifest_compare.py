"""Comparing two manifests agrees with comparing their lists, and reads only what differs."""

import random

import pytest
from extent import examples, extent
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest_model import (
    PAGE_KEY,
    SMALL,
    Pages,
    build,
    directory,
    entries,
    file,
    full_list,
    grown_tree,
    in_order,
    paths,
)
from staddle_server.base import errors
from staddle_server.base.types import EMPTY_ROOT, Entry, EntryType, Flag, sort_key
from staddle_server.manifest.compare import Changed, ChangeType, Counts, compare, count
from staddle_server.manifest.cursor import PAGES_KEPT
from staddle_server.manifest.entries import same, same_content
from staddle_server.manifest.merge import merge


def by_definition(a: list[Entry], b: list[Entry]) -> list[Changed]:
    before, now = {entry.path: entry for entry in a}, {entry.path: entry for entry in b}
    found = []
    for path in sorted(before | now, key=sort_key):
        old, new = before.get(path), now.get(path)
        if old is None:
            found.append(Changed(ChangeType.ADDED, None, new))
        elif new is None:
            found.append(Changed(ChangeType.REMOVED, old, None))
        elif not same_content(old, new):
            found.append(Changed(ChangeType.CONTENT, old, new))
        elif not same(old, new):
            found.append(Changed(ChangeType.METADATA, old, new))
    return found


def counted(changes: list[Changed]) -> Counts:
    types = [change.type for change in changes]
    return Counts(
        added=types.count(ChangeType.ADDED),
        content=types.count(ChangeType.CONTENT),
        metadata=types.count(ChangeType.METADATA),
        removed=types.count(ChangeType.REMOVED),
    )


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(entries, max_size=30), st.lists(entries, max_size=30), st.booleans(), paths | st.none())
def test_compare_and_count_agree_with_the_lists(
    said: list[Entry], more: list[Entry], from_nothing: bool, after: bytes | None
) -> None:
    pages = Pages()
    a = full_list(said)
    b = full_list(more if from_nothing else said + more)
    root_a, root_b = build(a, pages), build(b, pages)
    expected = by_definition(a, b)
    assert list(compare(root_a, root_b, pages)) == expected
    assert count(root_a, root_b, pages) == counted(expected)
    behind = [c for c in expected if after is None or sort_key(c.path) > sort_key(after)]
    assert list(compare(root_a, root_b, pages, after=after)) == behind


@pytest.mark.parametrize("rare", [{"link_group": b"g"}, {"file_digest": bytes(32)}])
def test_entries_that_differ_only_in_what_few_have_differ(rare: dict[str, bytes]) -> None:
    pages = Pages()
    before, now = [file(b"a"), file(b"b")], [file(b"a"), file(b"b", **rare)]
    found = list(compare(build(before, pages), build(now, pages), pages))
    assert found == [Changed(ChangeType.METADATA, before[1], now[1])]


@pytest.mark.parametrize("seed", range(extent(3, 8)))
def test_large_trees_compare_as_their_lists_do(seed: int) -> None:
    pages = Pages()
    a = grown_tree(2000, seed)
    random_of_changes = random.Random(seed)
    dropped = {entry.path for entry in random_of_changes.sample(a, 30)}
    new_files = [file(b"zz/%d" % n) for n in range(seed * 40)]
    b = in_order([entry for entry in a if entry.path not in dropped] + [directory(b"zz"), *new_files])
    root_a, root_b = build(a, pages), build(b, pages)
    assert list(compare(root_a, root_b, pages)) == by_definition(a, b)
    assert count(root_a, root_b, pages) == counted(by_definition(a, b))
    assert count(root_b, root_a, pages) == counted(by_definition(b, a))


def test_equal_manifests_and_empty_ones_are_compared_unread() -> None:
    pages = Pages()
    tree = grown_tree(500, 1)
    root = build(tree, pages)
    pages.forget_counts()
    assert list(compare(root, root, pages)) == []
    assert count(root, root, pages) == Counts(0, 0, 0, 0)
    assert count(EMPTY_ROOT, root, pages) == Counts(len(tree), 0, 0, 0)
    assert count(root, EMPTY_ROOT, pages) == Counts(0, 0, 0, len(tree))
    assert count(EMPTY_ROOT, EMPTY_ROOT, pages) == Counts(0, 0, 0, 0)
    assert pages.read_digests == []


def test_ten_changes_among_many_entries_are_found_in_a_handful_of_pages() -> None:
    pages = Pages()
    tree = grown_tree(20_000, 2)
    root = build(tree, pages, SMALL)
    changed = in_order(
        file(entry.path, 77)
        for entry in random.Random(2).sample([e for e in tree if e.type == EntryType.FILE], 10)
    )
    now = merge(root, [changed], pages, pages, PAGE_KEY, rules=SMALL).root
    pages.forget_counts()
    assert [change.after for change in compare(root, now, pages)] == changed
    assert len(pages.read_digests) <= 2 * 10 * (root.level + 1)


def test_a_new_directory_full_of_files_is_counted_without_reading_most_of_it() -> None:
    pages = Pages()
    tree = grown_tree(2000, 3)
    root = build(tree, pages, SMALL)
    new = [directory(b"new"), *(file(b"new/%05d" % n) for n in range(5000))]
    now = build(in_order(tree + new), pages, SMALL)
    pages.forget_counts()
    assert count(root, now, pages) == Counts(len(new), 0, 0, 0)
    assert len(pages.read_digests) <= 12 * (now.level + 1)


def test_the_mark_for_rereading_an_entry_is_not_a_change() -> None:
    pages = Pages()
    a = build([file(b"f")], pages)
    b = build([file(b"f", flags=int(Flag.READ_AGAIN))], pages)
    assert list(compare(a, b, pages)) == []
    assert count(a, b, pages) == Counts(0, 0, 0, 0)


def test_a_damaged_page_fails_the_comparison() -> None:
    pages = Pages()
    a, b = build(grown_tree(300, 1), pages), build(grown_tree(300, 2), pages)
    pages.damaged = {next(digest for digest, data in pages.stored.items() if data[0] == 1)}
    with pytest.raises(errors.Damaged):
        list(compare(a, b, pages))


INCOMPLETE = int(Flag.INCOMPLETE)


def test_missing_paths_below_an_incomplete_directory_are_uncertain() -> None:
    pages = Pages()
    before = [
        directory(b""), directory(b"d"), file(b"d/a"), directory(b"d/s"), file(b"d/s/x"),
        directory(b"d/whole"), file(b"d/whole/gone"), file(b"e"),
    ]  # fmt: skip
    now = [directory(b""), directory(b"d", flags=INCOMPLETE), directory(b"d/whole")]
    a, b = build(before, pages), build(now, pages)

    def uncertain(changes) -> dict[bytes, bool]:
        return {c.path: c.uncertain for c in changes if c.type in (ChangeType.ADDED, ChangeType.REMOVED)}

    expected = {b"d/a": True, b"d/s": True, b"d/s/x": True, b"d/whole/gone": False, b"e": False}
    assert uncertain(compare(a, b, pages)) == expected
    assert uncertain(compare(b, a, pages)) == expected
    assert uncertain(compare(a, b, pages, after=b"d/s")) == {
        b"d/s/x": True,
        b"d/whole/gone": False,
        b"e": False,
    }
    assert [c.type for c in compare(a, b, pages) if c.path == b"d"] == [ChangeType.METADATA]
    assert uncertain(compare(a, EMPTY_ROOT, pages)) == dict.fromkeys((e.path for e in before), False)


def test_paths_without_a_directory_on_a_side_without_a_root_are_looked_up_once() -> None:
    """A path of 1,000 components is 1,000 entries: looking up each of their parents again took minutes."""
    pages = Pages()
    deep = [b"/".join([b"a"] * depth) for depth in range(1, 101)]
    files = [file(b"z%04d" % number) for number in range(2000)]
    a, b = build(files, pages), build([*map(directory, deep), *files], pages)
    assert a.level > PAGES_KEPT, "a repeated look-up is a repeated read"
    pages.forget_counts()
    changes = list(compare(a, b, pages))
    assert [change.path for change in changes] == deep
    assert not any(change.uncertain for change in changes)
    assert len(pages.read_digests) < len(pages.stored)
