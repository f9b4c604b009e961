"""Frames as clients send them; records and keys as they are stored, above and below their seals."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from fuzz_engine import MIB, Check, Target, documented, mutate_bytes, mutate_msgpack
from staddle_server.base.errors import BadRequest, Damaged
from staddle_server.base.limits import PUT_CHUNKS_INFLATED_BYTES_MAX
from staddle_server.base.types import ChangeCounts, ChunkRef, Kind, Root, Scope, TenantKeys
from staddle_server.store.keys import (
    MasterKeyError,
    WrappedKeys,
    WrongMasterKey,
    _wrap_key,
    master_key_line,
    parse_master_key,
    unwrap_keys,
    wrap_keys,
)
from staddle_server.store.records import (
    CommittedRecord,
    ExpectedRecord,
    HeldRecord,
    PolicyRecord,
    Record,
    RetainedRecord,
    TenantRecord,
    decode_record,
    encode_record,
)
from staddle_server.upload.frames import check_frame

KEYS = TenantKeys(bytes(range(16)), bytes(range(32)), {1: bytes(32), 2: b"\1" * 32})
NOW_NS = 1_700_000_000_000_000_000


def table_of(chunks: list[bytes]) -> list[ChunkRef]:
    return [ChunkRef(len(chunk), blake3(chunk).digest()) for chunk in chunks]


# ---------------------------------------------------------------------- frames

_REF = struct.Struct("<I32s")


def frame_input(chunks: list[bytes], data: bytes, *, raw: bool) -> bytes:
    """A PutChunks frame as bytes: how many chunks, their table, whether it is raw, the data."""
    table = b"".join(_REF.pack(*ref) for ref in table_of(chunks))
    return bytes([raw, len(chunks)]) + table + data


def _frame_seeds() -> list[bytes]:
    text = [b"a line of text\n" * 200, b"another line\n" * 90]
    noise = [random.Random(1).randbytes(5000)]
    zstd = zstandard.ZstdCompressor
    zeros = [bytes(MIB), bytes(MIB)]
    made = [
        frame_input(text, b"".join(text), raw=True),
        frame_input(text, zstd().compress(b"".join(text)), raw=False),
        frame_input(text, zstd(level=19, write_checksum=True).compress(b"".join(text)), raw=False),
        frame_input(noise, zstd().compress(noise[0]), raw=False),
        frame_input([b"x"], zstd().compress(b"x"), raw=False),
        # Zip bombs: that many bytes in so few, within and beyond what a call may bring.
        frame_input(zeros, zstd().compress(bytes(2 * MIB)), raw=False),
        frame_input(zeros, zstd().compress(bytes(64 * MIB)), raw=False),
        frame_input(text, zstd(write_content_size=False).compress(b"".join(text)), raw=False),
        frame_input(text, b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + zstd().compress(b"".join(text)), raw=False),
        frame_input(text, zstd().compress(text[0]) + zstd().compress(text[1]), raw=False),
    ]
    wide = zstandard.ZstdCompressionParameters.from_level(3, window_log=27, enable_ldm=True)
    made.append(frame_input(noise, zstd(compression_params=wide).compress(noise[0]), raw=False))
    dictionary = zstandard.ZstdCompressionDict(b"a line of text\n" * 20)
    made.append(frame_input(text, zstd(dict_data=dictionary).compress(b"".join(text)), raw=False))
    return made


@contextmanager
def _frames() -> Iterator[Check]:
    yield check_frame_input


def check_frame_input(data: bytes) -> str:
    """Refused with a documented reason, or exactly the chunks that the table names."""
    raw, count, rest = bool(data[:1] > b"\0"), (data[1:2] or b"\0")[0], data[2:]
    table = [
        ChunkRef(*_REF.unpack_from(rest, at * _REF.size)) for at in range(min(count, len(rest) // _REF.size))
    ]
    payload = rest[len(table) * _REF.size :]
    if payload[:1] == b"\xee" or (data and data[0] & 2):
        table = _told_the_truth(table, payload)
    try:
        frame = check_frame(table, payload, raw=raw)
    except BadRequest as error:
        return documented(error, "BAD_FIELD", "BAD_FRAME", "DIGEST_MISMATCH")
    inflated = payload if raw else zstandard.ZstdDecompressor().decompressobj().decompress(payload)
    assert len(inflated) == frame.raw_length <= PUT_CHUNKS_INFLATED_BYTES_MAX
    assert table_of(_pieces(inflated, table)) == table
    return f"taken, {'raw' if raw else 'zstd'}"


def _told_the_truth(table: list[ChunkRef], payload: bytes) -> list[ChunkRef]:
    """The table with the digests of what the frame holds in fact: so odd frames get past the digests."""
    inflated = b""
    with suppress(zstandard.ZstdError, MemoryError):
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 23).stream_reader(payload)
        inflated = reader.read(PUT_CHUNKS_INFLATED_BYTES_MAX + 1)
    return (
        table_of([inflated[:MIB], inflated[MIB:]] if len(inflated) > MIB else [inflated])
        if inflated
        else table
    )


def _pieces(data: bytes, table: list[ChunkRef]) -> list[bytes]:
    pieces, at = [], 0
    for ref in table:
        pieces.append(data[at : at + ref.length])
        at += ref.length
    return pieces


def _mutate_frame(chance: random.Random, data: bytes) -> bytes:
    mutated = bytearray(mutate_bytes(chance, data))
    if mutated and chance.random() < 0.5:
        mutated[0] |= 2
        mutated[0] &= ~1
    return bytes(mutated)


# ---------------------------------------------------------------------- records and keys

RECORDS: list[Record] = [
    TenantRecord("default", NOW_NS),
    CommittedRecord(
        bytes(16), "db", 1, Kind.FULL, Scope.WHOLE, b"", NOW_NS, NOW_NS, Root(1, bytes(32), 9, 9), 1, ChangeCounts(9),
        {"k": "v"}, "host", "/srv", "token", bytes(16), "r", "first", ("first", "token"), True, 5,
    ),
    HeldRecord(b"", "db", "law", NOW_NS),
    RetainedRecord(bytes(16), NOW_NS, NOW_NS),
    PolicyRecord("db", '{"last": 3}', 60, NOW_NS),
    ExpectedRecord("db", 3600, 60, NOW_NS, 0, NOW_NS),
]  # fmt: skip


def _before_names(cause: object) -> str:
    """What an error says before it quotes the input."""
    return re.split("['`]", str(cause), maxsplit=1)[0]


@contextmanager
def _records() -> Iterator[Check]:
    def check(data: bytes) -> str:
        try:
            record = decode_record(data, "records/x")
        except Damaged as error:
            return f"{error.message} {type(error.__cause__).__name__} {_before_names(error.__cause__)}"
        # What was read can be written again, and says the same.
        again = decode_record(encode_record(record), "records/x")
        assert again == record
        return f"a record {type(record).__name__}"

    yield check


_KEYS_HEAD = struct.Struct("<8sHH16s12s")
MASTER = bytes(range(32))


@contextmanager
def _keys() -> Iterator[Check]:
    def check(data: bytes) -> str:
        outcomes = []
        for each in (data, _rewrapped(data)):
            try:
                wrapped = unwrap_keys(MASTER, KEYS.tenant, each, "keys/x")
            except (Damaged, WrongMasterKey) as error:
                outcomes.append(f"{error.message} {error.__cause__}")
                continue
            assert wrapped.tenant == KEYS.tenant
            assert all(len(key) == 32 for key in (wrapped.root, *wrapped.pack_keys.values()))
            outcomes.append("keys")
        return "; ".join(outcomes)

    yield check


def _rewrapped(data: bytes) -> bytes:
    """The body as it is, sealed rightly."""
    head = _KEYS_HEAD.pack(b"STADKEYS", 1, 0, KEYS.tenant, bytes(12))
    return head + AESGCM(_wrap_key(MASTER, KEYS.tenant)).encrypt(bytes(12), data, head)


def _keys_seeds() -> list[bytes]:
    wrapped = WrappedKeys(KEYS.tenant, "default", NOW_NS, KEYS.root, KEYS.pack_keys)
    return [wrap_keys(MASTER, wrapped, bytes), msgspec.msgpack.encode(wrapped)]


@contextmanager
def _master() -> Iterator[Check]:
    def check(data: bytes) -> str:
        try:
            master = parse_master_key(data, "master.key")
        except MasterKeyError as error:
            return error.message
        assert master == MASTER, "whatever stands around it, the check digits let no other key through"
        return "a master key"

    yield check


def _master_seeds() -> list[bytes]:
    line = master_key_line(MASTER)
    return [
        line.encode(),
        line.upper().encode("utf-16"),
        f'"{line[:50]}\r\n  {line[50:]}"'.encode("utf-8-sig"),
    ]


TARGETS = [
    Target("frame", _frames, _frame_seeds, _mutate_frame, short_runs=1500),
    Target(
        "record",
        _records,
        lambda: [encode_record(record) for record in RECORDS],
        mutate_msgpack,
        short_runs=3000,
    ),
    Target("keys", _keys, _keys_seeds, mutate_msgpack, short_runs=1500),
    Target("master", _master, _master_seeds, mutate_bytes, short_runs=800),
]
