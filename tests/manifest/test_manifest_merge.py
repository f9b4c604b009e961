"""Merging runs over a base gives the same digests as building the resulting list, and touches few pages."""

import itertools
import random

import pytest
from extent import examples, extent
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest_model import (
    PAGE_KEY,
    SMALL,
    TINY,
    ConflictError,
    Pages,
    build,
    directory,
    entries,
    file,
    full_list,
    grown_tree,
    in_order,
    merged_by_definition,
    removals,
)
from staddle_server.base import errors
from staddle_server.base.types import EMPTY_ROOT, Entry, EntryType, Flag, Root
from staddle_server.manifest.entries import implied_directory, removal, same, same_content
from staddle_server.manifest.merge import merge, merge_runs
from staddle_server.manifest.pages import FORMAT, is_boundary
from staddle_server.manifest.read import Manifest
from staddle_server.manifest.runs import Gathered

said_lists = st.lists(entries | removals, max_size=12)


def run_of(said: list[Entry]) -> list[Entry]:
    """The changes as one run."""
    gathered = Gathered()
    for entry in said:
        gathered.append(entry)
    assert len(gathered) == len(said)
    return list(gathered.sorted())


def runs_of(said: list[Entry], cuts: list[int]) -> list[list[Entry]]:
    """The changes, cut into runs."""
    bounds = [0, *sorted(cut % (len(said) + 1) for cut in cuts), len(said)]
    return [run_of(said[a:b]) for a, b in itertools.pairwise(bounds)]


def listed(root: Root, pages: Pages) -> list[Entry]:
    found = list(Manifest(root, pages).walk())
    assert all(isinstance(entry, Entry) for entry in found)
    return found  # type: ignore[return-value] # just seen


@settings(max_examples=examples(600), deadline=None)
@given(st.lists(entries, max_size=30), said_lists, st.lists(st.integers(0, 12), max_size=3), st.booleans())
def test_runs_over_a_base_give_the_root_of_the_full_list(
    based: list[Entry], said: list[Entry], cuts: list[int], first_to_one: bool
) -> None:
    pages = Pages()
    base_list = full_list(based)
    base = build(base_list, pages)
    runs = runs_of(said, cuts)
    if first_to_one:
        runs = [list(merge_runs(runs))]
    try:
        expected = merged_by_definition(base_list, said)
    except ConflictError:
        with pytest.raises(errors.BadRequest) as raised:
            merge(base, runs, pages, pages, PAGE_KEY, rules=TINY)
        assert raised.value.reason == "PATH_CONFLICT"
        assert "path" in raised.value.facts
        return
    merged = merge(base, runs, pages, pages, PAGE_KEY, rules=TINY)
    assert listed(merged.root, pages) == expected
    assert merged.root == build(expected, Pages())
    assert merged.metadata_kept == 0


@settings(max_examples=examples(200), deadline=None)
@given(said_lists, st.lists(st.integers(0, 12), max_size=4), st.integers(0, 5))
def test_runs_may_be_merged_in_any_grouping(said: list[Entry], cuts: list[int], split: int) -> None:
    runs = runs_of(said, cuts)
    split %= len(runs) + 1
    whole = list(merge_runs(runs))
    assert list(merge_runs([merge_runs(runs[:split]), merge_runs(runs[split:])])) == whole
    assert run_of(said) == whole
    build(whole, Pages(), run=True)


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(entries, max_size=20), said_lists, st.booleans())
def test_a_differential_keeps_the_metadata_of_the_reference_for_the_same_content(
    based: list[Entry], said: list[Entry], whole: bool
) -> None:
    pages = Pages()
    reference_list = full_list(based)
    reference = build(reference_list, pages)
    base_list = [] if whole else reference_list
    try:
        plain = merged_by_definition(base_list, said)
    except ConflictError:
        return
    of_reference = {entry.path: entry for entry in reference_list}
    expected, kept = [], 0
    for entry in plain:
        known = of_reference.get(entry.path)
        if known is not None and same_content(known, entry):
            kept += not same(known, entry) and not entry.flags & Flag.IMPLIED
            expected.append(known)
        else:
            expected.append(entry)
    base = EMPTY_ROOT if whole else reference
    merged = merge(base, [run_of(said)], pages, pages, PAGE_KEY, reference=reference, rules=TINY)
    assert listed(merged.root, pages) == expected
    assert merged.root == build(expected, Pages())
    assert merged.metadata_kept == kept


def test_a_differential_keeps_the_mark_for_rereading() -> None:
    pages = Pages()
    reference = build([file(b"f", mode=0o600)], pages)
    run = [file(b"f", mode=0o644, flags=int(Flag.READ_AGAIN))]
    merged = merge(reference, [run], pages, pages, PAGE_KEY, reference=reference, rules=TINY)
    assert listed(merged.root, pages) == [file(b"f", mode=0o600, flags=int(Flag.READ_AGAIN))]
    assert merged.metadata_kept == 1


@pytest.mark.parametrize(("before", "now"), [(0, Flag.INCOMPLETE), (Flag.INCOMPLETE, 0)])
def test_a_differential_has_the_current_completeness_of_a_directory(before: int, now: int) -> None:
    pages = Pages()
    reference = build([directory(b"d", 0o700, flags=int(before))], pages)
    run = [directory(b"d", 0o755, flags=int(now))]
    merged = merge(reference, [run], pages, pages, PAGE_KEY, reference=reference, rules=TINY)
    assert listed(merged.root, pages) == [directory(b"d", 0o700, flags=int(now))]
    assert merged.metadata_kept == 1


@pytest.mark.parametrize("seed", range(extent(4, 12)))
def test_large_random_changes_give_the_root_of_the_full_list(seed: int) -> None:
    pages = Pages()
    base_list = grown_tree(3000, seed)
    base = build(base_list, pages, SMALL)
    random_of_changes = random.Random(seed)
    said: list[Entry] = []
    for number in range(25):
        victim = random_of_changes.choice(base_list[1:])
        while number % 2 and victim.type != EntryType.FILE:
            victim = random_of_changes.choice(base_list[1:])
        match random_of_changes.randrange(5):
            case 0:
                said.append(removal(victim.path))
            case 1 if victim.type == EntryType.FILE:
                said.append(file(victim.path, 60 + number))
            case 2:
                said.append(directory(victim.path, 0o711))
            case 3:
                said.append(file(victim.path + b"-new"))
            case _:
                said.extend([directory(victim.path), file(victim.path + b"/deep/er", number)])
    runs = runs_of(said, [5, 17])
    expected = merged_by_definition(base_list, said)
    merged = merge(base, runs, pages, pages, PAGE_KEY, rules=SMALL)
    assert merged.root == build(expected, Pages(), SMALL)


@pytest.mark.slow
def test_ten_changes_in_a_hundred_thousand_entries_touch_a_handful_of_pages() -> None:
    pages = Pages()
    paths = [f"d{n // 1000:03d}/f{n % 1000:03d}".encode() for n in range(100_000)]
    base_list = in_order([directory(b""), *(directory(b"d%03d" % n) for n in range(100)), *map(file, paths)])
    base = build(base_list, pages, FORMAT)
    changes = random.Random(7).sample(paths, 10)
    run = in_order(
        [removal(path) for path in changes[:3]]
        + [file(path, 2) for path in changes[3:8]]
        + [file(path + b"-new", 2) for path in changes[8:]]
    )
    pages.forget_counts()
    merged = merge(base, [run], pages, pages, PAGE_KEY)
    reads, writes = len(pages.read_digests), len(pages.written_digests)
    assert reads <= 10 * (base.level + 1) + 10
    assert writes <= 10 * (base.level + 1)
    assert merged.root == build(merged_by_definition_quickly(base_list, run), Pages(), FORMAT)


def merged_by_definition_quickly(base: list[Entry], run: list[Entry]) -> list[Entry]:
    """For runs that touch no directory."""
    alive = {entry.path: entry for entry in base} | {entry.path: entry for entry in run}
    return in_order(entry for entry in alive.values() if entry.type != EntryType.REMOVED)


def test_an_empty_upload_gives_the_base_and_reads_only_its_first_page() -> None:
    pages = Pages()
    base = build(grown_tree(500, 1), pages)
    pages.forget_counts()
    assert merge(base, [[], []], pages, pages, PAGE_KEY, rules=TINY).root == base
    assert len(pages.read_digests) <= 1
    assert pages.written_digests == []


def test_an_upload_without_changes_gives_the_base() -> None:
    pages = Pages()
    tree = grown_tree(500, 1)
    base = build(tree, pages)
    assert merge(base, [tree[10:20], tree[15:400]], pages, pages, PAGE_KEY, rules=TINY).root == base


def test_removing_all_but_one_page_leaves_no_index_page_with_one_child() -> None:
    pages = Pages()
    tree = [
        directory(b"keep"),
        *(file(b"keep/%04d" % n) for n in range(40)),
        *(file(b"x%04d" % n) for n in range(400)),
    ]
    base = build(tree, pages)
    for kept in range(1, 40):
        run = [removal(b"keep/%04d" % n) for n in range(kept, 40)] + [
            removal(b"x%04d" % n) for n in range(400)
        ]
        merged = merge(base, [run], pages, pages, PAGE_KEY, rules=TINY)
        assert merged.root == build(tree[: kept + 1], Pages())


def test_a_reused_page_with_a_single_child_does_not_become_the_root() -> None:
    pages = Pages()
    # A leaf of one entry that ends an index page as well.
    path = next(b"0%06d" % n for n in range(10**6) if is_boundary(PAGE_KEY, b"0%06d" % n, 2, TINY))
    others = [file(b"x%04d" % n) for n in range(100)]
    base = build([file(path), *others], pages)
    assert base.level > 2
    run = [removal(entry.path) for entry in others]
    assert merge(base, [run], pages, pages, PAGE_KEY, rules=TINY).root == build([file(path)], Pages())


def test_a_parent_is_implied_even_above_a_removed_path() -> None:
    pages = Pages()
    base = build([file(b"z")], pages)
    merged = merge(base, [[removal(b"a/b"), file(b"a/b/c")]], pages, pages, PAGE_KEY, rules=TINY)
    expected = [implied_directory(b"a"), implied_directory(b"a/b"), file(b"a/b/c"), file(b"z")]
    assert listed(merged.root, pages) == expected


def test_an_implied_directory_of_the_base_stays_when_it_becomes_empty() -> None:
    pages = Pages()
    base = build([implied_directory(b"a"), file(b"a/b")], pages)
    merged = merge(base, [[removal(b"a/b")]], pages, pages, PAGE_KEY, rules=TINY)
    assert listed(merged.root, pages) == [implied_directory(b"a")]


def test_the_root_directory_is_not_implied() -> None:
    pages = Pages()
    merged = merge(EMPTY_ROOT, [[file(b"dump.sql")]], pages, pages, PAGE_KEY, rules=TINY)
    assert listed(merged.root, pages) == [file(b"dump.sql")]


def test_removing_everything_leaves_the_empty_root() -> None:
    pages = Pages()
    base = build(grown_tree(200, 3), pages)
    assert merge(base, [[removal(b"")]], pages, pages, PAGE_KEY, rules=TINY).root == EMPTY_ROOT


def test_a_removal_keeps_entries_of_its_own_and_newer_runs() -> None:
    pages = Pages()
    base = build([directory(b"d"), file(b"d/old"), file(b"d/x")], pages)
    runs = [[removal(b"d"), file(b"d/x", 3)], [file(b"d/y", 4)]]
    merged = merge(base, runs, pages, pages, PAGE_KEY, rules=TINY)
    assert listed(merged.root, pages) == [implied_directory(b"d"), file(b"d/x", 3), file(b"d/y", 4)]


def test_a_directory_that_was_temporarily_a_file_loses_older_entries() -> None:
    said = [file(b"d"), directory(b"d"), file(b"d/new")]
    assert run_of(said) == [removal(b"d"), directory(b"d"), file(b"d/new")]


@pytest.mark.parametrize("in_base", [True, False])
def test_a_path_below_a_file_is_a_conflict_that_names_it(in_base: bool) -> None:
    pages = Pages()
    base = build([file(b"f")] if in_base else [], pages)
    run = [file(b"f/x/y")] if in_base else [file(b"f"), file(b"f/x/y")]
    with pytest.raises(errors.BadRequest) as raised:
        merge(base, [run], pages, pages, PAGE_KEY, rules=TINY)
    assert (raised.value.reason, raised.value.facts) == ("PATH_CONFLICT", {"path": "f/x/y"})


def test_a_run_that_is_not_sorted_is_refused() -> None:
    pages = Pages()
    with pytest.raises(ValueError, match="out of order"):
        merge(EMPTY_ROOT, [[file(b"b"), file(b"a")]], pages, pages, PAGE_KEY, rules=TINY)


def test_a_damaged_page_of_the_base_fails_the_merge_that_needs_it() -> None:
    pages = Pages()
    tree = grown_tree(500, 1)
    base = build(tree, pages)
    pages.damaged.update(digest for digest, data in pages.stored.items() if data[0] == 1)
    with pytest.raises(errors.Damaged):
        merge(base, [[file(tree[250].path + b"!")]], pages, pages, PAGE_KEY, rules=TINY)


def test_trees_of_a_thousand_levels_are_built_merged_and_read() -> None:
    pages = Pages()
    deep = b"/".join([b"d"] * 1000)
    merged = merge(
        EMPTY_ROOT, [[file(deep + b"/a")], [file(deep + b"/b")]], pages, pages, PAGE_KEY, rules=SMALL
    )
    found = listed(merged.root, pages)
    assert len(found) == 1002
    more = merge(
        merged.root, [[file(deep + b"/b/c"), file(deep + b"/c")][1:]], pages, pages, PAGE_KEY, rules=SMALL
    )
    assert listed(more.root, pages) == [*found, file(deep + b"/c")]
    assert Manifest(more.root, pages).find(deep + b"/b") == file(deep + b"/b")
