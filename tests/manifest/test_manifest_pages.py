"""Pages as bytes: they read back as written, impossible ones are damage, and a tree depends only on its entries."""

import random

import msgspec
import pytest
from blake3 import blake3
from extent import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from manifest_model import (
    PAGE_KEY,
    SMALL,
    TINY,
    Pages,
    build,
    digest_of,
    directory,
    entries,
    file,
    full_list,
    grown_tree,
)
from staddle_server.base import errors, limits
from staddle_server.base.types import (
    EMPTY_ROOT,
    Attributes,
    ChunkRef,
    Entry,
    EntryType,
    Profile,
    Root,
    Xattr,
    sort_key,
)
from staddle_server.manifest.content import ContentBuilder, store_attributes
from staddle_server.manifest.entries import removal
from staddle_server.manifest.pages import (
    FORMAT,
    Child,
    decode_attributes,
    decode_index,
    decode_leaf,
    encode_index,
    encode_leaf,
    is_boundary,
)
from staddle_server.manifest.references import references
from staddle_server.manifest.tree import TreeBuilder


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(entries, min_size=1, max_size=30))
def test_a_leaf_reads_back_as_written(said: list[Entry]) -> None:
    tree = full_list(said)
    assert decode_leaf(encode_leaf(tree)) == tree


def test_missing_fields_have_their_default_and_new_ones_are_ignored() -> None:
    short = b"\1\x91\x93\xc4\1f\2\xcd\1\xed"
    assert decode_leaf(short) == [Entry(b"f", EntryType.DIRECTORY, 0o755)]
    longer = msgspec.msgpack.decode(msgspec.msgpack.encode(directory(b"d")))
    longer.append({"later": [1, 2]})
    assert decode_leaf(b"\1" + msgspec.msgpack.encode([longer])) == [directory(b"d")]


def test_pages_end_where_the_hash_of_the_path_says() -> None:
    for n in range(3000):
        path = b"%d" % n
        low = int.from_bytes(blake3(path, key=PAGE_KEY).digest()[:8], "little")
        assert is_boundary(PAGE_KEY, path, 0) == (low % 2**7 == 0)
        assert is_boundary(PAGE_KEY, path, 1) == (low % 2**13 == 0)


def test_the_pages_of_a_tree_end_by_the_rules_of_the_format() -> None:
    pages = Pages()
    tree = [file(b"%06d" % n, n % 5) for n in range(20_000)]
    root = build(tree, pages, FORMAT)
    assert root.entries == len(tree)
    assert root.data_bytes == sum(entry.content.size for entry in tree if entry.content)
    leaves = _leaves(root, pages)
    assert [entry for leaf in leaves for entry in leaf] == tree
    for leaf in leaves[:-1]:
        size = sum(len(msgspec.msgpack.encode(entry)) for entry in leaf)
        assert is_boundary(PAGE_KEY, leaf[-1].path, 0) or size >= limits.PAGE_BYTES_MAX
        assert not any(is_boundary(PAGE_KEY, entry.path, 0) for entry in leaf[:-1])
        assert size - len(msgspec.msgpack.encode(leaf[-1])) < limits.PAGE_BYTES_MAX


def test_a_page_ends_by_its_size_if_no_path_ends_it() -> None:
    pages = Pages()
    tree = [file(b"%06d/" % n + b"/".join([b"x" * 1000] * 15)) for n in range(400)]
    build(tree, pages, FORMAT)
    assert max(map(len, pages.stored.values())) < limits.PAGE_BYTES_MAX + limits.ENTRY_BYTES_MAX
    assert sum(data[0] == 1 for data in pages.stored.values()) >= 400 * 15 // 256


def _leaves(root: Root, pages: Pages) -> list[list[Entry]]:
    level = [root.digest]
    for _ in range(root.level):
        level = [child.digest for digest in level for child in decode_index(pages.stored[digest])[1]]
    return [decode_leaf(pages.stored[digest]) for digest in level]


def test_an_index_page_with_one_child_is_never_a_root() -> None:
    for count in range(1, 200):
        pages = Pages()
        root = build([file(b"%04d" % n) for n in range(count)], pages)
        if root.level:
            assert len(decode_index(pages.stored[root.digest])[1]) > 1


def test_an_unchanged_region_gives_the_same_pages() -> None:
    pages = Pages()
    tree = grown_tree(5000, 4)
    build(tree, pages, SMALL)
    before = set(pages.stored)
    build([entry for n, entry in enumerate(tree) if n != 2500], pages, SMALL)
    assert len(set(pages.stored) - before) <= 8


def test_subtrees_may_be_added_only_where_a_page_begins() -> None:
    pages = Pages()
    root = build([file(b"%04d" % n) for n in range(100)], pages)
    assert root.level >= 1
    child = Child(b"0003", digest_of("page"), 4, 4)
    builder = TreeBuilder(pages, PAGE_KEY, TINY)
    assert builder.aligned(0)
    assert builder.aligned(3)
    first = next(b"%04d" % n for n in range(100) if not is_boundary(PAGE_KEY, b"%04d" % n, 0, TINY))
    builder.add(file(first))
    assert not builder.aligned(0)
    with pytest.raises(ValueError, match="does not fit"):
        builder.add_subtree(child, 0)


@pytest.mark.parametrize("second", [b"a", b"b", b"b/c"])
def test_entries_out_of_order_are_refused(second: bytes) -> None:
    builder = TreeBuilder(Pages(), PAGE_KEY)
    builder.add(file(b"b\x01"))
    with pytest.raises(ValueError, match="out of order"):
        builder.add(file(second))


def test_removals_are_allowed_only_in_runs() -> None:
    with pytest.raises(ValueError, match="runs"):
        TreeBuilder(Pages(), PAGE_KEY).add(removal(b"a"))
    with pytest.raises(errors.Damaged):
        decode_leaf(encode_leaf([removal(b"a")]))
    assert decode_leaf(encode_leaf([removal(b"a"), file(b"a")]), run=True) == [removal(b"a"), file(b"a")]
    for wrong in ([file(b"a"), removal(b"a")], [removal(b"a"), removal(b"a")], [file(b"a"), file(b"a")]):
        with pytest.raises(errors.Damaged):
            decode_leaf(encode_leaf(wrong), run=True)


def test_an_entry_with_large_inline_attributes_is_refused_in_a_page() -> None:
    entry = file(b"f", attributes=Attributes((Xattr(b"user.a", bytes(40_000)),)))
    with pytest.raises(ValueError, match="too large"):
        TreeBuilder(Pages(), PAGE_KEY).add(entry)


GOOD_LEAF = encode_leaf(full_list([file(b"a/b", 3), directory(b"c"), file(b"d", 0)]))
GOOD_INDEX = encode_index(2, [Child(b"a", digest_of("a"), 1, 2), Child(b"b/c", digest_of("b"), 3, 4)])


@settings(max_examples=examples(500), deadline=None)
@given(st.data())
def test_hostile_pages_are_reported_as_damage(data: st.DataObject) -> None:
    page = bytearray(data.draw(st.sampled_from([GOOD_LEAF, GOOD_INDEX])))
    for at in data.draw(st.lists(st.integers(1, len(page) - 1), min_size=1, max_size=4)):
        page[at] = data.draw(st.integers(0, 255))
    page = page[: data.draw(st.integers(0, len(page)))] + data.draw(st.binary(max_size=3))
    for decode in (decode_leaf, decode_index, decode_attributes):
        try:
            decode(bytes(page))
        except errors.Damaged:
            continue


@settings(max_examples=examples(300), deadline=None)
@given(st.sampled_from([1, 2, 4]), st.binary(max_size=60))
@example(1, b"\xdd\xff\xff\xff\xff")
@example(1, b"\x91" * 5000)
@example(4, b"\x92" * 5000)
@example(2, b"\x92\1\xdd\xff\xff\xff\xff")
@example(1, b"\x91\xdc\xff\xff\xc4\1a" + b"\xc0" * 17 + b"\x91" * 60_000)
def test_random_bytes_are_reported_as_damage(kind: int, body: bytes) -> None:
    decode = {1: decode_leaf, 2: decode_index, 4: decode_attributes}[kind]
    try:
        decode(bytes([kind]) + body)
    except errors.Damaged:
        return


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"\1",
        b"\1\x90",
        GOOD_INDEX,
        GOOD_LEAF + b"\0",
        encode_leaf([file(b"b"), file(b"a")]),
        encode_leaf([file(b"a!"), file(b"a/b"), file(b"a")]),
        encode_leaf([file(b"a"), file(b"a")]),
        encode_leaf([file(b"../a")]),
        encode_leaf([Entry(b"f")]),
        encode_leaf([file(b"a", mode=0o10000)]),
        encode_leaf([file(b"%07d" % n + b"x" * 90) for n in range(3000)]),
    ],
)
def test_an_impossible_leaf_is_damage(page: bytes) -> None:
    with pytest.raises(errors.Damaged):
        decode_leaf(page)


@pytest.mark.parametrize(
    "page",
    [
        GOOD_LEAF,
        encode_index(0, [Child(b"a", bytes(32), 1, 1)]),
        encode_index(limits.TREE_HEIGHT_MAX, [Child(b"a", bytes(32), 1, 1)]),
        encode_index(1, []),
        encode_index(1, [Child(b"a", bytes(31), 1, 1)]),
        encode_index(1, [Child(b"a", bytes(32), 0, 1)]),
        encode_index(1, [Child(b"a", bytes(32), 1, -1)]),
        encode_index(1, [Child(b"/a", bytes(32), 1, 1)]),
        encode_index(1, [Child(b"b", bytes(32), 1, 1), Child(b"a", bytes(32), 1, 1)]),
        encode_index(1, [Child(b"a", bytes(32), 1, 1), Child(b"a", bytes(32), 1, 1)]),
    ],
)
def test_an_impossible_index_page_is_damage(page: bytes) -> None:
    with pytest.raises(errors.Damaged):
        decode_index(page)


# ---- references


def test_references_are_all_written_chunks_and_all_data_of_every_entry() -> None:
    pages = Pages()
    random_of_refs = random.Random(1)
    data: set[bytes] = set()
    tree: list[Entry] = []
    for n in range(300):
        builder = ContentBuilder(pages, Profile.CONTENT_DEFINED, TINY)
        for _ in range(random_of_refs.choice([0, 1, 3, 60])):
            ref = ChunkRef(100, random_of_refs.randbytes(32))
            data.add(ref.digest)
            builder.add(ref)
        attributes = Attributes((Xattr(b"user.a", random_of_refs.randbytes(3000)),)) if n % 9 == 0 else None
        entry = Entry(b"%03d" % n, content=builder.finish(), attributes=attributes)
        tree.append(store_attributes(entry, pages))
    root = build(tree, pages)
    found = list(references(root, pages))
    assert {digest for item in found for digest in item.data} == data
    named = {digest for item in found for digest in item.manifest}
    assert named <= set(pages.stored)
    assert all(_is_of_one(pages.stored[digest]) for digest in set(pages.stored) - named)
    # A mark does not read below a page that it has visited.
    pages.forget_counts()
    assert list(references(root, pages, skip=lambda digest: digest == root.digest)) == []
    assert pages.read_digests == []
    assert list(references(EMPTY_ROOT, pages)) == []


def _is_of_one(data: bytes) -> bool:
    """A page that was written before its only child turned out to be all there is."""
    if data[0] == 2:
        return len(decode_index(data)[1]) == 1
    return data[0] == 3 and data[1] > 0 and len(data) == 42


def test_references_of_a_damaged_manifest_are_an_error() -> None:
    pages = Pages()
    root = build(grown_tree(300, 1), pages)
    pages.damaged = {sorted(pages.stored)[5]}
    with pytest.raises(errors.Damaged):
        list(references(root, pages))


def test_entries_sort_component_by_component() -> None:
    paths = [b"", b"a", b"a/b", b"a/b/c", b"a/c", b"a\x01", b"a b", b"a!", b"ab", b"b"]
    assert sorted(paths, key=sort_key) == paths
