"""Arguments and results of the catalog: frozen values. Ids are 16 bytes, times nanoseconds since 1970."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

from staddle_server.base.clock import NS
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
from staddle_server.catalog.run_values import Expectation


@dataclass(frozen=True, slots=True)
class TenantRow:
    """A key domain. `wrapped_keys` is the object keys/T/V of the store, V being `keys_version`.

    `grace_s` is how long a deleted backup can be undeleted; `gc_waits`: no collection until an operator
    allows it; `gc_failure` says why the last collection stopped, and is empty if it did not.
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
    """The caller: its token, by id and name, its role, and the tenant that it acts in."""

    tenant: bytes
    token: bytes
    name: str
    role: TokenRole


@dataclass(frozen=True, slots=True)
class Token:
    """A stored token: only a hash of its text is kept. `used_ns`: its last use, to within minutes, if one is known."""

    id: bytes
    tenant: bytes
    name: str
    role: TokenRole
    created_ns: int
    expires_ns: int | None
    revoked_ns: int | None
    used_ns: int | None


class Expiries(TypedDict):
    """The end of an upload's lease and of its life."""

    lease_expires_ns: int
    expires_ns: int


class Terms(NamedTuple):
    """How long an upload stays with its writer after the writer's last sign of life, and how long it can be
    resumed.
    """

    lease_s: float
    life_s: float

    def expiries(self, now_ns: int) -> Expiries:
        """Return the end of both, as columns of an upload's row."""
        return {
            "lease_expires_ns": now_ns + int(self.lease_s * NS),
            "expires_ns": now_ns + int(self.life_s * NS),
        }

    def holds(self, lease_expires_ns: int, now_ns: int) -> bool:
        """Return whether a lease with this end is valid now.

        One over twice the lease ahead comes from a wrong clock: expired.
        """
        return now_ns < lease_expires_ns <= now_ns + 2 * int(self.lease_s * NS)


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRequest:
    """What a caller asks for when it begins an upload. Texts are empty if not given; `kind` may be AUTO.

    `base` names the backup that a FULL of scope CHANGES is compared with; else empty.
    """

    dataset: str
    request_id: str = ""
    kind: Kind = Kind.AUTO
    scope: Scope = Scope.WHOLE
    tags: Mapping[str, str] | None = None
    host: str = ""
    root: str = ""
    new_root: bool = False
    take_over: bool = False
    fingerprint: str = ""
    base: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class BeginUpload(UploadRequest):
    """A request, with who makes it and when.

    `upload` is a fresh id, used unless an upload is replayed or taken over.
    """

    upload: bytes
    principal: Principal
    now_ns: int
    terms: Terms
    begin_ns: int | None = None
    """When the backup begins; None means `now_ns`."""
    alive_ns: int | None = None
    """An upload whose life was over at this time is not taken over; None means `now_ns`."""
    server: bytes = b""  # that will write it; empty if unknown


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload's state. `base` and `backup` are empty for none; `kind` is never AUTO, `asked_kind` may be.

    `durable` is opaque: the upload package's state of the last checkpoint; empty before the first one. `server`
    wrote it last (empty: unknown). `base_root` is the base's manifest; None for none, or for one that was
    forgotten after the upload ended. `damage_epoch` is the tenant's when the upload was read.
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
    server: bytes
    base_root: Root | None
    damage_epoch: int


class Begun(NamedTuple):
    """The answer to a begin.

    `replayed`: the request id is known, and this is the first call's answer, with its epoch, which may no
    longer be current.
    """

    upload: Upload
    taken_over: bool
    replayed: bool


class ExpiredUpload(NamedTuple):
    """An upload aborted at the end of its life."""

    tenant: bytes
    upload: bytes


class DurableUpdate(NamedTuple):
    """The new durable point of an upload. `blob` is opaque, for the upload package."""

    blob: bytes
    position: int
    entry_count: int
    data_bytes: int


class MissingChunk(NamedTuple):
    """A missing chunk that entries of an upload refer to, by its plain digest."""

    digest: bytes
    length: int


@dataclass(frozen=True, slots=True)
class NewBackup:
    """What a commit adds to the upload's own data: `stored_bytes` in the store, sealed. `damage_epoch` is the
    tenant's from before all that the backup needs was looked up; None: it relies on nothing older.
    `problem_count`: what the client could not read, for the run.
    """

    id: bytes
    root: Root
    stored_bytes: int
    changes: ChangeCounts
    damage_epoch: int | None = None
    problem_count: int = 0


class Hold(NamedTuple):
    """A legal hold: why, and since when."""

    reason: str
    since_ns: int


class BackupFilter(NamedTuple):
    """Which backups of a dataset: from a host ("": any), begun at `since_ns` or later and before `until_ns`, with all
    of these tags (None: whatever the value is), and, if `held`, with a hold of their own.
    """

    host: str = ""
    since_ns: int | None = None
    until_ns: int | None = None
    tags: tuple[tuple[str, str | None], ...] = ()
    held: bool = False


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup with all that its `committed` record says.

    `base` is empty for FULL; `deleted_ns` is None if not deleted. `purge_ns`: when a deleted backup may be
    purged; `retain_until_ns` 0: never set.
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
    """What protects a dataset's backups. `policy` is opaque, for upkeep, "" for none; `minimum_s` 0: none."""

    policy: str
    minimum_s: int
    hold: Hold | None


class RetentionState(NamedTuple):
    """What a retention plan depends on, read in one transaction; `backups` are the undeleted ones, newest
    first, without host, root and authors, and without tags that decide nothing.

    `applied_ns`: when a plan was last applied, so that the same backups after an undeletion make another
    plan.
    """

    retention: Retention
    applied_ns: int
    backups: list[Backup]

    def decisive(self) -> tuple[object, ...]:
        """Return the part that decides what may go: equal for equal states."""
        backups = [(each.id, each.retain_until_ns, each.hold) for each in self.backups]
        return (self.retention.policy, self.retention.hold, self.applied_ns, backups)


class DeletionRefusal(NamedTuple):
    """Why a backup cannot be deleted: `by` is hold, dataset_hold or retention, `until_ns` is None
    for no end.
    """

    by: str
    until_ns: int | None
    words: str


class Applied(NamedTuple):
    """What applying a plan deleted, and when."""

    at_ns: int
    backups: list[Backup]


class StandingRoots(NamedTuple):
    """What stays reachable in a tenant once everything deleted and unprotected is purged.

    `backups` are by id; `bases` are those of open uploads; `claimed` are the packs that open uploads rely on.
    """

    backups: dict[bytes, Root]
    bases: dict[bytes, Root]
    claimed: set[bytes]


class DrillState(NamedTuple):
    """What drills of a dataset have found.

    Attributes:
        end_ns: When the last one ended.
        fault: What it found wrong in the newest backup; "" for nothing, or if that one is newer.
        proven_ns: When one last found nothing wrong; 0 for never.
        proven_number: The number of that backup.

    """

    end_ns: int
    fault: str
    proven_ns: int
    proven_number: int


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset. `backup_count` and `newest_backup` exclude deleted backups; `drill` None: none ended yet."""

    name: str
    created_ns: int
    host: str
    root: str
    backup_count: int
    newest_backup: Backup | None
    drill: DrillState | None = None


class PendingRecord(NamedTuple):
    """A decided record that may not be in the store yet.

    `body` is the caller's; the catalog assigns `place`.
    """

    id: bytes
    tenant: bytes
    body: bytes
    place: Place = Place(0, NO_LINK)


class BackupFacts(NamedTuple):
    """Decisions about a backup that records state too. `hold` is the reason of a hold; None for no hold."""

    id: bytes
    dataset: str
    commit_ns: int
    deleted_ns: int | None
    purged_ns: int | None
    retain_until_ns: int
    hold: str | None


class DatasetFacts(NamedTuple):
    """Decisions about a dataset that records state too."""

    name: str
    policy: str
    min_retention_s: int
    hold: str | None
    expectation: Expectation | None


class Facts(NamedTuple):
    """Decisions in the catalog that a tenant's records state too.

    Attributes:
        pending: The ids of records that are still on their way to the store.
        recorded: All records up to this number are durable.
        rebuilt: Records up to this number come from an earlier catalog.

    """

    backups: dict[bytes, BackupFacts]
    datasets: dict[str, DatasetFacts]
    grace_s: int
    pending: frozenset[bytes]
    recorded: int
    rebuilt: int
