"""What a caller may choose for a backup or a restore."""

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypedDict

from staddle._types.backups import BackupKind, Profile
from staddle._types.entries import PathLike
from staddle._types.reports import ProgressCallback

Overwrite = Literal["never", "if-changed", "always"]
"""What a restore does where something lies already: keep it; replace what differs; replace everything."""


ArchiveFormat = Literal["tar", "zip"]
"""What a backup can be written as."""


At = datetime.datetime | datetime.date | datetime.timedelta | str
"""A moment in the past, or an age: see `staddle.Client.restore`."""


class BinarySink(Protocol):
    """What an archive is written to: any binary file that is open for writing."""

    def write(self, data: bytes, /) -> int | None:
        """Takes these bytes, or the first of them, and says how many."""


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
