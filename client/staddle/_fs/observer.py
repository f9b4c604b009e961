"""The interface of an observer that follows a walk and keeps a row for each path. The walk does not know its purpose."""

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
        """A path below a child, a directory, is left out."""

    def end(self) -> None:
        """The walk is done with these children."""


class Observer(Protocol):
    """Follows one walk."""

    @property
    def children_max(self) -> int:
        """The most children of a directory that begin together."""

    @property
    def place(self) -> tuple[ObservedChildren, int]:
        """Where the walk is."""

    def at_root(self, status: os.stat_result) -> None:
        """The walk is at the root."""

    def begin(self, path: bytes, names: Sequence[bytes], *, first: bool, more: bool) -> ObservedChildren:
        """The walk begins with these children of a directory; `first`: its first ones, `more`: others follow."""

    def abandon(self) -> None:
        """The walk leaves the order that an observer can follow."""
