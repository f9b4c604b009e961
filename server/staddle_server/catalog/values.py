"""What the catalog takes and answers: frozen values. Ids are 16 bytes, times nanoseconds since 1970."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from staddle_server.base.limits import GRACE_S
from staddle_server.base.types import (
    NO_LINK,
    Authors,
    ChangeCounts,
    Kind,
    Place,
    Root,
    Scope,
    TokenRole,
    UploadState,
)
from staddle_server.catalog.validation import NS


@dataclass(frozen=True, slots=True)
class TenantRow:
    """A key domain. `wrapped_keys` is the object keys/T/V of the store, V being `keys_version`.

    `grace_s` is how long a deleted backup can be brought back; `gc_waits`: nothing is collected before an operator says so;
    `gc_failure` says why the last collection stopped, and is empty if it did not.
    """

    id: bytes
    name: str
    created_ns: int
    keys_version: int
    wrapped_keys: bytes
    grace_s: int = GRACE_S
    gc_waits: bool = False
    gc_failure: str = ""

    def __repr__(self) -> str:
        return f"TenantRow(id={self.id.hex()}, name={self.name!r})"


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

    def holds(self, lease_expires_ns: int, now_ns: int) -> bool:
        """Whether a lease that ends then lasts now. One that ends after twice the lease comes from a clock that was ahead, and has ended."""
        return now_ns < lease_expires_ns <= now_ns + 2 * int(self.lease_s * NS)


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
    begin_ns: int | None = None
    """When the backup begins; None: `now_ns`."""
    alive_ns: int | None = None
    """An upload whose life was over then is not taken over; None: `now_ns`."""
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

    `durable` is what the upload room gave with the last checkpoint, unread here.
    """

    id: bytes
    tenant: bytes
    dataset: str
    request_id: str
    token: bytes
    principal: str
    authors: Authors
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
    """How far an upload is durable from now on. `blob` is the upload room's own."""

    blob: bytes
    position: int
    entry_count: int
    data_bytes: int


class MissingChunk(NamedTuple):
    """A chunk that entries of an upload refer to and that is not there, by its plain digest."""

    digest: bytes
    length: int


@dataclass(frozen=True, slots=True)
class NewBackup:
    """What a commit adds to what the upload already says. `stored_bytes` is what it added to the store, sealed."""

    id: bytes
    root: Root
    stored_bytes: int
    changes: ChangeCounts


class Hold(NamedTuple):
    """A legal hold: why, and since when."""

    reason: str
    since_ns: int


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup, with all that its `committed` record says. `base` is empty for FULL; `deleted_ns` None: it is not deleted.

    `purge_ns`: while it is deleted, from when on it may go for good; `retain_until_ns` 0: nothing was ever set.
    """

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
    authors: Authors
    begin_ns: int
    commit_ns: int
    deleted_ns: int | None
    root: Root
    stored_bytes: int
    changes: ChangeCounts
    tags: Mapping[str, str]
    host: str
    source_root: str
    purge_ns: int | None
    retain_until_ns: int
    hold: Hold | None
    dataset_hold: Hold | None


@dataclass(frozen=True, slots=True)
class Retention:
    """What keeps a dataset's backups. `policy` is the upkeep room's own, "" for none; `minimum_s` 0: none."""

    policy: str
    minimum_s: int
    hold: Hold | None


class RetentionState(NamedTuple):
    """What a retention plan rests on, seen in one transaction: `backups` are those that are not deleted, newest first.

    `applied_ns`: when a plan was last applied, so that the same backups after an undeletion make another plan.
    """

    retention: Retention
    applied_ns: int
    backups: list[Backup]

    def decisive(self) -> tuple[object, ...]:
        """The same as far as it decides what may go: equal for equal states."""
        backups = [(each.id, each.retain_until_ns, each.hold) for each in self.backups]
        return (self.retention.policy, self.retention.hold, self.applied_ns, backups)


class DeletionRefusal(NamedTuple):
    """Why a backup cannot be deleted: `by` is hold, dataset_hold or retention, `until_ns` None for what has no end."""

    by: str
    until_ns: int | None
    words: str


class Applied(NamedTuple):
    """What applying a plan deleted, and when."""

    at_ns: int
    backups: list[Backup]


class StandingRoots(NamedTuple):
    """What stays reachable in a tenant once all is purged that is deleted and not protected.

    `backups` are by id; `bases` those that open uploads start from; `claimed` the packs that open uploads rely on.
    """

    backups: dict[bytes, Root]
    bases: dict[bytes, Root]
    claimed: set[bytes]


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
    """A record that was decided on and may not be in the store yet. `body` is the caller's own; `place` is given by the catalog."""

    id: bytes
    tenant: bytes
    body: bytes
    place: Place = Place(0, NO_LINK)


class PackParity(NamedTuple):
    """A live pack and the length of its parity object; 0: it has none.

    Attributes:
        row: What lists of packs go on behind.
        tenant: The id of the tenant.
        pack: Its own id.
        size_bytes: Its length.
        parity_bytes: That of its parity object.

    """

    row: int
    tenant: bytes
    pack: bytes
    size_bytes: int
    parity_bytes: int


class KnownDamage(NamedTuple):
    """What is known to be damaged in a tenant and may be needed: whole packs, and single segments of others.

    `footers`: headers and footers of packs. No backup needs them, only a rebuild of the catalog: they stay damage until they are mended.
    """

    epoch: int
    packs: int
    segments: int
    footers: int = 0


class ParityTotals(NamedTuple):
    """How many live packs there are, and how many of them have parity; with their bytes."""

    packs: int
    pack_bytes: int
    with_parity: int
    parity_bytes: int


class LeftOverPack(NamedTuple):
    """A pack that was begun and can never become live: its writer's hold on the upload has ended."""

    tenant: bytes
    pack: bytes
    upload: bytes
    created_ns: int


# --- collection


class Mark(NamedTuple):
    """A mark, by its number. `walked`: all its roots were; `resumed`: a collector before this one began it."""

    number: int
    walked: bool
    resumed: bool


class MarkRoot(NamedTuple):
    """A manifest that a mark walks, by its backup."""

    backup: bytes
    root: Root


class MarkedPack(NamedTuple):
    """A live pack of a mark. `row` is where the next page begins; `reached` is the mark's own; `claimed`: by a claim that counts."""

    row: int
    pack: bytes
    size_bytes: int
    chunk_count: int
    damaged: bool
    reached: bytes
    claimed: bool


class PurgeableBackup(NamedTuple):
    """A deleted backup that nothing protects any more."""

    backup: bytes
    dataset: str
    number: int
    deleted_ns: int


class GoneBackup(NamedTuple):
    """A purged backup whose row is still there."""

    backup: bytes
    commit_ns: int
    purged_ns: int


class CondemnedPack(NamedTuple):
    """A pack that is out of the index, and whose object still is there."""

    pack: bytes
    size_bytes: int
    condemned_ns: int


class Waiting(NamedTuple):
    """Condemned packs together: how many, how large, and when the first and the last of them were condemned."""

    packs: int
    size_bytes: int
    first_ns: int | None
    last_ns: int | None


class Orphan(NamedTuple):
    """An object that no row names, since it was seen so first."""

    name: str
    size_bytes: int
    seen_ns: int


@dataclass(frozen=True, slots=True)
class LivePack:
    """A live pack as the catalog has it. `marks` are the offsets of its segments that are put down as damaged; WHOLE_PACK: all of it; FOOTER: its header or footer."""

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
    """What the catalog says that the records of a tenant say too.

    Attributes:
        pending: The ids of records that are still on their way to the store.
        recorded: All records up to this number are durable.
        rebuilt: Those up to this number were decided by an earlier catalog.

    """

    backups: dict[bytes, BackupFacts]
    datasets: dict[str, DatasetFacts]
    grace_s: int
    pending: frozenset[bytes]
    recorded: int
    rebuilt: int
