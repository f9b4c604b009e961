"""Damaged and hostile packs: no wrong data is returned, damage is named, the rest is still found."""

import struct
import zlib
from collections.abc import Callable

import pytest
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from extent import examples, extent
from hypothesis import given, settings
from hypothesis import strategies as st
from staddle_server.base.errors import Damaged
from staddle_server.base.limits import MIB
from staddle_server.base.types import PackSummary, Role, SegmentRef, TenantKeys
from staddle_server.store.backends.memory import MemoryBlobs
from staddle_server.store.pack import Codec, PackDamaged, PackReader, Segment, Unreadable, pack_name
from staddle_server.store.pack_writer import PackWriter
from staddle_server.store.packform import pack_key
from store_data import Seeded, append_raw, table_of, tenant_keys, write_pack, xored

TEXT = b"compressible " * 30


def small_pack(blobs: MemoryBlobs, keys: TenantKeys) -> tuple[PackSummary, str, list[Segment]]:
    writer = PackWriter(blobs, keys)
    append_raw(writer, Role.DATA, [b"a chunk", b"another"])
    frame = zstandard.ZstdCompressor(level=1).compress(TEXT)
    writer.append(Role.DATA, table_of([TEXT[:100], TEXT[100:]]), Codec.ZSTD, frame, len(TEXT))
    append_raw(writer, Role.MANIFEST, [b"a page"])
    summary = writer.finish()
    refs = dict.fromkeys(chunk.place.segment for chunk in summary.chunks)
    reader = PackReader(blobs, keys)
    return summary, pack_name(keys.tenant, summary.pack), [reader.segment(ref) for ref in refs]


def check_damaged_pack(
    blobs: MemoryBlobs, keys: TenantKeys, summary: PackSummary, segments: list[Segment], at: int
) -> None:
    """With one damaged byte at `at`: the damaged segment is refused, and every other one comes back."""
    footer_at = segments[-1].ref.offset + segments[-1].ref.length
    reader = PackReader(blobs, keys)
    if 48 <= at < footer_at:
        assert reader.footer(summary.pack) == summary
    else:
        with pytest.raises(PackDamaged) as caught:
            reader.footer(summary.pack)
        assert caught.value.pack == summary.pack
        assert caught.value.offset == 0 if at < 48 else caught.value.offset >= footer_at
    damaged = [one for one in segments if one.ref.offset <= at < one.ref.offset + one.ref.length]
    for segment in segments:
        if segment not in damaged:
            assert PackReader(blobs, keys).segment(segment.ref) == segment
            continue
        with pytest.raises(PackDamaged) as caught:
            PackReader(blobs, keys).segment(segment.ref)
        assert caught.value.pack == summary.pack
        assert caught.value.offset == (0 if caught.value.offset == 0 and at < 48 else segment.ref.offset)
    found = list(PackReader(blobs, keys).scan(summary.pack))
    spared = [one for one in segments if not one.ref.offset <= at < one.ref.offset + one.ref.length]
    assert [one for one in found if isinstance(one, Segment)] == spared
    gaps = [one for one in found if isinstance(one, Unreadable)]
    assert any(gap.offset <= at < gap.offset + gap.length for gap in gaps)


def test_every_flipped_bit_of_a_pack_is_damage_and_never_data(memory: MemoryBlobs) -> None:
    keys = tenant_keys("here", (1,))
    summary, name, segments = small_pack(memory, keys)
    data = memory.objects[name]
    for bit in range(0, len(data) * 8, extent(3, 1)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        memory.objects[name] = bytes(damaged)
        check_damaged_pack(memory, keys, summary, segments, bit // 8)


def test_every_cut_of_a_pack_is_damage_and_the_complete_segments_are_found(
    memory: MemoryBlobs, keys: TenantKeys
) -> None:
    summary, name, segments = small_pack(memory, keys)
    data = memory.objects[name]
    for length in range(len(data)):
        memory.objects[name] = data[:length]
        with pytest.raises(Damaged):
            PackReader(memory, keys).footer(summary.pack)
        whole = [one for one in segments if one.ref.offset + one.ref.length <= length]
        for segment in segments:
            if segment in whole:
                assert PackReader(memory, keys).segment(segment.ref) == segment
            else:
                with pytest.raises(Damaged):
                    PackReader(memory, keys).segment(segment.ref)
        found = PackReader(memory, keys).scan(summary.pack)
        assert [one for one in found if isinstance(one, Segment)] == whole


def test_bytes_behind_a_pack_are_damage(memory: MemoryBlobs, keys: TenantKeys) -> None:
    summary, name, segments = small_pack(memory, keys)
    memory.objects[name] += b"\0"
    with pytest.raises(PackDamaged):
        PackReader(memory, keys).footer(summary.pack)
    assert [
        one for one in PackReader(memory, keys).scan(summary.pack) if isinstance(one, Segment)
    ] == segments


def test_segments_that_swapped_places_are_refused(memory: MemoryBlobs, keys: TenantKeys) -> None:
    summary = write_pack(memory, keys, [(Role.DATA, [b"first"]), (Role.DATA, [b"other"])])
    name = pack_name(keys.tenant, summary.pack)
    first, other = (chunk.place for chunk in summary.chunks)
    data = bytearray(memory.objects[name])
    here = slice(first.segment.offset, first.segment.offset + first.segment.length)
    there = slice(other.segment.offset, other.segment.offset + other.segment.length)
    data[here], data[there] = data[there], data[here]
    memory.objects[name] = bytes(data)
    reader = PackReader(memory, keys)
    with pytest.raises(PackDamaged, match="digest"):
        reader.segment(first.segment).chunk(first.offset, first.length, blake3(b"first").digest())


def test_a_segment_opens_in_its_own_pack_only(memory: MemoryBlobs, keys: TenantKeys) -> None:
    one, other = (write_pack(memory, keys, [(Role.DATA, [content])]) for content in (b"one", b"two"))
    names = [pack_name(keys.tenant, summary.pack) for summary in (one, other)]
    first, second = (memory.objects[name] for name in names)
    memory.objects[names[0]] = first[:48] + second[48:]
    with pytest.raises(PackDamaged):
        PackReader(memory, keys).segment(one.chunks[0].place.segment)
    with pytest.raises(PackDamaged):
        PackReader(memory, keys).footer(one.pack)
    memory.objects[names[0]] = second
    with pytest.raises(PackDamaged, match="another pack's"):
        PackReader(memory, keys).segment(one.chunks[0].place.segment)


def test_data_that_looks_like_a_head_does_not_mislead_the_search(
    memory: MemoryBlobs, keys: TenantKeys
) -> None:
    decoy_pack = write_pack(memory, keys, [(Role.DATA, [b"decoy"])])
    ref = decoy_pack.chunks[0].place.segment
    decoy = memory.objects[pack_name(keys.tenant, decoy_pack.pack)][ref.offset : ref.offset + ref.length]
    summary = write_pack(memory, keys, [(Role.DATA, [b"lost"]), (Role.DATA, [b"SEGM" * 9 + b"kept"])])
    name = pack_name(keys.tenant, summary.pack)
    data = memory.objects[name]
    second = summary.chunks[1].place.segment.offset
    memory.objects[name] = data[:48] + decoy + b"SEGMSEGMSE" + decoy[:40] + data[second:]
    found = list(PackReader(memory, keys).scan(summary.pack))
    assert [one.data for one in found if isinstance(one, Segment)] == [b"SEGM" * 9 + b"kept"]


def test_a_search_finds_a_segment_across_the_edges_of_its_blocks(
    memory: MemoryBlobs, keys: TenantKeys
) -> None:
    summary = write_pack(memory, keys, [(Role.DATA, [b"lost"]), (Role.DATA, [b"found"])])
    name = pack_name(keys.tenant, summary.pack)
    data = memory.objects[name]
    second = summary.chunks[1].place.segment.offset
    noise = Seeded("noise")(MIB + 100)
    for length in range(MIB - 40, MIB + 40, 3):
        memory.objects[name] = data[:48] + noise[:length] + data[second:]
        found = list(PackReader(memory, keys).scan(summary.pack))
        assert found[0] == Unreadable(summary.pack, 48, length)
        assert isinstance(found[1], Segment)
        assert found[1].data == b"found"


# --- correctly sealed, and hostile


class Forge:
    """Makes packs with any content that open, as anyone with the keys could."""

    def __init__(self) -> None:
        self.blobs = MemoryBlobs()
        self.keys = tenant_keys("here")
        self.pack = bytes(range(16))
        self.header = struct.pack("<8sHHI16s16s", b"STADPACK", 1, 0, 1, self.keys.tenant, self.pack)
        self.seal = AESGCM(pack_key(self.keys.pack_keys[1], self.header))

    def segment(self, table: bytes, payload: bytes, /, **fields: int) -> bytes:
        values = {"role": 1, "codec": 0, "zero": 0, "number": 0, "chunks": len(table) // 36} | fields
        lengths = {"payload": len(payload), "raw": len(payload), "last": 0} | fields
        head = struct.pack(
            "<4sBBHIIIII",
            b"SEGM",
            *(values[key] for key in ("role", "codec", "zero", "number", "chunks")),
            *(lengths[key] for key in ("payload", "raw", "last")),
        )
        head += struct.pack("<I", zlib.crc32(head))
        return head + self.seal.encrypt(bytes(8) + struct.pack("<I", values["number"]), table + payload, head)

    def finish(self, segments: bytes, plain: bytes, /, **fields: int) -> None:
        """Store a pack with these segments and this footer."""
        counts = {"footer": len(plain) + 16, "segments": 1, "chunks": 1} | fields
        size = fields.get("size", 48 + len(segments) + len(plain) + 16 + 32)
        trailer = struct.pack(
            "<8sIIQI", b"STADTAIL", counts["footer"], counts["segments"], size, counts["chunks"]
        )
        trailer += struct.pack("<I", zlib.crc32(trailer))
        footer = self.seal.encrypt(bytes(8) + b"\xff" * 4, plain, trailer[:24])
        self.blobs.objects[pack_name(self.keys.tenant, self.pack)] = self.header + segments + footer + trailer

    def reader(self) -> PackReader:
        return PackReader(self.blobs, self.keys)


def row(offset: int, length: int, chunks: int, raw: int, *, role: int = 1, zero: bytes = bytes(3)) -> bytes:
    return struct.pack("<IIIIB3s", offset, length, chunks, raw, role, zero)


def entry(length: int, digest: bytes = bytes(32)) -> bytes:
    return struct.pack("<I32s", length, digest)


SEGMENT_BYTES = 32 + 36 + 5 + 16
GOOD_ROW = row(48, SEGMENT_BYTES, 1, 5)
GOOD_ENTRY = entry(5, blake3(b"chunk").digest())


def forged() -> tuple[Forge, bytes]:
    forge = Forge()
    return forge, forge.segment(GOOD_ENTRY, b"chunk")


def test_the_forge_makes_good_packs() -> None:
    forge, segment = forged()
    forge.finish(segment, GOOD_ROW + GOOD_ENTRY)
    summary = forge.reader().footer(forge.pack)
    assert [chunk.place for chunk in summary.chunks] == [(SegmentRef(forge.pack, 48, SEGMENT_BYTES), 0, 5)]
    assert forge.reader().segment(SegmentRef(forge.pack, 48, len(segment))).data == b"chunk"


@pytest.mark.parametrize(
    ("plain", "fields"),
    [
        (row(47, SEGMENT_BYTES, 1, 5) + GOOD_ENTRY, {}),
        (row(0, SEGMENT_BYTES, 1, 5) + GOOD_ENTRY, {}),
        (row(48, SEGMENT_BYTES - 1, 1, 5) + GOOD_ENTRY, {}),
        (row(48, SEGMENT_BYTES + 1, 1, 5) + GOOD_ENTRY, {}),
        (row(48, 0, 1, 5) + GOOD_ENTRY, {}),
        (row(48, 0xFFFFFFFF, 1, 5) + GOOD_ENTRY, {}),
        (row(48, SEGMENT_BYTES, 0, 5) + GOOD_ENTRY, {}),
        (row(48, SEGMENT_BYTES, 2, 5) + GOOD_ENTRY, {}),
        (row(48, SEGMENT_BYTES, 0xFFFFFFFF, 5) + GOOD_ENTRY, {}),
        (row(48, SEGMENT_BYTES, 1, 6) + GOOD_ENTRY, {}),
        (row(48, SEGMENT_BYTES, 1, 5, role=0) + GOOD_ENTRY, {}),
        (row(48, SEGMENT_BYTES, 1, 5, role=3) + GOOD_ENTRY, {}),
        (row(48, SEGMENT_BYTES, 1, 5, zero=b"\0\0\1") + GOOD_ENTRY, {}),
        (GOOD_ROW + entry(0), {}),
        (GOOD_ROW + entry(MIB + 1), {}),
        (row(48, SEGMENT_BYTES, 1, MIB + 1) + entry(MIB + 1), {}),
        (GOOD_ROW + GOOD_ENTRY + GOOD_ENTRY, {"chunks": 2}),
        (GOOD_ROW + GOOD_ROW + GOOD_ENTRY + GOOD_ENTRY, {"chunks": 2, "segments": 2}),
        (GOOD_ROW + GOOD_ENTRY, {"segments": 2}),
        (GOOD_ROW + GOOD_ENTRY, {"chunks": 2}),
        (GOOD_ROW + GOOD_ENTRY, {"chunks": 0xFFFFFFFF, "segments": 0xFFFFFFFF}),
        (GOOD_ROW, {"chunks": 0}),
        (b"", {"chunks": 0, "segments": 0}),
        (GOOD_ROW + GOOD_ENTRY, {"footer": 16}),
        (GOOD_ROW + GOOD_ENTRY, {"footer": 0xFFFFFFFF}),
        (GOOD_ROW + GOOD_ENTRY, {"size": 10}),
        (GOOD_ROW + GOOD_ENTRY, {"size": 2**63}),
    ],
)
def test_a_footer_that_does_not_describe_its_pack_is_damage(plain: bytes, fields: dict[str, int]) -> None:
    forge, segment = forged()
    forge.finish(segment, plain, **fields)
    with pytest.raises(PackDamaged) as caught:
        forge.reader().footer(forge.pack)
    assert caught.value.pack == forge.pack


FRAME = zstandard.ZstdCompressor(level=1).compress(TEXT)
TEXT_ENTRY = entry(len(TEXT), blake3(TEXT).digest())


@pytest.mark.parametrize(
    "make",
    [
        lambda forge: forge.segment(GOOD_ENTRY, b"chunk", role=0),
        lambda forge: forge.segment(GOOD_ENTRY, b"chunk", role=3),
        lambda forge: forge.segment(GOOD_ENTRY, b"chunk", codec=2),
        lambda forge: forge.segment(GOOD_ENTRY, b"chunk", codec=1),
        lambda forge: forge.segment(GOOD_ENTRY, b"chunk", zero=1),
        lambda forge: forge.segment(GOOD_ENTRY, b"chunk", last=1),
        lambda forge: forge.segment(GOOD_ENTRY, b"chunk", number=0xFFFFFFFF),
        lambda forge: forge.segment(GOOD_ENTRY, b"chunk", raw=6),
        lambda forge: forge.segment(GOOD_ENTRY, b"chunk", raw=0),
        lambda forge: forge.segment(GOOD_ENTRY, b"chunk", raw=3 * MIB + 1),
        lambda forge: forge.segment(GOOD_ENTRY, b"chunk", chunks=0, payload=41),
        lambda forge: forge.segment(b"", b"chunk"),
        lambda forge: forge.segment(entry(4), b"chunk"),
        lambda forge: forge.segment(entry(0) + entry(5), b"chunk"),
        lambda forge: forge.segment(entry(0xFFFFFFFF), b"chunk"),
        lambda forge: forge.segment(TEXT_ENTRY, FRAME, codec=1, raw=len(TEXT) - 1),
        lambda forge: forge.segment(TEXT_ENTRY, FRAME[:-1], codec=1, raw=len(TEXT)),
        lambda forge: forge.segment(TEXT_ENTRY, FRAME + b"\0", codec=1, raw=len(TEXT)),
        lambda forge: forge.segment(entry(1), FRAME, codec=1, raw=1),
    ],
)
def test_a_sealed_segment_in_another_form_is_damage(make: Callable[[Forge], bytes]) -> None:
    forge = Forge()
    good = forge.segment(TEXT_ENTRY, FRAME, codec=1, raw=len(TEXT), number=7)
    bad = make(forge)
    forge.finish(bad + good, b"")
    reader = forge.reader()
    with pytest.raises(PackDamaged) as caught:
        reader.segment(SegmentRef(forge.pack, 48, len(bad)))
    assert (caught.value.pack, caught.value.offset) == (forge.pack, 48)
    found = reader.segment(SegmentRef(forge.pack, 48 + len(bad), len(good)))
    assert (found.data, found.number) == (TEXT, 7)
    assert [one for one in reader.scan(forge.pack) if isinstance(one, Segment)] == [found]


NUMBERS = st.one_of(st.integers(0, 200), st.sampled_from([2**16, 2**20, 2**31, 2**32 - 1]))
ROWS = st.builds(row, NUMBERS, NUMBERS, NUMBERS, NUMBERS, role=st.integers(0, 3))


@given(
    rows=st.lists(st.one_of(st.just(GOOD_ROW), ROWS), max_size=3),
    entries=st.lists(st.one_of(st.just(GOOD_ENTRY), st.builds(entry, NUMBERS)), max_size=4),
    junk=st.one_of(st.just(b""), st.binary(max_size=60)),
    fields=st.dictionaries(st.sampled_from(["footer", "segments", "chunks", "size"]), NUMBERS, max_size=2),
)
@settings(max_examples=examples(500))
def test_a_hostile_footer_is_damage_or_describes_the_whole_pack(
    rows: list[bytes], entries: list[bytes], junk: bytes, fields: dict[str, int]
) -> None:
    forge, segment = forged()
    counts = {"segments": len(rows), "chunks": len(entries)} | fields
    forge.finish(segment, b"".join(rows) + b"".join(entries) + junk, **counts)
    try:
        summary = forge.reader().footer(forge.pack)
    except PackDamaged:
        return
    assert [chunk.place for chunk in summary.chunks] == [(SegmentRef(forge.pack, 48, SEGMENT_BYTES), 0, 5)]


@given(data=st.binary(max_size=600), keep=st.integers(0, 200), magic=st.booleans())
@settings(max_examples=examples(300))
def test_hostile_bytes_are_damage_for_every_reader(data: bytes, keep: int, magic: bool) -> None:
    forge, segment = forged()
    forge.finish(segment, GOOD_ROW + GOOD_ENTRY)
    name = pack_name(forge.keys.tenant, forge.pack)
    whole = forge.blobs.objects[name]
    forge.blobs.objects[name] = whole[:keep] + (b"SEGM" if magic else b"") + data
    reader = forge.reader()
    with pytest.raises(Damaged):
        reader.footer(forge.pack)
    found = [one for one in reader.scan(forge.pack) if isinstance(one, Segment)]
    assert [one.data for one in found] == ([b"chunk"] if keep >= 48 + len(segment) else [])


def test_segments_open_under_a_damaged_header_and_the_footer_reports_it(memory: MemoryBlobs) -> None:
    keys = tenant_keys("here", (1, 2))
    summary = write_pack(memory, keys, [(Role.DATA, [b"chunk"])])
    name = pack_name(keys.tenant, summary.pack)
    whole = memory.objects[name]
    reader = PackReader(memory, keys)
    ref = summary.chunks[0].place.segment
    # The first has the number of another existing pack key: it looks right, and opens nothing.
    for header in (whole[:12] + b"\x01" + whole[13:48], bytes(48), whole[:47] + xored(whole[47:48])):
        memory.objects[name] = header + whole[48:]
        assert reader.segment(ref).data == b"chunk"
        with pytest.raises(PackDamaged):
            reader.footer(summary.pack)
    memory.objects[name] = whole
    assert reader.footer(summary.pack) == summary
    assert reader.segment(ref).data == b"chunk"
