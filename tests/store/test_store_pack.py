"""Packs: a reader returns what was written, and nothing else."""

import errno
import os
import threading
import tracemalloc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from extent import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from staddle_server.base.errors import Damaged, Unavailable
from staddle_server.base.limits import (
    MIB,
    PACK_BYTES_MAX,
    PACK_BYTES_TARGET,
    PACK_CHUNKS_TARGET,
    SEGMENT_CHUNKS_MAX,
)
from staddle_server.base.types import ChunkRef, PackSummary, Role, SegmentRef, TenantKeys
from staddle_server.store.backends.directory import DirectoryBlobs
from staddle_server.store.backends.memory import MemoryBlobs
from staddle_server.store.blobs import BlobExists, BlobMissing, Blobs, BlobWriter, Buffer
from staddle_server.store.files import Files
from staddle_server.store.keys import chunk_id, secrets_of
from staddle_server.store.pack import (
    OPENERS_MAX,
    Codec,
    PackDamaged,
    PackReader,
    Segment,
    compress,
    pack_name,
    parse_pack_name,
)
from staddle_server.store.pack_writer import PackWriter
from staddle_server.store.packform import decode_head, pack_key
from staddle_server.store.wrapped import WrappedBlobs, WrappedWriter
from store_data import Seeded, append_raw, table_of, tenant_keys, write_pack

CHUNKS = st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=8)
SEGMENTS = st.lists(st.tuples(st.sampled_from(Role), CHUNKS), min_size=1, max_size=6)


def segment_refs(summary: PackSummary) -> list[SegmentRef]:
    return list(dict.fromkeys(chunk.place.segment for chunk in summary.chunks))


def read_chunks(reader: PackReader, summary: PackSummary, digests: Sequence[bytes]) -> list[bytes]:
    return [
        bytes(reader.segment(place.segment).chunk(place.offset, place.length, digest))
        for (_, place), digest in zip(summary.chunks, digests, strict=True)
    ]


@given(segments=SEGMENTS, compressed=st.booleans())
def test_every_chunk_comes_back_by_its_place_and_its_id(
    segments: list[tuple[Role, list[bytes]]], compressed: bool
) -> None:
    blobs, keys = MemoryBlobs(), tenant_keys("here", (1, 2))
    writer = PackWriter(blobs, keys)
    for role, chunks in segments:
        payload = b"".join(chunks)
        codec, stored = compress(payload) if compressed else (Codec.RAW, payload)
        writer.append(role, table_of(chunks), codec, stored, len(payload))
    summary = writer.finish()
    flat = [(role, chunk) for role, chunks in segments for chunk in chunks]
    digests = [blake3(chunk).digest() for _, chunk in flat]
    reader = PackReader(blobs, keys)
    assert read_chunks(reader, summary, digests) == [chunk for _, chunk in flat]
    id_key = secrets_of(keys).id_key
    assert [chunk.chunk_id for chunk in summary.chunks] == [
        chunk_id(id_key, role, digest) for (role, _), digest in zip(flat, digests, strict=True)
    ]
    assert reader.footer(summary.pack) == summary
    assert summary.size_bytes == blobs.size(pack_name(keys.tenant, summary.pack))
    found = list(reader.scan(summary.pack))
    assert [(one.role, one.data) for one in found if isinstance(one, Segment)] == [
        (role, b"".join(chunks)) for role, chunks in segments
    ]
    assert [one.ref for one in found if isinstance(one, Segment)] == segment_refs(summary)


def test_a_pack_of_real_size_comes_back_from_a_directory(tmp_path: Path, keys: TenantKeys) -> None:
    blobs = DirectoryBlobs(str(tmp_path))
    seeded = Seeded("large")
    chunks = [seeded(250_000 + 1000 * i) for i in range(24)]
    summary = write_pack(blobs, keys, [(Role.DATA, chunks[i : i + 8]) for i in range(0, 24, 8)])
    reader = PackReader(blobs, keys)
    assert read_chunks(reader, summary, [blake3(chunk).digest() for chunk in chunks]) == chunks
    assert [name for name, _ in blobs.list("packs")] == [pack_name(keys.tenant, summary.pack)]


def test_an_unfinished_pack_does_not_exist(blobs: Blobs, keys: TenantKeys) -> None:
    writer = PackWriter(blobs, keys)
    append_raw(writer, Role.DATA, [b"chunk"])
    assert list(blobs.list("")) == []
    writer.abort()
    writer.abort()
    assert list(blobs.list("")) == []
    for attempt in (lambda: append_raw(writer, Role.DATA, [b"chunk"]), writer.finish):
        with pytest.raises(ValueError, match="finished or aborted"):
            attempt()
    with pytest.raises(BlobMissing):
        PackReader(blobs, keys).footer(writer.pack)


def test_a_finished_pack_accepts_no_more_segments(blobs: Blobs, keys: TenantKeys) -> None:
    writer = PackWriter(blobs, keys)
    append_raw(writer, Role.DATA, [b"chunk"])
    summary = writer.finish()
    writer.abort()
    for attempt in (lambda: append_raw(writer, Role.DATA, [b"chunk"]), writer.finish):
        with pytest.raises(ValueError, match="finished or aborted"):
            attempt()
    assert PackReader(blobs, keys).footer(writer.pack) == summary


def test_an_empty_pack_cannot_be_finished(blobs: Blobs, keys: TenantKeys) -> None:
    with pytest.raises(ValueError, match="without segments"):
        PackWriter(blobs, keys).finish()
    assert list(blobs.list("")) == []


DIGEST = bytes(32)


@pytest.mark.parametrize(
    ("table", "codec", "payload", "raw_length"),
    [
        ([], 0, b"x", 1),
        ([ChunkRef(1, DIGEST)], 0, b"", 0),
        ([ChunkRef(1, DIGEST)], 0, b"xy", 1),
        ([ChunkRef(1, DIGEST)], 0, b"xy", 2),
        ([ChunkRef(2, DIGEST)], 0, b"x", 1),
        ([ChunkRef(2, DIGEST)], 1, b"", 2),
        ([ChunkRef(2, DIGEST)], 2, b"xy", 2),
        ([ChunkRef(1, DIGEST[1:])], 0, b"x", 1),
        ([ChunkRef(0, DIGEST), ChunkRef(2, DIGEST)], 0, b"xy", 2),
        ([ChunkRef(-1, DIGEST), ChunkRef(3, DIGEST)], 0, b"xy", 2),
        ([ChunkRef(MIB + 1, DIGEST)], 0, bytes(MIB + 1), MIB + 1),
        ([ChunkRef(MIB, DIGEST)] * 4, 0, bytes(4 * MIB), 4 * MIB),
        ([ChunkRef(MIB, DIGEST)], 1, bytes(3 * MIB + 1), MIB),
        (
            [ChunkRef(1, DIGEST)] * (SEGMENT_CHUNKS_MAX + 1),
            0,
            bytes(SEGMENT_CHUNKS_MAX + 1),
            SEGMENT_CHUNKS_MAX + 1,
        ),
    ],
)
def test_an_impossible_segment_is_refused_and_the_pack_accepts_more(
    table: list[ChunkRef], codec: int, payload: bytes, raw_length: int
) -> None:
    memory, keys = MemoryBlobs(), tenant_keys("here")
    writer = PackWriter(memory, keys)
    append_raw(writer, Role.DATA, [b"before"])
    size = writer.size
    with pytest.raises(ValueError, match=r"chunk|payload|Codec"):
        writer.append(Role.DATA, table, codec, payload, raw_length)
    assert writer.size == size
    append_raw(writer, Role.DATA, [b"behind"])
    summary = writer.finish()
    reader = PackReader(memory, keys)
    assert [reader.segment(ref).data for ref in segment_refs(summary)] == [b"before", b"behind"]


class Forgetful(WrappedBlobs):
    """Discards what is written, so that large packs need no memory."""

    def create(self) -> BlobWriter:
        return ForgetfulWriter(super().create())


class ForgetfulWriter(WrappedWriter):
    def write(self, data: Buffer) -> None:
        pass


def test_a_pack_reports_when_it_is_full_and_refuses_what_does_not_fit(keys: TenantKeys) -> None:
    writer = PackWriter(Forgetful(MemoryBlobs()), keys)
    payload = bytes(3 * MIB)
    table = [ChunkRef(MIB, DIGEST)] * 3
    while not writer.full:
        assert writer.size < PACK_BYTES_TARGET
        writer.append(Role.DATA, table, Codec.RAW, payload, len(payload))
    more = (PACK_BYTES_MAX - writer.size) // (len(payload) + 1000)
    for _ in range(more):
        writer.append(Role.DATA, table, Codec.RAW, payload, len(payload))
    with pytest.raises(ValueError, match="finish it first"):
        writer.append(Role.DATA, table, Codec.RAW, payload, len(payload))
    summary = writer.finish()
    assert PACK_BYTES_MAX - 4 * MIB < summary.size_bytes <= PACK_BYTES_MAX


def test_a_pack_of_tiny_chunks_is_full_by_their_number(keys: TenantKeys) -> None:
    writer = PackWriter(Forgetful(MemoryBlobs()), keys)
    table = [ChunkRef(1, DIGEST)] * (PACK_CHUNKS_TARGET // 2)
    while not writer.full:
        writer.append(Role.DATA, table, Codec.RAW, bytes(len(table)), len(table))
    assert writer.chunk_count == PACK_CHUNKS_TARGET
    assert len(writer.finish().chunks) == PACK_CHUNKS_TARGET


def test_a_pack_writer_keeps_tables_in_memory_but_no_data(tmp_path: Path, keys: TenantKeys) -> None:
    blobs = DirectoryBlobs(str(tmp_path))
    payload = Seeded("payload")(2 * MIB)
    table = table_of([payload[:MIB], payload[MIB:]])
    tracemalloc.start()
    try:
        writer = PackWriter(blobs, keys)
        for _ in range(12):
            writer.append(Role.DATA, table, Codec.RAW, payload, len(payload))
        writer.finish()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 * MIB


# --- ids, keys and nonces


def test_two_writers_never_share_an_id(memory: MemoryBlobs, keys: TenantKeys) -> None:
    with ThreadPoolExecutor(8) as pool:
        packs = list(pool.map(lambda _: PackWriter(memory, keys).pack, range(500)))
    assert len(set(packs)) == 500


def test_a_pack_whose_id_is_taken_overwrites_nothing(memory: MemoryBlobs, keys: TenantKeys) -> None:
    first = PackWriter(memory, keys, random=bytes)
    second = PackWriter(memory, keys, random=bytes)
    append_raw(first, Role.DATA, [b"first"])
    append_raw(second, Role.DATA, [b"second"])
    summary = first.finish()
    with pytest.raises(BlobExists):
        second.finish()
    assert PackReader(memory, keys).segment(segment_refs(summary)[0]).data == b"first"


def test_no_number_is_used_twice_under_one_key(memory: MemoryBlobs, keys: TenantKeys) -> None:
    opened: list[tuple[bytes, int]] = []
    for _ in range(3):
        summary = write_pack(memory, keys, [(Role.DATA, [bytes([i + 1]) * 9]) for i in range(20)])
        data = memory.objects[pack_name(keys.tenant, summary.pack)]
        key = pack_key(keys.pack_keys[2], data[:48])
        for ref in segment_refs(summary):
            head = decode_head(data[ref.offset : ref.offset + 32])
            nonce = bytes(8) + head.number.to_bytes(4, "little")
            AESGCM(key).decrypt(
                nonce, data[ref.offset + 32 : ref.offset + ref.length], data[ref.offset : ref.offset + 32]
            )
            opened.append((key, head.number))
        opened.append((key, 0xFFFFFFFF))
    assert len(set(opened)) == len(opened) == 63
    assert len({key for key, _ in opened}) == 3


class FailingWrites(WrappedBlobs):
    """Fails at the n-th write and at every commit; keeps what was written before."""

    def __init__(self, fail_at: int) -> None:
        super().__init__(MemoryBlobs())
        self.written: list[bytes] = []
        self.fail_at = fail_at
        self.aborted = 0

    def create(self) -> BlobWriter:
        return FailingWriter(super().create(), self)


class FailingWriter(WrappedWriter):
    def __init__(self, inner: BlobWriter, blobs: FailingWrites) -> None:
        super().__init__(inner)
        self.blobs = blobs

    def write(self, data: Buffer) -> None:
        if len(self.blobs.written) == self.blobs.fail_at:
            raise Unavailable("STORE_UNAVAILABLE", "no")
        self.blobs.written.append(bytes(data))

    def commit(self, name: str) -> None:
        raise Unavailable("STORE_UNAVAILABLE", "no")

    def abort(self) -> None:
        self.blobs.aborted += 1
        super().abort()


@pytest.mark.parametrize("fail_at", range(10))
def test_a_writer_that_failed_never_seals_again(keys: TenantKeys, fail_at: int) -> None:
    blobs = FailingWrites(fail_at)
    with pytest.raises(Unavailable):  # noqa: PT012 - any of the steps may be the one that fails
        writer = PackWriter(blobs, keys)
        append_raw(writer, Role.DATA, [b"first"])
        append_raw(writer, Role.DATA, [b"second"])
        writer.finish()
    assert blobs.aborted == 1
    if fail_at == 0:
        return
    written = len(blobs.written)
    for attempt in (lambda: append_raw(writer, Role.DATA, [b"other"]), writer.finish):
        with pytest.raises(ValueError, match="finished or aborted"):
            attempt()
    assert len(blobs.written) == written


def test_a_disk_that_fails_while_a_pack_is_written_leaves_nothing(tmp_path: Path, keys: TenantKeys) -> None:
    class Failing(Files):
        written_bytes = 0

        def write(self, descriptor: int, data: Buffer) -> int:
            self.written_bytes += len(data)
            if self.written_bytes > 1 * MIB:
                raise OSError(errno.EIO, "i/o error")
            return super().write(descriptor, data)

    writer = PackWriter(DirectoryBlobs(str(tmp_path), Failing()), keys)
    with pytest.raises(Unavailable):
        append_raw(writer, Role.DATA, [bytes(MIB), bytes(MIB)])
    assert [file for _, _, files in os.walk(tmp_path) for file in files] == []


def test_new_packs_are_sealed_with_the_newest_key_and_old_ones_still_open(memory: MemoryBlobs) -> None:
    old = tenant_keys("here", (1,))
    new = TenantKeys(old.tenant, old.root, {**old.pack_keys, 2: bytes(range(32))})
    first = write_pack(memory, old, [(Role.DATA, [b"old"])])
    second = write_pack(memory, new, [(Role.DATA, [b"new"])])
    reader = PackReader(memory, new)
    assert [reader.segment(segment_refs(one)[0]).data for one in (first, second)] == [b"old", b"new"]
    with pytest.raises(PackDamaged, match="pack key 2"):
        PackReader(memory, old).segment(segment_refs(second)[0])


def test_another_tenants_keys_open_nothing(
    memory: MemoryBlobs, keys: TenantKeys, other_keys: TenantKeys
) -> None:
    summary = write_pack(memory, keys, [(Role.DATA, [b"secret"]), (Role.MANIFEST, [b"secret"])])
    mine, theirs = pack_name(keys.tenant, summary.pack), pack_name(other_keys.tenant, summary.pack)
    data = memory.objects[mine]
    assert b"secret" not in data
    forged = bytearray(data)
    forged[16:32] = other_keys.tenant
    with pytest.raises(BlobMissing):
        PackReader(memory, other_keys).footer(summary.pack)
    for planted in (data, bytes(forged)):
        memory.objects[theirs] = planted
        reader = PackReader(memory, other_keys)
        for ref in segment_refs(summary):
            with pytest.raises(PackDamaged):
                reader.segment(ref)
        with pytest.raises(PackDamaged):
            reader.footer(summary.pack)
        assert not any(isinstance(found, Segment) for found in reader.scan(summary.pack))


def test_a_reader_remembers_a_limited_number_of_packs(memory: MemoryBlobs, keys: TenantKeys) -> None:
    reader = PackReader(memory, keys)
    refs = [
        segment_refs(write_pack(memory, keys, [(Role.DATA, [b"%d" % i])]))[0] for i in range(OPENERS_MAX + 10)
    ]
    for _ in range(2):
        assert [reader.segment(ref).data for ref in refs] == [b"%d" % i for i in range(len(refs))]
    assert len(reader._openers) == OPENERS_MAX


def test_many_threads_can_share_one_reader(memory: MemoryBlobs, keys: TenantKeys) -> None:
    summaries = [
        write_pack(memory, keys, [(Role.DATA, [Seeded(f"{i}/{j}")(4000)]) for j in range(5)])
        for i in range(10)
    ]
    wanted = [
        (ref, Seeded(f"{i}/{j}")(4000))
        for i, one in enumerate(summaries)
        for j, ref in enumerate(segment_refs(one))
    ]
    reader = PackReader(memory, keys)
    barrier = threading.Barrier(8)

    def read_all(_: int) -> bool:
        barrier.wait()
        return all(reader.segment(ref).data == data for ref, data in wanted)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read_all, range(8)))


# --- wrong requests


@given(offset=st.integers(-10, 700), length=st.integers(-10, 700))
@settings(max_examples=examples(300))
def test_a_wrong_place_is_reported_as_damage_and_never_gives_data(offset: int, length: int) -> None:
    blobs, keys = MemoryBlobs(), tenant_keys("here")
    summary = write_pack(blobs, keys, [(Role.DATA, [b"one", b"two"]), (Role.MANIFEST, [b"three"])])
    right = segment_refs(summary)
    ref = SegmentRef(summary.pack, offset, length)
    if ref in right:
        return
    with pytest.raises(Damaged):
        PackReader(blobs, keys).segment(ref)


@pytest.mark.parametrize(
    ("offset", "length", "digest"),
    [
        (0, 3, blake3(b"two").digest()),
        (3, 3, blake3(b"one").digest()),
        (1, 3, blake3(b"one").digest()),
        (0, 2, blake3(b"one").digest()),
        (0, 0, blake3(b"").digest()),
        (-3, 3, blake3(b"two").digest()),
        (4, 3, blake3(b"two").digest()),
        (0, 3, b""),
    ],
)
def test_a_chunk_without_its_digest_is_damage(
    memory: MemoryBlobs, keys: TenantKeys, offset: int, length: int, digest: bytes
) -> None:
    summary = write_pack(memory, keys, [(Role.DATA, [b"one", b"two"])])
    segment = PackReader(memory, keys).segment(segment_refs(summary)[0])
    assert segment.chunk(3, 3, blake3(b"two").digest()) == b"two"
    with pytest.raises(PackDamaged) as caught:
        segment.chunk(offset, length, digest)
    assert (caught.value.pack, caught.value.offset) == (summary.pack, 48)


def test_a_store_that_does_not_answer_is_unavailable_and_not_damaged(
    tmp_path: Path, keys: TenantKeys
) -> None:
    class Failing(Files):
        def read(self, descriptor: int, length: int, offset: int) -> bytes:
            raise OSError(errno.EIO, "i/o error")

    summary = write_pack(DirectoryBlobs(str(tmp_path)), keys, [(Role.DATA, [b"chunk"])])
    reader = PackReader(DirectoryBlobs(str(tmp_path), Failing()), keys)
    for ask in (
        lambda: reader.segment(segment_refs(summary)[0]),
        lambda: reader.footer(summary.pack),
        lambda: list(reader.scan(summary.pack)),
    ):
        with pytest.raises(Unavailable):
            ask()


def test_the_name_of_a_pack_identifies_its_tenant(keys: TenantKeys) -> None:
    pack = bytes(range(16))
    name = pack_name(keys.tenant, pack)
    assert name == f"packs/{keys.tenant.hex()}/00/000102030405060708090a0b0c0d0e0f"
    assert parse_pack_name(name) == (keys.tenant, pack)
    for wrong in (
        name[:-1],
        name + "0",
        name.replace("/00/", "/01/"),
        "packs",
        f"records/{name[6:]}",
        name.upper(),
    ):
        with pytest.raises(ValueError, match=r"pack's name|hexadecimal"):
            parse_pack_name(wrong)


def test_a_header_that_was_changed_opens_nothing(memory: MemoryBlobs, keys: TenantKeys) -> None:
    summary = write_pack(memory, keys, [(Role.DATA, [b"chunk"])])
    data = memory.objects[pack_name(keys.tenant, summary.pack)]
    ref = segment_refs(summary)[0]
    head, body = data[ref.offset : ref.offset + 32], data[ref.offset + 32 : ref.offset + ref.length]
    right = pack_key(keys.pack_keys[2], data[:48])
    assert AESGCM(right).decrypt(bytes(12), body, head)
    for bit in range(48 * 8):
        header = bytearray(data[:48])
        header[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidTag):
            AESGCM(pack_key(keys.pack_keys[2], bytes(header))).decrypt(bytes(12), body, head)
