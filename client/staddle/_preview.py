"""What a restore would do, found out without writing: a target that is only looked at."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import Final

from staddle._apply import Applier, mode_for
from staddle._reading import OPEN_FLAGS
from staddle._scan import DIRECTORY_FLAGS
from staddle._stream import is_file
from staddle._tally import WriteTally
from staddle._target import look
from staddle._types import Overwrite, ProblemKind
from staddle._write import LINKS_MAX, There, is_same_special
from staddle.v1 import resources_pb2 as pb

ABSENT: Final = "it is not there"
GRANULARITIES_NS: Final = (1, 100, 1000, 10**6, 10**7, 10**9, 2 * 10**9)
"""In which file systems keep times: most in nanoseconds, NTFS in 100 of them, FAT in two seconds."""


class Preview:
    """Takes the place of a Writer where nothing is to be written.

    `verify`: files are compared by content, metadata too, and what differs is a problem.
    """

    def __init__(self, target: bytes, overwrite: Overwrite, tally: WriteTally, *, verify: bool) -> None:
        """Raises OSError if the target is there and cannot be opened."""
        self._overwrite = overwrite
        self._verify = verify
        self._tally = tally
        self.applier = Applier()
        self.ways: dict[bytes, pb.Entry] = {}
        self.left_count = 0
        self._links: set[tuple[bytes, bytes]] = set()
        """Groups of hard links whose content is counted."""
        self._root: int | None = None
        with suppress(FileNotFoundError):
            self._root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._parent: tuple[bytes, int | None] = (b"", self._root)
        """The directory that was looked into last, and its descriptor if it is there."""

    def close(self) -> None:
        """Closes what is open."""
        self._leave()
        if self._root is not None:
            os.close(self._root)

    def enter(self, _path: bytes) -> None:
        """Nothing has to be finished."""

    def finish_directories(self, *, all_of_them: bool = False) -> None:
        """Nothing has to be finished."""

    def begin_ways(self) -> None:
        """Directories above a selected path are neither counted nor compared."""

    def forget_ways(self, kept: dict[bytes, pb.Entry]) -> None:
        """See Writer.forget_ways."""
        self.ways.clear()
        self.ways.update(kept)

    def directory(self, path: bytes, entry: pb.Entry) -> None:
        """Looks for a directory."""
        try:
            status = self._status(path)
        except OSError as error:
            self._tally.not_written(path, error)
            return
        if status is not None and stat.S_ISDIR(status.st_mode):
            self._same(path, entry, status)
        elif not path and not self._verify:
            self._tally.unchanged += 1  # a restore that makes its target does not count that
        else:
            self._differs(path, entry, new=status is None, why="it is no directory")

    def special(self, path: bytes, entry: pb.Entry, *, new: bool = False) -> None:
        """Counts a link or special file that would be made."""
        if entry.type == pb.ENTRY_TYPE_SOCKET:
            self._tally.sockets += 1
        else:
            self._differs(path, entry, new=new, why="it is another link or special file")

    def link(self, path: bytes, entry: pb.Entry, *, new: bool = False) -> bool:
        """Counts a file that would be written; True, for nothing has to be fetched."""
        key = (entry.link_group, entry.content.content_id)
        if not entry.link_group or key not in self._links:
            self._tally.data_bytes += entry.content.size_bytes
            if entry.link_group and len(self._links) < LINKS_MAX:
                self._links.add(key)
        self._differs(path, entry, new=new, why="its content differs")
        return True

    def what_is_there(self, path: bytes, entry: pb.Entry) -> There:
        """See Writer.what_is_there."""
        try:
            status = self._status(path)
            if status is None:
                return There.NOTHING
            if self._overwrite == "always" and not self._verify:
                return There.OTHER
            if self._overwrite == "never" and not self._verify:
                self._tally.kept += 1
                return There.STAYS
            if is_file(entry):
                if not stat.S_ISREG(status.st_mode) or status.st_size != entry.content.size_bytes:
                    return There.OTHER
                if self._verify:
                    return There.COMPARE
                if not (entry.HasField("mtime_ns") and may_be_kept_as(entry.mtime_ns, status.st_mtime_ns)):
                    return There.OTHER
            elif not is_same_special(self._directory(path), os.path.basename(path), status, entry):
                return There.OTHER
            self._same(path, entry, status)
        except OSError as error:
            self._tally.not_written(path, error)
        return There.STAYS

    def compared(self, path: bytes, entry: pb.Entry, *, same: bool) -> There:
        """See Writer.compared."""
        try:
            status = self._status(path)
        except OSError as error:
            self._tally.not_written(path, error)
            return There.STAYS
        if status is None:
            return There.NOTHING
        if not same:
            return There.OTHER
        self._same(path, entry, status)
        return There.STAYS

    def open_present(self, path: bytes) -> int:
        """The file at `path`, opened for reading; close it. Raises OSError."""
        return os.open(os.path.basename(path), OPEN_FLAGS, dir_fd=self._directory(path))

    def _same(self, path: bytes, entry: pb.Entry, status: os.stat_result) -> None:
        # The target itself need not be the backup's: a restore leaves one alone that is not empty.
        differences = self._differences(entry, status) if self._verify and path else []
        if differences:
            self._differs(path, entry, new=False, why=", ".join(differences))
        else:
            self._tally.unchanged += 1

    def _differences(self, entry: pb.Entry, status: os.stat_result) -> list[str]:
        """The metadata that is not as the entry says, of what this user can set."""
        found = []
        if self.applier.is_root and (
            (entry.HasField("uid") and entry.uid != status.st_uid)
            or (entry.HasField("gid") and entry.gid != status.st_gid)
        ):
            found.append("its owner differs")
        wanted = None if stat.S_ISLNK(status.st_mode) else mode_for(entry, status, lambda _: None)
        if wanted is not None and wanted != stat.S_IMODE(status.st_mode):
            found.append("its mode differs")
        if entry.HasField("mtime_ns") and not may_be_kept_as(entry.mtime_ns, status.st_mtime_ns):
            found.append("its modification time differs")
        return found

    def _differs(self, path: bytes, entry: pb.Entry, *, new: bool, why: str) -> None:
        self._tally.written += 1
        counts = self._tally.made if new else self._tally.replaced
        if is_file(entry):
            counts.files += 1
        elif entry.type == pb.ENTRY_TYPE_DIRECTORY:
            counts.directories += 1
        elif entry.type == pb.ENTRY_TYPE_SYMLINK:
            counts.symlinks += 1
        else:
            counts.others += 1
        if self._verify:
            self._tally.note(ProblemKind.DIFFERENT, path, ABSENT if new else why)

    def _status(self, path: bytes) -> os.stat_result | None:
        """What lies at a path. Raises OSError if that cannot be seen."""
        if not path:
            return None if self._root is None else os.fstat(self._root)
        try:
            return look(self._directory(path), os.path.basename(path))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _directory(self, path: bytes) -> int:
        """The directory above a path, opened until the next call; never through a link. Raises OSError."""
        parent = os.path.dirname(path)
        if parent != self._parent[0]:
            self._leave()
            self._parent = (parent, self._opened(parent))
        descriptor = self._parent[1]
        if descriptor is None:
            raise FileNotFoundError
        return descriptor

    def _opened(self, path: bytes) -> int | None:
        if self._root is None:
            return None
        descriptor = os.dup(self._root)
        for name in path.split(b"/") if path else ():
            try:
                below = os.open(name, DIRECTORY_FLAGS, dir_fd=descriptor)
            except (FileNotFoundError, NotADirectoryError):
                return None
            finally:
                os.close(descriptor)
            descriptor = below
        return descriptor

    def _leave(self) -> None:
        descriptor = self._parent[1]
        if descriptor is not None and descriptor != self._root:
            os.close(descriptor)
        self._parent = (b"", self._root)


def may_be_kept_as(wanted_ns: int, found_ns: int) -> bool:
    """Whether a file system may keep one time as the other. Which one it is can be known only by writing."""
    return any(wanted_ns - wanted_ns % unit == found_ns for unit in GRANULARITIES_NS)
