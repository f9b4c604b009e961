"""Runs (attempts to back up), expectations, and the datasets that need somebody."""

import datetime
import enum
from dataclasses import dataclass


class RunOutcome(enum.StrEnum):
    """How a run ended. PROBLEMS: with a backup of what could be read. ABANDONED: its client or server stopped without a word."""

    RUNNING = "running"
    DONE = "done"
    PROBLEMS = "problems"
    FAILED = "failed"
    ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True)
class Run:
    """An attempt to back up, from its begin to its end; an upload that is resumed is one run."""

    id: str
    """Its upload's, if it began one."""
    dataset: str
    outcome: RunOutcome
    reason: str
    """Why it has no backup; empty: it has one, or the reason is unknown."""
    principal: str
    """The name of its token."""
    host: str
    begin_time: datetime.datetime
    end_time: datetime.datetime | None
    """None while it runs."""
    entry_count: int
    data_bytes: int
    """Of its backup; without one, what was durable of its upload."""
    stored_bytes: int
    """What its backup added to the store."""
    problem_count: int
    """How many paths its client could not read."""
    backup_id: str
    """Empty for none."""
    reported: bool
    """It failed before it began an upload."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """How often a dataset must have a new backup: it is late once `every` and `grace` have passed without one."""

    dataset: str
    every: datetime.timedelta
    grace: datetime.timedelta
    mute_until: datetime.datetime | None
    """Until then the dataset needs nobody; None: it is not muted."""
    set_time: datetime.datetime
    """When it was first set; time passes from then while the dataset has no backup."""
    success_time: datetime.datetime | None
    """When its newest backup was committed, also one that is deleted by now; None: it never had one."""
    late_time: datetime.datetime
    """It is late from then on."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A dataset that needs somebody."""

    dataset: str
    late_since: datetime.datetime | None
    """None: it is not late."""
    success_time: datetime.datetime | None
    """When its newest backup was committed; None: it never had one."""
    expectation: Expectation | None
    run: Run | None
    """Its latest run that failed or was abandoned, if no backup was committed since, or that made its newest backup with problems."""


@dataclass(frozen=True, slots=True)
class Status:
    """Which datasets of the tenant need somebody, the worst first: late ones, then failed ones, then those with problems."""

    troubles: tuple[Trouble, ...]
    dataset_count: int
    """All datasets, whatever they need."""
    expected_count: int
    """Of these, those with an expectation."""
    muted_count: int
    """Of these, those that are muted now."""
    oldest_success_time: datetime.datetime | None
    """Of the newest commits of all datasets the one that lies back the longest; None: there never was one."""


class EventSeverity(enum.StrEnum):
    """How bad an event is."""

    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that the service found to be wrong. It is open until it is not found any more for five minutes."""

    id: str
    kind: str
    """What is wrong, in a word, such as "late" or "damage"; later servers may know more of them."""
    severity: EventSeverity
    dataset: str
    """The dataset that it is about; empty: it is not about one."""
    of_service: bool
    """It concerns the service as a whole, and not this tenant alone. Only administrators see these."""
    server: str
    """The one server that it concerns; empty: all, or this token is not an administrator's."""
    text: str
    """What is wrong."""
    advice: str
    """What to do; empty unless this token is an administrator's."""
    since_time: datetime.datetime
    """Since when it holds."""
    begin_time: datetime.datetime
    """When the service found it."""
    over_time: datetime.datetime | None
    """None: it is open."""
