"""The progress of a restore."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import Final

from staddle._fs.found import reason_of
from staddle._restore.target_directory import AppearedError
from staddle._types.reports import EntryCounts, PathProblem, ProblemKind

PROBLEMS_MAX: Final = 100_000
PROBLEM_BYTES_MAX: Final = 32 * 1024 * 1024
"""Their paths and messages together: what a server says of damage must not fill the memory."""
DELETED_NAMED_MAX: Final = 10_000
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""Errors that end the restore if they come from the target's own file system."""


class TargetFullError(OSError):
    """The target is full."""


@dataclass(slots=True)
class RestoreTally:
    """The written and failed paths. Each thread has its own tally."""

    target: bytes = b""
    problems: dict[PathProblem, None] = field(default_factory=dict)
    problem_bytes: int = 0
    problems_dropped: int = 0
    written: int = 0
    unchanged: int = 0
    kept: int = 0
    data_bytes: int = 0
    sockets: int = 0
    made: EntryCounts = field(default_factory=EntryCounts)
    replaced: EntryCounts = field(default_factory=EntryCounts)
    deleted_count: int = 0
    deleted_paths: list[bytes] = field(default_factory=list)
    """The first of them."""
    path: bytes = b""
    keeps: bool = False
    """The caller wants what appears in the place of a path to be kept, so it is not a problem."""

    def note(self, kind: ProblemKind, path: bytes, message: str) -> None:
        """Note a path that differs from the backup."""
        self._add(PathProblem(kind, path, message))

    def not_written(self, path: bytes, error: OSError) -> None:
        """Notes a path that the target did not take. Raises TargetFullError if it will take no other either."""
        if self.keeps and isinstance(error, AppearedError):
            self.kept += 1
            return
        if error.errno in FULL and not _is_elsewhere(self.target, path, error):
            raise TargetFullError(error.errno, reason_of(error), path) from error
        self.note(ProblemKind.NOT_WRITTEN, path, reason_of(error))

    def deleted(self, path: bytes) -> None:
        """Counts a path that was removed because the backup does not have it."""
        self.deleted_count += 1
        if self.deleted_count <= DELETED_NAMED_MAX:
            self.deleted_paths.append(path)

    def another(self) -> RestoreTally:
        """One for another thread."""
        return RestoreTally(self.target, keeps=self.keeps)

    def take_in(self, other: RestoreTally) -> None:
        """Add the tally of another thread."""
        self.written += other.written
        self.kept += other.kept
        self.data_bytes += other.data_bytes
        self.problems_dropped += other.problems_dropped
        for problem in other.problems:
            self._add(problem)

    def _add(self, problem: PathProblem) -> None:
        if problem in self.problems:
            return
        size = len(problem.path_bytes) + len(problem.message)
        if len(self.problems) < PROBLEMS_MAX and self.problem_bytes + size <= PROBLEM_BYTES_MAX:
            self.problems[problem] = None
            self.problem_bytes += size
        else:
            self.problems_dropped += 1


def _is_elsewhere(target: bytes, path: bytes, error: OSError) -> bool:
    """Whether what took no more is another file system, mounted below the target, so that the target may take other paths."""
    try:
        if error.errno == errno.EROFS:
            return not os.statvfs(target).f_flag & os.ST_RDONLY
        own = os.stat(target).st_dev
        while path:
            place = os.path.join(target, path)
            if os.path.lexists(place):
                return os.lstat(place).st_dev != own
            path = os.path.dirname(path)
    except OSError:
        pass  # then assume the worst
    return False
