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
    forged_leaf,
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
    ListRoot,
    Profile,
    Root,
    Xattr,
    sort_key,
)
from staddle_server.manifest.columns import Rare, columns_of, digests_of
from staddle_server.manifest.content import ContentBuilder, store_attributes
from staddle_server.manifest.entries import removal
from staddle_server.manifest.leaves import LEAF_ENTRIES_MAX, LeafWriter, leaf_of, weight_of
from staddle_server.manifest.pages import (
    FORMAT,
    Child,
    decode_attributes,
    decode_index,
    decode_leaf,
    encode_index,
    encode_leaf,
    is_boundary,
    leaf_page,
)
from staddle_server.manifest.references import references
from staddle_server.manifest.tree import TreeBuilder


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(entries, min_size=1, max_size=30))
def test_a_leaf_reads_back_as_written(said: list[Entry]) -> None:
    tree = full_list(said)
    assert list(decode_leaf(encode_leaf(tree))) == tree


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(entries, min_size=2, max_size=30), st.data())
def test_entries_are_the_same_leaf_however_they_were_gathered(said: list[Entry], data: st.DataObject) -> None:
    tree = full_list(said)
    whole = decode_leaf(encode_leaf(tree))
    start = data.draw(st.integers(0, len(tree)))
    stop = data.draw(st.integers(start, len(tree)))
    assert whole[start:stop] == tree[start:stop]
    writer = LeafWriter()
    for entry in tree[:start]:
        writer.add(entry)
    part = whole.columns.part(start, stop)
    if part:
        writer.extend(part, weight_of(part))
    for entry in tree[stop:]:
        writer.add(entry)
    assert writer.weight == weight_of(whole.columns)
    assert leaf_page(writer.take()) == encode_leaf(tree)
    for at, entry in enumerate(tree):
        assert whole[at] == entry
        assert whole[at - len(tree)] == entry
    assert whole.refs == [ref for entry in tree if entry.content for ref in entry.content.chunks]
    assert digests_of(whole.columns) == [ref.digest for ref in whole.refs]


def some() -> list[Entry]:
    """A few entries whose columns have all forms: none, one number, each value, some values."""
    return [
        directory(b"", mode=None),
        file(b"a", 3, mode=0o644, uid=0, owner="ana", group="users", mtime_ns=-(2**63), inode=2**64 - 1),
        file(b"b", 0, mode=0o600, uid=0, owner="ana", group="users", mtime_ns=2**63 - 1, inode=1),
        file(b"c", 2, mode=0o600, uid=0, owner="zoe", group="users", flags=1),
        Entry(b"l", EntryType.SYMLINK, link_target=b"a", link_group=b"g"),
    ]


def test_a_column_has_the_shortest_of_its_forms() -> None:
    leaf = leaf_of(columns_of(some()))
    assert list(decode_leaf(leaf_page(leaf))) == some()
    assert leaf.ctimes_ns is None
    assert leaf.uids == (b"\0\1\1\1\0", 0)
    assert leaf.modes == (b"\0\1\1\1\0", b"\xa4\x80\x80\1\1\1")
    assert leaf.inodes == (b"\0\1\1\0\0", b"\xff\1" + b"\xff\0" * 7)
    assert (leaf.names, leaf.owners) == (["", "ana", "users", "zoe"], b"\0\1\1\3\0" + bytes(5))
    assert leaf.profiles == 1
    assert len(encode_leaf([file(b"%04d" % n, 3, mode=0o644) for n in range(1000)])) < 39_000


FORMS: dict[str, dict[str, object]] = {
    "a path too few": {"paths": b"\0a\0b\0c"},
    "a path too many": {"paths": b"\0a\0b\0c\0l\0m"},
    "paths out of order": {"paths": b"\0a\0c\0b\0l"},
    "a path twice": {"paths": b"\0a\0a\0c\0l"},
    "a type too many": {"types": b"\2\1\1\1\3\2"},
    "an unknown type": {"types": b"\2\1\1\1\x08"},
    "another type": {"types": b"\2\1\1\1\1"},
    "a device without a number": {"types": b"\5\1\1\1\3"},
    "a removal": {"types": b"\0\1\1\1\3"},
    "flags too few": {"flags": b"\0\0\0\1"},
    "flags that are all the same": {"flags": bytes(5)},
    "flags over a byte": {"flags": 256},
    "flags below zero": {"flags": -1},
    "an incomplete file": {"flags": b"\0\x08\0\0\0"},
    "modes over 07777": {"modes": 0o10000},
    "modes of half the entries": {"modes": bytes(5)},
    "a mask of nothing": {"modes": (bytes(5), b"")},
    "a mask of all": {"modes": (b"\1" * 5, 0o644)},
    "a mask too long": {"modes": (b"\0\1\1\1\0\0", 0o644)},
    "a mask that is no mask": {"modes": (b"\0\2\1\1\0", 0o644)},
    "values of other entries than the mask": {"uids": (b"\0\1\1\1\0", bytes(8) + b"\1" + bytes(7))},
    "a value of each where one says all": {"uids": (b"\0\1\1\1\0", bytes(12))},
    "a uid over its range": {"uids": 2**32},
    "a time over its range": {"mtimes_ns": 2**63},
    "a time under its range": {"ctimes_ns": bytes(39)},
    "names out of order": {"names": ["", "users", "ana", "zoe"]},
    "a name twice": {"names": ["", "ana", "ana", "users", "zoe"]},
    "a name that nothing has": {"names": ["", "ana", "users", "zoe", "zoo"]},
    "an owner without a name": {"owners": b"\0\1\1\4\0" + bytes(5)},
    "a name too long": {"names": ["", "ana", "users", "z" * 257]},
    "no sizes": {"sizes": None},
    "sizes of more files": {"sizes": bytes(32)},
    "a size below zero": {"sizes": -1},
    "a size of no chunk": {"sizes": 2**20 + 1},
    "a digest too few": {"content_ids": bytes(64)},
    "half a digest more": {"content_ids": bytes(112)},
    "no profiles": {"profiles": None},
    "an unknown profile": {"profiles": 3},
    "profiles as a column of one value": {"profiles": b"\1\1\1"},
    "a target too many": {"link_targets": b"a\0b"},
    "an empty target": {"link_targets": b""},
    "rare fields of no entry": {"rare": [(5, Rare(link_group=b"g"))]},
    "rare fields before all entries": {"rare": [(-1, Rare(link_group=b"g"))]},
    "rare fields out of order": {"rare": [(4, Rare(link_group=b"g")), (0, Rare(link_group=b"g"))]},
    "rare fields twice": {"rare": [(4, Rare(link_group=b"g"))] * 2},
    "rare fields that are none": {"rare": [(0, Rare())]},
    "a device number of what is none": {"rare": [(0, Rare(device=(1, 1)))]},
    "one chunk in a list": {"rare": [(1, Rare(chunks=(ChunkRef(1003, digest_of("chunk 3 0")),)))]},
    "chunks that are not the size": {"rare": [(3, Rare(chunks=(ChunkRef(1, bytes(32)), ChunkRef(1, bytes(32)))))]},
    "chunks of a directory": {"rare": [(0, Rare(chunks=(ChunkRef(1, bytes(32)), ChunkRef(1, bytes(32)))))]},
    "a list of a directory": {"rare": [(0, Rare(root=ListRoot(0, bytes(32))))]},
    "a list and chunks": {"rare": [(3, Rare(chunks=(ChunkRef(1, bytes(32)),) * 2, root=ListRoot(0, bytes(32))))]},
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_leaf_with_columns_that_do_not_fit_is_damage(name: str) -> None:
    with pytest.raises(errors.Damaged):
        decode_leaf(forged_leaf(some(), **FORMS[name]))


def test_a_leaf_has_at_most_as_many_entries_as_it_has_weight() -> None:
    made = [directory(b"%04d" % n) for n in range(LEAF_ENTRIES_MAX)]
    assert len(decode_leaf(encode_leaf(made))) == LEAF_ENTRIES_MAX


def test_a_leaf_has_one_form() -> None:
    page = encode_leaf(some())
    values = msgspec.msgpack.decode(page[1:])
    assert page[1:4] == b"\xdc\0\x11"
    for other in (
        b"\1\xdd\0\0\0\x11" + page[4:],  # the head of a longer array
        page + b"\0",
        b"\1" + msgspec.msgpack.encode([*values, None]),
        b"\1" + msgspec.msgpack.encode([*values[:7], b"", *values[8:]]),
        b"\1" + msgspec.msgpack.encode([*values[:-1], [[4, [None, b"g"]]]]),
        b"\1" + msgspec.msgpack.encode([*values[:3], [values[3][0], values[3][1] + b"\0"], *values[4:]]),
    ):
        with pytest.raises(errors.Damaged):
            decode_leaf(other)


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
        weight = weight_of(columns_of(leaf))
        assert is_boundary(PAGE_KEY, leaf[-1].path, 0) or weight >= limits.PAGE_BYTES_MAX
        assert not any(is_boundary(PAGE_KEY, entry.path, 0) for entry in leaf[:-1])
        assert weight - weight_of(columns_of(leaf[-1:])) < limits.PAGE_BYTES_MAX
        assert len(encode_leaf(leaf)) <= weight


def test_no_entry_takes_more_of_a_leaf_than_it_weighs() -> None:
    attributes = Attributes((Xattr(b"user.a", bytes(1900)),))
    heavy = [
        file(b"%d/" % n + b"x" * 900, n, mode=n, uid=n, gid=2 * n, mtime_ns=n, ctime_ns=-n, inode=n,
             owner=f"{n}" * 99, group=f"g{n}" * 44, link_group=b"g", attributes=attributes, file_digest=bytes(32))
        for n in range(1, 9)
    ]  # fmt: skip
    for count in (1, 8):
        assert len(encode_leaf(heavy[:count])) <= weight_of(columns_of(heavy[:count])) + 16


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
    return [list(decode_leaf(pages.stored[digest])) for digest in level]


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
    run = [removal(b"a"), file(b"a")]
    assert list(decode_leaf(encode_leaf(run), run=True)) == run
    for wrong in (
        [file(b"a"), removal(b"a")],
        [removal(b"a"), removal(b"a")],
        [file(b"a"), file(b"a")],
        [removal(b""), file(b"", 0)],
    ):
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
@example(1, encode_leaf([file(b"a")])[1:40] + b"\xdd\xff\xff\xff\xff")
@example(1, b"\x91" * 5000)
@example(4, b"\x92" * 5000)
@example(2, b"\x92\1\xdd\xff\xff\xff\xff")
@example(1, b"\xdc\0\x11" + b"\xc4\1a" * 16 + b"\x91" * 60_000)
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
        encode_leaf([file(b"a", mode=0o10000)]),
        forged_leaf([removal(b"a")], modes=1),
        forged_leaf([file(b"a", 3)], sizes=limits.CHUNK_BYTES_MAX + 1),
        forged_leaf([file(b"a", 3)], sizes=limits.FILE_BYTES_MAX + 1),
        encode_leaf([directory(b"%04d" % n) for n in range(LEAF_ENTRIES_MAX + 1)]),
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
