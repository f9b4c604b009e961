"""Packs: above their seals, where anything may have been changed, and below, with the right keys."""

from __future__ import annotations

import random
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from fuzz_engine import MIB, Check, Target, mutate_bytes
from fuzz_store import KEYS, table_of
from staddle_server.base.errors import Damaged
from staddle_server.base.limits import PACK_BYTES_MAX
from staddle_server.base.types import Role, SegmentRef
from staddle_server.store import packform as form
from staddle_server.store.backends.directory import DirectoryBlobs
from staddle_server.store.blobs import BlobShort, check_range
from staddle_server.store.pack import PackDamaged, PackReader, Segment, Unreadable, compress, pack_name
from staddle_server.store.pack_writer import PackWriter

PACK = bytes(range(100, 116))

# ---------------------------------------------------------------------- packs


class OnePack:
    """Blobs that hold one pack, whatever it is."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def size(self, name: str) -> int:
        assert name == pack_name(KEYS.tenant, PACK)
        return len(self.data)

    def read(self, name: str, offset: int, length: int) -> bytes:
        check_range(offset, length)
        if offset + length > len(self.data):
            raise BlobShort(name, offset, length, len(self.data))
        return self.data[offset : offset + length]


CHUNKS = {
    blake3(chunk).digest(): chunk
    for chunk in (
        b"one chunk",
        b"two chunks" * 400,
        random.Random(3).randbytes(9000),
        bytes(70_000),
        b"\x01\x90",
    )
}


def _a_pack(tmp: Path) -> bytes:
    blobs = DirectoryBlobs(str(tmp))
    ids = iter([PACK])
    writer = PackWriter(blobs, KEYS, lambda _: next(ids))  # type: ignore[arg-type]
    chunks = list(CHUNKS.values())
    for role, group in ((Role.DATA, chunks[:2]), (Role.DATA, chunks[2:4]), (Role.MANIFEST, chunks[4:])):
        payload = b"".join(group)
        codec, stored = compress(payload)
        writer.append(role, table_of(group), codec, stored, len(payload))
    writer.finish()
    return (tmp / pack_name(KEYS.tenant, PACK)).read_bytes()


def _pack_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as tmp:
        return _a_pack(Path(tmp))


@contextmanager
def _packs() -> Iterator[Check]:
    whole = _pack_bytes()
    reader = PackReader(OnePack(whole), KEYS)  # type: ignore[arg-type] # what a reader needs of blobs
    refs = [segment.ref for segment in reader.scan(PACK) if isinstance(segment, Segment)]

    def check(data: bytes) -> str:
        reader = PackReader(OnePack(data), KEYS)  # type: ignore[arg-type]
        outcomes = [_footer(reader, data)]
        outcomes += [_segment(reader, ref) for ref in refs]
        outcomes.append(_scan(reader, data))
        return "; ".join(outcomes)

    yield check


def _footer(reader: PackReader, data: bytes) -> str:
    try:
        summary = reader.footer(PACK)
    except Damaged as error:
        return f"footer {error.message}"
    for chunk in summary.chunks:
        assert chunk.place.segment.offset + chunk.place.segment.length <= len(data) == summary.size_bytes
    return f"footer of {len(summary.chunks)}"


def _segment(reader: PackReader, ref: SegmentRef) -> str:
    try:
        segment = reader.segment(ref)
        offset = 0
        for length, digest in segment.table:
            assert bytes(segment.chunk(offset, length, digest)) == CHUNKS.get(digest), (
                "a chunk that was never stored"
            )
            offset += length
    except Damaged as error:
        return f"segment {error.message}"
    return "segment"


def _scan(reader: PackReader, data: bytes) -> str:
    found, position = [], 0
    try:
        for each in reader.scan(PACK):
            begins = each.ref.offset if isinstance(each, Segment) else each.offset
            assert begins >= position, "what a scan finds is in order, and nothing twice"
            if isinstance(each, Unreadable):
                position = begins + each.length
                found.append("unreadable")
                continue
            position = begins + each.ref.length
            found.append("segment")
            offset = 0
            for length, digest in each.table:
                assert bytes(each.chunk(offset, length, digest)) == CHUNKS.get(digest), (
                    "a chunk that was never stored"
                )
                offset += length
    except Damaged as error:
        found.append(error.message)
    assert position <= min(len(data), PACK_BYTES_MAX)
    return "scan " + " ".join(found)


def _mutate_pack(chance: random.Random, data: bytes) -> bytes:
    """Bytes changed, stretches moved, and sums of heads and of the trailer put right again: who forges can count."""
    out = bytearray(mutate_bytes(chance, data))
    if chance.random() < 0.3 and len(out) > 400:
        start, length = chance.randrange(len(out) - 300), chance.randrange(300)
        piece = out[start : start + length]
        at = chance.randrange(len(out))
        out[at:at] = piece
    if chance.random() < 0.6:
        _forge_sums(out)
    return bytes(out)


def _forge_sums(out: bytearray) -> None:
    at = out.find(form.SEGMENT_MAGIC)
    while 0 <= at <= len(out) - form.HEAD_BYTES:
        out[at + 28 : at + 32] = zlib.crc32(out[at : at + 28]).to_bytes(4, "little")
        at = out.find(form.SEGMENT_MAGIC, at + 1)
    if len(out) >= form.TRAILER_BYTES:
        begin = len(out) - form.TRAILER_BYTES
        out[begin + 28 :] = zlib.crc32(out[begin : begin + 28]).to_bytes(4, "little")


# ---------------------------------------------------------------------- below the seals of a pack

SEGMENT, FOOTER = 0, 1


def sealed_input(kind: int, clear: bytes, plain: bytes) -> bytes:
    """What is sealed with the right key: a segment (head, body) or a footer (trailer, rows and tables)."""
    return bytes([kind]) + clear + plain


def _sealed_seeds() -> list[bytes]:
    data = _pack_bytes()
    opener = AESGCM(form.pack_key(KEYS.pack_keys[2], data[: form.HEADER_BYTES]))
    seeds, at = [], form.HEADER_BYTES
    trailer = form.decode_trailer(data[-form.TRAILER_BYTES :], len(data))
    end = len(data) - form.TRAILER_BYTES - trailer.footer_bytes
    while at < end:
        clear = data[at : at + form.HEAD_BYTES]
        head = form.decode_head(clear)
        body = opener.decrypt(
            form.nonce(head.number), data[at + form.HEAD_BYTES : at + head.segment_bytes], clear
        )
        seeds.append(sealed_input(SEGMENT, clear, body))
        at += head.segment_bytes
    clear = data[-form.TRAILER_BYTES :]
    plain = opener.decrypt(
        form.nonce(form.FOOTER_NUMBER), data[end : -form.TRAILER_BYTES], clear[: form.TRAILER_SEALED_BYTES]
    )
    return [*seeds, sealed_input(FOOTER, clear, plain)]


@contextmanager
def _sealed() -> Iterator[Check]:
    header = form.encode_header(form.Header(2, KEYS.tenant, PACK))
    opener = AESGCM(form.pack_key(KEYS.pack_keys[2], header))

    def check(data: bytes) -> str:
        is_segment = (data[:1] or b"\0")[0] % 2 == SEGMENT
        size = form.HEAD_BYTES if is_segment else form.TRAILER_BYTES
        clear, plain = data[1 : 1 + size].ljust(size, b"\0"), data[1 + size :]
        return (_check_segment if is_segment else _check_footer)(header, opener, clear, plain)

    yield check


def _check_segment(header: bytes, opener: AESGCM, clear: bytes, plain: bytes) -> str:
    number = int.from_bytes(clear[8:12], "little")
    clear = clear[:28] + zlib.crc32(clear[:28]).to_bytes(4, "little")
    sealed = clear + opener.encrypt(form.nonce(number), plain, clear)
    reader = PackReader(OnePack(header + sealed), KEYS)  # type: ignore[arg-type]
    try:
        segment = reader.segment(SegmentRef(PACK, form.HEADER_BYTES, len(sealed)))
    except PackDamaged as error:
        return f"segment {error.message}"
    assert sum(ref.length for ref in segment.table) == len(segment.data)
    assert len(segment.data) <= 3 * MIB
    offset, right = 0, 0
    for length, digest in segment.table:
        try:
            assert blake3(segment.chunk(offset, length, digest)).digest() == digest
            right += 1
        except PackDamaged:
            pass
        offset += length
    return f"segment opened, {'all' if right == len(segment.table) else 'not all'} chunks right"


def _check_footer(header: bytes, opener: AESGCM, clear: bytes, plain: bytes) -> str:
    fields = list(struct.unpack("<8sIIQI", clear[:28]))
    fields[1] = len(plain) + 16  # otherwise its seal is searched elsewhere
    body = bytes(min(max(0, fields[3] - len(plain) - 16 - form.TRAILER_BYTES - len(header)), 4 * MIB))
    clear = struct.pack("<8sIIQI", *fields)
    clear += zlib.crc32(clear).to_bytes(4, "little")
    sealed = opener.encrypt(form.nonce(form.FOOTER_NUMBER), plain, clear[: form.TRAILER_SEALED_BYTES])
    reader = PackReader(OnePack(header + body + sealed + clear), KEYS)  # type: ignore[arg-type]
    try:
        summary = reader.footer(PACK)
    except PackDamaged as error:
        return f"footer {error.message}"
    for chunk in summary.chunks:
        place = chunk.place
        assert place.segment.offset >= form.HEADER_BYTES
        assert place.segment.offset + place.segment.length <= summary.size_bytes
        assert 1 <= place.length <= MIB
    return f"footer of {len(summary.chunks)} opened"


TARGETS = [
    Target("pack", _packs, lambda: [_pack_bytes()], _mutate_pack, short_runs=400),
    Target("sealed", _sealed, _sealed_seeds, mutate_bytes, short_runs=800),
]
