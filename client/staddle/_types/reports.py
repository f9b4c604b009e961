"""What a backup or a restore has done, and how far it is."""

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from staddle._types.backups import Backup
from staddle._types.entries import path_to_str


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
    """A restore that verifies and writes nothing: the target differs from the backup."""


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
    """Paths that are left out without being a problem: vanished, or left out because of what they are."""
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
    """It resumed an upload that was begun before."""

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
    """Existed already, as in the backup."""
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
    """Only with `dry_run`: those that would replace an existing path."""

    @property
    def complete(self) -> bool:
        """Everything that was requested is restored."""
        return not self.problems

    @property
    def damaged(self) -> tuple[PathProblem, ...]:
        """The problems that are damage of the store."""
        return tuple(problem for problem in self.problems if problem.kind is ProblemKind.DAMAGED)


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment in a backup or restore, for showing. Totals are None while they are not known."""

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
    """A message to show, such as that a call is retried, and why."""


ProgressCallback = Callable[[Progress], None]
"""Called a few times a second, from any thread; it must return quickly. An exception that it raises ends the work."""
