"""How many retention plans are made at once, for callers of whatever door."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from staddle_server.base.errors import Exhausted

PLANS_MAX: Final = 4
"""Concurrent plans: each may take minutes, and holds a thread that other calls need too."""
PLANS_TENANT_MAX: Final = 3
"""Of these, plans of one tenant, to leave room for others."""
PLANS_RETRY_S: Final = 2.0


class Planning:
    """Counts the plans in progress."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._plans: Counter[bytes] = Counter()
        """By tenant."""

    @contextmanager
    def of(self, tenant: bytes) -> Iterator[None]:
        """Count one more while it is made. Raises Exhausted (TOO_MANY)."""
        with self._lock:
            for count, most, whose in (
                (self._plans.total(), PLANS_MAX, ""),
                (self._plans[tenant], PLANS_TENANT_MAX, " of this tenant"),
            ):
                if count >= most:
                    raise Exhausted(
                        "TOO_MANY",
                        f"{most} retention plans{whose} are in progress already: try again when one is done",
                        retry_after_s=PLANS_RETRY_S,
                    )
            self._plans[tenant] += 1
        try:
            yield
        finally:
            with self._lock:
                self._plans[tenant] -= 1
                self._plans += Counter()  # without tenants that have none
