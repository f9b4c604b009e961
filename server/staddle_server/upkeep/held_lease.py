"""A lease that this process keeps while it works."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from staddle_server.base.clock import Clock
from staddle_server.base.errors import Conflict, StaddleError
from staddle_server.base.threads import Background
from staddle_server.catalog.leases import Lease

log = logging.getLogger(__name__)

LEASE_S: Final = 60.0
"""How long after its last renewal a lease ends: then another process may begin the work."""
RENEW_S: Final = 15.0


def holder_name() -> str:
    """Return how messages name this process."""
    return f"process {os.getpid()} on {socket.gethostname()}"


class HeldLease:
    """Renews a lease on its own thread while its block runs, and knows whether it was lost."""

    def __init__(self, lease: Lease, fence: int, clock: Clock, taken_s: float) -> None:
        """`taken_s`: the monotonic time before the lease was taken."""
        self._lease = lease
        self.fence: Final = fence
        self._clock = clock
        self._renewed_s = taken_s
        self._taken_over = False
        self._thread = Background("lease", RENEW_S, self.renew)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.stop()

    @property
    def lost(self) -> bool:
        """Whether another process has the lease, or may have it because this one could not renew it."""
        return self._taken_over or self._clock.monotonic_s() - self._renewed_s >= LEASE_S

    def renew(self) -> None:
        """Extend the lease, unless it is lost. A failure of the catalog is logged; the next turn retries."""
        if self.lost:
            return
        now_s = self._clock.monotonic_s()
        try:
            self._lease.renew(self.fence, self._clock.now_ns(), LEASE_S)
        except Conflict as e:
            self._taken_over = True
            log.warning("%s", e.message)
        except StaddleError as e:
            log.warning("a lease could not be renewed: %s", e.message)
        else:
            self._renewed_s = now_s


@contextmanager
def leased(lease: Lease, clock: Clock) -> Iterator[HeldLease]:
    """Hold a lease during the block.

    Raises:
        Conflict: LEASE_HELD, another process has it.

    """
    taken_s = clock.monotonic_s()
    fence = lease.acquire(holder_name(), clock.now_ns(), LEASE_S)
    try:
        with HeldLease(lease, fence, clock, taken_s) as held:
            yield held
    finally:
        lease.release(fence)
