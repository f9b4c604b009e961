"""The contents of the store's golden files: objects of every kind from fixed keys, ids, nonces and payloads.

Run as a program, this writes the missing files. It never changes an existing one, since formats only grow.
"""

from pathlib import Path

import zstandard
from staddle_server.base.types import NO_LINK, ChangeCounts, Kind, Place, Role, Root, Scope, TenantKeys
from staddle_server.store.backends.memory import MemoryBlobs
from staddle_server.store.blobs import create_format
from staddle_server.store.keys import KeyStore, WrappedKeys, keys_name, master_key_line, wrap_keys
from staddle_server.store.marks import Began, GenerationMark, put_mark
from staddle_server.store.pack import Codec, parse_pack_name
from staddle_server.store.pack_writer import PackWriter
from staddle_server.store.parity import Parity, parity_name
from staddle_server.store.records import (
    CommittedRecord,
    DeletedRecord,
    ExpectedRecord,
    ForgottenRecord,
    HeldRecord,
    NotedRecord,
    PolicyRecord,
    PurgedRecord,
    Record,
    Records,
    ReleasedRecord,
    RetainedRecord,
    TenantRecord,
    TenantSettingsRecord,
    UndeletedRecord,
    encode_record,
)
from store_data import Seeded, append_raw, table_of

DIRECTORY = Path(__file__).parent.parent / "golden" / "store"
MASTER = Seeded("golden master key")(32)
CREATED_NS = 1_700_000_000_000_000_000
COMMIT_NS = CREATED_NS + 3_600_000_000_000
TEXT = b"a line that zstd makes short\n" * 40
DATA_CHUNKS = [b"first chunk", b"second chunk\0\xff"]
TEXT_CHUNKS = [TEXT[:400], TEXT[400:]]
PAGES = [b"\x01\x90"]
# Made by zstandard 0.25 at level 1. Fixed here, since another zstd may compress differently.
FRAME = DIRECTORY / "frame.zst"
BACKUP = Seeded("golden backup")(16)
RECORDS: dict[str, Record] = {
    "tenant": TenantRecord("default", CREATED_NS),
    "committed": CommittedRecord(
        backup=BACKUP,
        dataset="orders-db",
        number=2,
        kind=Kind.INCREMENTAL,
        scope=Scope.WHOLE,
        base=Seeded("golden base")(16),
        begin_ns=COMMIT_NS - 5_000_000_000,
        commit_ns=COMMIT_NS,
        root=Root(1, Seeded("golden root")(32), 1000, 123_456_789_012),
        stored_bytes=4_321,
        changes=ChangeCounts(1, 2, 3, 4, 5),
        tags={"env": "test", "größe": ""},
        host="db-1.example",
        source_root="/srv/orders",
        principal="token:golden",
        upload=Seeded("golden upload")(16),
        request_id="request-1",
        begun_by="token:began",
        written_by=("token:began", "token:golden"),
    ),
    "deleted": DeletedRecord(BACKUP, COMMIT_NS + 1),
    "undeleted": UndeletedRecord(BACKUP, COMMIT_NS + 2),
    "purged": PurgedRecord(BACKUP, COMMIT_NS + 3),
    "held": HeldRecord(BACKUP, "orders-db", "case 12", COMMIT_NS + 4),
    "released": ReleasedRecord(b"", "orders-db", COMMIT_NS + 5),
    "retained": RetainedRecord(BACKUP, COMMIT_NS * 2, COMMIT_NS + 6),
    "policy": PolicyRecord("orders-db", '{"keep_last":3}', 86_400, COMMIT_NS + 7),
    "forgotten": ForgottenRecord([(3, 5), (9, 9)], COMMIT_NS + 9),
    "tenant_settings": TenantSettingsRecord(3_600, COMMIT_NS + 8),
    "noted": NotedRecord("a token was revoked"),
    "expected": ExpectedRecord("orders-db", 86_400, 7_200, CREATED_NS, COMMIT_NS * 2, COMMIT_NS + 10),
}


def golden_keys() -> TenantKeys:
    keys = KeyStore(MemoryBlobs(), MASTER, random=Seeded("golden tenant")).create("default", CREATED_NS)
    return TenantKeys(keys.tenant, keys.root, {**keys.pack_keys, 2: Seeded("golden pack key 2")(32)})


def golden_objects() -> dict[str, tuple[str, bytes]]:
    """For each golden file, its object name in the store and its bytes."""
    blobs, keys = MemoryBlobs(), golden_keys()
    create_format(blobs)
    KeyStore(blobs, MASTER, random=Seeded("golden tenant")).create("default", CREATED_NS)
    newest = WrappedKeys(keys.tenant, "default", CREATED_NS, keys.root, keys.pack_keys)
    blobs.put(keys_name(keys.tenant, 2), wrap_keys(MASTER, newest, Seeded("golden keys 2")))
    files = {
        "format.bin": "format",
        "keys-1.bin": keys_name(keys.tenant, 1),
        "keys-2.bin": keys_name(keys.tenant, 2),
    }
    writer = PackWriter(blobs, keys, random=Seeded("golden pack"))
    append_raw(writer, Role.DATA, DATA_CHUNKS)
    writer.append(Role.DATA, table_of(TEXT_CHUNKS), Codec.ZSTD, FRAME.read_bytes(), len(TEXT))
    append_raw(writer, Role.MANIFEST, PAGES)
    writer.finish()
    (files["pack.bin"],) = (name for name, _ in blobs.list("packs"))
    _, pack = parse_pack_name(files["pack.bin"])
    Parity(blobs, keys).make(pack, 10)
    files["parity.bin"] = parity_name(keys.tenant, pack)
    records = Records(blobs, keys, random=Seeded("golden records"))
    place = Place(1, NO_LINK)
    for kind, record in RECORDS.items():
        record_id = Seeded(f"golden {kind}")(16)
        name = files[f"record-{kind}.bin"] = records.put(encode_record(record), place, record_id)
        place = Place(place.sequence + 1, records.stored(name).link)
    records.head.write(len(RECORDS))
    files["head.bin"] = records.head.name
    mark = GenerationMark(7, Seeded("golden mark")(8).hex())
    put_mark(blobs, mark, Began("granary", "2026-11-29T08:00:00Z"))
    files["mark.bin"] = mark.name
    objects = {file: (name, blobs.objects[name]) for file, name in files.items()}
    return {"master.key": ("master.key", master_key_line(MASTER).encode()), **objects}


def main() -> None:
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    if not FRAME.exists():
        FRAME.write_bytes(zstandard.ZstdCompressor(level=1).compress(TEXT))
    objects = golden_objects()
    for file, (_, data) in objects.items():
        if not (DIRECTORY / file).exists():
            (DIRECTORY / file).write_bytes(data)
            print(f"wrote {file}")
    names = DIRECTORY / "names.txt"
    if not names.exists():
        names.write_text("".join(f"{file} {name}\n" for file, (name, _) in objects.items()))


if __name__ == "__main__":
    main()
