"""A bounded memory of what was noted last."""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The values that were put in last: at least `least` of them, at most twice as many. Not thread-safe.

    Two plain dictionaries, since an ordered one takes twice the memory for each value.
    """

    def __init__(self, least: int) -> None:
        self._least = least
        self._new: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        """The value of a key; None: it was forgotten, or never put in."""
        value = self._new.get(key)
        return self._old.get(key) if value is None else value

    def put(self, key: K, value: V) -> None:
        """Notes a value; may forget the oldest ones."""
        self._new[key] = value
        if len(self._new) >= self._least:
            self._old, self._new = self._new, {}

    def clear(self) -> None:
        """Forgets all."""
        self._new, self._old = {}, {}
