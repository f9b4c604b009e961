"""How often an address may try to log in."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Final

from staddle_server.base.errors import Exhausted

ATTEMPTS_MAX: Final = 10
"""Attempts at once."""
ATTEMPT_EVERY_S: Final = 6.0
"""After these, one attempt in this time."""
ADDRESSES_MAX: Final = 10_000
"""Addresses that are remembered; the one that tried the longest ago is forgotten first."""


class Attempts:
    """Counts attempts by address. A right token counts, too, so that an answer says nothing about it."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._lock = threading.Lock()
        self._free_s: dict[str, float] = {}
        """When all attempts of an address will be free again."""

    def count(self, address: str) -> None:
        """Count an attempt. Raises Exhausted (TOO_MANY) if it is one too many."""
        now_s = self._now_s()
        with self._lock:
            free_s = max(self._free_s.pop(address, now_s), now_s) + ATTEMPT_EVERY_S
            wait_s = free_s - now_s - ATTEMPTS_MAX * ATTEMPT_EVERY_S
            self._free_s[address] = free_s if wait_s <= 0 else free_s - ATTEMPT_EVERY_S
            if len(self._free_s) > ADDRESSES_MAX:
                del self._free_s[next(iter(self._free_s))]
        if wait_s > 0:
            seconds = math.ceil(wait_s)
            raise Exhausted(
                "TOO_MANY",
                f"Too many attempts to log in from your address: try again in {seconds} s",
                retry_after_s=seconds,
            )
