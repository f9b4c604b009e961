"""What the catalog takes and answers: frozen values. Ids are 16 bytes, times nanoseconds since 1970."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from staddle_server.catalog.words import NS
from staddle_server.types import Kind, Root, Scope, TokenRole, UploadState


@dataclass(frozen=True, slots=True)
class Tenant:
    """A key domain. `wrapped_keys` is the object keys/T/V of the store, V being `keys_version`."""

    id: bytes
    name: str
    created_ns: int
    keys_version: int
    wrapped_keys: bytes
    record_written: bool

    def __repr__(self) -> str:
        return f"Tenant(id={self.id.hex()}, name={self.name!r})"


class Principal(NamedTuple):
    """Who calls: the token, by id and name, its role, and the tenant that it acts in."""

    tenant: bytes
    token: bytes
    name: str
    role: TokenRole


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is kept: without its text, of which there is only a hash."""

    id: bytes
    tenant: bytes
    name: str
    role: TokenRole
    created_ns: int
    expires_ns: int | None
    revoked_ns: int | None


class Terms(NamedTuple):
    """How long after its writer's last sign of life an upload stays with that writer, and how long it can be resumed at all."""

    lease_s: float
    life_s: float

    def expiries(self, now_ns: int) -> dict[str, int]:
        """When both end, as columns of an upload's row."""
        return {
            "lease_expires_ns": now_ns + int(self.lease_s * NS),
            "expires_ns": now_ns + int(self.life_s * NS),
        }


@dataclass(frozen=True, slots=True)
class BeginUpload:
    """What a caller asks for when it begins an upload.

    `upload` is a fresh id, used unless an upload is replayed or taken over. `request_id`, `host`, `root` and
    `fingerprint` are empty where they were not said. `kind` may be AUTO.
    """

    upload: bytes
    principal: Principal
    dataset: str
    now_ns: int
    terms: Terms
    request_id: str = ""
    kind: Kind = Kind.AUTO
    scope: Scope = Scope.WHOLE
    tags: Mapping[str, str] | None = None
    host: str = ""
    root: str = ""
    new_root: bool = False
    take_over: bool = False
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload as it stands. `base` and `backup` are empty where there is none; `kind` is never AUTO, `asked_kind` may be.

    `durable` is what the session room gave with the last checkpoint, unread here.
    """

    id: bytes
    tenant: bytes
    dataset: str
    request_id: str
    token: bytes
    principal: str
    asked_kind: Kind
    kind: Kind
    scope: Scope
    base: bytes
    tags: Mapping[str, str]
    host: str
    root: str
    new_root: bool
    fingerprint: str
    state: UploadState
    epoch: int
    lease_expires_ns: int
    expires_ns: int
    begin_ns: int
    durable: bytes
    position: int
    entry_count: int
    data_bytes: int
    last_failure: str
    backup: bytes


class Begun(NamedTuple):
    """The answer to a begin. `replayed`: the request id was known, and this is what the first call was answered, with
    its epoch, which may no longer be the upload's.
    """

    upload: Upload
    taken_over: bool
    replayed: bool


class ExpiredUpload(NamedTuple):
    """An upload that was given up because its life is over."""

    tenant: bytes
    upload: bytes


class DurableUpdate(NamedTuple):
    """How far an upload is durable from now on. `blob` is the session room's own."""

    blob: bytes
    position: int
    entry_count: int
    data_bytes: int


class MissingChunk(NamedTuple):
    """A chunk that entries of an upload refer to and that is not there, by its plain digest."""

    digest: bytes
    length: int


class ChangeCounts(NamedTuple):
    """How a backup differs from its base."""

    added: int = 0
    content_changed: int = 0
    metadata_changed: int = 0
    removed: int = 0
    metadata_kept: int = 0


@dataclass(frozen=True, slots=True)
class NewBackup:
    """What a commit adds to what the upload already says. `stored_bytes` is what it added to the store, sealed."""

    id: bytes
    root: Root
    stored_bytes: int
    changes: ChangeCounts


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup, with all that its `committed` record says. `base` is empty for FULL; `deleted_ns` None: it is not deleted."""

    id: bytes
    tenant: bytes
    dataset: str
    number: int
    kind: Kind
    scope: Scope
    base: bytes
    upload: bytes
    request_id: str
    principal: str
    begin_ns: int
    commit_ns: int
    deleted_ns: int | None
    root: Root
    stored_bytes: int
    changes: ChangeCounts
    tags: Mapping[str, str]
    host: str
    source_root: str
    record_written: bool


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset. `backup_count` and `newest_backup` leave deleted ones out."""

    name: str
    created_ns: int
    host: str
    root: str
    backup_count: int
    newest_backup: Backup | None


class PendingRecord(NamedTuple):
    """A record that was decided on and may not be in the store yet. `body` is the caller's own."""

    id: bytes
    tenant: bytes
    body: bytes


class MissingRecords(NamedTuple):
    """What start-up has to write before it serves: decisions whose record is not known to be durable."""

    tenants: list[Tenant]
    backups: list[Backup]
    pending: list[PendingRecord]


class LeftOverPack(NamedTuple):
    """A pack that was begun and can never become live: its writer's hold on the upload has ended."""

    tenant: bytes
    pack: bytes
    upload: bytes
    created_ns: int


@dataclass(frozen=True, slots=True)
class LivePack:
    """A live pack as the catalog has it. `marks` are the offsets of its segments that are put down as damaged; WHOLE_PACK: all of it."""

    tenant: bytes
    id: bytes
    size_bytes: int
    chunk_count: int
    verified_ns: int | None
    marks: frozenset[int]


class BackupFacts(NamedTuple):
    """What was decided about a backup, as far as records say it too. `hold` is the reason of a hold; None: there is none."""

    id: bytes
    dataset: str
    commit_ns: int
    record_written: bool
    deleted_ns: int | None
    purged_ns: int | None
    retain_until_ns: int
    hold: str | None


class DatasetFacts(NamedTuple):
    """What was decided about a dataset, as far as records say it too."""

    name: str
    policy: str
    min_retention_s: int
    hold: str | None


class Facts(NamedTuple):
    """What the catalog says that the records of a tenant say too. `pending`: some of it is still on its way there."""

    backups: dict[bytes, BackupFacts]
    datasets: dict[str, DatasetFacts]
    grace_s: int
    record_written: bool
    pending: bool
