"""Joining consecutive trees gives the same digests as building all their entries, and reads few pages."""

import itertools
import random

import pytest
from extent import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest_model import PAGE_KEY, SMALL, TINY, Pages, build, entries, full_list, grown_tree
from staddle_server.base.errors import Damaged
from staddle_server.base.types import EMPTY_ROOT, Entry, Root
from staddle_server.manifest.merge import join
from staddle_server.manifest.pages import decode_leaf, encode_leaf
from staddle_server.manifest.runs import Gathered


def gathered(said: list[Entry]) -> Gathered:
    made = Gathered()
    for entry in said:
        made.append(entry)
    return made


def cut(all_of_them: list[Entry], cuts: list[int]) -> list[list[Entry]]:
    bounds = [0, *sorted(each % (len(all_of_them) + 1) for each in cuts), len(all_of_them)]
    return [all_of_them[a:b] for a, b in itertools.pairwise(bounds)]


@settings(max_examples=examples(400), deadline=None)
@given(st.lists(entries, max_size=40), st.lists(st.integers(0, 40), max_size=4))
def test_a_joined_tree_equals_one_built_from_all_entries(said: list[Entry], cuts: list[int]) -> None:
    whole = full_list(said)
    *before, last = cut(whole, cuts)
    pages = Pages()
    trees = [build(part, pages) for part in before]
    rest = gathered(last)
    assert rest.in_order
    joined = join(trees, rest.parts(), pages, pages, PAGE_KEY, rules=TINY)
    assert joined == build(whole, Pages())
    assert joined.entries == len(whole)
    assert joined.data_bytes == sum(entry.content.size for entry in whole if entry.content is not None)


@settings(max_examples=examples(200), deadline=None)
@given(
    st.lists(entries, max_size=40),
    st.lists(st.integers(0, 40), max_size=6),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_entries_gathered_as_columns_and_one_by_one_are_the_same_run(
    said: list[Entry], cuts: list[int], chance: random.Random, shuffled: bool
) -> None:
    whole = full_list(said)
    parts = [part for part in cut(whole, cuts) if part]
    if shuffled:
        chance.shuffle(parts)
    made = Gathered()
    for part in parts:
        if chance.random() < 0.5:
            made.extend(decode_leaf(encode_leaf(part)))
        else:
            for entry in part:
                made.append(entry)
    one_by_one = gathered([entry for part in parts for entry in part])
    assert len(made) == len(one_by_one) == len(whole)
    assert made.in_order == one_by_one.in_order
    assert list(made.sorted()) == list(one_by_one.sorted())
    if made.in_order:
        pages = Pages()
        assert join((), made.parts(), pages, pages, PAGE_KEY, rules=TINY) == build(whole, Pages())


@pytest.mark.parametrize("rules", [SMALL, TINY])
def test_complete_pages_are_reused_unread(rules) -> None:
    whole = grown_tree(4_000, seed=1)
    pages = Pages()
    trees = [build(part, pages, rules) for part in cut(whole, [1_000, 1_000, 2_500])]
    leaves = len(pages.stored)
    pages.forget_counts()
    assert join(trees, (), pages, pages, PAGE_KEY, rules=rules) == build(whole, Pages(), rules)
    assert len(pages.read_digests) < leaves / 10
    assert len(pages.written_digests) < leaves / 10


def test_joining_one_tree_gives_itself_and_joining_none_gives_the_empty_one() -> None:
    pages = Pages()
    root = build(grown_tree(300, seed=2), pages)
    assert join([root], (), pages, pages, PAGE_KEY, rules=TINY) == root
    assert join([EMPTY_ROOT, root, EMPTY_ROOT], (), pages, pages, PAGE_KEY, rules=TINY) == root
    assert join((), (), pages, pages, PAGE_KEY, rules=TINY) == EMPTY_ROOT


def test_trees_and_entries_out_of_order_are_refused() -> None:
    whole = grown_tree(300, seed=3)
    pages = Pages()
    first, second = (build(part, pages) for part in cut(whole, [150]))

    def joined(trees: list[Root], rest: list[Entry]) -> None:
        join(trees, gathered(rest).parts(), pages, pages, PAGE_KEY, rules=TINY)

    for trees, rest in (
        ([second, first], []),
        ([first, first], []),
        ([second], whole[:1]),
        ([], whole[1::-1]),
    ):
        with pytest.raises(ValueError, match=r"order|fit"):
            joined(trees, rest)


def test_a_damaged_page_that_must_be_read_is_reported() -> None:
    pages = Pages()
    trees = [build(part, pages) for part in cut(grown_tree(300, seed=4), [150])]
    pages.damaged.add(trees[1].digest)
    with pytest.raises(Damaged):
        join(trees, (), pages, pages, PAGE_KEY, rules=TINY)
