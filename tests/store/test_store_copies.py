"""Second copies of records and keys: read where the first is damaged, and each restored from the other."""

import pytest
from staddle_server.base.errors import Damaged, Unavailable
from staddle_server.base.limits import RECORD_BYTES_MAX
from staddle_server.base.types import NO_LINK, Place, TenantKeys
from staddle_server.store.backends.memory import MemoryBlobs
from staddle_server.store.blobs import BlobMissing, Blobs
from staddle_server.store.copies import CopyState, copy_name
from staddle_server.store.keys import KEYS_BYTES_MAX, KeyStore, WrappedKeys, keys_name, wrap_keys
from staddle_server.store.records import DeletedRecord, Record, Records, UndeletedRecord, encode_record
from staddle_server.store.wrapped import WrappedBlobs
from store_data import Seeded

NOW_NS = 1_700_000_000_000_000_000
MASTER = Seeded("master")(32)
DELETED = DeletedRecord(bytes(range(16)), NOW_NS)


def put(records: Records, record: Record, number: int = 1) -> str:
    return records.put(encode_record(record), Place(number, NO_LINK), bytes(16))


def spoilt(blobs: Blobs, name: str, data: bytes) -> None:
    writer = blobs.create()
    writer.write(data)
    writer.replace(name)


def whole(blobs: Blobs, name: str) -> bytes:
    return blobs.read(name, 0, blobs.size(name))


def test_a_copy_is_made_once_and_is_the_object_byte_for_byte(blobs: Blobs, keys: TenantKeys) -> None:
    records = Records(blobs, keys)
    name = put(records, DELETED)
    assert list(records.copies.lacking("records")) == [name]
    assert records.copies.mend(name) is CopyState.COPIED
    assert whole(blobs, copy_name(name)) == whole(blobs, name)
    assert records.copies.mend(name) is CopyState.WHOLE
    assert list(records.copies.lacking("records")) == []
    assert list(records.list()) == [name]


def test_a_record_that_was_lost_and_written_again_is_copied_again(
    memory: MemoryBlobs, keys: TenantKeys
) -> None:
    records = Records(memory, keys)
    name = put(records, DELETED)
    records.copies.mend(name)
    del memory.objects[name]
    assert put(records, DELETED) == name
    assert memory.objects[name] != memory.objects[copy_name(name)]
    assert records.copies.mend(name) is CopyState.COPIED
    assert memory.objects[name] == memory.objects[copy_name(name)]


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "huge", "gone", "another one"])
@pytest.mark.parametrize("which", ["object", "copy"])
def test_a_record_with_one_good_copy_is_read_and_listed_and_the_other_copy_is_restored(
    blobs: Blobs, keys: TenantKeys, how: str, which: str
) -> None:
    records = Records(blobs, keys)
    name, other = put(records, DELETED), put(records, UndeletedRecord(bytes(16), NOW_NS), 2)
    records.copies.mend(name)
    data = whole(blobs, name)
    damaged = name if which == "object" else copy_name(name)
    if how == "gone":
        blobs.delete(damaged)
    else:
        changed = {
            "flipped": data[:60] + bytes([data[60] ^ 1]) + data[61:],
            "cut": data[:-1],
            "empty": b"",
            "huge": data + bytes(2 << 20),
            "another one": whole(blobs, other),
        }
        spoilt(blobs, damaged, changed[how])
    assert records.read(name) == DELETED
    assert sorted(records.list()) == sorted([name, other])
    assert records.copies.mend(name) is (CopyState.RESTORED if which == "object" else CopyState.COPIED)
    assert whole(blobs, name) == whole(blobs, copy_name(name)) == data


def test_a_record_without_a_good_copy_is_damaged_and_stays_unchanged(
    memory: MemoryBlobs, keys: TenantKeys
) -> None:
    records = Records(memory, keys)
    name = put(records, DELETED)
    records.copies.mend(name)
    memory.objects[name] = b"one kind of damage"
    memory.objects[copy_name(name)] = memory.objects[copy_name(name)][:-1]
    before = dict(memory.objects)
    for attempt in (records.read, records.copies.mend):
        with pytest.raises(Damaged, match=f"{name} is damaged: it has 18 bytes"):
            attempt(name)
    assert memory.objects == before
    del memory.objects[name], memory.objects[copy_name(name)]
    for attempt in (records.read, records.copies.mend):
        with pytest.raises(BlobMissing, match=f"object {name} is missing"):
            attempt(name)
    assert memory.objects == {}


def test_a_store_that_does_not_answer_is_not_reported_as_damage(
    memory: MemoryBlobs, keys: TenantKeys
) -> None:
    class Silent(WrappedBlobs):
        asked = 0

        def read(self, name: str, offset: int, length: int) -> bytes:
            self.asked += 1
            raise Unavailable("STORE_UNAVAILABLE", "no answer")

    silent = Silent(memory)
    name = put(Records(memory, keys), DELETED)
    memory.objects[copy_name(name)] = memory.objects[name]
    records = Records(silent, keys)
    for attempt in (records.read, records.copies.mend):
        with pytest.raises(Unavailable):
            attempt(name)
    assert silent.asked == 2


def test_an_oversized_object_is_refused_before_it_is_read(memory: MemoryBlobs, keys: TenantKeys) -> None:
    class Counting(WrappedBlobs):
        bytes_read = 0

        def read(self, name: str, offset: int, length: int) -> bytes:
            self.bytes_read += length
            return super().read(name, offset, length)

    name = put(Records(memory, keys), DELETED)
    counting = Counting(memory)
    memory.objects[copy_name(name)] = memory.objects[name]
    memory.objects[name] = bytes(RECORD_BYTES_MAX + 1)
    assert Records(counting, keys).read(name) == DELETED
    assert Records(counting, keys).copies.mend(name) is CopyState.RESTORED
    assert counting.bytes_read == 2 * len(memory.objects[name])


def test_objects_without_a_copy_are_found_although_other_copies_have_no_object(
    memory: MemoryBlobs, keys: TenantKeys
) -> None:
    records = Records(memory, keys)
    names = [put(records, DELETED, n + 1) for n in range(6)]
    for name in names[1:5]:
        records.copies.mend(name)
    for gone in (names[2], names[4]):
        del memory.objects[gone]
    assert list(records.copies.lacking("records")) == [names[0], names[5]]
    assert list(records.list()) == names


def test_lost_or_damaged_keys_load_from_their_copy_and_never_from_an_older_object(
    memory: MemoryBlobs,
) -> None:
    store = KeyStore(memory, MASTER)
    first = store.create("default", NOW_NS)
    newest = WrappedKeys(first.tenant, "default", NOW_NS, first.root, {**first.pack_keys, 2: bytes(32)})
    name = keys_name(first.tenant, 2)
    memory.put(name, wrap_keys(MASTER, newest))
    assert store.copies.mend(name) is CopyState.COPIED
    assert store.copies.mend(keys_name(first.tenant, 1)) is CopyState.COPIED
    for lost in (None, b"", b"x" * (KEYS_BYTES_MAX + 1), memory.objects[keys_name(first.tenant, 1)]):
        if lost is None:
            del memory.objects[name]
        else:
            memory.objects[name] = lost
        assert sorted(KeyStore(memory, MASTER).load(first.tenant).pack_keys) == [1, 2]
        assert store.copies.mend(name) is CopyState.RESTORED
    for lost_name in [each for each in memory.objects if each.startswith("keys/")]:
        del memory.objects[lost_name]
    assert KeyStore(memory, MASTER).tenant_ids() == [first.tenant]
    assert sorted(KeyStore(memory, MASTER).load(first.tenant).pack_keys) == [1, 2]
    memory.objects[copy_name(name)] = b"damaged"
    with pytest.raises(Damaged):
        KeyStore(memory, MASTER).load(first.tenant)
