"""What a backup would send: the values that `Client.plan_backup` hands out."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from staddle._types.backups import Backup, BackupKind
from staddle._types.entries import path_to_str
from staddle._types.reports import PathProblem


class PlannedChange(enum.StrEnum):
    """What a backup would do about a path."""

    NEW = "new"
    CHANGED = "changed"
    """Its type, size, times or inode differ from the base, or the base says to read it again."""
    REMOVED = "removed"
    """With everything below it."""


@dataclass(frozen=True, slots=True)
class PlannedPath:
    """A path that a backup would send or remove."""

    change: PlannedChange
    path_bytes: bytes
    size_bytes: int
    """Of a regular file that would be read; otherwise 0."""

    @property
    def path(self) -> str:
        """The path as text."""
        return path_to_str(self.path_bytes)


PlannedPathCallback = Callable[[PlannedPath], None]
"""Takes each path in order. An exception that it raises ends the work."""


@dataclass(frozen=True, slots=True)
class Amount:
    """Entries, and the bytes of the regular files among them."""

    entries: int = 0
    data_bytes: int = 0

    def plus(self, data_bytes: int) -> Amount:
        """With one more entry."""
        return Amount(self.entries + 1, self.data_bytes + data_bytes)


@dataclass(frozen=True, slots=True)
class BackupPlan:
    """What a backup would do if it ran now, as far as that is known without reading files.

    The bytes of `new` and `changed` are what would be read. How many of them the server already has is not known before they are read.
    """

    dataset: str
    kind: BackupKind
    base: Backup | None
    """The backup that it would start from; None: every entry counts as new."""
    new: Amount
    changed: Amount
    removed: Amount
    """Every entry that goes, also those below a removed directory."""
    unchanged: Amount
    excluded_entries: int
    """Paths that patterns or other rules leave out. What lies below them is not counted."""
    problems: tuple[PathProblem, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[PathProblem, ...] = ()
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Nothing was found that could not be backed up."""
        return not self.problems
