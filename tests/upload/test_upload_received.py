"""Entries that arrive in manifest order become the manifest without a merge, with the same result; others are merged."""

import itertools
import sys
from pathlib import Path

import pytest
from extent import examples
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "manifest"))
from manifest_model import PAGE_KEY, Pages, directory, entries, file, grown_tree, removals
from staddle_server.base import errors
from staddle_server.base.types import EMPTY_ROOT, Entry
from staddle_server.manifest.entries import removal
from staddle_server.manifest.merge import merge
from staddle_server.upload import received as module
from staddle_server.upload.progress import Progress
from staddle_server.upload.received import Received


def receive(said: list[Entry], every: int, pages: Pages, progress: Progress | None = None) -> Received:
    """An upload with these entries, and a run after so many of them."""
    received = Received(progress or Progress(), pages, pages, PAGE_KEY)
    for number, entry in enumerate(said, 1):
        received.append(entry)
        if number % every == 0:
            received.write_run()
    return received


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(entries | removals, max_size=14), st.integers(1, 15), st.booleans())
def test_an_unmerged_manifest_equals_the_merged_one(said: list[Entry], every: int, ordered: bool) -> None:
    if ordered:
        said = sorted(said, key=lambda entry: module.sort_key(entry.path))
    pages = Pages()
    received = receive(said, every, pages)
    whole = received.whole()
    if whole is None:
        return
    assert whole == merge(EMPTY_ROOT, received.runs(), pages, pages, PAGE_KEY).root


@pytest.mark.parametrize("every", [100, 700, 10_000])
def test_a_tree_in_order_is_not_merged(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RUNS_MERGE", 3)
    monkeypatch.setattr(module, "merge_runs", lambda runs: pytest.fail("it was merged"))
    tree = grown_tree(3_000, seed=5)
    pages = Pages()
    whole = receive(tree, every, pages).whole()
    assert whole is not None
    assert whole.entries == len(tree)
    assert whole == receive(tree, 100_000, Pages()).whole()


def test_most_pages_of_the_manifest_were_written_with_the_runs() -> None:
    pages = Pages()
    received = receive(grown_tree(9_000, seed=6), 2_000, pages)
    pages.forget_counts()
    received.whole()
    assert len(pages.written_digests) < 20 < len(pages.stored)
    assert len(pages.read_digests) < 20


TREE = [directory(b""), directory(b"d"), file(b"d/a"), file(b"d/b"), directory(b"e"), file(b"e/c")]


@pytest.mark.parametrize(
    "said",
    [
        [*TREE, removal(b"e/c")],
        [*TREE, file(b"e/c", 2)],
        [*TREE[:3], TREE[4], TREE[3]],
        [directory(b""), file(b"d/a")],
        [directory(b""), directory(b"d"), file(b"d/x/a")],
        [file(b"d"), file(b"d/a")],
        [directory(b"d"), file(b"d/a"), file(b"e/c")],
    ],
    ids=[
        "a removal",
        "again",
        "out of order",
        "no directory",
        "one is missing",
        "below a file",
        "another one",
    ],
)
def test_entries_out_of_order_are_merged(said: list[Entry]) -> None:
    assert receive(said, 100, Pages()).whole() is None


@pytest.mark.parametrize("said", [TREE, TREE[1:], TREE[:1], [file(b"a"), file(b"b")], []])
def test_a_root_may_be_left_out(said: list[Entry]) -> None:
    whole = receive(said, 2, Pages()).whole()
    assert whole is not None
    assert whole.entries == len(said)


def test_a_resumed_upload_is_merged_because_its_earlier_order_is_unknown() -> None:
    pages = Pages()
    taken_back = receive([directory(b""), file(b"a"), removal(b"a")], 3, pages)
    assert receive([file(b"b")], 100, pages, taken_back.progress()).whole() is None
    first = receive(TREE[:3], 3, pages)
    again = receive(TREE[3:], 100, pages, first.progress())
    assert again.whole() is None
    assert merge(EMPTY_ROOT, again.runs(), pages, pages, PAGE_KEY).root == receive(TREE, 100, Pages()).whole()


def test_an_entry_below_a_file_is_still_refused_at_the_commit() -> None:
    pages = Pages()
    received = receive([file(b"d"), file(b"d/a")], 1, pages)
    with pytest.raises(errors.BadRequest, match="not a directory"):
        merge(EMPTY_ROOT, received.runs(), pages, pages, PAGE_KEY)


def test_any_two_neighbours_out_of_order_are_noticed() -> None:
    tree = grown_tree(40, seed=7)
    for number, _ in enumerate(itertools.pairwise(tree)):
        swapped = [*tree[:number], tree[number + 1], tree[number], *tree[number + 2 :]]
        assert receive(swapped, 7, Pages()).whole() is None
