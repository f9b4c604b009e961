"""Chunk lists: the same after any interruption, readable from any byte, small while unfinished."""

import random
from collections.abc import Sequence

import msgspec
import pytest
from extent import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest_model import SMALL, TINY, Pages, directory, file
from staddle.chunking import content_id
from staddle_server.base import errors, limits
from staddle_server.base.types import Attributes, ChunkRef, Content, Hole, Profile, Xattr
from staddle_server.manifest.content import (
    ContentBuilder,
    ContentState,
    chunks_of,
    load_attributes,
    store_attributes,
)
from staddle_server.manifest.pages import FORMAT, PageRules


def chunk_refs(count: int, seed: int = 0) -> list[ChunkRef]:
    random_of_refs = random.Random(seed)
    return [
        ChunkRef(random_of_refs.randint(1, 1_048_576), random_of_refs.randbytes(32)) for _ in range(count)
    ]


def content_of(refs: Sequence[ChunkRef], pages: Pages, rules: PageRules = TINY) -> Content:
    builder = ContentBuilder(pages, Profile.CONTENT_DEFINED, rules)
    for ref in refs:
        builder.add(ref)
    return builder.finish()


def offsets_of(refs: Sequence[ChunkRef]) -> list[tuple[int, ChunkRef]]:
    found, at = [], 0
    for ref in refs:
        found.append((at, ref))
        at += ref.length
    return found


@settings(max_examples=examples(150), deadline=None)
@given(st.integers(0, 400), st.integers(0, 2**32), st.lists(st.integers(0, 400), max_size=4), st.floats(0, 1))
def test_a_list_saved_and_restored_anywhere_is_the_same_and_readable_from_any_byte(
    count: int, seed: int, saves: list[int], where: float
) -> None:
    pages = Pages()
    refs = chunk_refs(count, seed)
    expected = content_of(refs, pages)
    builder = ContentBuilder(pages, Profile.CONTENT_DEFINED, TINY)
    for number, ref in enumerate(refs):
        for _ in range(saves.count(number)):
            encoded = msgspec.msgpack.encode(builder.state())
            state = msgspec.msgpack.decode(encoded, type=ContentState)
            builder = ContentBuilder.restore(state, pages, pages, TINY)
        builder.add(ref)
    assert builder.size == sum(ref.length for ref in refs)
    assert builder.finish() == expected
    assert expected.content_id == content_id(refs)
    assert (expected.root is None) == (count <= limits.CHUNKS_INLINE_MAX)
    offset = int(where * (expected.size + 1))
    wanted = [(at, ref) for at, ref in offsets_of(refs) if at + ref.length > offset]
    assert list(chunks_of(expected, pages, offset)) == wanted


def test_a_list_of_a_hundred_thousand_chunks_has_few_levels_and_a_small_state() -> None:
    pages = Pages()
    refs = chunk_refs(100_000)
    builder = ContentBuilder(pages, Profile.FIXED, FORMAT)
    largest = 0
    for number, ref in enumerate(refs):
        builder.add(ref)
        if number % 997 == 0:
            largest = max(largest, len(msgspec.msgpack.encode(builder.state())))
    content = builder.finish()
    assert largest < 3 * 1024 * 40 + 200
    assert content.root is not None
    assert content.root.level <= 2
    assert list(chunks_of(content, pages)) == offsets_of(refs)


def test_reading_a_range_of_a_long_list_reads_one_list_chunk_of_each_level() -> None:
    pages = Pages()
    refs = chunk_refs(50_000)
    content = content_of(refs, pages, FORMAT)
    assert content.root is not None
    at, ref = offsets_of(refs)[31_234]
    pages.forget_counts()
    assert next(chunks_of(content, pages, at + ref.length - 1)) == (at, ref)
    assert len(pages.read_digests) == content.root.level + 1


def test_a_change_in_a_long_list_writes_few_list_chunks() -> None:
    pages = Pages()
    refs = chunk_refs(50_000)
    content_of(refs, pages, FORMAT)
    before = set(pages.stored)
    refs[20_000:20_003] = chunk_refs(2, seed=9)
    content_of(refs, pages, FORMAT)
    assert len(set(pages.stored) - before) <= 8


def test_up_to_sixteen_chunks_write_no_list_chunk() -> None:
    pages = Pages()
    # All of these digests end a list chunk.
    refs = [ChunkRef(10, b"\0" * 31 + bytes([n])) for n in range(limits.CHUNKS_INLINE_MAX)]
    assert content_of(refs, pages).chunks == tuple(refs)
    assert pages.stored == {}


@pytest.mark.parametrize(
    "ref", [ChunkRef(0, bytes(32)), ChunkRef(1_048_577, bytes(32)), ChunkRef(1, bytes(31))]
)
def test_a_chunk_out_of_range_is_refused(ref: ChunkRef) -> None:
    with pytest.raises(errors.BadRequest):
        ContentBuilder(Pages(), Profile.CONTENT_DEFINED).add(ref)


@pytest.mark.parametrize(
    "hostile", [b"", b"\3", b"\3\0", b"\3\1" + bytes(40), b"\3\0" + bytes(39), b"\3\0" + bytes(40)]
)
def test_an_impossible_list_chunk_is_damage(hostile: bytes) -> None:
    pages = Pages()
    content = content_of(chunk_refs(20), pages, FORMAT)
    assert content.root is not None
    pages.stored[content.root.digest] = hostile
    with pytest.raises(errors.Damaged):
        list(chunks_of(content, pages))


def test_a_list_with_another_size_than_its_file_is_damage() -> None:
    pages = Pages()
    content = content_of(chunk_refs(300), pages)
    with pytest.raises(errors.Damaged):
        list(chunks_of(msgspec.structs.replace(content, size=content.size - 1), pages))


def test_a_state_that_contradicts_its_list_is_damage() -> None:
    pages = Pages()
    builder = ContentBuilder(pages, Profile.CONTENT_DEFINED, TINY)
    for ref in chunk_refs(100):
        builder.add(ref)
    state = builder.state()
    for wrong in (
        msgspec.structs.replace(state, count=99),
        msgspec.structs.replace(state, size=state.size + 1),
        msgspec.structs.replace(state, levels=()),
    ):
        with pytest.raises(errors.Damaged):
            ContentBuilder.restore(wrong, pages, pages, TINY)


# ---- attributes


def test_small_attributes_stay_in_the_entry_and_large_ones_move_and_come_back() -> None:
    pages = Pages()
    for value_bytes in (10, 100_000 // 2):
        xattrs = (Xattr(b"user.b", bytes(value_bytes)), Xattr(b"user.a", b"first"))
        holes = (Hole(0, 100), Hole(200, 10))
        entry = file(b"f", attributes=Attributes(xattrs, holes))
        stored = store_attributes(entry, pages)
        assert (stored.attributes is None) == (value_bytes > 2048)
        assert (stored.attributes_ref is None) == (value_bytes <= 2048)
        loaded = load_attributes(stored, pages)
        assert loaded == file(b"f", attributes=Attributes((xattrs[1], xattrs[0]), holes))
        assert store_attributes(loaded, pages) == stored


def test_attributes_over_the_limit_are_refused() -> None:
    xattrs = tuple(Xattr(b"user.%d" % n, bytes(65_536)) for n in range(16))
    with pytest.raises(errors.BadRequest):
        store_attributes(file(b"f", attributes=Attributes(xattrs)), Pages())


def test_no_attributes_are_stored_as_none() -> None:
    assert store_attributes(file(b"f", attributes=Attributes()), Pages()) == file(b"f")


@pytest.mark.parametrize(
    "hostile",
    [b"\4", b"\4\x92\x90", b"\1\x90", b"\4\x92\x90\x91\x92\xff\x01", b"\4\x92\x91\x92\xc4\0\xc4\0\x90"],
)
def test_hostile_attributes_are_damage(hostile: bytes) -> None:
    pages = Pages()
    ref = ChunkRef(len(hostile), pages.write(hostile))
    with pytest.raises(errors.Damaged):
        load_attributes(file(b"f", attributes_ref=ref), pages)
    with pytest.raises(errors.Damaged):
        load_attributes(file(b"f", attributes_ref=ChunkRef(ref.length + 1, ref.digest)), pages)


def test_holes_of_a_chunk_must_fit_the_entry_that_names_it() -> None:
    pages = Pages()
    attributes = Attributes((Xattr(b"user.a", bytes(3000)),), (Hole(0, 5),))
    stored = store_attributes(file(b"f", attributes=attributes), pages)
    with pytest.raises(errors.Damaged):
        load_attributes(msgspec.structs.replace(directory(b"d"), attributes_ref=stored.attributes_ref), pages)


def test_the_same_chunks_always_give_the_same_list() -> None:
    pages = Pages()
    refs = chunk_refs(2000)
    content_of(refs, pages, SMALL)
    before = set(pages.stored)
    content_of([*chunk_refs(30, seed=3), *refs], pages, SMALL)
    assert len(set(pages.stored) - before) < 0.3 * len(before)
