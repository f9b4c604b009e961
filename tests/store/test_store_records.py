"""Records of decisions: durable, and readable by their tenant alone."""

from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from staddle_server.base.errors import Damaged
from staddle_server.base.limits import RECORD_BYTES_MAX
from staddle_server.base.types import (
    EMPTY_ROOT,
    NO_LINK,
    ChangeCounts,
    Kind,
    Place,
    Root,
    Scope,
    TenantKeys,
    record_link,
)
from staddle_server.store.backends.memory import MemoryBlobs
from staddle_server.store.blobs import BlobExists, BlobMissing, Blobs
from staddle_server.store.keys import secrets_of
from staddle_server.store.records import (
    CommittedRecord,
    DeletedRecord,
    Record,
    Records,
    TenantRecord,
    UndeletedRecord,
    encode_record,
    record_name,
    sequence_of,
)
from store_data import tenant_keys

NOW_NS = 1_700_000_000_123_456_789
ID = bytes(range(16))
COMMITTED = CommittedRecord(
    backup=ID,
    dataset="orders-db",
    number=7,
    kind=Kind.INCREMENTAL,
    scope=Scope.CHANGES,
    base=bytes(range(1, 17)),
    begin_ns=NOW_NS - 5,
    commit_ns=NOW_NS,
    root=Root(1, bytes(range(32)), 1000, 123_456_789_012),
    stored_bytes=4_321,
    changes=ChangeCounts(1, 2, 3, 4, 5),
    tags={"host": "a", "ä": ""},
    host="db-1",
    source_root="/srv/\N{SNOWMAN}",
    principal="token:abc",
    upload=bytes(range(2, 18)),
    request_id="r-1",
    begun_by="token:abc",
    written_by=("token:abc", "token:def"),
)
RECORDS: list[Record] = [
    TenantRecord("default", NOW_NS),
    COMMITTED,
    msgspec.structs.replace(COMMITTED, base=b"", kind=Kind.FULL, scope=Scope.WHOLE, root=EMPTY_ROOT, tags={}),
    DeletedRecord(ID, NOW_NS),
    UndeletedRecord(ID, NOW_NS),
]


FIRST = Place(1, NO_LINK)


def put(records: Records, record: Record, place: Place = FIRST, record_id: bytes = ID) -> str:
    return records.put(encode_record(record), place, record_id)


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_reads_back_as_it_was_put(blobs: Blobs, keys: TenantKeys, record: Record) -> None:
    place = Place(77, bytes(range(32)))
    name = put(Records(blobs, keys), record, place)
    assert Records(blobs, keys).read(name) == record
    assert type(Records(blobs, keys).read(name)) is type(record)
    stored = Records(blobs, keys).stored(name)
    assert stored == (record, place, record_link(keys.tenant, ID, place, encode_record(record)))


def test_records_are_listed_in_the_order_of_their_chain(
    blobs: Blobs, keys: TenantKeys, other_keys: TenantKeys
) -> None:
    records = Records(blobs, keys)
    numbers = (6, 1, 4, 900_000_000_000, 2)
    names = {number: put(records, DeletedRecord(ID, 1), Place(number, NO_LINK)) for number in numbers}
    put(Records(blobs, other_keys), DeletedRecord(ID, 1))
    assert list(records.list()) == [names[number] for number in sorted(numbers)]
    assert len(list(Records(blobs, other_keys).list())) == 1


def test_writing_a_record_twice_at_its_place_keeps_one(blobs: Blobs, keys: TenantKeys) -> None:
    records = Records(blobs, keys)
    names = {put(records, COMMITTED) for _ in range(3)}
    assert list(records.list()) == sorted(names)
    assert names == {record_name(keys.tenant, 1, ID)}


def test_a_place_that_holds_another_record_is_refused(blobs: Blobs, keys: TenantKeys) -> None:
    records = Records(blobs, keys)
    name = put(records, DeletedRecord(ID, 1))
    with pytest.raises(BlobExists):
        put(records, UndeletedRecord(ID, 1))
    with pytest.raises(BlobExists):
        put(records, DeletedRecord(ID, 1), Place(1, bytes(range(32))))
    assert records.read(name) == DeletedRecord(ID, 1)


def test_each_record_is_sealed_under_a_unique_nonce(memory: MemoryBlobs, keys: TenantKeys) -> None:
    records = Records(memory, keys)
    for number in range(1, 101):
        put(records, COMMITTED, Place(number, NO_LINK))
    nonces = {data[84:96] for data in memory.objects.values()}
    assert len(nonces) == 100


def test_the_head_names_the_newest_record(memory: MemoryBlobs, keys: TenantKeys) -> None:
    head = Records(memory, keys).head
    with pytest.raises(BlobMissing, match=head.name):
        head.read()
    for number in (1, 2, 2**47):
        head.write(number)
        assert Records(memory, keys).head.read() == number
    assert list(memory.objects) == [head.name]


def test_every_flipped_bit_and_every_cut_of_a_head_is_damage_that_names_it(
    memory: MemoryBlobs, keys: TenantKeys, other_keys: TenantKeys
) -> None:
    head = Records(memory, keys).head
    head.write(7)
    data = memory.objects[head.name]
    wrong = [data[:length] for length in range(len(data))] + [data + b"x"]
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        wrong.append(bytes(damaged))
    other = Records(memory, other_keys).head
    other.write(9)
    wrong.append(memory.objects[other.name])
    for each in wrong:
        memory.objects[head.name] = each
        with pytest.raises(Damaged, match=head.name):
            head.read()


def test_a_missing_record_is_named(blobs: Blobs, keys: TenantKeys) -> None:
    name = record_name(keys.tenant, 1, ID)
    with pytest.raises(BlobMissing, match=name):
        Records(blobs, keys).read(name)


def test_every_flipped_bit_and_every_cut_of_a_record_is_damage_that_names_it(
    memory: MemoryBlobs, keys: TenantKeys
) -> None:
    records = Records(memory, keys)
    name = put(records, DeletedRecord(ID, NOW_NS))
    data = memory.objects[name]
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        memory.objects[name] = bytes(damaged)
        with pytest.raises(Damaged, match=name):
            records.read(name)
    for length in range(len(data)):
        memory.objects[name] = data[:length]
        with pytest.raises(Damaged, match=name):
            records.read(name)


def test_a_record_under_another_name_or_tenant_is_damage(
    memory: MemoryBlobs, keys: TenantKeys, other_keys: TenantKeys
) -> None:
    name = put(Records(memory, keys), DeletedRecord(ID, NOW_NS))
    moved = record_name(keys.tenant, 1, bytes(16))
    planted = record_name(other_keys.tenant, 1, ID)
    memory.objects[moved] = memory.objects[planted] = memory.objects[name]
    with pytest.raises(Damaged, match="another record"):
        Records(memory, keys).read(moved)
    with pytest.raises(Damaged, match="wrong header"):
        Records(memory, other_keys).read(planted)
    with pytest.raises(Damaged, match="wrong header"):
        Records(memory, other_keys).read(name)
    forged = bytearray(memory.objects[name])
    forged[12:28] = other_keys.tenant
    memory.objects[planted] = bytes(forged)
    with pytest.raises(Damaged, match="does not open"):
        Records(memory, other_keys).read(planted)


def test_a_record_over_its_limit_is_neither_written_nor_read(memory: MemoryBlobs, keys: TenantKeys) -> None:
    records = Records(memory, keys)
    tags = {f"{i}": "x" * 16_000 for i in range(64)}
    huge = msgspec.structs.replace(COMMITTED, tags=tags, host="x" * 16_000, principal="x" * 16_000)
    with pytest.raises(ValueError, match="at most"):
        put(records, huge)
    assert memory.objects == {}
    name = record_name(keys.tenant, 1, ID)
    memory.objects[name] = bytes(RECORD_BYTES_MAX + 1)
    with pytest.raises(Damaged, match=name):
        records.read(name)


@pytest.mark.parametrize(("sequence", "record_id"), [(0, ID), (-1, ID), (2**48, ID), (1, ID[1:]), (1, b"")])
def test_an_impossible_record_name_is_refused(keys: TenantKeys, sequence: int, record_id: bytes) -> None:
    with pytest.raises(ValueError, match="record's name"):
        record_name(keys.tenant, sequence, record_id)


@given(st.integers(1, 2**48 - 1), st.binary(min_size=16, max_size=16), st.integers(0, 85))
def test_only_names_that_records_get_are_parsed(sequence: int, record_id: bytes, at: int) -> None:
    name = record_name(tenant_keys("here").tenant, sequence, record_id)
    assert sequence_of(name) == sequence
    for wrong in (name[:-1], name + "0", name[1:], name.upper(), f"old/{name}", name.replace("-", "")):
        assert sequence_of(wrong) is None
    assert sequence_of(name[:at] + "g" + name[at + 1 :]) is None


CHANGES: list[dict[str, Any]] = [
    {"backup": b""},
    {"backup": bytes(17)},
    {"dataset": ""},
    {"dataset": "x" * 256},
    {"number": -1},
    {"kind": Kind.AUTO},
    {"kind": 9},
    {"scope": 0},
    {"base": bytes(15)},
    {"begin_ns": -1},
    {"root": Root(16, bytes(32), 1, 0)},
    {"root": Root(0, bytes(31), 1, 0)},
    {"root": Root(0, b"", 1, 0)},
    {"root": Root(0, bytes(32), 0, 0)},
    {"root": Root(0, bytes(32), 1, -1)},
    {"changes": ChangeCounts(-1)},
    {"tags": {str(i): "" for i in range(65)}},
    {"upload": bytes(15)},
    {"request_id": "x" * 129},
    {"host": 5},
    {"stored_bytes": 1.5},
]


def seal(keys: TenantKeys, body: bytes) -> dict[str, bytes]:
    """A sealed record with any body, as anyone with the tenant's keys could make it."""
    head = b"STADRECD" + bytes([1, 0, 0, 0]) + keys.tenant + ID + bytes([1, *bytes(7)]) + NO_LINK + bytes(12)
    data = head + AESGCM(secrets_of(keys).record_key).encrypt(bytes(12), body, head)
    return {record_name(keys.tenant, 1, ID): data}


@pytest.mark.parametrize("change", CHANGES)
def test_impossible_values_of_a_record_are_neither_written_nor_read(
    memory: MemoryBlobs, keys: TenantKeys, change: dict[str, Any]
) -> None:
    fields = msgspec.structs.asdict(COMMITTED) | change

    def put() -> None:
        Records(memory, keys).put(CommittedRecord(**fields), NOW_NS)

    with pytest.raises((ValueError, TypeError)):
        put()
    assert memory.objects == {}
    memory.objects = seal(keys, msgspec.msgpack.encode({"type": "committed"} | fields))
    with pytest.raises(Damaged):
        Records(memory, keys).read(*memory.objects)


@pytest.mark.parametrize(
    "body",
    [
        {"type": "deleted", "backup": ID},
        {"backup": ID, "at_ns": 1},
        {"type": "unheard-of", "backup": ID, "at_ns": 1},
        {"type": 5, "backup": ID, "at_ns": 1},
        {"type": "deleted", "backup": ID.hex(), "at_ns": 1},
        {"type": "deleted", "backup": ID, "at_ns": "1"},
        {"type": "deleted", "backup": ID, "at_ns": None},
        ["deleted", ID, 1],
        None,
    ],
)
def test_a_sealed_record_in_another_form_is_damage(
    memory: MemoryBlobs, keys: TenantKeys, body: object
) -> None:
    memory.objects = seal(keys, msgspec.msgpack.encode(body))
    with pytest.raises(Damaged, match="form"):
        Records(memory, keys).read(*memory.objects)


def test_keys_added_by_later_versions_are_ignored(memory: MemoryBlobs, keys: TenantKeys) -> None:
    later = {"type": "deleted", "backup": ID, "at_ns": 1, "scheme": "sealed", "list": [1, {}]}
    memory.objects = seal(keys, msgspec.msgpack.encode(later))
    assert Records(memory, keys).read(*memory.objects) == DeletedRecord(ID, 1)
    memory.objects = seal(keys, msgspec.msgpack.encode(later) + b"\0")
    with pytest.raises(Damaged):
        Records(memory, keys).read(*memory.objects)


GOOD = msgspec.msgpack.encode(COMMITTED)


@given(st.binary(max_size=300), st.integers(0, len(GOOD)))
def test_hostile_bytes_are_refused_as_a_record(junk: bytes, keep: int) -> None:
    keys = tenant_keys("here")
    deep = b"\x82\xa4type\xa7deleted\xa1x" + b"\x91" * 5000
    for body in (junk, GOOD[:keep] + junk, deep + junk):
        memory = MemoryBlobs()
        memory.objects = seal(keys, body)
        try:
            record = Records(memory, keys).read(*memory.objects)
        except Damaged:
            continue
        again = Records(memory, keys).put(encode_record(record), FIRST, b"another record's")
        assert Records(memory, keys).read(again) == record
    memory = MemoryBlobs()
    memory.objects = dict.fromkeys(seal(keys, b""), junk)
    with pytest.raises(Damaged):
        Records(memory, keys).read(*memory.objects)
