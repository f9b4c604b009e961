"""The chunk index, claims, packs and damaged packs."""

import pytest
from sqlalchemy import select, update
from staddle_server.catalog import PendingRecord, Terms
from staddle_server.catalog.database import Database
from staddle_server.catalog.schema import claims, packs
from staddle_server.catalog.validation import BATCH

TERMS = Terms(300, 7 * 24 * 3600)


@pytest.fixture
def writes(monkeypatch):
    """Collects the database of each transaction that writes, when it begins."""
    begun, write = [], Database.write

    def noted(database, *, erase=False):
        begun.append(database)
        return write(database, erase=erase)

    monkeypatch.setattr(Database, "write", noted)
    return begun


def _stored(world, ids):
    upload = world.begin().upload
    pack = world.pack(upload, ids)
    world.checkpoint(upload, pack)
    return upload, pack


@pytest.mark.slow
def test_a_hundred_thousand_chunks_are_inserted_and_found(world):
    ids = world.digests(100_000)
    _, pack = _stored(world, ids)
    found = world.catalog.chunks.find(world.tenant, ids + world.digests(100))
    assert len(found) == 100_000
    assert all(found[chunk_id] == [place] for chunk_id, place in pack.chunks)


def test_lists_of_every_length_are_found(world):
    ids = world.digests(BATCH + 30)
    _stored(world, ids)
    for length in [*range(1, 70), 255, 256, 257, BATCH - 1, BATCH, BATCH + 1, BATCH + 30]:
        found = world.catalog.chunks.find(world.tenant, ids[:length] + world.digests(1))
        assert set(found) == set(ids[:length])
        assert all(len(places) == 1 for places in found.values())


def test_a_chunk_is_found_by_its_own_tenant_only(world):
    ids = world.digests(3)
    _stored(world, ids)
    assert world.catalog.chunks.find(world.eve.tenant, ids) == {}
    theirs = world.begin(world.eve).upload
    assert world.catalog.chunks.claim(world.eve.tenant, theirs.id, 1, ids).places == {}


def test_two_copies_of_a_chunk_are_both_found_and_the_damaged_one_comes_last(world):
    ids = world.digests(10)
    _, first = _stored(world, ids)
    _, second = _stored(world, ids)
    places = world.catalog.chunks.find(world.tenant, ids)
    assert all(len(found) == 2 for found in places.values())
    world.catalog.packs.mark_damaged(world.tenant, first.pack)
    good = world.catalog.chunks.find(world.tenant, ids)
    assert all([place.segment.pack for place in found] == [second.pack] for found in good.values())
    both = world.catalog.chunks.find(world.tenant, ids, include_damaged=True)
    assert all(
        [place.segment.pack for place in found] == [second.pack, first.pack] for found in both.values()
    )


def test_a_damaged_segment_affects_its_own_chunks_only(world):
    ids = world.digests(24)
    upload, pack = _stored(world, ids)
    damaged = pack.chunks[8].place.segment.offset
    for _ in range(2):
        world.catalog.packs.mark_damaged(world.tenant, pack.pack, damaged)
    whole = ids[:8] + ids[16:]
    assert set(world.catalog.chunks.find(world.tenant, ids)) == set(whole)
    assert set(world.catalog.chunks.claim(world.tenant, upload.id, 1, ids).places) == set(whole)
    assert set(world.catalog.chunks.find(world.tenant, ids, include_damaged=True)) == set(ids)
    assert world.catalog.packs.damaged_count(world.tenant) == 1
    assert world.catalog.packs.damaged_count(world.eve.tenant) == 0


def test_another_tenant_cannot_mark_a_pack_as_damaged(world):
    ids = world.digests(2)
    _, pack = _stored(world, ids)
    world.catalog.packs.mark_damaged(world.eve.tenant, pack.pack)
    assert world.catalog.packs.damaged_count(world.tenant) == 0


def test_a_claim_returns_the_stored_chunks_and_keeps_their_pack_for_the_upload(world):
    ids = world.digests(30)
    _, pack = _stored(world, ids)
    upload = world.begin(world.bob).upload
    unknown = world.digests(5)
    claimed = world.catalog.chunks.claim(world.tenant, upload.id, 1, ids + unknown + ids).places
    assert claimed == dict(pack.chunks)
    with world.catalog.database.read() as connection:
        rows = connection.execute(select(packs.c.id).join(claims).where(claims.c.upload == upload.id))
        assert rows.scalars().all() == [pack.pack]


def test_repeating_a_claim_writes_nothing(world, writes):
    ids = world.digests(30)
    _stored(world, ids)
    upload = world.begin(world.bob).upload
    writes.clear()
    first = world.catalog.chunks.claim(world.tenant, upload.id, 1, ids[:10]).places
    assert writes == [world.catalog.database]
    assert world.catalog.chunks.claim(world.tenant, upload.id, 1, ids[:10]).places == first
    assert len(world.catalog.chunks.claim(world.tenant, upload.id, 1, ids).places) == 30
    assert world.catalog.chunks.claim(world.tenant, upload.id, 1, world.digests(5)).places == {}
    assert writes == [world.catalog.database]


def test_a_claim_stays_after_the_commit(world):
    upload, _ = _stored(world, world.digests(1))
    world.commit(upload)
    with world.catalog.database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM claims").scalar() == 1


@pytest.mark.parametrize("state", [1, 3, 4])
def test_only_a_live_pack_is_found_or_claimed(world, state):
    ids = world.digests(3)
    _, pack = _stored(world, ids)
    with world.catalog.database.write() as connection:
        connection.execute(update(packs).where(packs.c.id == pack.pack).values(state=state))
    upload = world.begin(world.bob).upload
    assert world.catalog.chunks.find(world.tenant, ids, include_damaged=True) == {}
    assert world.catalog.chunks.claim(world.tenant, upload.id, 1, ids).places == {}


def test_a_chunk_that_is_twice_in_a_pack_is_indexed_once(world):
    chunk_id = world.digests(1)[0]
    _, pack = _stored(world, [chunk_id, chunk_id])
    assert world.catalog.chunks.find(world.tenant, [chunk_id]) == {chunk_id: [pack.chunks[0].place]}


def test_a_pack_id_is_used_once(world):
    upload = world.begin().upload
    pack = world.id()
    world.catalog.packs.begin(world.tenant, upload.id, 1, pack, 1)
    with pytest.raises(ValueError, match="used once"):
        world.catalog.packs.begin(world.tenant, upload.id, 1, pack, 1)


def test_only_packs_of_dead_epochs_and_closed_uploads_are_left_over(world):
    taken = world.begin().upload
    stale = world.pack(taken, [])
    resumed = world.catalog.uploads.resume(world.tenant, taken.id, world.ann, world.now, TERMS)
    fresh = world.pack(resumed, [])
    aborted = world.begin().upload
    orphan = world.pack(aborted, [])
    world.catalog.uploads.abort(world.tenant, aborted.id, 1, world.now)
    _, live = _stored(world, world.digests(1))
    assert {left.pack for left in world.catalog.packs.writing_left_over(world.tenant)} == {
        stale.pack,
        orphan.pack,
    }
    assert world.catalog.packs.drop_left_over(world.tenant, stale.pack)
    for kept in (fresh.pack, live.pack, stale.pack):
        assert not world.catalog.packs.drop_left_over(world.tenant, kept)
    assert not world.catalog.packs.drop_left_over(world.eve.tenant, orphan.pack)
    assert {left.pack for left in world.catalog.packs.writing_left_over(world.tenant)} == {orphan.pack}


def test_a_backup_keeps_its_packs_live_until_it_is_deleted_for_its_own_tenant_only(world):
    mine, other = world.digests(2), world.digests(2)
    first, second = world.begin(dataset="a").upload, world.begin(dataset="b").upload
    packs = [world.pack(first, mine), world.pack(second, other)]
    ids = [pack.pack for pack in packs]
    tenant = world.tenant
    assert world.catalog.packs.of_live_backups(tenant, ids) == set()
    backup = world.commit(first, packs[0])
    assert world.catalog.packs.of_live_backups(tenant, [*ids, b"x" * 16]) == {ids[0]}
    stranger = world.principal("stranger", "reader").tenant
    assert world.catalog.packs.of_live_backups(stranger, ids) == set()
    record = PendingRecord(world.id(), tenant, b"sealed")
    world.catalog.backups.delete(tenant, backup.id, world.now, record)
    assert world.catalog.packs.of_live_backups(tenant, ids) == set()
