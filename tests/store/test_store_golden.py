"""The golden files: reproduced byte for byte, read by the code, and read by hand per docs/format.md."""

import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from golden_objects import (
    BACKUP,
    COMMIT_NS,
    CREATED_NS,
    DATA_CHUNKS,
    DIRECTORY,
    MASTER,
    PAGES,
    RECORDS,
    TEXT,
    TEXT_CHUNKS,
    golden_keys,
    golden_objects,
)
from staddle_server.store.backends.directory import DirectoryBlobs
from staddle_server.store.blobs import check_format
from staddle_server.store.keys import KeyStore, load_master_key, secrets_of
from staddle_server.store.pack import PackReader, Segment, parse_pack_name
from staddle_server.store.records import Records

CHUNKS = DATA_CHUNKS + TEXT_CHUNKS + PAGES


def names() -> dict[str, str]:
    lines = (DIRECTORY / "names.txt").read_text().splitlines()
    return dict(line.split(" ") for line in lines)


def golden(file: str) -> bytes:
    return (DIRECTORY / file).read_bytes()


def derive(context: str, material: bytes) -> bytes:
    return blake3(material, derive_key_context=context).digest()


@pytest.fixture
def store(tmp_path: Path) -> DirectoryBlobs:
    """The golden files as a store."""
    for file, name in names().items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(golden(file))
    return DirectoryBlobs(str(tmp_path))


def test_every_golden_file_is_reproduced_byte_for_byte() -> None:
    made = golden_objects()
    assert {file: name for file, (name, _) in made.items()} == names()
    for file, (_, data) in made.items():
        assert data == golden(file), file
    assert {path.name for path in DIRECTORY.iterdir()} == {*made, "names.txt", "frame.zst"}


def test_the_golden_files_are_a_store_that_reads_back(store: DirectoryBlobs) -> None:
    check_format(store)
    master = load_master_key(str(DIRECTORY / "master.key"))
    key_store = KeyStore(store, master)
    ((tenant, name, created_ns),) = key_store.tenants()
    assert (name, created_ns) == ("default", CREATED_NS)
    keys = key_store.load(tenant)
    assert keys == golden_keys()
    owner, pack = parse_pack_name(names()["pack.bin"])
    assert owner == tenant
    reader = PackReader(store, keys)
    summary = reader.footer(pack)
    assert [
        bytes(reader.segment(place.segment).chunk(place.offset, place.length, blake3(chunk).digest()))
        for (_, place), chunk in zip(summary.chunks, CHUNKS, strict=True)
    ] == CHUNKS
    assert len([found for found in reader.scan(pack) if isinstance(found, Segment)]) == 3
    records = Records(store, keys)
    assert [records.read(record) for record in records.list()] == list(RECORDS.values())


def test_the_golden_master_key_is_the_line_that_the_format_describes() -> None:
    words = golden("master.key").decode().removesuffix("\n").split(" ")
    assert words == ["staddle-master-key-1", MASTER.hex(), blake3(MASTER).hexdigest()[:8]]
    assert golden("format.bin") == b"staddle store 1\n"


def open_keys(file: str) -> dict[str, Any]:
    data = golden(file)
    magic, version, zero, tenant, nonce = struct.unpack("<8sHH16s12s", data[:40])
    assert (magic, version, zero) == (b"STADKEYS", 1, 0)
    assert names()[file].startswith(f"keys/{tenant.hex()}/0000000")
    key = derive("staddle.v1 tenant wrap key", MASTER + tenant)
    body: dict[str, Any] = msgspec.msgpack.decode(
        AESGCM(key).decrypt(nonce, data[40:], data[:40]), strict=True
    )
    assert body["tenant"] == tenant
    return body


def test_the_golden_keys_objects_open_as_the_format_describes() -> None:
    first, second = open_keys("keys-1.bin"), open_keys("keys-2.bin")
    assert list(first) == ["tenant", "name", "created_ns", "root", "pack_keys"]
    assert (first["name"], first["created_ns"]) == ("default", CREATED_NS)
    assert first["root"] == second["root"]
    assert [sorted(one["pack_keys"]) for one in (first, second)] == [[1], [1, 2]]


def test_the_golden_secrets_are_derived_as_the_format_describes() -> None:
    root = open_keys("keys-1.bin")["root"]
    secrets = secrets_of(golden_keys())
    assert secrets.id_key == derive("staddle.v1 chunk id key", root)
    assert secrets.page_key == derive("staddle.v1 manifest page key", root)
    assert secrets.record_key == derive("staddle.v1 record key", root)
    assert secrets.token_key == derive("staddle.v1 page token key", root)
    assert secrets.parity_key == derive("staddle.v1 parity key", root)
    (seed,) = struct.unpack("<Q", derive("staddle.v1 chunker seed", root)[:8])
    assert secrets.chunker_seed == seed % (2**63 - 1) + 1


def test_the_golden_pack_reads_by_hand_as_the_format_describes() -> None:
    data = golden("pack.bin")
    keys = open_keys("keys-2.bin")
    magic, version, zero, key_version, tenant, pack = struct.unpack("<8sHHI16s16s", data[:48])
    assert (magic, version, zero, key_version, tenant) == (b"STADPACK", 1, 0, 2, keys["tenant"])
    digits = pack.hex()
    assert names()["pack.bin"] == f"packs/{tenant.hex()}/{digits[:2]}/{digits}"
    seal = AESGCM(derive("staddle.v1 pack key", keys["pack_keys"][2] + data[:48]))

    magic, footer_bytes, segments, length, chunks, crc = struct.unpack("<8sIIQII", data[-32:])
    assert (magic, segments, length, chunks) == (b"STADTAIL", 3, len(data), 5)
    assert crc == zlib.crc32(data[-32:-4])
    footer = seal.decrypt(bytes(8) + b"\xff\xff\xff\xff", data[-32 - footer_bytes : -32], data[-32:-8])
    rows = list(struct.iter_unpack("<IIIIB3s", footer[:60]))
    refs = list(struct.iter_unpack("<I32s", footer[60:]))
    assert refs == [(len(chunk), blake3(chunk).digest()) for chunk in CHUNKS]

    offset = 48
    payloads, tables = [], []
    for number, row in enumerate(rows):
        head = data[offset : offset + 32]
        fields = struct.unpack("<4sBBHIIIIII", head)
        magic, role, codec, zero, stated, count, stored, raw, last, crc = fields
        assert (magic, zero, stated, last, crc) == (b"SEGM", 0, number, 0, zlib.crc32(head[:28]))
        total = 32 + count * 36 + stored + 16
        assert row == (offset, total, count, raw, role, bytes(3))
        nonce = bytes(8) + struct.pack("<I", number)
        body = seal.decrypt(nonce, data[offset + 32 : offset + total], head)
        tables += struct.iter_unpack("<I32s", body[: count * 36])
        payload = body[count * 36 :]
        payloads.append((role, zstandard.ZstdDecompressor().decompress(payload) if codec else payload))
        assert len(payloads[-1][1]) == raw
        offset += total
    assert offset == len(data) - 32 - footer_bytes
    assert tables == refs
    assert payloads == [(1, b"".join(DATA_CHUNKS)), (1, TEXT), (2, b"".join(PAGES))]


def test_the_golden_parity_reads_by_hand_as_the_format_describes() -> None:
    data, pack = golden("parity.bin"), golden("pack.bin")
    assert names()["parity.bin"] == names()["pack.bin"].replace("packs/", "parity/")
    key = derive("staddle.v1 parity key", open_keys("keys-1.bin")["root"])
    head = data[:96]
    fields = struct.unpack("<8sHHIQIHH16s16s", head[:64])
    assert fields == (b"STADPRTY", 1, 0, len(pack), len(pack), 1, 1, 1, pack[16:32], pack[32:48])
    assert head[64:] == blake3(head[:64], key=key).digest()
    parity = data[96 : 96 + len(pack)]
    # One column, one parity block: the factor is the inverse of 1 xor 0.
    assert parity == pack
    assert data[96 + len(pack) :] == blake3(pack, key=key).digest()[:8] * 2 + head


def test_the_golden_chunks_have_the_ids_that_the_format_describes(store: DirectoryBlobs) -> None:
    keys = golden_keys()
    summary = PackReader(store, keys).footer(parse_pack_name(names()["pack.bin"])[1])
    id_key = derive("staddle.v1 chunk id key", keys.root)
    roles = [1, 1, 1, 1, 2]
    assert [chunk.chunk_id for chunk in summary.chunks] == [
        blake3(bytes([role]) + blake3(chunk).digest(), key=id_key).digest()
        for role, chunk in zip(roles, CHUNKS, strict=True)
    ]


def test_the_golden_head_opens_by_hand_as_the_format_describes() -> None:
    data = golden("head.bin")
    magic, version, zero, tenant, nonce = struct.unpack("<8sHH16s12s", data[:40])
    assert (magic, version, zero) == (b"STADHEAD", 1, 0)
    assert names()["head.bin"] == f"heads/{tenant.hex()}"
    key = derive("staddle.v1 record key", open_keys("keys-1.bin")["root"])
    opened = AESGCM(key).decrypt(nonce, data[40:], data[:40])
    assert struct.unpack("<Q", opened) == (len(RECORDS),)


def test_the_golden_mark_says_who_began_when() -> None:
    first, content, end = golden("mark.bin").split(b"\n")
    assert (first, end) == (b"staddle mark 1", b"")
    assert json.loads(content) == {"host": "granary", "began": "2026-11-29T08:00:00Z"}
    assert re.fullmatch(r"marks/000000000007-[0-9a-f]{16}", names()["mark.bin"])


COMMITTED_FIELDS = (
    "backup",
    "dataset",
    "number",
    "kind",
    "scope",
    "base",
    "begin_ns",
    "commit_ns",
    "root",
    "stored_bytes",
    "changes",
    "tags",
    "host",
    "source_root",
    "principal",
    "upload",
    "request_id",
    "begun_by",
    "written_by",
)
"""In the order of docs/format.md."""


@pytest.mark.parametrize("kind", RECORDS)
def test_a_golden_record_opens_by_hand_as_the_format_describes(kind: str) -> None:
    data = golden(f"record-{kind}.bin")
    magic, version, zero, tenant, record_id, sequence, previous, nonce = struct.unpack(
        "<8sHH16s16sQ32s12s", data[:96]
    )
    assert (magic, version, zero) == (b"STADRECD", 1, 0)
    assert sequence == list(RECORDS).index(kind) + 1
    assert names()[f"record-{kind}.bin"] == f"records/{tenant.hex()}/{sequence:012x}-{record_id.hex()}"
    key = derive("staddle.v1 record key", open_keys("keys-1.bin")["root"])
    opened = AESGCM(key).decrypt(nonce, data[96:], data[:96])
    if sequence == 1:
        assert previous == bytes(32)
    if sequence < len(RECORDS):
        after = golden(f"record-{list(RECORDS)[sequence]}.bin")
        assert after[52:84] == derive("staddle.v1 record link", data[12:84] + opened)
    body = msgspec.msgpack.decode(opened)
    assert body.pop("type") == kind
    if kind == "committed":
        assert tuple(body) == COMMITTED_FIELDS
        assert body["written_by"] == ["token:began", "token:golden"]
        assert body["changes"] == [1, 2, 3, 4, 5]
        assert body["root"][0::2] == [1, 1000]
        assert (body["kind"], body["scope"], body["commit_ns"]) == (2, 1, COMMIT_NS)
    else:
        expected = {
            "tenant": {"name": "default", "created_ns": CREATED_NS},
            "deleted": {"backup": BACKUP, "at_ns": COMMIT_NS + 1},
            "undeleted": {"backup": BACKUP, "at_ns": COMMIT_NS + 2},
            "purged": {"backup": BACKUP, "at_ns": COMMIT_NS + 3},
            "held": {"backup": BACKUP, "dataset": "orders-db", "reason": "case 12", "at_ns": COMMIT_NS + 4},
            "released": {"backup": b"", "dataset": "orders-db", "at_ns": COMMIT_NS + 5},
            "retained": {"backup": BACKUP, "until_ns": COMMIT_NS * 2, "at_ns": COMMIT_NS + 6},
            "policy": {
                "dataset": "orders-db",
                "policy": '{"keep_last":3}',
                "min_retention_s": 86_400,
                "at_ns": COMMIT_NS + 7,
            },
            "forgotten": {"spans": [[3, 5], [9, 9]], "at_ns": COMMIT_NS + 9},
            "tenant_settings": {"grace_s": 3_600, "at_ns": COMMIT_NS + 8},
            "noted": {"what": "a token was revoked"},
            "expected": {
                "dataset": "orders-db",
                "every_s": 86_400,
                "grace_s": 7_200,
                "since_ns": CREATED_NS,
                "mute_until_ns": COMMIT_NS * 2,
                "at_ns": COMMIT_NS + 10,
            },
        }
        assert body == expected[kind]
