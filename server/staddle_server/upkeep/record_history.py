"""The combined content of a tenant's records, in whatever order they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Generic, NamedTuple, TypeVar

from staddle_server.base.limits import GRACE_S
from staddle_server.base.types import Authors
from staddle_server.catalog import Expectation
from staddle_server.catalog.rebuild import RebuiltBackup, RebuiltDataset
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
    ReleasedRecord,
    RetainedRecord,
    TenantRecord,
    TenantSettingsRecord,
    UndeletedRecord,
    decode_record,
    encode_record,
)

T = TypeVar("T")


@dataclass(slots=True)
class _Latest(Generic[T]):
    """The value of the latest decision.

    Of two at the same time the one that `keeps` more counts, to lose nothing.
    """

    key: tuple[int, bool, str]
    value: T


class _HoldDecision(NamedTuple):
    since_ns: int | None
    reason: str


_NOT_HELD = _HoldDecision(None, "")


class _Commit(NamedTuple):
    """A committed backup, its record as bytes: a third of the memory of its values."""

    number: int
    commit_ns: int
    backup: bytes
    body: bytes


class Renumbered(NamedTuple):
    """A backup whose number another one of its dataset has."""

    dataset: str
    backup: bytes
    before: int
    number: int


@dataclass
class History:
    """The records of one tenant.

    A later decision replaces an earlier one, `purged` is final, and retention only grows. Takes about 500
    bytes of memory for each backup.
    """

    _grace: _Latest[int] | None = None
    _commits: dict[str, dict[bytes, _Commit]] = field(default_factory=dict)
    _known: set[bytes] = field(default_factory=set)
    _deleted: dict[bytes, _Latest[bool]] = field(default_factory=dict)
    _purged: set[bytes] = field(default_factory=set)
    _retained_ns: dict[bytes, int] = field(default_factory=dict)
    _held: dict[bytes, _Latest[_HoldDecision]] = field(default_factory=dict)
    _datasets_held: dict[str, _Latest[_HoldDecision]] = field(default_factory=dict)
    _policies: dict[str, _Latest[PolicyRecord]] = field(default_factory=dict)
    _expected: dict[str, _Latest[ExpectedRecord]] = field(default_factory=dict)
    _decided_ns: dict[str, int] = field(default_factory=dict)
    """When something was first decided about a dataset itself."""

    last_ns: int = 0
    """When the newest decision was made."""

    newest_ns: int = 0
    """The latest time in any record: a clock that is behind it is or was wrong."""

    tenant_made: bool = False
    """Whether the record of the tenant's creation exists. (Its keys say the same, and more.)"""

    def add(self, record: Record, name: str) -> None:
        """Take a record, by the name of its object."""
        if isinstance(record, CommittedRecord):
            self.newest_ns = max(self.newest_ns, record.commit_ns)
        elif not isinstance(record, TenantRecord | NotedRecord):
            self.last_ns = max(self.last_ns, record.at_ns)
            self.newest_ns = max(self.newest_ns, record.at_ns)
        match record:
            case TenantRecord():
                self.tenant_made = True
            case ForgottenRecord() | NotedRecord():
                pass  # about no backup or dataset: only the chain needs them
            case TenantSettingsRecord():
                key = (record.at_ns, True, name)
                if self._grace is None or key > self._grace.key:
                    self._grace = _Latest(key, record.grace_s)
            case PolicyRecord() | ExpectedRecord():
                self._add_of_dataset(record, name)
            case HeldRecord():
                self._hold(record, (record.at_ns, True, name), _HoldDecision(record.at_ns, record.reason))
            case ReleasedRecord():
                self._hold(record, (record.at_ns, False, name), _NOT_HELD)
            case _:
                self._add_of_backup(record, name)

    @property
    def grace_s(self) -> int:
        """Return how long a deleted backup can be undeleted."""
        return GRACE_S if self._grace is None else self._grace.value

    @property
    def purged(self) -> int:
        """Return the number of backups of which only records are left."""
        return len(self._purged & self._known)

    @property
    def committed(self) -> AbstractSet[bytes]:
        """Return backups that were committed, purged ones included."""
        return self._known

    def is_purged(self, backup: bytes) -> bool:
        """Return whether the backup is purged."""
        return backup in self._purged

    def is_deleted(self, backup: bytes) -> bool:
        """Return whether the backup is deleted, softly."""
        deleted = self._deleted.get(backup)
        return deleted is not None and deleted.value

    def retain_until_ns(self, backup: bytes) -> int:
        """Return until when the backup cannot be deleted; 0 if never set."""
        return self._retained_ns.get(backup, 0)

    def hold(self, backup: bytes, dataset: str) -> str | None:
        """Return the reason of the hold on a backup or (`backup` empty) on a dataset; None for no hold."""
        hold = _value(self._held.get(backup) if backup else self._datasets_held.get(dataset))
        return None if hold.since_ns is None else hold.reason

    def retention(self, dataset: str) -> tuple[str, int]:
        """Return a dataset's policy ("" for none) and minimum retention in seconds."""
        policy = self._policies.get(dataset)
        return ("", 0) if policy is None else (policy.value.policy, policy.value.min_retention_s)

    def expectation(self, dataset: str) -> Expectation | None:
        """Return how often a dataset must have a new backup; None for no expectation."""
        found = self._expected.get(dataset)
        if found is None or not found.value.every_s:
            return None
        said = found.value
        return Expectation(said.every_s, said.grace_s, said.since_ns, said.mute_until_ns)

    def orphans(self) -> set[bytes]:
        """Return backups with decisions, but without a record of their commit."""
        decided = self._deleted.keys() | self._retained_ns.keys() | self._held.keys()
        return decided - self._known - self._purged

    def datasets(self, now_ns: int) -> Iterator[RebuiltDataset]:
        """Yield the datasets by name: those with a committed backup, even a purged one, and those with a
        decision.

        Times of decisions only order them. Where the clock counts, none of them lies ahead of it.
        """
        for name in sorted(self._commits.keys() | self._decided_ns.keys()):
            dataset = self._dataset(name)
            yield replace(
                dataset,
                created_ns=min(dataset.created_ns, now_ns),
                hold_ns=None if dataset.hold_ns is None else min(dataset.hold_ns, now_ns),
                policy_ns=min(dataset.policy_ns, now_ns),
                success_ns=min(dataset.success_ns, now_ns),
                expectation=dataset.expectation and dataset.expectation.begun_by(now_ns),
            )

    def backups(
        self, dataset: str, now_ns: int, renumbered: Callable[[Renumbered], None]
    ) -> Iterator[RebuiltBackup]:
        """Yield the unpurged backups of a dataset.

        The grace period of deleted ones begins again at `now_ns`.
        """
        uploads: set[bytes] = set()
        for commit, number in _numbered(self._commits.get(dataset, {}).values()):
            if commit.backup in self._purged:
                continue
            if number != commit.number:
                renumbered(Renumbered(dataset, commit.backup, commit.number, number))
            record = _record(commit)
            # An upload becomes two backups if a catalog is restored from a copy in which it was open.
            upload = record.backup if record.upload in uploads else record.upload
            uploads.add(upload)
            yield self._backup(record, upload, number, now_ns)

    # --- parts

    def _add_of_dataset(self, record: PolicyRecord | ExpectedRecord, name: str) -> None:
        self._decided(record.dataset, record.at_ns)
        if isinstance(record, PolicyRecord):
            _decide(self._policies, record.dataset, (record.at_ns, True, name), record)
        else:
            key = (record.at_ns, record.every_s > 0, name)
            _decide(self._expected, record.dataset, key, record)

    def _add_of_backup(
        self,
        record: CommittedRecord | DeletedRecord | UndeletedRecord | PurgedRecord | RetainedRecord,
        name: str,
    ) -> None:
        match record:
            case CommittedRecord():
                self._commit(record)
            case DeletedRecord():
                _decide(self._deleted, record.backup, (record.at_ns, False, name), value=True)
            case UndeletedRecord():
                _decide(self._deleted, record.backup, (record.at_ns, True, name), value=False)
            case PurgedRecord():
                self._purged.add(record.backup)
            case RetainedRecord():
                self._retain(record.backup, record.until_ns)

    def _retain(self, backup: bytes, until_ns: int) -> None:
        """Move the time later, never earlier."""
        if until_ns > self._retained_ns.get(backup, 0):
            self._retained_ns[backup] = until_ns

    def _commit(self, record: CommittedRecord) -> None:
        commit = _Commit(record.number, record.commit_ns, record.backup, encode_record(record))
        self._commits.setdefault(record.dataset, {})[record.backup] = commit
        self._known.add(record.backup)
        self._retain(record.backup, record.retain_until_ns)

    def _hold(
        self, record: HeldRecord | ReleasedRecord, key: tuple[int, bool, str], hold: _HoldDecision
    ) -> None:
        if record.backup:
            _decide(self._held, record.backup, key, hold)
        else:
            self._decided(record.dataset, record.at_ns)
            _decide(self._datasets_held, record.dataset, key, hold)

    def _decided(self, dataset: str, at_ns: int) -> None:
        self._decided_ns[dataset] = min(at_ns, self._decided_ns.get(dataset, at_ns))

    def _dataset(self, name: str) -> RebuiltDataset:
        host = root = ""
        last = 0
        created_ns = [self._decided_ns[name]] if name in self._decided_ns else []
        for commit, number in _numbered(self._commits.get(name, {}).values()):
            record = _record(commit)
            # As the newest one stated; unstated values stay.
            host, root = record.host or host, record.source_root or root
            created_ns = [min([record.begin_ns, *created_ns])]
            last = number
        policy, min_retention_s = self.retention(name)
        hold = _value(self._datasets_held.get(name))
        return RebuiltDataset(
            name=name,
            created_ns=created_ns[0],
            host=host,
            root=root,
            last_number=last,
            min_retention_s=min_retention_s,
            hold_ns=hold.since_ns,
            hold_reason=hold.reason,
            policy=policy,
            policy_ns=self._policies[name].value.at_ns if name in self._policies else 0,
            success_ns=max((commit.commit_ns for commit in self._commits.get(name, {}).values()), default=0),
            expectation=self.expectation(name),
        )

    def _backup(self, record: CommittedRecord, upload: bytes, number: int, now_ns: int) -> RebuiltBackup:
        hold = _value(self._held.get(record.backup))
        return RebuiltBackup(
            id=record.backup,
            number=number,
            kind=record.kind,
            scope=record.scope,
            base=record.base,
            upload=upload,
            request_id=record.request_id,
            principal=record.principal,
            authors=Authors(record.begun_by, record.written_by, record.more_writers),
            begin_ns=record.begin_ns,
            commit_ns=record.commit_ns,
            deleted_ns=now_ns if self.is_deleted(record.backup) else None,
            root=record.root,
            stored_bytes=record.stored_bytes,
            changes=record.changes,
            tags=record.tags,
            host=record.host,
            source_root=record.source_root,
            retain_until_ns=self.retain_until_ns(record.backup),
            hold_ns=hold.since_ns,
            hold_reason=hold.reason,
        )


K = TypeVar("K", bytes, str)


def _decide(latest: dict[K, _Latest[T]], about: K, key: tuple[int, bool, str], value: T) -> None:
    known = latest.get(about)
    if known is None or key > known.key:
        latest[about] = _Latest(key, value)


def _value(hold: _Latest[_HoldDecision] | None) -> _HoldDecision:
    return _NOT_HELD if hold is None else hold.value


def _record(commit: _Commit) -> CommittedRecord:
    record = decode_record(commit.body, commit.backup.hex())
    assert isinstance(record, CommittedRecord)
    return record


def _numbered(commits: Iterable[_Commit]) -> Iterator[tuple[_Commit, int]]:
    """Yield the backups of a dataset with their numbers, in number order.

    After a catalog was restored from a copy, numbers were given twice. Then each backup has its own number
    or, if that is taken, the next one, in order of commit: the newest stays the newest.
    """
    ordered = sorted(commits)
    if len({commit.number for commit in ordered}) == len(ordered):
        yield from ((commit, commit.number) for commit in ordered)
        return
    last = 0
    for commit in sorted(ordered, key=lambda commit: (commit.commit_ns, commit.number, commit.backup)):
        last = max(commit.number, last + 1)
        yield commit, last
