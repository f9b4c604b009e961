"""Bounds the memory of decoded entries and messages by tenant, so that one tenant's calls leave room for the
others'.

A few stored or sent bytes become objects many times their size. Each call has a `Held`, which counts the
bytes of its objects. Calls of a tenant that has used up its share wait up to WAIT_S and are then refused;
other tenants' shares are unaffected.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from staddle_server.base.errors import Exhausted
from staddle_server.base.limits import DECODED_BYTES_MAX, DECODED_CALL_BYTES, DECODED_TENANT_BYTES_MAX, MIB

WAIT_S: Final = 5.0
"""How long a call waits for memory that other calls hold."""
LOOK_S: Final = 0.1
"""How often a waiting call checks whether its caller is still connected; `forget` frees memory without waking
it.
"""
RETRY_S: Final = 2.0


class DecodedBytes:
    """The memory of one server for decoded data of calls. Thread-safe.

    Each call has DECODED_CALL_BYTES unconditionally: the number of calls bounds those. A tenant may exceed
    its share, because `may_change` never refuses; only the share counts against the server's limit, so the
    excess takes nothing from others.
    """

    def __init__(
        self, tenant_max: int = DECODED_TENANT_BYTES_MAX, server_max: int = DECODED_BYTES_MAX
    ) -> None:
        self.tenant_max = tenant_max
        self._server_max = server_max
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._used: Counter[bytes] = Counter()
        self._gone: deque[tuple[bytes, int]] = deque()
        """Bytes of calls that have ended. Appended without the lock, because a finaliser may run anywhere."""

    def held(self, tenant: bytes, check: Callable[[], None] | None = None) -> Held:
        """Return a count of 0 bytes for a call of this tenant. `check` raises once the caller is gone.

        Without `check`, for the server's own work, bytes count but never wait.
        """
        return Held(self, tenant, check)

    @contextmanager
    def hold(self, tenant: bytes, size: int, check: Callable[[], None]) -> Iterator[None]:
        """Hold `size` bytes for a block; see `Held.change`."""
        held = self.held(tenant, check)
        held.change(size)
        try:
            yield
        finally:
            held.close()

    def used(self, tenant: bytes) -> int:
        """Return the bytes that a tenant's calls hold now."""
        with self._lock:
            self._settle()
            return self._used[tenant]

    def forget(self, tenant: bytes, size: int) -> None:
        """Free the bytes of a Held without taking a lock, so that a finaliser may call it."""
        self._gone.append((tenant, size))

    def change(self, held: Held, by: int) -> None:
        """See `Held.change`."""
        with self._lock:
            if self._refusal(held, by) is not None:
                self._wait(held, by)
            self._add(held, by)

    def may_change(self, held: Held, by: int) -> bool:
        """See `Held.may_change`."""
        with self._lock:
            fits = self._refusal(held, by) is None
            self._add(held, by)
            return fits

    def _add(self, held: Held, by: int) -> None:
        held.size += by
        self._used[held.tenant] += by
        if self._used[held.tenant] <= 0:
            del self._used[held.tenant]
        if by < 0:
            self._changed.notify_all()

    def _wait(self, held: Held, by: int) -> None:
        end_s = time.monotonic() + WAIT_S
        while (refusal := self._refusal(held, by)) is not None:
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                raise refusal
            self._changed.wait(min(LOOK_S, left_s))
            if held.check is not None:
                held.check()

    def _refusal(self, held: Held, by: int) -> Exhausted | None:
        self._settle()
        if by <= 0 or held.check is None or held.size + by <= DECODED_CALL_BYTES:
            return None
        used = self._used[held.tenant]
        if used + by > self.tenant_max:
            return _full(used, self.tenant_max, "the other calls of this tenant hold")
        others = sum(
            min(size, self.tenant_max) for tenant, size in self._used.items() if tenant != held.tenant
        )
        if others + used + by > self._server_max:
            return _full(others + used, self._server_max, "the calls of this server hold")
        return None

    def _settle(self) -> None:
        while self._gone:
            tenant, size = self._gone.popleft()
            self._used[tenant] -= size
            if self._used[tenant] <= 0:
                del self._used[tenant]


class Held:
    """The decoded bytes that one call holds, until `close` or the last reference to it.

    For one thread at a time.

    Attributes:
        size: Bytes.
        tenant: The call's tenant.
        check: Raises once the caller is gone; None for the server's own work.

    """

    __slots__ = ("_all", "check", "size", "tenant")

    def __init__(self, of: DecodedBytes, tenant: bytes, check: Callable[[], None] | None) -> None:
        self._all = of
        self.tenant = tenant
        self.check = check
        self.size = 0

    def change(self, by: int) -> None:
        """Add `by` bytes, or free them if negative; wait up to WAIT_S for room.

        Raises:
            Exhausted: TOO_MANY, and nothing changes.

        """
        if by:
            self._all.change(self, by)

    def may_change(self, by: int) -> bool:
        """Change as `change` does, without waiting: always add them, and return whether there was room."""
        return not by or self._all.may_change(self, by)

    def close(self) -> None:
        """Free everything."""
        self.change(-self.size)

    def __del__(self) -> None:
        if self.size:
            self._all.forget(self.tenant, self.size)


def _full(used: int, most: int, who: str) -> Exhausted:
    return Exhausted(
        "TOO_MANY",
        f"{who} {used // MIB} MiB of decoded entries, of at most {most // MIB} MiB: try again, with fewer calls at once",
        retry_after_s=RETRY_S,
    )
