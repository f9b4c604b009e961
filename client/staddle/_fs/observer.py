"""What follows a walk and keeps a row for each path, in the walk's own terms: the walk does not know who does that, or why."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol


class ObservedChildren(Protocol):
    """Some children of one directory, in order, by their indices."""

    next_index: int

    @property
    def full(self) -> bool:
        """Whether `next_index` is past the last of them."""

    def at(self, index: int, status: os.stat_result) -> None:
        """The walk is at a child."""

    def nothing_at(self, index: int) -> None:
        """A child has disappeared."""

    def doubt(self, index: int) -> None:
        """Something below a child, a directory, is left out."""

    def end(self) -> None:
        """The walk is done with these children."""


class Observer(Protocol):
    """Follows one walk."""

    @property
    def children_max(self) -> int:
        """So many children of a directory begin together at most."""

    @property
    def place(self) -> tuple[ObservedChildren, int]:
        """Where the walk is."""

    def at_root(self, status: os.stat_result) -> None:
        """The walk is at the root."""

    def begin(self, path: bytes, names: Sequence[bytes], *, first: bool, more: bool) -> ObservedChildren:
        """The walk begins with these children of a directory: its first ones or not, and with more to come or not."""

    def abandon(self) -> None:
        """The walk goes another way than an observer can follow."""
