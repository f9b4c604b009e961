"""The gate: who may call, as what, and how much at once. Knows no transport: that is behind `Connection`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from typing import Final, TypeVar

from staddle_server.api.slots import ARRIVING_S, RETRY_S, Connection, Slots
from staddle_server.base.errors import PermissionDenied, StaddleError, Unauthenticated, Unavailable
from staddle_server.base.limits import (
    CALLS_MAX,
    CALLS_TENANT_MAX,
    CALLS_TOKEN_MAX,
    CALLS_WAITING_MAX,
    CALLS_WAITING_TENANT_MAX,
)
from staddle_server.base.memory_budget import DecodedBytes
from staddle_server.base.observer import NOTHING
from staddle_server.base.types import TokenRole
from staddle_server.catalog import Principal

T = TypeVar("T")
BUSY_S: Final = 2.0
"""How long the server counts as busy after a call began; with streams, as long as they last."""


class CallerGone(Exception):  # noqa: N818 - not an error of the service
    """The call was ended from outside: cancelled, timed out, or cut off."""


class Call:
    """A call in progress. It is a Connection itself, so that slots can follow it to its end.

    Attributes:
        principal: The caller.
        tenant: The name of the principal's tenant.
        facts: Extra fields of the log line; handlers add to it.

    """

    def __init__(self, principal: Principal, tenant: str, connection: Connection) -> None:
        self.principal = principal
        self.tenant = tenant
        self.facts: dict[str, object] = {}
        self._connection = connection
        self._gone = False
        self._refusal: StaddleError | None = None
        if not connection.add_callback(self._end):
            self._end()

    def _end(self) -> None:
        self._gone = True

    def check(self) -> None:
        """Check that the call should continue. Every loop over a caller's work calls this.

        Raises:
            CallerGone: The caller is gone.
            Unauthenticated: The token was revoked or expired since the call began.

        """
        if self._refusal is not None:
            raise self._refusal.with_traceback(None)
        if self._gone:
            raise CallerGone

    def passing(self, messages: Iterator[T]) -> Iterator[T]:
        """Yield a stream's messages while `check` allows it."""
        return map(self._pass, messages)

    def _pass(self, message: T) -> T:
        self.check()
        return message

    def refuse(self, error: StaddleError) -> None:
        """Make the next `check` raise this error."""
        self._refusal = error

    @property
    def refused(self) -> bool:
        """Whether the call may not continue; it ends at its next `check`."""
        return self._refusal is not None

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Register a callback for the end of the call; return False if it has already ended."""
        return self._connection.add_callback(callback)

    def cancel(self) -> None:
        """End the call from outside: the client sees CANCELLED, and calls GetUpload."""
        self._connection.cancel()


class Gate:
    """Admits calls: knows tokens and slots, and closes when the server drains.

    Attributes:
        streams: The slots for Backup and Restore streams, limited by tenant.
        calls: The slots for other calls, from before their message arrives until they are answered.
        decoded: The memory for calls' decoded data.
        draining: Whether calls get UNAVAILABLE because the server is shutting down.
        observer: Hears of every call.

    """

    def __init__(
        self,
        authenticate: Callable[[str], Principal],
        tenant_name: Callable[[bytes], str],
        streams: Slots,
        now_s: Callable[[], float],
        valid: Callable[[Collection[bytes]], set[bytes]],
        *,
        decoded: DecodedBytes,
        check_threads: Callable[[bool], None],
    ) -> None:
        """`valid` returns which of these tokens, given by id, may still call.

        `check_threads` raises Exhausted if a call (True: a stream) may not keep its thread.
        """
        self._authenticate = authenticate
        self._tenant_name = tenant_name
        self._valid = valid
        self._now_s = now_s
        self._check_threads = check_threads
        self._lock = threading.Lock()
        self._calls: dict[Call, None] = {}
        """The calls in progress."""
        self._used: set[bytes] = set()
        """The tokens of calls since `take_used`."""
        self._admitted_s = -BUSY_S
        self.streams = streams
        self.decoded = decoded
        self.draining = False
        self.observer = NOTHING
        self.calls = Slots(
            CALLS_MAX,
            now_s,
            what="calls without a stream",
            first_s=ARRIVING_S,
            owner_max=CALLS_TOKEN_MAX,
            group_max=CALLS_TENANT_MAX,
            waiting_max=CALLS_WAITING_MAX,
            waiting_group_max=CALLS_WAITING_TENANT_MAX,
        )

    def admit(self, name: str, role: TokenRole, token: str, connection: Connection, *, stream: bool) -> Call:
        """Admit a call whose token, given as its text, has at least this role.

        The token is checked repeatedly until the call ends.

        Raises:
            Unauthenticated, PermissionDenied, Unavailable (DRAINING), Exhausted (TOO_MANY).

        """
        return self.admit_as(name, role, self._authenticate(token), connection, stream=stream)

    def principal_of(self, token: str) -> Principal:
        """Return the principal of a token, given as its text. Raises Unauthenticated."""
        return self._authenticate(token)

    def admit_as(
        self, name: str, role: TokenRole, principal: Principal, connection: Connection, *, stream: bool
    ) -> Call:
        """Admit a call of a principal whose token is known to be valid; otherwise as `admit`."""
        self._check(name, role, principal)
        self._check_threads(stream)
        call = Call(principal, self._tenant_name(principal.tenant), connection)
        self._enter(call)
        return call

    def _check(self, name: str, role: TokenRole, principal: Principal) -> None:
        """Check that the call may continue.

        Raises:
            PermissionDenied, Unavailable (DRAINING).

        """
        if principal.role < role:
            raise PermissionDenied(
                "PERMISSION_DENIED",
                f"{name} needs a token with the role {role.name.lower()}, this one has {principal.role.name.lower()}",
                role=role.name.lower(),
            )
        if self.draining:
            raise Unavailable("DRAINING", "the server is shutting down; try again", retry_after_s=RETRY_S)
        self._admitted_s = self._now_s()

    def _enter(self, call: Call) -> None:
        with self._lock:
            self._calls[call] = None
            self._used.add(call.principal.token)
        try:
            lives = call.add_callback(lambda: self._leave(call))
        except BaseException:
            self._leave(call)
            raise
        if not lives:
            self._leave(call)

    def _leave(self, call: Call) -> None:
        with self._lock:
            self._calls.pop(call, None)

    def take_used(self) -> set[bytes]:
        """Return the ids of the tokens that calls were admitted with since this was last asked."""
        with self._lock:
            used, self._used = self._used, set()
        return used

    def end_invalid(self) -> int:
        """End the calls whose token was revoked or expired; return their number.

        Each ends at its next `check`, and so at a checkpoint with a reason. A call that waits for its client
        is cut off the next time.
        """
        with self._lock:
            calls = list(self._calls)
        for call in calls:
            if call.refused:
                call.cancel()
        valid = self._valid({call.principal.token for call in calls}) if calls else set()
        ended = [call for call in calls if not call.refused and call.principal.token not in valid]
        for call in ended:
            call.refuse(
                Unauthenticated("UNAUTHENTICATED", "This token was revoked or has expired: get a new one")
            )
        return len(ended)

    def is_busy(self) -> bool:
        """Return whether clients are active: work that can wait should."""
        return not self.streams.idle or self._now_s() - self._admitted_s < BUSY_S

    def close(self) -> None:
        """Refuse calls from now on: the server is shutting down."""
        self.draining = True
