"""A bounded memory of recent values."""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The values stored last: at least `least` of them, at most twice as many. Not thread-safe.

    Two plain dictionaries, because an ordered one takes twice the memory for each value.
    """

    def __init__(self, least: int) -> None:
        self._least = least
        self._new: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        """Return the value of a key; None if it was forgotten or never stored."""
        value = self._new.get(key)
        return self._old.get(key) if value is None else value

    def put(self, key: K, value: V) -> None:
        """Store a value; may forget the oldest ones."""
        self._new[key] = value
        if len(self._new) >= self._least:
            self._old, self._new = self._new, {}

    def clear(self) -> None:
        """Forget all values."""
        self._new, self._old = {}, {}
