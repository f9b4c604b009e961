"""A dry run of a restore: the target is only read."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import Final

from staddle._fs.file_reader import OPEN_FLAGS
from staddle._fs.metadata import type_of
from staddle._fs.walk import DIRECTORY_FLAGS
from staddle._protocol.restore_reader import is_file
from staddle._restore.existing_paths import Links, There, decide
from staddle._restore.folding import Folding
from staddle._restore.set_metadata import Applier, mode_for
from staddle._restore.special_files import is_same_special
from staddle._restore.stats import RestoreTally
from staddle._restore.target_directory import FILLED, NO_DIRECTORY, BlockedError, look
from staddle._types.options import Overwrite
from staddle._types.reports import ProblemKind
from staddle.v1 import resources_pb2 as pb

ABSENT: Final = "it is not there"
CONTENT: Final = "its content differs"
GRANULARITIES_NS: Final = (1, 100, 1000, 10**6, 10**7, 10**9, 2 * 10**9)
"""In which file systems keep times: most in nanoseconds, NTFS in 100 of them, FAT in two seconds."""


class Preview:
    """Takes the place of a Writer where nothing is to be written.

    `verify`: files are compared by content, metadata too, and what differs is a problem.
    """

    def __init__(self, target: bytes, overwrite: Overwrite, tally: RestoreTally, *, verify: bool) -> None:
        """Raises OSError if the target exists and cannot be opened."""
        self._overwrite = overwrite
        self._verify = verify
        self._tally = tally
        self.applier = Applier()
        self.ways: dict[bytes, pb.Entry] = {}
        self.left_count = 0
        self.left_is_full = False
        self._links = Links()
        self._folding = Folding()
        self._why = ""
        """What is different at the path that was looked at last."""
        self._root: int | None = None
        with suppress(FileNotFoundError):
            self._root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._parent: tuple[bytes, int | None] = (b"", self._root)
        """The directory that was looked into last, and its descriptor if it exists."""

    def close(self) -> None:
        """Close everything."""
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
            self._check_folded(path, status)
        except OSError as error:
            self._tally.not_written(path, error)
            return
        if status is not None and stat.S_ISDIR(status.st_mode):
            self._same(path, entry, status)
        elif not path and not self._verify:
            self._tally.unchanged += 1  # a restore that makes its target does not count that
        elif status is not None and self._keeps:
            self._tally.not_written(path, BlockedError(NO_DIRECTORY))
        else:
            self._differs(path, entry, new=status is None, why="it is not a directory")

    def special(self, path: bytes, entry: pb.Entry, *, new: bool = False) -> None:
        """Counts a link or special file that would be made."""
        if entry.type == pb.ENTRY_TYPE_SOCKET:
            self._tally.sockets += 1
        else:
            self._differs(path, entry, new=new, why=self._why)

    def link(self, path: bytes, entry: pb.Entry, *, new: bool = False) -> bool:
        """Counts a file that would be written; True, for nothing has to be fetched."""
        if not self._links.knows(entry):
            self._tally.data_bytes += entry.content.size_bytes
            self._links.expect(entry)
        self._differs(path, entry, new=new, why=self._why)
        return True

    @property
    def _keeps(self) -> bool:
        """Whether nothing that lies there would be replaced."""
        return self._overwrite == "never" and not self._verify

    def what_is_there(self, path: bytes, entry: pb.Entry) -> There:
        """See Writer.what_is_there."""
        try:
            status = self._status(path)
            if not self._keeps:
                self._check_folded(path, status)
            there = decide(
                entry,
                status,
                overwrite="if-changed" if self._verify else self._overwrite,
                verify=self._verify,
                links=self._links,
                is_same=lambda status: self._is_same(path, status, entry),
            )
            if there is There.KEPT:
                self._tally.kept += 1
                return There.STAYS
            if status is None:
                return there
            if there is There.OTHER:
                if not self._verify:
                    self._folding.check_replaced(path)
                self._say_why(entry, status)
                if not self._verify and self._is_filled(path, status):
                    raise BlockedError(FILLED)
            if there is not There.SAME:
                return there
            self._same(path, entry, status)
        except OSError as error:
            self._tally.not_written(path, error)
        return There.STAYS

    def _check_folded(self, path: bytes, status: os.stat_result | None) -> None:
        """Raises FoldedError where the restore would. A comparison decides by the content."""
        if path and status is not None and not self._verify:
            self._folding.check(self._directory(path), path, status)

    def _is_same(self, path: bytes, status: os.stat_result, entry: pb.Entry) -> bool:
        """See Writer."""
        if not is_file(entry):
            return is_same_special(self._directory(path), os.path.basename(path), status, entry)
        if not stat.S_ISREG(status.st_mode) or status.st_size != entry.content.size_bytes:
            return False
        return self._verify or (entry.HasField("mtime_ns") and may_be_kept_as(entry.mtime_ns, status))

    def _is_filled(self, path: bytes, status: os.stat_result) -> bool:
        """Whether the path is a non-empty directory."""
        if not stat.S_ISDIR(status.st_mode):
            return False
        descriptor = os.open(os.path.basename(path), DIRECTORY_FLAGS, dir_fd=self._directory(path))
        try:
            return bool(os.listdir(descriptor))
        finally:
            os.close(descriptor)

    def _say_why(self, entry: pb.Entry, status: os.stat_result) -> None:
        if type_of(status) != (entry.type or pb.ENTRY_TYPE_FILE):
            self._why = "it is of another type"
        elif self._links.are_elsewhere(entry, status):
            self._why = "it is not linked as in the backup"
        elif entry.type == pb.ENTRY_TYPE_SYMLINK:
            self._why = "its link target differs"
        elif not is_file(entry):
            self._why = "its device number differs"
        else:
            self._why = CONTENT

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
            self._why = CONTENT
            return There.OTHER
        self._same(path, entry, status)
        return There.STAYS

    def open_present(self, path: bytes) -> int:
        """The file at `path`, opened for reading; close it. Raises OSError."""
        return os.open(os.path.basename(path), OPEN_FLAGS, dir_fd=self._directory(path))

    def _same(self, path: bytes, entry: pb.Entry, status: os.stat_result) -> None:
        # The target itself need not be the backup's: a restore leaves one alone that is not empty.
        differences = self._differences(entry, status) if self._verify and path else []
        self._links.remember(path, entry, status)
        if differences:
            self._differs(path, entry, new=False, why=", ".join(differences))
        else:
            self._tally.unchanged += 1

    def _differences(self, entry: pb.Entry, status: os.stat_result) -> list[str]:
        """The metadata that differs from the entry, among what this user can set."""
        found = []
        if self.applier.is_root and (
            (entry.HasField("uid") and entry.uid != status.st_uid)
            or (entry.HasField("gid") and entry.gid != status.st_gid)
        ):
            found.append("its owner differs")
        wanted = None if stat.S_ISLNK(status.st_mode) else self._mode_for(entry, status)
        if wanted is not None and wanted != stat.S_IMODE(status.st_mode):
            found.append("its mode differs")
        if entry.HasField("mtime_ns") and not may_be_kept_as(entry.mtime_ns, status):
            found.append("its modification time differs")
        return found

    def _mode_for(self, entry: pb.Entry, status: os.stat_result) -> int | None:
        """The mode that a restore would set: root sets the owner first, so that setuid and setgid stay."""
        if self.applier.is_root:
            return entry.mode & 0o7777 if entry.HasField("mode") else None
        return mode_for(entry, status, lambda _: None)

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
            except FileNotFoundError:
                return None
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                if self._keeps:
                    raise BlockedError(NO_DIRECTORY) from error
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


def may_be_kept_as(wanted_ns: int, status: os.stat_result) -> bool:
    """Whether a file system may keep a time as the one of this stat. Which one it is can be known only by writing: the time of the last
    change, which the system itself sets, shows for most that they keep times more finely.
    """
    return any(
        wanted_ns - wanted_ns % unit == status.st_mtime_ns and not status.st_ctime_ns % unit
        for unit in GRANULARITIES_NS
    )
