"""Segments opened on other threads, shortly before they are needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from typing import Final, Generic, TypeVar

from staddle_server.base.types import SegmentRef

S = TypeVar("S")

AHEAD: Final = 2
"""Segments opened before they are needed."""


class Ahead(Generic[S]):
    """Opens segments in order, a few before they are needed. For one thread; close it at the end."""

    def __init__(
        self,
        opener: Executor,
        open_segment: Callable[[SegmentRef], S],
        is_needed: Callable[[SegmentRef], bool],
        order: Iterable[tuple[bytes, SegmentRef]],
    ) -> None:
        """`order` has each segment at the chunk that needs it first; segments no longer needed at their turn
        are skipped.
        """
        self._opener = opener
        self._open_segment = open_segment
        self._is_needed = is_needed
        self._order = deque(order)
        self._opening: deque[tuple[bytes, SegmentRef, Future[S]]] = deque()
        self._fill()

    def _fill(self) -> None:
        while self._order and len(self._opening) < AHEAD:
            digest, ref = self._order.popleft()
            if self._is_needed(ref):
                self._opening.append((digest, ref, self._opener.submit(self._open_segment, ref)))

    def take(self, digest: bytes) -> tuple[SegmentRef, S] | None:
        """Return the prefetched segment that a chunk needs first; call before the chunk is read.

        Raises what opening it raised.
        """
        if not self._opening or self._opening[0][0] != digest:
            return None
        _, ref, future = self._opening.popleft()
        try:
            return ref, future.result()
        finally:
            self._fill()

    def close(self) -> None:
        """Drop what was not needed."""
        for *_, future in self._opening:
            future.cancel()
