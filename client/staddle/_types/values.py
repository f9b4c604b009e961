"""The values that the library hands out and takes: frozen, typed, without gRPC in them.

Paths are relative to a backup's root, joined by "/". As `str` they hold bytes that are not UTF-8 as lone surrogates
(the way os.fsdecode does it); `path_bytes` has them as they are. Times are aware datetimes in UTC, cut to microseconds;
where the last digit matters there is a field in nanoseconds beside.
"""

import datetime
import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, TypedDict

Overwrite = Literal["never", "if-changed", "always"]
"""What a restore does where something lies already: keep it; replace what differs; replace everything."""

ArchiveFormat = Literal["tar", "zip"]
"""What a backup can be written as."""

PathLike = str | bytes
"""A path inside a backup, relative to its root."""

At = datetime.datetime | datetime.date | datetime.timedelta | str
"""A moment in the past, or an age: see `staddle.Client.restore`."""


def path_to_bytes(path: PathLike) -> bytes:
    """The bytes of a path inside a backup: the inverse of `path_to_str`."""
    return path if isinstance(path, bytes) else path.encode("utf-8", "surrogateescape")


def path_to_str(path: bytes) -> str:
    """A path as text; bytes that are not UTF-8 become lone surrogates, and come back unchanged."""
    return path.decode("utf-8", "surrogateescape")


class BinarySink(Protocol):
    """What an archive is written to: any binary file that is open for writing."""

    def write(self, data: bytes, /) -> int | None:
        """Takes these bytes, or the first of them, and says how many."""


class EntryType(enum.StrEnum):
    """The type of an entry."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    FIFO = "fifo"
    CHAR_DEVICE = "char-device"
    BLOCK_DEVICE = "block-device"
    SOCKET = "socket"


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


class DigestOrigin(enum.StrEnum):
    """Who says that an entry's `file_digest` is right: the server hashed the file, or a client said so."""

    VERIFIED = "verified"
    CLAIMED = "claimed"


@dataclass(frozen=True, slots=True)
class ChunkRef:
    """A piece of a file: the BLAKE3 digest of its bytes, and how many they are."""

    digest: bytes
    length_bytes: int


@dataclass(frozen=True, slots=True)
class Xattr:
    """An extended attribute."""

    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Hole:
    """A stretch of a file that takes no space on disk."""

    offset_bytes: int
    length_bytes: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of a backup. None in mode, owner or times: nobody said."""

    path_bytes: bytes
    type: EntryType = EntryType.FILE
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    owner: str = ""
    group: str = ""
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    inode: int | None = None
    size_bytes: int = 0
    """Of a regular file; 0 for the others."""
    content_id: str = ""
    """Of a regular file: hexadecimal; equal ids mean equal cuts of equal bytes."""
    chunks: tuple[ChunkRef, ...] = ()
    """Only where references were asked for."""
    link_target_bytes: bytes = b""
    device: tuple[int, int] | None = None
    """Major and minor number."""
    link_group: bytes = b""
    xattrs: tuple[Xattr, ...] = ()
    holes: tuple[Hole, ...] = ()
    file_digest: str = ""
    """BLAKE3 of the whole file as b3sum prints it, where somebody said it."""
    digest_origin: DigestOrigin | None = None
    read_again: bool = False
    """It changed while it was read, or might have: the next backup reads it again."""
    implied: bool = False
    """A directory that nobody sent but that something lies in."""
    incomplete: bool = False
    """A directory something in which could not be read, so that it is missing, with everything below it."""

    @property
    def path(self) -> str:
        """The path as text."""
        return path_to_str(self.path_bytes)

    @property
    def link_target(self) -> str:
        """Where a symlink points, as text."""
        return path_to_str(self.link_target_bytes)

    @property
    def mtime(self) -> datetime.datetime | None:
        """When the content last changed; None: nobody said, or it is out of the range of datetime."""
        return None if self.mtime_ns is None else _datetime_or_none(self.mtime_ns)


_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def datetime_from_ns(time_ns: int) -> datetime.datetime:
    """Nanoseconds since 1970 as a datetime in UTC, cut to microseconds. Raises OverflowError outside the years 1 to 9999."""
    return _EPOCH + datetime.timedelta(microseconds=time_ns // 1000)


def _datetime_or_none(time_ns: int) -> datetime.datetime | None:
    try:
        return datetime_from_ns(time_ns)
    except OverflowError:
        return None


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
    """A legal hold: nobody can delete what it is on before it is released."""

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
    """Set while it is deleted: until then it can be undeleted; afterwards it may go for good, unless a hold keeps it."""
    retain_until_time: datetime.datetime | None = None
    """Nobody can delete it before then; None: nothing was ever set."""
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
class Dataset:
    """A named thing that is protected."""

    name: str
    create_time: datetime.datetime
    host: str
    root: str
    backup_count: int
    newest_backup: Backup | None


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """A backup that has begun and is neither committed nor given up."""

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
    """The server gives it up then."""
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


@dataclass(frozen=True, slots=True)
class Chunker:
    """The parameters with which the tenant's data is cut. The seed is kept like a credential."""

    min_bytes: int
    avg_bytes: int
    max_bytes: int
    normalization: int
    seed: int = field(repr=False)
    fixed_bytes: int


@dataclass(frozen=True, slots=True)
class ServerCondition:
    """What an operator should know of a server, as of a few seconds ago."""

    takes_backups: bool = True
    """Its store takes writes, and its disks have room."""
    clock_in_doubt: bool = False
    """Its clock jumped and is not believed: nothing is purged, expired, collected or deleted by policy."""
    clock_jump: datetime.timedelta = datetime.timedelta()
    """How far the clock jumped; negative: back."""
    clock_wait: datetime.timedelta = datetime.timedelta()
    """The jump is believed once so much more time has passed."""
    damaged_packs: int = 0
    """Packs of the tenant that are gone or damaged as a whole."""
    damaged_segments: int = 0
    damaged_footers: int = 0
    """Damaged parts of others."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server says of itself, and of the token that asks."""

    version: str
    tenant: str
    principal: str
    role: str
    chunker: Chunker
    server_time: datetime.datetime
    limits: Mapping[str, float]
    """By the names of the message Limits; durations in seconds."""
    condition: ServerCondition = ServerCondition()


class ProblemKind(enum.StrEnum):
    """What went wrong at one path."""

    UNREADABLE = "unreadable"
    """Backup: it could not be read; it is not in the backup, or as in the base."""
    CHANGED = "changed"
    """Backup: it kept changing while it was read; what is in the backup may be a mixture."""
    ALTERED = "altered"
    """Backup: it is in the backup, except for a value that no backup can hold; the message says what became of that."""
    SKIPPED = "skipped"
    """Backup, as a note: left out because of what it is; the message says why."""
    VANISHED = "vanished"
    """Backup, as a note: it was removed by others during the backup."""
    DAMAGED = "damaged"
    """Restore: the stored data is damaged; the file was not written."""
    NOT_WRITTEN = "not-written"
    """Restore: the target did not take it."""
    NOT_DELETED = "not-deleted"
    """Restore that deletes: the backup does not have it, and it could not be deleted, or has changed since it was found."""
    DIFFERENT = "different"
    """Restore that verifies and writes nothing: what is there is not as in the backup."""


@dataclass(frozen=True, slots=True)
class PathProblem:
    """One path with which something went wrong, and what."""

    kind: ProblemKind
    path_bytes: bytes
    message: str

    @property
    def path(self) -> str:
        """The path as text."""
        return path_to_str(self.path_bytes)


@dataclass(frozen=True, slots=True)
class BackupReport:
    """What a backup did.

    `problems` empty: everything that was asked for is in the backup.
    """

    backup: Backup
    problems: tuple[PathProblem, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[PathProblem, ...] = ()
    """Paths that are not in the backup for a reason that is no problem: vanished, or left out because of what they are."""
    entries_unchanged: int = 0
    """Carried over from the base, unread."""
    read_bytes: int = 0
    """Read at the source."""
    sent_bytes: int = 0
    """Bytes of data, before compression, that the server did not have and was sent."""
    reused_bytes: int = 0
    """Bytes of data that the server had already."""
    seconds: float = 0.0
    resumed: bool = False
    """It went on with an upload that was begun before."""

    @property
    def complete(self) -> bool:
        """Nothing was left out, and nothing kept changing."""
        return not self.problems


@dataclass(slots=True)
class EntryCounts:
    """Entries by what they are."""

    files: int = 0
    directories: int = 0
    symlinks: int = 0
    others: int = 0
    """Fifos and devices."""


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What a restore did. `problems` names every path that is not as it was in the backup."""

    backup: Backup
    target: str
    problems: tuple[PathProblem, ...] = ()
    warnings: tuple[str, ...] = ()
    entries_written: int = 0
    entries_unchanged: int = 0
    """Were there already as in the backup."""
    data_bytes: int = 0
    """Bytes of regular files that were written."""
    seconds: float = 0.0
    entries_deleted: int = 0
    """Paths that the backup does not have, and that were removed because `delete` was asked for."""
    deleted_paths: tuple[bytes, ...] = ()
    """The first 10,000 of them."""
    made: EntryCounts = field(default_factory=EntryCounts)
    """Only with `dry_run`: of the entries that would be written, those where nothing is."""
    replaced: EntryCounts = field(default_factory=EntryCounts)
    """Only with `dry_run`: those that would replace what is there."""

    @property
    def complete(self) -> bool:
        """Everything that was asked for is there."""
        return not self.problems

    @property
    def damaged(self) -> tuple[PathProblem, ...]:
        """The problems that are damage of the store."""
        return tuple(problem for problem in self.problems if problem.kind is ProblemKind.DAMAGED)


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment in a backup or restore, for showing. Totals are None while nobody knows them."""

    phase: str
    """In one word: "connect", "scan", "send", "commit", "compare", "restore", "retry"."""
    path: str = ""
    entries_done: int = 0
    entries_total: int | None = None
    bytes_done: int = 0
    bytes_total: int | None = None
    new_bytes: int = 0
    reused_bytes: int = 0
    notice: str = ""
    """Something to say in words, such as that a call is tried again, and why."""


ProgressCallback = Callable[[Progress], None]
"""Called now and then, from any thread, and quickly done. An exception that it raises ends the work."""


class SourceArguments(TypedDict, total=False):
    """What of a source is backed up, and from what it starts: the arguments that `Client.backup` and `Client.plan_backup` share."""

    kind: str
    """auto (the default), full, incremental or differential."""
    paths: Iterable[PathLike] | None
    """Only these, below the root; None: everything."""
    exclude: Sequence[str]
    exclude_files: Sequence[str]
    exclude_caches: bool
    """By default True."""
    exclude_if_present: Sequence[str]
    exclude_larger_than_bytes: int | None
    max_removed_percent: float | None
    one_file_system: bool
    new_root: bool
    host: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupOptions:
    """How `Client.backup` works; the fields are its arguments."""

    dataset: str
    kind: BackupKind = BackupKind.AUTO
    paths: Sequence[PathLike] | None = None
    """Only these, below the root; None: everything."""
    exclude: Sequence[str] = ()
    exclude_files: Sequence[str] = ()
    exclude_caches: bool = True
    exclude_if_present: Sequence[str] = ()
    exclude_larger_than_bytes: int | None = None
    max_removed_percent: float | None = None
    one_file_system: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)
    thin: bool = False
    new_root: bool = False
    host: str | None = None
    retry_s: float = 600.0
    progress: ProgressCallback | None = None
    profile: Profile = Profile.CONTENT_DEFINED
    cache_dir: str | bytes | None = None
    """Where the client remembers what backups hold; None: nowhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreOptions:
    """How `Client.restore` works; the fields are its arguments."""

    paths: tuple[bytes, ...] = ()
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    overwrite: Overwrite = "if-changed"
    verify: bool = False
    delete: bool = False
    confirm_delete: Callable[[int], None] | None = None
    dry_run: bool = False
    retry_s: float = 60.0
    progress: ProgressCallback | None = None
