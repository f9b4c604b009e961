"""The cache of segments: it gives back what was opened, never more than its limit, and a reader never what is damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from staddle_server.base.types import Role, SegmentRef, TenantKeys
from staddle_server.store.backends.memory import MemoryBlobs
from staddle_server.store.pack import PackDamaged, PackReader, pack_name
from staddle_server.store.segment_cache import SegmentCache
from staddle_server.store.wrapped import WrappedBlobs
from store_data import Seeded, write_pack

MIB = 1 << 20
CHUNK = 40_000


def noise(size: int, seed: int) -> bytes:
    return Seeded(f"cache {seed}")(size)


class Counting(WrappedBlobs):
    """Counts the reads of segments."""

    reads = 0

    def read(self, name: str, offset: int, length: int) -> bytes:
        self.reads += length >= CHUNK
        return super().read(name, offset, length)


@pytest.fixture
def cache(tmp_path: Path) -> SegmentCache:
    return SegmentCache(str(tmp_path / "cache"), 1 * MIB)


def ref(number: int, length: int = CHUNK) -> SegmentRef:
    return SegmentRef(number.to_bytes(16, "big"), 64, length)


def packed(memory: MemoryBlobs, keys: TenantKeys) -> tuple[bytes, list[SegmentRef]]:
    """A pack of two segments of one chunk each."""
    summary = write_pack(memory, keys, [(Role.DATA, [noise(CHUNK, 1)]), (Role.DATA, [noise(CHUNK, 2)])])
    return summary.pack, sorted({chunk.place.segment for chunk in summary.chunks})


def test_what_was_put_comes_back_and_nothing_else(cache: SegmentCache) -> None:
    cache.put(ref(1), noise(CHUNK, 1))
    assert cache.get(ref(1)) == noise(CHUNK, 1)
    assert cache.get(ref(2)) is None
    assert cache.get(ref(1, CHUNK + 1)) is None
    cache.drop(ref(1))
    assert cache.get(ref(1)) is None
    assert cache.size_bytes == 0


def test_the_least_recently_used_goes_first_and_the_limit_holds_on_the_disk(
    cache: SegmentCache, tmp_path: Path
) -> None:
    fits = MIB // (10 * 4096)
    for number in range(fits):
        cache.put(ref(number), noise(CHUNK, number))
    assert cache.get(ref(0)) is not None
    cache.put(ref(fits), noise(CHUNK, fits))
    assert cache.get(ref(0)) is not None
    assert cache.get(ref(1)) is None
    sizes = [path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(sizes) == fits
    assert sum(sizes) <= cache.size_bytes <= MIB


def test_a_restart_goes_on_with_what_is_whole_in_the_order_of_use(tmp_path: Path) -> None:
    first = SegmentCache(str(tmp_path), MIB)
    for number in range(3):
        first.put(ref(number), noise(CHUNK, number))
    paths = {path.name[:32]: path for path in tmp_path.rglob("*-*")}
    for order, number in enumerate((1, 2, 0)):
        os.utime(paths[ref(number).pack.hex()], ns=(order, order))
    paths[ref(2).pack.hex()].write_bytes(b"cut short")
    (tmp_path / "00" / "half.123.new").write_bytes(b"x")
    again = SegmentCache(str(tmp_path), 2 * 10 * 4096)
    assert again.get(ref(2)) is None
    assert again.get(ref(0)) == noise(CHUNK, 0)
    again.put(ref(9), noise(CHUNK, 9))
    assert again.get(ref(1)) is None
    assert again.get(ref(0)) is not None
    assert not list(tmp_path.rglob("*.new"))


def test_a_segment_is_read_from_the_store_once(
    memory: MemoryBlobs, keys: TenantKeys, cache: SegmentCache
) -> None:
    pack, refs = packed(memory, keys)
    store = Counting(memory)
    reader = PackReader(store, keys, cache)
    for _ in range(3):
        assert [bytes(reader.segment(each).data) for each in refs] == [noise(CHUNK, 1), noise(CHUNK, 2)]
        assert bytes(reader.stored(refs[0]).payload) == noise(CHUNK, 1)
    assert store.reads == 2
    assert pack in {each.pack for each in refs}


def test_a_damaged_cache_is_not_a_damaged_pack(
    memory: MemoryBlobs, keys: TenantKeys, cache: SegmentCache, tmp_path: Path
) -> None:
    _, refs = packed(memory, keys)
    store = Counting(memory)
    reader = PackReader(store, keys, cache)
    reader.segment(refs[0])
    (file,) = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    assert bytes(reader.segment(refs[0]).data) == noise(CHUNK, 1)
    assert bytes(reader.segment(refs[0]).data) == noise(CHUNK, 1)
    assert store.reads == 2


def test_a_damaged_segment_is_never_kept_and_is_read_again_once_it_is_repaired(
    memory: MemoryBlobs, keys: TenantKeys, cache: SegmentCache
) -> None:
    pack, refs = packed(memory, keys)
    name = pack_name(keys.tenant, pack)
    whole = memory.objects[name]
    memory.objects[name] = whole[: refs[0].offset + 90] + b"damage" + whole[refs[0].offset + 96 :]
    reader = PackReader(memory, keys, cache)
    with pytest.raises(PackDamaged):
        reader.segment(refs[0])
    assert cache.size_bytes == 0
    memory.objects[name] = whole
    assert bytes(reader.segment(refs[0]).data) == noise(CHUNK, 1)


def test_a_reader_without_the_cache_sees_the_damage_that_the_cache_hides(
    memory: MemoryBlobs, keys: TenantKeys, cache: SegmentCache
) -> None:
    pack, refs = packed(memory, keys)
    cached = PackReader(memory, keys, cache)
    cached.segment(refs[0])
    name = pack_name(keys.tenant, pack)
    whole = memory.objects[name]
    memory.objects[name] = whole[: refs[0].offset + 90] + b"damage" + whole[refs[0].offset + 96 :]
    assert bytes(cached.segment(refs[0]).data) == noise(CHUNK, 1)
    with pytest.raises(PackDamaged):
        PackReader(memory, keys).segment(refs[0])
