"""The index names chunks by half of their ids: what it does with two chunks that it names alike."""

import pytest
from staddle_server.catalog import indexed_id


def _stored(world, ids, principal=None):
    upload = world.begin(principal).upload
    pack = world.pack(upload, ids)
    world.checkpoint(upload, pack)
    return upload, pack


@pytest.fixture
def alike(world):
    """Two ids that the index names alike, and one that has only its head in common with them."""
    one, other, third = world.digests(3)
    return one, one[:16] + other[16:], one[:8] + third[8:]


def test_an_index_name_is_the_first_half_of_an_id_whatever_its_bits_are():
    for half in (bytes(16), b"\xff" * 16, b"\x80" + bytes(14) + b"\x01"):
        name = indexed_id(half + b"\x55" * 16)
        assert b"".join(part.to_bytes(8, "big", signed=True) for part in name) == half


def test_ids_with_the_same_head_are_different_chunks(world, alike):
    one, _, near = alike
    upload, pack = _stored(world, [one])
    chunks = world.catalog.chunks
    assert chunks.find(world.tenant, [near, one]) == {one: [pack.chunks[0].place]}
    assert set(chunks.claim(world.tenant, upload.id, 1, [near, one]).places) == {one}
    _, second = _stored(world, [near])
    assert chunks.find(world.tenant, [near, one]) == {
        one: [pack.chunks[0].place],
        near: [second.chunks[0].place],
    }


def test_chunks_with_the_same_name_are_each_found_at_both_places(world, alike):
    one, other, _ = alike
    upload, pack = _stored(world, [one, *world.digests(3), other])
    mine, theirs = pack.chunks[0].place, pack.chunks[4].place
    found = world.catalog.chunks.find(world.tenant, [one, other])
    assert {chunk: set(places) for chunk, places in found.items()} == {
        one: {mine, theirs},
        other: {mine, theirs},
    }
    assert set(world.catalog.chunks.claim(world.tenant, upload.id, 1, [one, other]).places) == {one, other}
    assert [chunk.id for chunk in world.catalog.verification.indexed(world.tenant, pack.pack)] == [
        indexed_id(chunk_id) for chunk_id, _ in pack.chunks
    ]


def test_the_same_name_in_another_tenant_is_no_chunk_of_this_one(world, alike):
    one, other, _ = alike
    _, pack = _stored(world, [one])
    theirs = world.begin(world.eve).upload
    chunks = world.catalog.chunks
    for wanted in alike:
        assert chunks.find(world.eve.tenant, [wanted], include_damaged=True) == {}
        assert chunks.claim(world.eve.tenant, theirs.id, 1, [wanted]).places == {}
    assert world.catalog.verification.indexed(world.eve.tenant, pack.pack) == []
    _, second = _stored(world, [other], world.eve)
    assert chunks.find(world.eve.tenant, [one]) == {one: [second.chunks[0].place]}
    assert chunks.find(world.tenant, [one]) == {one: [pack.chunks[0].place]}


def test_writing_some_rows_of_a_pack_again_leaves_those_with_the_same_head(world, alike):
    one, _, near = alike
    _, pack = _stored(world, [one, near])
    assert world.catalog.salvage.reindex(world.tenant, pack.pack, pack.chunks[:1], all_of_it=False)
    assert world.catalog.chunks.find(world.tenant, [one, near]) == {
        chunk_id: [place] for chunk_id, place in pack.chunks
    }
