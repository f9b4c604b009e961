"""Which packs have parity, and which are no longer damaged."""

from staddle_server.catalog import PackParity, ParityTotals


def packs_of(world, count):
    """Add so many live packs, a second apart."""
    made = []
    for _ in range(count):
        upload = world.begin().upload
        summary = world.pack(upload, world.digests(3))
        world.commit(upload, summary)
        made.append(summary)
        world.now += 10**9
    return made


def listed(found):
    return [each.pack for each in found]


def test_live_packs_without_parity_are_listed_in_order_and_in_pages(world):
    summaries = packs_of(world, 3)
    packs = [summary.pack for summary in summaries]
    found = world.catalog.packs.without_parity(0, 2)
    assert found == [
        PackParity(each.row, world.tenant, summary.pack, summary.size_bytes, 0)
        for each, summary in zip(found, summaries, strict=False)
    ]
    assert listed(found) == packs[:2]
    assert listed(world.catalog.packs.without_parity(found[-1].row, 2)) == packs[2:]


def test_packs_without_parity_omit_those_damaged_older_or_being_written(world):
    since_ns = world.now + 10**9
    packs = [summary.pack for summary in packs_of(world, 4)]
    world.pack(world.begin().upload, world.digests(1))
    assert world.catalog.packs.set_parity(world.tenant, packs[1], 4711)
    world.catalog.packs.mark_damaged(world.tenant, packs[2], 48)
    assert listed(world.catalog.packs.without_parity(0, 10)) == [packs[0], packs[3]]
    assert listed(world.catalog.packs.without_parity(0, 10, since_ns)) == [packs[3]]
    ((_, tenant, pack, _, parity_bytes),) = world.catalog.packs.with_parity(0, 10)
    assert (tenant, pack, parity_bytes) == (world.tenant, packs[1], 4711)
    sizes = 4 * (48 + 125 * 3)
    assert world.catalog.packs.parity_totals() == ParityTotals(4, sizes, 1, 4711)


def test_only_a_live_pack_of_that_tenant_gets_parity(world):
    (summary,) = packs_of(world, 1)
    writing = world.pack(world.begin().upload, world.digests(1))
    assert not world.catalog.packs.set_parity(world.eve.tenant, summary.pack, 1)
    assert not world.catalog.packs.set_parity(world.tenant, writing.pack, 1)
    assert not world.catalog.packs.set_parity(world.tenant, world.id(), 1)
    assert world.catalog.packs.with_parity(0, 10) == []
    assert world.catalog.packs.parity_totals().with_parity == 0


def test_an_empty_catalog_has_no_packs_and_no_parity(world):
    assert world.catalog.packs.parity_totals() == ParityTotals(0, 0, 0, 0)


def test_a_pack_found_sound_is_no_longer_damaged_and_its_chunks_are_found_again(world):
    upload = world.begin().upload
    ids = world.digests(20)
    summary = world.pack(upload, ids)
    world.commit(upload, summary)
    other = packs_of(world, 1)[0]
    for offset in (48, None):
        world.catalog.packs.mark_damaged(world.tenant, summary.pack, offset)
    world.catalog.packs.mark_damaged(world.tenant, other.pack, 48)
    assert world.catalog.chunks.find(world.tenant, ids) == {}
    assert world.catalog.packs.damaged(world.tenant) == [summary.pack, other.pack]
    assert world.catalog.packs.mark_sound(world.tenant, summary.pack, world.now)
    assert set(world.catalog.chunks.find(world.tenant, ids)) == set(ids)
    assert world.catalog.packs.damaged(world.tenant) == [other.pack]
    assert world.catalog.packs.damaged_count(world.tenant) == 1
    assert not world.catalog.packs.mark_sound(world.eve.tenant, summary.pack, world.now)
    assert world.catalog.packs.damaged(world.eve.tenant) == []


def test_a_pack_is_known_in_every_state_of_its_row(world):
    (live,) = packs_of(world, 1)
    writing = world.pack(world.begin().upload, world.digests(1))
    asked = [live.pack, writing.pack, world.id()]
    assert world.catalog.packs.known(world.tenant, asked) == {live.pack, writing.pack}
    assert world.catalog.packs.known(world.eve.tenant, asked) == set()
