"""Records: small sealed objects that keep decisions (docs/format.md, "Records")."""

import os
import struct
from collections.abc import Iterator
from typing import Annotated, Final, NamedTuple, TypeAlias

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from staddle_server.base.errors import Damaged
from staddle_server.base.limits import (
    DATASET_BYTES_MAX,
    HOLD_REASON_BYTES_MAX,
    RECORD_BYTES_MAX,
    REQUEST_ID_BYTES_MAX,
    ROOT_BYTES_MAX,
    TAGS_MAX,
    TREE_HEIGHT_MAX,
    UPLOAD_WRITERS_MAX,
)
from staddle_server.base.types import (
    EMPTY_ROOT,
    ChangeCounts,
    Count,
    Kind,
    Place,
    Root,
    Scope,
    TenantKeys,
    record_link,
)
from staddle_server.store.blobs import BlobExists, Blobs, WritableBlobs, replace_object
from staddle_server.store.copies import Copies
from staddle_server.store.keys import (
    ID_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
    Id,
    Random,
    TenantName,
    secrets_of,
)

_HEAD: Final = struct.Struct("<8sHH16s16sQ32s12s")
_MAGIC: Final = b"STADRECD"
_TOP: Final = struct.Struct("<8sHH16s12s")
_TOP_MAGIC: Final = b"STADHEAD"
_VERSION: Final = 1
_FORGOTTEN_ID: Final = b"\0gone\0\0\0"
"""The first half of the ids of `forgotten` records."""
SEQUENCE_MAX: Final = 2**48 - 1
SPANS_MAX: Final = 32_768
"""Spans of sequence numbers in one `forgotten` record."""

IdOrEmpty = Annotated[bytes, msgspec.Meta(max_length=ID_BYTES)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=DATASET_BYTES_MAX)]
Text = Annotated[str, msgspec.Meta(max_length=ROOT_BYTES_MAX)]
Tags = Annotated[dict[Text, Text], msgspec.Meta(max_length=TAGS_MAX)]
Reason = Annotated[str, msgspec.Meta(max_length=HOLD_REASON_BYTES_MAX)]
Sequence = Annotated[int, msgspec.Meta(ge=1, le=SEQUENCE_MAX)]
RequestId = Annotated[str, msgspec.Meta(max_length=REQUEST_ID_BYTES_MAX)]


class TenantRecord(msgspec.Struct, frozen=True, tag_field="type", tag="tenant"):
    """The tenant was created."""

    name: TenantName
    created_ns: Count


class CommittedRecord(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="committed"):
    """An upload became a backup. `base` is empty for none; `principal` committed it."""

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
    begun_by: Text
    written_by: Annotated[tuple[Text, ...], msgspec.Meta(max_length=UPLOAD_WRITERS_MAX)]
    more_writers: bool = False
    retain_until_ns: Count = 0

    def __post_init__(self) -> None:
        if len(self.base) not in {0, ID_BYTES}:
            raise ValueError("base is neither an id nor empty")
        if self.kind is Kind.AUTO:
            raise ValueError("kind AUTO is only valid in a request")
        _check_root(self.root)


class DeletedRecord(msgspec.Struct, frozen=True, tag_field="type", tag="deleted"):
    """A backup was deleted, softly."""

    backup: Id
    at_ns: Count


class UndeletedRecord(msgspec.Struct, frozen=True, tag_field="type", tag="undeleted"):
    """A deleted backup was restored to the list of backups."""

    backup: Id
    at_ns: Count


class PurgedRecord(msgspec.Struct, frozen=True, tag_field="type", tag="purged"):
    """A deleted backup is gone for good: it keeps no data alive any more."""

    backup: Id
    at_ns: Count


class HeldRecord(msgspec.Struct, frozen=True, tag_field="type", tag="held"):
    """A legal hold was placed on one backup or (`backup` empty) on a dataset with all its backups, also later
    ones.
    """

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
    """A backup cannot be deleted before `until_ns`. That time only ever moves later."""

    backup: Id
    until_ns: Count
    at_ns: Count


class PolicyRecord(msgspec.Struct, frozen=True, tag_field="type", tag="policy"):
    """A dataset's retention from now on: `policy` as JSON (empty for none), and the minimum retention of
    later backups.
    """

    dataset: Name
    policy: Text
    min_retention_s: Count
    at_ns: Count


class ExpectedRecord(msgspec.Struct, frozen=True, tag_field="type", tag="expected"):
    """How often a dataset must have a new backup from now on (`every_s` 0: no expectation), plus `grace_s`.

    `since_ns`: when it was first expected. Until `mute_until_ns` nobody is told; 0: not muted.
    """

    dataset: Name
    every_s: Count
    grace_s: Count
    since_ns: Count
    mute_until_ns: Count
    at_ns: Count


class ForgottenRecord(msgspec.Struct, frozen=True, tag_field="type", tag="forgotten"):
    """Records with these sequence numbers (first and last of each span) may be missing: later records say all
    that still counts.
    """

    spans: Annotated[list[tuple[Sequence, Sequence]], msgspec.Meta(max_length=SPANS_MAX)]
    at_ns: Count

    def __post_init__(self) -> None:
        if any(first > last for first, last in self.spans):
            raise ValueError("a span ends before it begins")


class NotedRecord(msgspec.Struct, frozen=True, tag_field="type", tag="noted"):
    """A decision that only the catalog keeps, such as the revocation of a token.

    A catalog without this record is outdated.
    """

    what: Text


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
    | ExpectedRecord
    | TenantSettingsRecord
    | ForgottenRecord
)
"""Decisions with a time of their own: of two about the same thing, the later counts."""
Record: TypeAlias = TenantRecord | CommittedRecord | NotedRecord | Decision


class Stored(NamedTuple):
    """A record as stored: its content, its place in the chain, and the link that the next record names."""

    record: Record
    place: Place
    link: bytes


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
        raise ValueError("root is not a manifest root")


def encode_record(record: Record) -> bytes:
    """Encode the part of a record that is sealed. Raises msgspec.ValidationError for invalid values."""
    body = msgspec.msgpack.encode(record)
    _DECODER.decode(body)
    return body


def decode_record(body: bytes, where: str) -> Record:
    """Decode the opened part of a record. Ignores unknown keys. Raises Damaged."""
    try:
        return _DECODER.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Damaged(f"the record {where} has a form that this version does not know") from error


def records_prefix(tenant: bytes) -> str:
    """Return the prefix of the names of a tenant's records."""
    return f"records/{tenant.hex()}"


def record_name(tenant: bytes, sequence: int, record_id: bytes) -> str:
    """Return the name of a record. Names sort by place in the chain."""
    if not 1 <= sequence <= SEQUENCE_MAX or len(record_id) != ID_BYTES:
        raise ValueError("a record's name needs a sequence number from 1 on and an id of 16 bytes")
    return f"{records_prefix(tenant)}/{sequence:012x}-{record_id.hex()}"


def new_record_id(record: Record, random: Random = os.urandom) -> bytes:
    """Return a new record id.

    Ids of `forgotten` records share their first half, so that a listing shows them.
    """
    return _FORGOTTEN_ID + random(8) if isinstance(record, ForgottenRecord) else random(ID_BYTES)


def is_forgotten_name(name: str) -> bool:
    """Return whether the name has the id of a `forgotten` record; others match with probability 2**-64."""
    return name.rpartition("-")[2].startswith(_FORGOTTEN_ID.hex())


def sequence_of(name: str) -> int | None:
    """Return the sequence number in a record's name; None for a name that is not Staddle's."""
    parts = name.split("/")
    number, dash, record_id = parts[-1].partition("-")
    try:
        tenant, sequence, parsed = bytes.fromhex(parts[1]), int(number, 16), bytes.fromhex(record_id)
        return sequence if dash and record_name(tenant, sequence, parsed) == name else None
    except (IndexError, ValueError):
        return None


def record_id_of(name: str) -> bytes:
    """Return the id in a record's name: that of the backup, if the record is of its commit. b"" for a name
    that is not Staddle's.
    """
    try:
        return bytes.fromhex(name.rsplit("-", 1)[-1])
    except ValueError:
        return b""


def head_name(tenant: bytes) -> str:
    """Return the name of a tenant's head."""
    return f"heads/{tenant.hex()}"


def is_head_name(name: str) -> bool:
    """Return whether the name is a head's."""
    try:
        tenant = bytes.fromhex(name.partition("/")[2])
    except ValueError:
        return False
    return len(tenant) == ID_BYTES and head_name(tenant) == name


class Records:
    """A tenant's records. Thread-safe."""

    def __init__(self, blobs: Blobs, keys: TenantKeys, random: Random = os.urandom) -> None:
        self._blobs = blobs
        self._tenant = keys.tenant
        self._random = random
        self._seal = AESGCM(secrets_of(keys).record_key)
        self.copies = Copies(blobs, self._parse, RECORD_BYTES_MAX)
        """The records with their second copies."""
        self.head = ChainHead(blobs, self._tenant, self._seal, random)
        """The head, which says which record is the newest."""

    def put(self, body: bytes, place: Place, record_id: bytes) -> str:
        """Write an encoded record at its place and return its name: durable on return.

        Safe to repeat: an identical existing record is success; a different one with this place and id raises
        BlobExists. Raises what the blobs raise.
        """
        name = record_name(self._tenant, place.sequence, record_id)
        nonce = self._random(NONCE_BYTES)
        head = _HEAD.pack(_MAGIC, _VERSION, 0, self._tenant, record_id, *place, nonce)
        data = head + self._seal.encrypt(nonce, body, head)
        if len(data) > RECORD_BYTES_MAX:
            raise ValueError(f"a record has at most {RECORD_BYTES_MAX} bytes, not {len(data)}")
        try:
            self._blobs.put(name, data)
        except BlobExists:
            if self.stored(name).link != record_link(self._tenant, record_id, place, body):
                raise
        return name

    def read(self, name: str) -> Record:
        """Return the record of that name, from its copy if necessary.

        Raises BlobMissing, or Damaged, which names it.
        """
        return self.copies.read(name).record

    def stored(self, name: str) -> Stored:
        """Return the record with its place and link."""
        return self.copies.read(name)

    def list(self) -> Iterator[str]:
        """Yield the names of all records in chain order, including lost ones that have a copy."""
        return self.copies.names(records_prefix(self._tenant))

    def _parse(self, name: str, data: bytes) -> Stored:
        if len(data) < _HEAD.size + TAG_BYTES:
            raise Damaged(f"the record {name} is damaged: it has {len(data)} bytes")
        head = data[: _HEAD.size]
        magic, version, zero, tenant, record_id, sequence, previous, nonce = _HEAD.unpack(head)
        if (magic, version, zero, tenant) != (_MAGIC, _VERSION, 0, self._tenant):
            raise Damaged(f"the record {name} is damaged: it has a wrong header")
        if not name.endswith(f"/{sequence:012x}-{record_id.hex()}"):
            raise Damaged(f"the record {name} is damaged: it is another record")
        try:
            body = self._seal.decrypt(nonce, data[_HEAD.size :], head)
        except InvalidTag as error:
            raise Damaged(f"the record {name} is damaged: its seal does not open") from error
        place = Place(sequence, previous)
        return Stored(decode_record(body, name), place, record_link(tenant, record_id, place, body))


class ChainHead:
    """The place of a tenant's newest record, which reveals the loss of the last records. Thread-safe.

    It is replaced after each record, before the server answers the call that caused the record.
    """

    def __init__(self, blobs: WritableBlobs, tenant: bytes, seal: AESGCM, random: Random) -> None:
        self._blobs = blobs
        self._tenant = tenant
        self._seal = seal
        self._random = random
        self.name: Final = head_name(tenant)

    def write(self, sequence: int) -> None:
        """State that the record with this number is durable. Durable on return.

        Raises what the blobs raise.
        """
        nonce = self._random(NONCE_BYTES)
        head = _TOP.pack(_TOP_MAGIC, _VERSION, 0, self._tenant, nonce)
        body = self._seal.encrypt(nonce, sequence.to_bytes(8, "little"), head)
        replace_object(self._blobs, self.name, head + body)

    def read(self) -> int:
        """Return the number of the newest record. Raises BlobMissing, or Damaged, which names the object."""
        size = self._blobs.size(self.name)
        if size != _TOP.size + 8 + TAG_BYTES:
            raise Damaged(f"the stored object {self.name} is damaged: it has {size} bytes")
        data = self._blobs.read(self.name, 0, size)
        head = data[: _TOP.size]
        magic, version, zero, tenant, nonce = _TOP.unpack(head)
        if (magic, version, zero, tenant) != (_TOP_MAGIC, _VERSION, 0, self._tenant):
            raise Damaged(f"the stored object {self.name} is damaged: it has a wrong header")
        try:
            return int.from_bytes(self._seal.decrypt(nonce, data[_TOP.size :], head), "little")
        except InvalidTag as error:
            raise Damaged(f"the stored object {self.name} is damaged: its seal does not open") from error
