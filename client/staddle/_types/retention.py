"""The values of retention: policies, plans, and what became of them."""

import datetime
from dataclasses import dataclass

from staddle._types.backups import Backup, Hold


@dataclass(frozen=True, slots=True)
class RetentionTag:
    """A tag that keeps a backup; `value` None: whatever its value is."""

    key: str
    value: str | None = None


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """Which backups of a dataset stay: those that any rule keeps. What is 0 or empty keeps nothing.

    Each rule looks at the backups from the newest to the oldest. The newest one, the newest that is whole, and what is protected always stay.
    """

    keep_last: int = 0
    """The newest so many."""
    keep_within: datetime.timedelta = datetime.timedelta(0)
    """Those that began within so long before the newest one."""
    keep_hourly: int = 0
    """The newest of each of the last so many hours in which there is one; in the same way days, weeks, months, years."""
    keep_daily: int = 0
    keep_weekly: int = 0
    keep_monthly: int = 0
    keep_yearly: int = 0
    keep_tags: tuple[RetentionTag, ...] = ()
    """Those that have one of these tags."""
    time_zone: str = "UTC"
    """Where hours and days begin, such as Europe/Berlin."""


@dataclass(frozen=True, slots=True)
class Retention:
    """What keeps the backups of a dataset."""

    policy: RetentionPolicy | None
    """None: nothing is ever deleted by itself."""
    minimum: datetime.timedelta
    """For so long after its commit nobody can delete a backup."""
    hold: Hold | None


@dataclass(frozen=True, slots=True)
class PlannedBackup:
    """What a policy would do to a backup, and why."""

    backup: Backup
    goes: bool
    reasons: tuple[str, ...]
    damaged: bool
    """Something of it is known to be damaged or missing."""


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """What a dataset's policy would do now: to be looked at, and then applied or not."""

    dataset: str
    token: str
    backups: tuple[PlannedBackup, ...]
    """All that are not deleted, the newest first."""
    free_bytes: int | None
    """What the store would be rid of in the end; None: it was not asked for, or cannot be told."""
    free_bytes_unknown: str
    """Why it cannot be told."""

    @property
    def going(self) -> tuple[PlannedBackup, ...]:
        """Those that it deletes."""
        return tuple(each for each in self.backups if each.goes)


@dataclass(frozen=True, slots=True)
class AppliedRetention:
    """What applying a plan deleted."""

    deleted_backup_ids: tuple[str, ...]
    purge_time: datetime.datetime | None
    """Until then they can be undeleted; None: nothing was deleted."""
