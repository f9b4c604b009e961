"""Trying again: what may be, how often, and after how long.

Every call of the protocol that writes to an upload may be repeated: a replay answers as the first call did. So what
decides is the error: a temporary one is retried, every other one is not.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Final, Protocol, TypeVar

from staddle._base.figures import counted
from staddle._errors import (
    CancelledError,
    ConflictError,
    ConnectError,
    DeadlineError,
    ExhaustedError,
    ServerError,
    StaddleError,
    UnavailableError,
    UnfinishedError,
)

T = TypeVar("T")

PROGRESS_MAX: Final = 10_000
"""How often progress may renew the budget, since a server could fake progress. The life of an upload has fewer failures."""
RESUMABLE: Final = frozenset({"RESUME_REQUIRED", "UPLOAD_BUSY"})
"""Conflicts that end once this client takes the upload over."""
ORDINARY_RETRY_S: Final = 10.0
"""How long a call that looks something up is tried again."""


class RetryClock(Protocol):
    """The source of time, so tests need not wait."""

    def now_s(self) -> float:
        """A monotonic time."""

    def sleep(self, seconds: float) -> None:
        """Waits. Raises CancelledError when the client is closed meanwhile."""


@dataclass(frozen=True, slots=True)
class RetryNotice:
    """A call failed and will be tried again."""

    error: StaddleError
    tries: int
    wait_s: float
    left_s: float


@dataclass(frozen=True, slots=True)
class Retry:
    """How long to retry, and whom to notify.

    A wait doubles from `first_wait_s` to `wait_s_max`, half of it by chance, and is never shorter than the server asks for.
    """

    budget_s: float = ORDINARY_RETRY_S
    first_wait_s: float = 0.2
    wait_s_max: float = 10.0
    notify: Callable[[RetryNotice], None] | None = None
    chance: Callable[[], float] = field(default=random.random)

    def wait_s(self, tries: int, asked_s: float | None) -> float:
        """How long to wait after `tries` failures in a row."""
        backoff = min(self.wait_s_max, self.first_wait_s * 2.0 ** min(tries - 1, 30))
        return max(asked_s or 0.0, backoff * (0.5 + 0.5 * self.chance()))


NO_RETRY: Final = Retry(budget_s=0.0)


def may_pass(error: StaddleError) -> bool:
    """Whether the same call may succeed a little later, whatever it does."""
    if isinstance(error, ExhaustedError):
        return error.retry_after_s is not None
    return isinstance(error, UnavailableError)


def may_resume(error: StaddleError) -> bool:
    """Whether an upload that this error interrupted may be resumed: the error says nothing against the upload itself."""
    if isinstance(error, ConflictError):
        return error.reason in RESUMABLE
    if isinstance(error, ServerError):
        # A broken stream whose status was lost, not a server that gave a reason.
        return error.reason == ServerError.default_reason and "code" in error.facts
    return may_pass(error) or isinstance(error, UnfinishedError | CancelledError)


def was_not_done(error: StaddleError) -> bool:
    """Whether the server said, in words, that it did nothing: then even a call that is not repeatable may be repeated."""
    return may_pass(error) and not isinstance(error, ConnectError | DeadlineError)


class Attempts:
    """The failures of one piece of work, against one budget, which runs from the first failure after any progress."""

    def __init__(self, retry: Retry, clock: RetryClock) -> None:
        self._retry = retry
        self._clock = clock
        self._tries = 0
        self._since_s = 0.0
        self._progress = 0

    def progressed(self) -> None:
        """Something succeeded: the budget is whole again."""
        self._progress += 1
        if self._progress <= PROGRESS_MAX:
            self._tries = 0

    def wait_after(self, error: StaddleError) -> None:
        """Waits until the next try. Raises `error` when the budget is used up."""
        if self._tries == 0:
            self._since_s = self._clock.now_s()
        self._tries += 1
        wait_s = self._retry.wait_s(self._tries, error.retry_after_s)
        left_s = self._since_s + self._retry.budget_s - self._clock.now_s()
        if wait_s > left_s:
            if self._tries > 1:
                spent_s = self._clock.now_s() - self._since_s
                error.add_note(f"Given up after {counted(self._tries, 'try', 'tries')} in {spent_s:.0f} s.")
            raise error
        if self._retry.notify is not None:
            self._retry.notify(RetryNotice(error, self._tries, wait_s, left_s))
        self._clock.sleep(wait_s)


def retrying(
    work: Callable[[], T],
    *,
    retry: Retry,
    clock: RetryClock,
    retryable: Callable[[StaddleError], bool] = may_pass,
) -> T:
    """Does `work` until it succeeds, fails for good, or the budget is used up; then the last error is raised."""
    attempts = Attempts(retry, clock)
    while True:
        try:
            return work()
        except StaddleError as error:
            if not retryable(error):
                raise
            attempts.wait_after(error)


class MonotonicClock:
    """The real clock, without an end."""

    def __init__(self, sleep: Callable[[float], None]) -> None:
        self._sleep = sleep

    def now_s(self) -> float:
        """A monotonic time."""
        return monotonic()

    def sleep(self, seconds: float) -> None:
        """Waits."""
        self._sleep(seconds)
