"""Which entries of a backup a restore takes: what is included and not excluded, by the same patterns as those of a backup."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Final

from staddle._errors import BadRequestError
from staddle._fs.excludes import UNMATCHED_SHOWN_MAX, Excludes, excludes_of, no_excludes


class Choice(Enum):
    """The verdict on an entry."""

    TAKEN = auto()
    ON_THE_WAY = auto()
    """It is not included, but something below it may be."""
    LEFT_OUT = auto()


class Selection:
    """Include and exclude patterns. Takes the paths of a backup in order, so that it knows what lies below an excluded directory."""

    def __init__(self, include: Excludes = no_excludes, exclude: Excludes = no_excludes) -> None:
        self._include = include
        self._exclude = exclude
        self._left_out: bytes | None = None
        """The last excluded path: all below it is excluded, too."""
        self._not_included: bytes | None = None
        """The last path, if no pattern includes it."""

    @property
    def takes_all(self) -> bool:
        """Whether the selection has no patterns."""
        return self._include is no_excludes and self._exclude is no_excludes

    def choose(self, path: bytes, *, is_directory: bool) -> Choice:
        """The verdict on the next entry. The root (an empty path) is never excluded."""
        self._not_included = None
        if self.is_below_excluded(path):
            return Choice.LEFT_OUT
        if path and self._exclude(path, is_directory):
            self._left_out = path
            return Choice.LEFT_OUT
        if self._include is no_excludes or (path and self._include(path, is_directory)):
            return Choice.TAKEN
        if is_directory:
            return Choice.ON_THE_WAY
        self._not_included = path
        return Choice.LEFT_OUT

    def is_left_out(self, path: bytes) -> bool:
        """Whether a path, none that comes behind the last one that was chosen, is not wanted."""
        return self.is_below_excluded(path) or path == self._not_included

    def is_below_excluded(self, path: bytes) -> bool:
        """Whether a path is, or lies below, the one that was excluded last."""
        left_out = self._left_out
        return left_out is not None and (path == left_out or path.startswith(left_out + b"/"))

    def excludes(self, path: bytes, is_directory: bool) -> bool:
        """Whether a path that need not be in the backup is excluded by its own name, and not only by what it lies in."""
        return self._exclude(path, is_directory)

    def includes(self, path: bytes, is_directory: bool) -> bool:
        """Whether a path that need not be in the backup is included."""
        return self._include is no_excludes or self._include(path, is_directory)

    def again(self) -> Selection:
        """The same patterns for another walk. Matches there count as matches here."""
        return Selection(self._include, self._exclude)

    def warnings(self) -> list[str]:
        """What to say of patterns that have matched nothing."""
        return [
            f"Patterns of --{name} that matched nothing: {_listed(patterns)}"
            for name, excludes in (("include", self._include), ("exclude", self._exclude))
            if (patterns := excludes.unmatched())
        ]


takes_all: Final = Selection()
"""Takes every entry."""


def selection_of(include: Sequence[str], exclude: Sequence[str], root: str = "") -> Selection:
    """The selection that patterns make. `root` is where the backup was made: absolute patterns below it mean what lies there.

    Raises BadRequestError for a pattern that cannot be meant, and ModuleNotFoundError if `pathspec` is not installed.
    """
    return Selection(_compiled("include", include, root), _compiled("exclude", exclude, root))


def _compiled(field: str, patterns: Sequence[str], root: str) -> Excludes:
    try:
        return excludes_of(patterns, root=root if root.startswith("/") else None, resolve=False)
    except ValueError as error:
        raise BadRequestError(f"--{field}: {error}.", facts={"field": field}) from error


def _listed(patterns: list[str]) -> str:
    more = len(patterns) - UNMATCHED_SHOWN_MAX
    shown = ", ".join(map(repr, patterns[:UNMATCHED_SHOWN_MAX]))
    return f"{shown}, and {more} more." if more > 0 else f"{shown}."
