"""The master key and tenants' secrets."""

import errno
import os
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from staddle_server.base.errors import Damaged
from staddle_server.base.types import Role
from staddle_server.store.backends.memory import MemoryBlobs
from staddle_server.store.blobs import BlobMissing, Blobs
from staddle_server.store.files import Files
from staddle_server.store.keys import (
    KeyStore,
    MasterKeyError,
    WrappedKeys,
    WrongMasterKey,
    chunk_id,
    create_master_key,
    derive,
    keys_name,
    load_master_key,
    secrets_of,
    unwrap_keys,
    wrap_keys,
)
from store_data import Seeded, tenant_keys, xored

MASTER = Seeded("master")(32)
TENANT = Seeded("tenant")(16)
NOW_NS = 1_700_000_000_000_000_000


def wrapped_keys(versions: tuple[int, ...] = (1,)) -> WrappedKeys:
    keys = tenant_keys("here", versions)
    return WrappedKeys(TENANT, "default", NOW_NS, keys.root, keys.pack_keys)


def test_a_new_master_key_can_be_loaded(tmp_path: Path) -> None:
    path = str(tmp_path / "master.key")
    master = create_master_key(path)
    assert load_master_key(path) == master
    assert len(master) == 32
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["master.key"]


def test_no_master_key_is_ever_overwritten(tmp_path: Path) -> None:
    path = str(tmp_path / "master.key")
    master = create_master_key(path)
    with pytest.raises(MasterKeyError, match="never overwritten"):
        create_master_key(path)
    assert load_master_key(path) == master
    assert os.listdir(tmp_path) == ["master.key"]


def test_a_master_key_that_could_not_be_synced_is_removed(tmp_path: Path) -> None:
    class FailingFiles(Files):
        def sync(self, descriptor: int) -> None:
            raise OSError(errno.EIO, "i/o error")

    with pytest.raises(MasterKeyError, match="could not be written"):
        create_master_key(str(tmp_path / "master.key"), files=FailingFiles())
    assert os.listdir(tmp_path) == []


LINE = f"staddle-master-key-1 {MASTER.hex()} {blake3(MASTER).hexdigest()[:8]}\n".encode()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "is empty"),
        (b"\0" * 4000, "is empty"),
        (b"x" * 5000, "more than 4096 bytes"),
        (b"secret\n", "is not a master key"),
        (LINE[21:], "is not a master key"),
        (LINE[:85] + b"\n", "and has 64 in total"),
        (LINE.replace(b"key-1", b"key-2"), "is not a master key"),
        (LINE[:84] + LINE[85:], "and has 71 in total"),
        (LINE.replace(LINE[30:32], b"zz"), "are not hexadecimal digits"),
        (LINE[:-2] + b"x\n", "are not hexadecimal digits"),
        (LINE[:50] + (b"0" if LINE[50:51] != b"0" else b"1") + LINE[51:], "typing error"),
        (LINE + LINE, "are not hexadecimal digits"),
        (b"\xff" * 100, "is not a master key"),
    ],
)
def test_a_file_without_a_master_key_is_refused_with_the_reason(
    tmp_path: Path, line: bytes, why: str
) -> None:
    path = tmp_path / "master.key"
    path.write_bytes(line)
    with pytest.raises(MasterKeyError, match=why) as caught:
        load_master_key(str(path))
    assert str(path) in caught.value.message
    assert MASTER.hex()[:16] not in caught.value.message


@pytest.mark.parametrize(
    "line",
    [
        LINE[:-1],
        LINE.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + LINE,
        LINE.decode().encode("utf-16"),
        b"\n  " + LINE + b"\n\n",
        b'"' + LINE[:-1] + b'"\n',
        LINE.upper(),
        LINE[:40] + b"\r\n    " + LINE[40:70] + b"\n" + LINE[70:],
        LINE[:21] + b" ".join(LINE[at : at + 4] for at in range(21, 85, 4)) + LINE[85:],
        LINE[:21] + LINE[21:].replace(b"0", b"O").replace(b"1", b"l"),
    ],
    ids=[
        "no newline",
        "CRLF",
        "BOM",
        "UTF-16",
        "blanks",
        "quotes",
        "capitals",
        "wrapped",
        "groups",
        "O and l",
    ],
)
def test_a_master_key_may_be_typed_or_pasted(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "key").write_bytes(line)
    assert load_master_key(str(tmp_path / "key")) == MASTER


def test_a_missing_master_key_and_one_that_is_a_directory_are_named(tmp_path: Path) -> None:
    with pytest.raises(MasterKeyError, match=r"the master key file .* does not exist"):
        load_master_key(str(tmp_path / "nothing"))
    with pytest.raises(MasterKeyError, match="it is a directory"):
        load_master_key(str(tmp_path))


def test_a_device_or_a_pipe_without_a_writer_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", str(tmp_path / "pipe")):
        with pytest.raises(MasterKeyError, match="not a regular file"):
            load_master_key(path)


def test_secrets_differ_from_one_another_and_between_tenants() -> None:
    here, elsewhere = secrets_of(tenant_keys("here")), secrets_of(tenant_keys("elsewhere"))
    secrets = [
        getattr(one, name)
        for one in (here, elsewhere)
        for name in ("id_key", "page_key", "record_key", "token_key", "chunker_seed")
    ]
    assert len(set(secrets)) == len(secrets)
    assert here == secrets_of(tenant_keys("here", (1, 2, 3)))
    assert 1 <= here.chunker_seed <= 2**63 - 1


def test_a_chunk_has_another_id_in_each_role_and_for_each_tenant() -> None:
    digest = blake3(b"content").digest()
    ids = {
        chunk_id(secrets_of(keys).id_key, role, digest)
        for keys in (tenant_keys("here"), tenant_keys("elsewhere"))
        for role in Role
    }
    assert len(ids) == 4
    assert digest not in ids
    assert all(len(one) == 32 for one in ids)


def test_secrets_never_show_themselves() -> None:
    keys = wrapped_keys()
    for text in (repr(keys), repr(secrets_of(tenant_keys("here"))), repr(tenant_keys("here"))):
        assert keys.root.hex() not in text
        assert str(keys.root) not in text
        assert len(text) < 120


def test_a_tenants_secrets_load_as_they_were_made(blobs: Blobs) -> None:
    store = KeyStore(blobs, MASTER)
    first, second = store.create("first", NOW_NS), store.create("zweiter ä", NOW_NS + 1)
    again = KeyStore(blobs, MASTER)
    assert again.load(first.tenant) == first
    assert again.load(second.tenant) == second
    assert again.tenants() == sorted(
        [(first.tenant, "first", NOW_NS), (second.tenant, "zweiter ä", NOW_NS + 1)],
        key=lambda tenant: tenant[0],
    )
    assert len({first.tenant, second.tenant, first.root, second.root, *first.pack_keys.values()}) == 5


def test_the_newest_version_counts_and_a_damaged_one_is_not_replaced_by_an_older(memory: MemoryBlobs) -> None:
    for versions in ((1,), (1, 2), (1, 2, 10)):
        memory.put(keys_name(TENANT, max(versions)), wrap_keys(MASTER, wrapped_keys(versions)))
    store = KeyStore(memory, MASTER)
    assert sorted(store.load(TENANT).pack_keys) == [1, 2, 10]
    assert store.tenant_ids() == [TENANT]
    newest = keys_name(TENANT, 10)
    held = memory.objects[newest]
    memory.objects[newest] = held[:-1] + xored(held[-1:])
    with pytest.raises(Damaged, match=newest):
        store.load(TENANT)


def test_a_tenant_that_has_no_secrets_is_missing(memory: MemoryBlobs) -> None:
    with pytest.raises(BlobMissing):
        KeyStore(memory, MASTER).load(TENANT)
    assert KeyStore(memory, MASTER).tenants() == []


def test_another_master_key_opens_nothing_and_is_named_as_the_cause(memory: MemoryBlobs) -> None:
    keys = KeyStore(memory, MASTER).create("default", NOW_NS)
    other = KeyStore(memory, Seeded("another master")(32))
    for ask in (lambda: other.load(keys.tenant), other.tenants):
        with pytest.raises(WrongMasterKey, match="wrapped with another master key"):
            ask()


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_master_key_of_another_length_is_refused(memory: MemoryBlobs, length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        KeyStore(memory, bytes(length))


@pytest.mark.parametrize("name", ["", "x" * 256])
def test_a_tenants_name_has_its_limits(memory: MemoryBlobs, name: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        KeyStore(memory, MASTER).create(name, NOW_NS)
    assert memory.objects == {}


def test_every_flipped_bit_and_every_cut_in_a_keys_object_is_damage() -> None:
    data = wrap_keys(MASTER, wrapped_keys())
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damaged, match="keys/x"):
            unwrap_keys(MASTER, TENANT, bytes(damaged), "keys/x")
    for length in range(len(data)):
        with pytest.raises(Damaged, match="keys/x"):
            unwrap_keys(MASTER, TENANT, data[:length], "keys/x")
    assert unwrap_keys(MASTER, TENANT, data, "keys/x") == wrapped_keys()


def test_a_keys_object_under_another_name_opens_nothing(memory: MemoryBlobs) -> None:
    other = Seeded("other tenant")(16)
    memory.put(keys_name(other, 1), wrap_keys(MASTER, wrapped_keys()))
    memory.put(keys_name(TENANT, 3), wrap_keys(MASTER, wrapped_keys((1, 2))))
    with pytest.raises(Damaged, match="wrong header"):
        KeyStore(memory, MASTER).load(other)
    with pytest.raises(Damaged, match="other versions than their name"):
        KeyStore(memory, MASTER).load(TENANT)


@pytest.mark.parametrize("name", ["keys/x", "keys/aa/1", "keys/aa/bb/cc", "keys/" + "ab" * 16 + "/1"])
def test_a_foreign_object_among_the_keys_is_named(memory: MemoryBlobs, name: str) -> None:
    memory.put(name, b"")
    with pytest.raises(Damaged, match=name):
        KeyStore(memory, MASTER).tenants()


def seal(body: bytes) -> bytes:
    """A keys object with any body, as anyone with the master key could make it."""
    head = b"STADKEYS" + bytes([1, 0, 0, 0]) + TENANT + bytes(12)
    key = derive("staddle.v1 tenant wrap key", MASTER + TENANT)
    return head + AESGCM(key).encrypt(bytes(12), body, head)


GOOD = {"tenant": TENANT, "name": "n", "created_ns": 1, "root": bytes(32), "pack_keys": {1: bytes(32)}}


@pytest.mark.parametrize(
    "change",
    [
        {"tenant": bytes(16)},
        {"tenant": b""},
        {"name": b"bytes"},
        {"name": ""},
        {"created_ns": -1},
        {"created_ns": 1.5},
        {"root": bytes(31)},
        {"root": "x" * 32},
        {"pack_keys": {}},
        {"pack_keys": {0: bytes(32)}},
        {"pack_keys": {"1": bytes(32)}},
        {"pack_keys": {1: bytes(33)}},
        {"pack_keys": [bytes(32)]},
    ],
)
def test_sealed_secrets_in_another_form_are_damage(change: dict[str, object]) -> None:
    assert unwrap_keys(MASTER, TENANT, seal(msgspec.msgpack.encode(GOOD)), "keys/x").pack_keys == {
        1: bytes(32)
    }
    with pytest.raises(Damaged, match="keys/x"):
        unwrap_keys(MASTER, TENANT, seal(msgspec.msgpack.encode(GOOD | change)), "keys/x")


def test_bytes_behind_the_sealed_map_are_damage() -> None:
    with pytest.raises(Damaged):
        unwrap_keys(MASTER, TENANT, seal(msgspec.msgpack.encode(GOOD) + b"\0"), "keys/x")


@given(st.binary(max_size=300))
def test_hostile_bytes_are_refused_as_secrets(data: bytes) -> None:
    for attempt in (
        data,
        seal(data),
        seal(msgspec.msgpack.encode(GOOD)[:-34] + data),
        seal(b"\x91" * 2000 + data),
    ):
        with pytest.raises(Damaged):
            unwrap_keys(MASTER, TENANT, attempt, "keys/x")
