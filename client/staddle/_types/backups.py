"""Backups, datasets, open uploads, and what changed between two backups."""

import datetime
import enum
from collections.abc import Mapping
from dataclasses import dataclass

from staddle._types.entries import Entry, path_to_str


class BackupKind(enum.StrEnum):
    """What a backup starts from. AUTO is only asked for: INCREMENTAL if the dataset has a backup, else FULL."""

    AUTO = "auto"
    FULL = "full"
    INCREMENTAL = "incremental"
    DIFFERENTIAL = "differential"


class Scope(enum.StrEnum):
    """What is not sent: under WHOLE it is not in the backup, under CHANGES it is as in the base."""

    WHOLE = "whole"
    CHANGES = "changes"


class Profile(enum.StrEnum):
    """How files are cut into chunks: by their content, or (disk images) in equal pieces."""

    CONTENT_DEFINED = "content-defined"
    FIXED = "fixed"


class ChangeType(enum.StrEnum):
    """How an entry differs between two backups; CONTENT is type, content, link target or device number."""

    ADDED = "added"
    REMOVED = "removed"
    CONTENT = "content"
    METADATA = "metadata"


@dataclass(frozen=True, slots=True)
class ChangeCounts:
    """How a backup differs from its base; a full one counts every entry as added."""

    added: int = 0
    content_changed: int = 0
    metadata_changed: int = 0
    removed: int = 0
    metadata_kept: int = 0
    """Differential: entries that keep the metadata of the full one though it changed since."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A legal hold: what it is on cannot be deleted until it is released."""

    reason: str
    time: datetime.datetime
    """Since when."""


@dataclass(frozen=True, slots=True)
class Backup:
    """An immutable point-in-time copy of a dataset."""

    id: str
    dataset: str
    number: int
    kind: BackupKind
    base_backup_id: str
    """Empty for a full one."""
    begin_time: datetime.datetime
    """When its capture began, by the server's clock: what a restore at a time goes by."""
    begin_time_ns: int
    commit_time: datetime.datetime
    entry_count: int
    data_bytes: int
    """The sum of the sizes of its regular files."""
    stored_bytes: int
    """What it added to the store, compressed and sealed."""
    changes: ChangeCounts
    tags: Mapping[str, str]
    host: str
    root: str
    principal: str
    """The name of the token that committed it."""
    delete_time: datetime.datetime | None
    """Set while it is deleted and can still be undeleted."""
    scope: Scope
    manifest_digest: str
    """Two backups with the same hold the same entries."""
    purge_time: datetime.datetime | None = None
    """Set while it is deleted: until then it can be undeleted; afterwards it is purged, unless a hold protects it."""
    retain_until_time: datetime.datetime | None = None
    """It cannot be deleted before then; None: no retention was set."""
    hold: Hold | None = None
    dataset_hold: Hold | None = None
    """A hold on the whole dataset."""
    begun_by: str = ""
    """The name of the token that began its upload."""
    written_by: tuple[str, ...] = ()
    """The names of the tokens that sent what is in it."""
    more_writers: bool = False
    """More tokens than are listed sent some of it."""


@dataclass(frozen=True, slots=True)
class Drill:
    """What the server found when it last read all of a dataset's newest backup, as a restore does."""

    end_time: datetime.datetime
    fault: str
    """What was wrong; empty: nothing, or the newest backup is newer."""
    proven_time: datetime.datetime | None
    """When a drill last found nothing wrong."""
    proven_number: int
    """The number of the backup that it read; 0 if there was none yet."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A named thing that is protected."""

    name: str
    create_time: datetime.datetime
    host: str
    root: str
    backup_count: int
    newest_backup: Backup | None
    drill: Drill | None = None
    """None: the server has not tried yet."""


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """A backup that has begun and is neither committed nor aborted."""

    id: str
    dataset: str
    epoch: int
    principal: str
    """The name of the token that writes it."""
    host: str
    root: str
    begin_time: datetime.datetime
    lease_expire_time: datetime.datetime
    """Until then no other token may resume it."""
    expire_time: datetime.datetime
    """The server aborts it then."""
    durable_entries: int
    durable_bytes: int
    last_failure: str
    """Why its last stream or call failed; empty: it did not."""


@dataclass(frozen=True, slots=True)
class Change:
    """What differs at one path between two backups."""

    type: ChangeType
    before: Entry | None
    """None for ADDED."""
    after: Entry | None
    """None for REMOVED."""
    uncertain: bool = False
    """ADDED and REMOVED: the directory above is incomplete in the backup that lacks the path, so the path may have existed unread."""

    @property
    def path_bytes(self) -> bytes:
        """The path that both have."""
        entry = self.after or self.before
        return entry.path_bytes if entry is not None else b""

    @property
    def path(self) -> str:
        """The path as text."""
        return path_to_str(self.path_bytes)
