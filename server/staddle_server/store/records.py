"""Records: small sealed objects that say what was decided (docs/format.md, "Records")."""

import os
import struct
from collections.abc import Iterator
from typing import Annotated, Final, TypeAlias

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from staddle_server.errors import Damaged
from staddle_server.limits import (
    DATASET_BYTES_MAX,
    HOLD_REASON_BYTES_MAX,
    RECORD_BYTES_MAX,
    REQUEST_ID_BYTES_MAX,
    ROOT_BYTES_MAX,
    TAGS_MAX,
    TREE_HEIGHT_MAX,
)
from staddle_server.store.blobs import BlobExists, Blobs
from staddle_server.store.copies import Copies
from staddle_server.store.keys import (
    ID_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
    Count,
    Id,
    Random,
    TenantName,
    secrets_of,
)
from staddle_server.types import EMPTY_ROOT, Kind, Root, Scope, TenantKeys

_HEAD: Final = struct.Struct("<8sHH16s16s12s")
_MAGIC: Final = b"STADRECD"
_VERSION: Final = 1
_NS_PER_MS: Final = 1_000_000
_MS_MAX: Final = 2**48 - 1

IdOrEmpty = Annotated[bytes, msgspec.Meta(max_length=ID_BYTES)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=DATASET_BYTES_MAX)]
Text = Annotated[str, msgspec.Meta(max_length=ROOT_BYTES_MAX)]
Tags = Annotated[dict[Text, Text], msgspec.Meta(max_length=TAGS_MAX)]
Reason = Annotated[str, msgspec.Meta(max_length=HOLD_REASON_BYTES_MAX)]
RequestId = Annotated[str, msgspec.Meta(max_length=REQUEST_ID_BYTES_MAX)]


class ChangeCounts(msgspec.Struct, frozen=True, array_like=True):
    """How many entries of a backup differ from its base, by how; `metadata_kept` have the base's metadata."""

    added: Count = 0
    content: Count = 0
    metadata: Count = 0
    removed: Count = 0
    metadata_kept: Count = 0


class TenantRecord(msgspec.Struct, frozen=True, tag_field="type", tag="tenant"):
    """The tenant was made."""

    name: TenantName
    created_ns: Count


class CommittedRecord(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="committed"):
    """An upload became a backup. `base` is empty where there is none."""

    backup: Id
    dataset: Name
    number: Count
    kind: Kind
    scope: Scope
    base: IdOrEmpty
    begin_ns: Count
    commit_ns: Count
    root: Root
    stored_bytes: Count
    changes: ChangeCounts
    tags: Tags
    host: Text
    source_root: Text
    principal: Text
    upload: Id
    request_id: RequestId
    retain_until_ns: Count = 0

    def __post_init__(self) -> None:
        if len(self.base) not in {0, ID_BYTES}:
            raise ValueError("base is neither an id nor empty")
        if self.kind is Kind.AUTO:
            raise ValueError("kind AUTO is only ever asked for")
        _check_root(self.root)


class DeletedRecord(msgspec.Struct, frozen=True, tag_field="type", tag="deleted"):
    """A backup was deleted, softly."""

    backup: Id
    at_ns: Count


class UndeletedRecord(msgspec.Struct, frozen=True, tag_field="type", tag="undeleted"):
    """A deleted backup was taken back."""

    backup: Id
    at_ns: Count


class PurgedRecord(msgspec.Struct, frozen=True, tag_field="type", tag="purged"):
    """A deleted backup is gone for good: from now on nothing of it is kept alive."""

    backup: Id
    at_ns: Count


class HeldRecord(msgspec.Struct, frozen=True, tag_field="type", tag="held"):
    """A legal hold was placed, on one backup or (`backup` empty) on a dataset with all its backups, also later ones."""

    backup: IdOrEmpty
    dataset: Name
    reason: Reason
    at_ns: Count


class ReleasedRecord(msgspec.Struct, frozen=True, tag_field="type", tag="released"):
    """A hold was released."""

    backup: IdOrEmpty
    dataset: Name
    at_ns: Count


class RetainedRecord(msgspec.Struct, frozen=True, tag_field="type", tag="retained"):
    """A backup cannot be deleted before `until_ns`. Such a time is only ever moved later."""

    backup: Id
    until_ns: Count
    at_ns: Count


class PolicyRecord(msgspec.Struct, frozen=True, tag_field="type", tag="policy"):
    """A dataset's retention from now on: `policy` as JSON, empty for none, and the minimum retention of later backups."""

    dataset: Name
    policy: Text
    min_retention_s: Count
    at_ns: Count


class TenantSettingsRecord(msgspec.Struct, frozen=True, tag_field="type", tag="tenant_settings"):
    """The tenant's grace period from now on."""

    grace_s: Count
    at_ns: Count


Decision: TypeAlias = (
    DeletedRecord
    | UndeletedRecord
    | PurgedRecord
    | HeldRecord
    | ReleasedRecord
    | RetainedRecord
    | PolicyRecord
    | TenantSettingsRecord
)
"""What is decided in the catalog first, kept there as pending, and written then."""
Record: TypeAlias = TenantRecord | CommittedRecord | Decision

_DECODER: Final[msgspec.msgpack.Decoder[Record]] = msgspec.msgpack.Decoder(Record)


def _check_root(root: Root) -> None:
    if root == EMPTY_ROOT:
        return
    if (
        not 0 <= root.level < TREE_HEIGHT_MAX
        or len(root.digest) != 32
        or root.entries < 1
        or root.data_bytes < 0
    ):
        raise ValueError("root is no manifest's")


def encode_record(record: Record) -> bytes:
    """The sealed part of a record. Raises msgspec.ValidationError for values that no record has."""
    body = msgspec.msgpack.encode(record)
    _DECODER.decode(body)
    return body


def decode_record(body: bytes, where: str) -> Record:
    """A record's sealed part, opened. Keys that this version does not know are passed over. Raises Damaged."""
    try:
        return _DECODER.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(f"the record {where} is not in a form that this version knows") from error


def records_prefix(tenant: bytes) -> str:
    """What the names of a tenant's records lie below."""
    return f"records/{tenant.hex()}"


def record_name(tenant: bytes, time_ns: int, record_id: bytes) -> str:
    """The name of a record: names sort by time."""
    time_ms = time_ns // _NS_PER_MS
    if not 0 <= time_ms <= _MS_MAX or len(record_id) != ID_BYTES:
        raise ValueError("a record's name needs a time from 1970 on and an id of 16 bytes")
    return f"{records_prefix(tenant)}/{time_ms:012x}-{record_id.hex()}"


def is_record_name(name: str) -> bool:
    """Whether Staddle gives a record such a name."""
    parts = name.split("/")
    time, dash, record_id = parts[-1].partition("-")
    try:
        tenant, time_ms, parsed = bytes.fromhex(parts[1]), int(time, 16), bytes.fromhex(record_id)
        return bool(dash) and record_name(tenant, time_ms * _NS_PER_MS, parsed) == name
    except (IndexError, ValueError):
        return False


class Records:
    """A tenant's records. Thread-safe."""

    def __init__(self, blobs: Blobs, keys: TenantKeys, random: Random = os.urandom) -> None:
        self._blobs = blobs
        self._tenant = keys.tenant
        self._random = random
        self._seal = AESGCM(secrets_of(keys).record_key)
        self.copies = Copies(blobs, self._parse, RECORD_BYTES_MAX)
        """The records with their second copies."""

    def put(self, record: Record, now_ns: int, record_id: bytes | None = None) -> str:
        """Write a record and return its name: durable on return.

        With the same time and id it may be repeated: a record of the same content that is there already is success;
        one of another content raises BlobExists. Without an id, each call writes one. Raises
        msgspec.ValidationError for values that no record has, and what the blobs raise.
        """
        body = encode_record(record)
        record_id = self._random(ID_BYTES) if record_id is None else record_id
        name = record_name(self._tenant, now_ns, record_id)
        nonce = self._random(NONCE_BYTES)
        head = _HEAD.pack(_MAGIC, _VERSION, 0, self._tenant, record_id, nonce)
        data = head + self._seal.encrypt(nonce, body, head)
        if len(data) > RECORD_BYTES_MAX:
            raise ValueError(f"a record has at most {RECORD_BYTES_MAX} bytes, not {len(data)}")
        try:
            self._blobs.put(name, data)
        except BlobExists:
            if self.read(name) != record:
                raise
        return name

    def read(self, name: str) -> Record:
        """The record of that name, or what its copy says if it has one. Raises BlobMissing, or Damaged, which names it."""
        return self.copies.read(name)

    def list(self) -> Iterator[str]:
        """The names of all records, oldest first; of those that are lost, too, if they have a copy."""
        return self.copies.names(records_prefix(self._tenant))

    def _parse(self, name: str, data: bytes) -> Record:
        if len(data) < _HEAD.size + TAG_BYTES:
            raise Damaged(f"the record {name} is damaged: it has {len(data)} bytes")
        head = data[: _HEAD.size]
        magic, version, zero, tenant, record_id, nonce = _HEAD.unpack(head)
        if (magic, version, zero, tenant) != (_MAGIC, _VERSION, 0, self._tenant):
            raise Damaged(f"the record {name} is damaged: it has a wrong header")
        if not name.endswith(f"-{record_id.hex()}"):
            raise Damaged(f"the record {name} is damaged: it is another one")
        try:
            body = self._seal.decrypt(nonce, data[_HEAD.size :], head)
        except InvalidTag as error:
            raise Damaged(f"the record {name} is damaged: its seal does not open") from error
        return decode_record(body, name)
