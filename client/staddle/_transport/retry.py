"""Trying again: what may be, how often, and after how long.

Every call of the protocol that writes to an upload may be repeated: a replay answers as the first call did. So what
decides is the error: a temporary one is retried, every other one is not.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

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
from staddle._transport.servers import all_failed

if TYPE_CHECKING:
    from staddle._transport.addresses import Address
    from staddle._transport.servers import Servers

T = TypeVar("T")

PROGRESS_MAX: Final = 10_000
"""How often progress may renew the budget, since a server could fake progress. The life of an upload has fewer failures."""
WRONG_SERVER: Final = "WRONG_SERVER"
DRAINING: Final = "DRAINING"
RESUMABLE: Final = frozenset({"RESUME_REQUIRED", "UPLOAD_BUSY", WRONG_SERVER})
"""Conflicts that end once this client takes the upload over."""
REPEATS_MAX: Final = 64
"""How often a call of an upload is repeated where one address leads to several servers, before the upload is taken over. Calls that a balancer
deals out beside others reach one of N servers by chance: of five, 64 in a row miss the right one once in a million."""
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
    if isinstance(error, ConflictError) or error.reason == WRONG_SERVER:
        return error.reason in RESUMABLE
    if isinstance(error, ServerError):
        # A broken stream whose status was lost, not a server that gave a reason.
        return error.reason == ServerError.default_reason and "code" in error.facts
    return may_pass(error) or isinstance(error, UnfinishedError | CancelledError)


def was_not_done(error: StaddleError) -> bool:
    """Whether nothing was done: the server said so, or never got the call. Then even a call that is not repeatable may be repeated."""
    if isinstance(error, ConnectError | DeadlineError):
        return error.unsent
    return may_pass(error)


def is_of_the_server(error: StaddleError) -> bool:
    """Whether another server may do what this one did not. A call of an upload leaves its server only if that is gone."""
    if isinstance(error, ConnectError | DeadlineError) or error.reason == DRAINING:
        return True
    return not error.upload and may_pass(error)


class Attempts:
    """The failures of one piece of work, against one budget, which runs from the first failure after any progress.

    A server that fails is left at once for another one. Only after all of them were tried, in one round, there is a wait.
    """

    def __init__(self, retry: Retry, clock: RetryClock, servers: Servers) -> None:
        self._retry = retry
        self._clock = clock
        self._servers = servers
        self._tries = 0
        self._since_s: float | None = None
        self._progress = 0
        self._failed: dict[str, StaddleError] = {}
        """By address, in this round."""
        self._redirected: set[str] = set()
        """Addresses that named another server, in this round."""
        self._repeats = 0

    def progressed(self) -> None:
        """Something succeeded: the budget is whole again."""
        self._progress += 1
        if self._progress <= PROGRESS_MAX:
            self._tries, self._since_s = 0, None
            self._failed.clear()
            self._redirected.clear()
            self._repeats = 0

    def wait_after(self, error: StaddleError) -> None:
        """Has the next try go to another server, or waits until it. Raises the error when the budget is used up.

        If all servers have failed, that error names them all.
        """
        if self._since_s is None:
            self._since_s = self._clock.now_s()
        if self._follows(error) or self.leaves(error):
            return
        failed, self._failed = self._failed, {}
        self._redirected.clear()
        if error.address in failed:
            error = all_failed(failed)
        if not self._servers.may_reconnect(error):
            raise error
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
        self._servers.look_up_again()
        self._clock.sleep(wait_s)

    def leaves(self, error: StaddleError) -> bool:
        """Leaves the server that failed. Returns whether another one was not tried in this round."""
        if not error.address or not is_of_the_server(error):
            return False
        is_new = error.address not in self._failed
        self._failed[error.address] = error
        self._servers.leave(error, self._failed)
        return is_new and len(self._failed) < self._servers.count

    def repeats(self, error: StaddleError) -> bool:
        """Whether the same call or stream, at once, may reach the server that writes its upload, without a takeover.

        That is one whose address is known here, or one behind the same address: a balancer that spreads calls.
        """
        if self._follows(error):
            return True
        if error.reason != WRONG_SERVER or self._named(error) is not None:
            return False
        self._repeats += 1
        return self._repeats <= REPEATS_MAX

    def _named(self, error: StaddleError) -> Address | None:
        """The other server of which this error says that it writes the upload, if the settings have it."""
        found = self._servers.find(error.facts.get("endpoint", ""))
        return None if found is None or str(found) == error.address else found

    def _follows(self, error: StaddleError) -> bool:
        """Whether the next try goes to the server that was named: no server twice in a round, so two that name each other end it."""
        if error.reason != WRONG_SERVER or (named := self._named(error)) is None:
            return False
        self._redirected.add(error.address)
        if str(named) in self._failed or str(named) in self._redirected:
            return False
        self._servers.redirect(error.upload, named)
        return True


def retrying(
    work: Callable[[], T],
    *,
    attempts: Attempts,
    retryable: Callable[[StaddleError], bool] = may_pass,
) -> T:
    """Does `work` until it succeeds, fails for good, or the budget is used up; then the last error is raised."""
    while True:
        try:
            return work()
        except StaddleError as error:
            if attempts.repeats(error):
                continue
            if not retryable(error):
                attempts.leaves(error)
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
