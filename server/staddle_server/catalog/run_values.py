"""Runs, expectations, and what of them needs somebody: frozen values. Times are nanoseconds since 1970."""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from staddle_server.base.clock import NS
from staddle_server.base.types import RunOutcome


@dataclass(frozen=True, slots=True)
class BackupRun:
    """An attempt to back up.

    `id` is its upload's; a `reported` one failed before it began an upload. `end_ns` is None while it runs; of
    an abandoned one it is when its server gave it up. `entry_count` and `data_bytes` are those of its backup,
    or what it had sent by its last checkpoint. `backup` is empty for none, `reason` for none known.
    """

    id: bytes
    dataset: str
    outcome: RunOutcome
    reported: bool
    principal: str
    host: str
    begin_ns: int
    end_ns: int | None
    entry_count: int
    data_bytes: int
    stored_bytes: int
    problem_count: int
    backup: bytes
    reason: str


class RunFilter(NamedTuple):
    """Which runs: of a dataset ("": of all), begun at `since_ns` or later and before `until_ns`, with one of these
    outcomes (none given: any).
    """

    dataset: str = ""
    since_ns: int | None = None
    until_ns: int | None = None
    outcomes: frozenset[RunOutcome] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """A run that failed, as its client reports it. `upload` is the one that it began; empty for none.

    `id` is the run's, if it began none: the same one for a replay.
    """

    id: bytes
    dataset: str
    upload: bytes
    host: str
    reason: str
    begin_ns: int
    end_ns: int


class Expectation(NamedTuple):
    """How often a dataset must have a new backup: at least every `every_s`, plus `grace_s`.

    `since_ns`: when it was first set; changes keep it. `mute_until_ns`: until then nobody is told; 0: not muted.
    """

    every_s: int
    grace_s: int
    since_ns: int
    mute_until_ns: int = 0

    def late_ns(self, success_ns: int) -> int:
        """Return when the dataset becomes late, or did, if its newest backup was committed then (0: none was).

        Time passes from the commit; without one, from when the expectation was set.
        """
        return (success_ns or self.since_ns) + (self.every_s + self.grace_s) * NS

    def begun_by(self, now_ns: int) -> "Expectation":
        """Return it as set now at the latest."""
        return self._replace(since_ns=min(self.since_ns, now_ns))

    def is_muted(self, now_ns: int) -> bool:
        """Return whether nobody is to be told of the dataset now."""
        return now_ns < self.mute_until_ns


class ExpectedDataset(NamedTuple):
    """A dataset that has an expectation. `success_ns`: when its newest backup was committed, also one that is
    deleted or purged by now; 0: it never had one.
    """

    name: str
    expectation: Expectation
    success_ns: int


class Concern(IntEnum):
    """Why a dataset needs somebody, the worst last."""

    PROBLEMS = 1
    FAILED = 2
    LATE = 3


class Troubled(NamedTuple):
    """A dataset that needs somebody.

    Attributes:
        tenant: The id of its tenant.
        tenant_name: For people.
        dataset: Its name.
        late_since_ns: Since when it is late; None: it is not.
        success_ns: When its newest backup was committed; 0: it never had one.
        expectation: None: it has none.
        run: Its latest run that failed or was abandoned, if no backup was committed since, or that made its newest
            backup with problems; None: there is none.

    """

    tenant: bytes
    tenant_name: str
    dataset: str
    late_since_ns: int | None
    success_ns: int
    expectation: Expectation | None
    run: BackupRun | None

    @property
    def concern(self) -> Concern:
        """The worst of what is wrong."""
        if self.late_since_ns is not None:
            return Concern.LATE
        assert self.run is not None
        return Concern.PROBLEMS if self.run.outcome is RunOutcome.PROBLEMS else Concern.FAILED

    @property
    def since_ns(self) -> int:
        """Since when that is so."""
        if self.late_since_ns is not None:
            return self.late_since_ns
        assert self.run is not None
        return self.run.begin_ns if self.run.end_ns is None else self.run.end_ns


class DatasetTotals(NamedTuple):
    """How many datasets there are, how many of them have an expectation, how many of these are muted, and when
    the one that succeeded the longest ago did, of those that ever did; 0: none did.
    """

    datasets: int
    expected: int
    muted: int
    oldest_success_ns: int
