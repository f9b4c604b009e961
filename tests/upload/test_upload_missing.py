"""The list of missing chunks of an upload: a mapping that stays small."""

import random
import tracemalloc

import pytest
from staddle_server.base.errors import BadRequest
from staddle_server.base.limits import MISSING_CHUNKS_MAX
from staddle_server.base.types import ChunkRef
from staddle_server.upload.missing import RECENT_MAX, Missing

MIB = 1 << 20


def refs(count, seed=1):
    seeded = random.Random(seed)
    return [ChunkRef(seeded.randrange(1, 1 << 20), seeded.randbytes(32)) for _ in range(count)]


def as_dict(some):
    return {ref.digest: ref.length for ref in some}


@pytest.mark.parametrize("share", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_full_list_takes_less_than_4_mib_even_when_read_back(share):
    everything = refs(MISSING_CHUNKS_MAX // share)
    rows = [(ref.digest, ref.length) for ref in everything]
    tracemalloc.start()
    try:
        grown = Missing(())
        for start in range(0, len(everything), 4096):
            # As from messages: no other object refers to these digests.
            grown.expect(
                [
                    ref._replace(digest=bytes(bytearray(ref.digest)))
                    for ref in everything[start : start + 4096]
                ]
            )
            grown.take_change()
        after_growing, _ = tracemalloc.get_traced_memory()
        loaded = Missing(rows)
        after_loading, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after_growing < 4 * MIB // share
    assert after_loading - after_growing < 4 * MIB // share
    assert dict(grown) == dict(loaded) == dict(rows)


@pytest.mark.parametrize("known", [0, 10, RECENT_MAX + 10])
def test_the_list_equals_a_dictionary_after_any_changes(known):
    seeded = random.Random(known)
    some = refs(known + 2 * RECENT_MAX)
    model = as_dict(some[:known])
    published = dict(model)
    missing = Missing(model.items())
    for _ in range(60):
        batch = seeded.sample(some, 300)
        if seeded.random() < 0.6:
            missing.expect(batch)
            model.update(as_dict(batch))
        else:
            missing.arrived(batch)
            for ref in batch:
                model.pop(ref.digest, None)
        if seeded.random() < 0.5:
            change = missing.take_change()
            for digest in change.removed:
                published.pop(digest, None)
            published.update(change.added)
            assert published == model
        assert len(missing) == len(model)
        assert bool(missing) == bool(model)
    assert dict(missing) == model
    assert all(missing[digest] == length for digest, length in model.items())
    assert not any(ref.digest in missing for ref in refs(100, seed=2))


@pytest.mark.slow
def test_another_length_and_too_many_are_refused_and_change_nothing():
    everything = refs(MISSING_CHUNKS_MAX + 1)
    missing = Missing((ref.digest, ref.length) for ref in everything[:-2])
    with pytest.raises(BadRequest):
        missing.expect([ChunkRef(everything[0].length + 1, everything[0].digest)])
    with pytest.raises(BadRequest):
        missing.expect(everything[-2:])
    assert len(missing) == MISSING_CHUNKS_MAX - 1
    missing.expect(everything[-2:-1])
    assert len(missing) == MISSING_CHUNKS_MAX
