"""Paths of a backup onto a target, one after another: files with their holes, links, special files, directories."""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from staddle._fs.file_reader import OPEN_FLAGS
from staddle._fs.temporary_names import discard, make_temporary
from staddle._fs.time_granularity import KeptTimes
from staddle._protocol.restore_reader import is_file
from staddle._restore.existing_paths import Links, There, decide
from staddle._restore.folding import Folding
from staddle._restore.set_metadata import Applier
from staddle._restore.special_files import is_same_special, make_special
from staddle._restore.stats import RestoreTally
from staddle._restore.target_directory import AppearedError, Target, chmod_name, is_in, look, settle
from staddle._restore.temporary_file import TemporaryFile
from staddle._restore.write_pool import Crew, SmallFile
from staddle._types.options import Overwrite
from staddle._types.reports import ProblemKind
from staddle.v1 import resources_pb2 as pb

GATHER_BYTES_MAX: Final = 512 * 1024
"""A file up to this size is written when all of it has come, by a free thread of the crew."""
LEFT_DIRECTORIES_MAX: Final = 4_096
LEFT_BYTES_MAX: Final = 32 * 1024 * 1024
"""What they may take together."""
SWEPT_TRIES: Final = 3


class _Left(NamedTuple):
    """A directory that was left, and may get its metadata when the crew has written so much."""

    path: bytes
    entry: pb.Entry
    mark: int


@dataclass(slots=True)
class GatheredFile:
    """A file of which everything is kept until all of it has come."""

    path: bytes
    entry: pb.Entry
    new: bool
    pieces: list[bytes | memoryview] = field(default_factory=list)

    def write(self, data: bytes | memoryview) -> None:
        """The next bytes."""
        self.pieces.append(data)

    def write_zeros(self, count: int) -> None:
        """Write zero bytes."""
        self.pieces.append(bytes(count))

    def abandon(self) -> None:
        """Remove it completely."""
        self.pieces.clear()


FileInProgress = TemporaryFile | GatheredFile


class Writer:
    """Puts entries into a target, in their order. A path that fails is noted and skipped.

    Files may be written a little later, by a crew; `drain` waits for that. Close it at the end.
    """

    def __init__(
        self,
        target: bytes,
        overwrite: Overwrite,
        tally: RestoreTally,
        *,
        fresh: bool = False,
        verify: bool = False,
    ) -> None:
        """`fresh`: the target was empty, so what is found in it appeared meanwhile, and is not replaced. `verify`: files
        are the same if their content is. Raises OSError if the target cannot be made or opened.
        """
        self._overwrite = overwrite
        self._verify = verify
        self._fresh = fresh and overwrite != "always"
        self._exclusive = self._fresh or overwrite == "never"
        self._tally = tally
        self._tally.keeps = overwrite == "never"
        self.ways: dict[bytes, pb.Entry] = {}
        """Directories that are not restored themselves, and get this metadata if something below them is."""
        self._made_ways: dict[bytes, pb.Entry] = {}
        """Those that were made, and whose metadata is not final yet."""
        self._swept_ways: set[bytes] = set()
        self._times = KeptTimes()
        self._target = Target(target, replace=not self._exclusive, on_the_way=self)
        self.applier = Applier()
        self._crew = Crew(tally, self.applier)
        self._last_file = b""
        """The last path that was handed to the crew."""
        self._links = Links()
        self._folding = Folding()
        self._directories: list[tuple[bytes, pb.Entry]] = []
        """The directories above the last path; their metadata is set once everything in them is written."""
        self._ours: set[bytes] = set()
        """Those of them that only this restore can enter: it made them for this user alone."""
        self._left: deque[_Left] = deque()
        """Directories that were left, but get files still."""
        self._left_bytes = 0

    def drain(self) -> None:
        """Waits until every file that was handed over is written. Raises TargetFullError."""
        self._crew.drain()

    def close(self) -> None:
        """Ends the crew; what it has not begun is not written. Directories on the way get their metadata all the same."""
        with ExitStack() as stack:
            stack.callback(self._target.close)
            stack.callback(self._times.close)
            stack.callback(self._finish_ways)
            stack.callback(self._crew.close)

    # --- directories on the way

    def begin_ways(self) -> None:
        """Says that the root, or what else `ways` has, is known. The target itself is one of them if it was made for this."""
        entry = self.ways.get(b"")
        if entry is not None and self._target.was_made and b"" not in self._made_ways:
            self.made(b"", self._target.directory(b""))

    def forget_ways(self, kept: dict[bytes, pb.Entry]) -> None:
        """Drops from `ways` all that is not in `kept`. Those that were made are finished all the same."""
        self.ways.clear()
        self.ways.update(kept)
        self._swept_ways.clear()

    def mode_of(self, path: bytes) -> int:
        """See OnTheWay."""
        entry = self.ways.get(path)
        return 0o777 if entry is not None and not entry.HasField("mode") else 0o700

    def made(self, path: bytes, descriptor: int) -> None:
        """See OnTheWay. Another restore leaves it as it is, so it gets owner and mode at once, and the rest later."""
        entry = self.ways.get(path)
        if entry is None or entry.implied:
            return
        self._made_ways[path] = entry
        self._directories.append((path, entry))
        self.applier.begin_directory(descriptor, entry)

    def _finish_ways(self) -> None:
        for path, entry in sorted(self._made_ways.items(), reverse=True):
            with suppress(OSError):  # the restore failed already, and said why
                self.applier.to_descriptor(self._target.existing(path), entry, self._reporter(path))
                self._target.keep_mode(path)

    # --- directories

    def enter(self, path: bytes) -> None:
        """Says that `path` comes next: directories that it is not in have all they get but `finish_directories`."""
        while self._directories and not is_in(path, self._directories[-1][0]):
            self._leave()

    def _leave(self) -> None:
        path, entry = self._directories.pop()
        self._ours.discard(path)
        self._left.append(_Left(path, entry, self._crew.mark))
        self._left_bytes += entry.ByteSize()

    @property
    def left_is_full(self) -> bool:
        """Whether no more directories may wait for finish_directories."""
        return len(self._left) >= LEFT_DIRECTORIES_MAX or self._left_bytes >= LEFT_BYTES_MAX

    @property
    def left_count(self) -> int:
        """Directories that wait for finish_directories."""
        return len(self._left)

    def finish_directories(self, *, all_of_them: bool = False) -> None:
        """Sets the metadata of the directories that were left and whose files are all written; `all_of_them`: nothing comes any more."""
        if all_of_them:
            while self._directories:
                self._leave()
        if all_of_them or self.left_is_full:
            self.drain()
        while self._left and self._left[0].mark <= self._crew.written:
            path, entry, _ = self._left.popleft()
            self._left_bytes -= entry.ByteSize()
            try:
                self._target.put_back(path, itself=False)
                descriptor = self._target.directory(path)
                self.applier.to_descriptor(descriptor, entry, self._reporter(path))
            except OSError as error:
                self._tally.not_written(path, error)
            if entry.HasField("mode"):
                self._target.keep_mode(path)
            self._made_ways.pop(path, None)

    def directory(self, path: bytes, entry: pb.Entry) -> None:
        """Make a directory, whose metadata is set later."""
        try:
            self._settle_above(path)
            made = self._target.make_directory(path, private=entry.HasField("mode"))
            if not made:
                self._target.sweep(path)
            if path:
                dir_fd, name = self._parent_of(path)
                self._folding.check(dir_fd, path, os.stat(name, dir_fd=dir_fd, follow_symlinks=False))
        except OSError as error:
            self._tally.not_written(path, error)
            return
        if made:
            self._tally.written += 1
        else:
            self._tally.unchanged += 1
        ours = made or (not self._exclusive if path else self._target.is_fresh)
        if ours and not entry.implied:
            self._directories.append((path, entry))
            if made and entry.HasField("mode") and self._overwrite != "never":
                self._ours.add(path)

    # --- everything else

    def what_is_there(self, path: bytes, entry: pb.Entry) -> There:
        """What lies at `path`, and what becomes of it: as `overwrite` says, or because it is the same already.

        Of what is the same the metadata is put right.
        """
        try:
            dir_fd, name = self._parent_of(path)
            status = look(dir_fd, name)
            if status is not None and not self._exclusive:
                self._folding.check(dir_fd, path, status)
            there = decide(
                entry,
                status,
                overwrite=self._overwrite,
                verify=self._verify,
                links=self._links,
                is_same=lambda status: self._is_same(dir_fd, name, status, entry),
            )
            if there is There.OTHER and self._fresh:
                raise AppearedError
            if there is There.OTHER:
                self._folding.check_replaced(path)
            if there is There.KEPT:
                self._tally.kept += 1
                return There.STAYS
            if status is None or there is not There.SAME:
                return there
            self._put_right(dir_fd, path, name, entry, status)
        except OSError as error:
            self._tally.not_written(path, error)
        return There.STAYS

    def compared(self, path: bytes, entry: pb.Entry, *, same: bool) -> There:
        """The outcome for a file whose content was compared."""
        try:
            if not same and not self._fresh:
                self._folding.check_replaced(path)
                return There.OTHER
            dir_fd, name = self._parent_of(path)
            status = look(dir_fd, name)
            if status is None:
                return There.NOTHING
            if not same:
                raise AppearedError
            self._put_right(dir_fd, path, name, entry, status)
        except OSError as error:
            self._tally.not_written(path, error)
        return There.STAYS

    def open_present(self, path: bytes) -> int:
        """The file at `path`, opened for reading; close it. Raises OSError."""
        dir_fd, name = self._parent_of(path)
        status = look(dir_fd, name)
        return (
            os.open(name, OPEN_FLAGS, dir_fd=dir_fd)
            if status is None
            else self._opened_file(dir_fd, name, status)
        )

    def _put_right(
        self, dir_fd: int, path: bytes, name: bytes, entry: pb.Entry, status: os.stat_result
    ) -> None:
        """Gives what is the same already the entry's metadata, and counts it. Raises OSError."""
        if self._fresh:
            self._tally.unchanged += 1  # it is not this restore's
            return
        if is_file(entry):
            descriptor = self._opened_file(dir_fd, name, status)
            try:
                self.applier.to_descriptor(descriptor, entry, self._reporter(path))
                if not entry.HasField("mode"):
                    os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
            finally:
                os.close(descriptor)
            self._links.remember(path, entry, status)
        else:
            self.applier.to_name(dir_fd, name, entry, self._reporter(path))
        self._tally.unchanged += 1

    def _opened_file(self, dir_fd: int, name: bytes, status: os.stat_result) -> int:
        """An existing file, opened, whose mode may have to be changed for that: it gets its final one next."""
        try:
            return os.open(name, OPEN_FLAGS, dir_fd=dir_fd)
        except PermissionError:
            if status.st_uid != os.geteuid():
                raise
        chmod_name(dir_fd, name, stat.S_IMODE(status.st_mode) | stat.S_IRUSR | stat.S_IWUSR)
        return os.open(name, OPEN_FLAGS, dir_fd=dir_fd)

    def _is_same(self, dir_fd: int, name: bytes, status: os.stat_result, entry: pb.Entry) -> bool:
        """Whether what exists has the entry's content, judging by stat and readlink: for a file, its size, and its
        time unless content is compared.
        """
        if not is_file(entry):
            return is_same_special(dir_fd, name, status, entry)
        if not stat.S_ISREG(status.st_mode) or status.st_size != entry.content.size_bytes:
            return False
        if self._verify:
            return True
        return entry.HasField("mtime_ns") and self._times.match(dir_fd, status, entry.mtime_ns)

    def link(self, path: bytes, entry: pb.Entry, *, new: bool = False) -> bool:
        """Make a file by linking it to an existing one of its group; False if it must be written.

        `new`, here and below: nothing was there, and what has appeared since is not replaced.
        """
        known = self._links.find(entry)
        if known is None:
            self._links.expect(entry)
            return False
        source, identity = known
        try:
            if self._link(source, identity, path, exclusive=self._exclusive or new):
                self._tally.written += 1
                return True
        except OSError as error:
            if error.errno not in (errno.EMLINK, errno.EPERM, errno.EXDEV, errno.ENOENT, errno.ENOTSUP):
                self._tally.not_written(path, error)
                return True
        self._links.forget(entry)
        return False

    def _link(self, source: bytes, identity: tuple[int, int], path: bytes, *, exclusive: bool) -> bool:
        source_parent, source_name = os.path.split(source)
        source_fd = os.dup(self._target.directory(source_parent))
        try:
            dir_fd, name = self._parent_of(path, writing=True)
            temporary = make_temporary(
                lambda temporary: os.link(
                    source_name, temporary, src_dir_fd=source_fd, dst_dir_fd=dir_fd, follow_symlinks=False
                )
            )
            try:
                status = look(dir_fd, temporary)
                if status is None or (status.st_dev, status.st_ino) != identity:
                    return False
                settle(dir_fd, temporary, name, exclusive=exclusive)
            finally:
                discard(dir_fd, temporary)  # renaming one of two links onto the other leaves both
            return True
        finally:
            os.close(source_fd)

    def open_file(self, path: bytes, entry: pb.Entry, *, new: bool = False) -> FileInProgress | None:
        """Begin a file. None, with a note, if that fails."""
        if entry.content.size_bytes <= GATHER_BYTES_MAX and not entry.holes:
            return GatheredFile(path, entry, new)
        try:
            return self._begun(path, entry, new=new)
        except OSError as error:
            self._tally.not_written(path, error)
            return None

    def finish_file(self, file: FileInProgress) -> None:
        """Ends a file whose bytes have all come, and were checked."""
        if isinstance(file, GatheredFile):
            self.whole_file(file.path, file.entry, *file.pieces, new=file.new)
            return
        try:
            status = file.finish(self.applier, self._reporter(file.path))
        except OSError as error:
            self._tally.not_written(file.path, error)
            return
        self._tally.written += 1
        self._tally.data_bytes += status.st_size
        self._target.replaceable = file.path
        self._links.remember(file.path, file.entry, status)

    def whole_file(
        self, path: bytes, entry: pb.Entry, *pieces: bytes | memoryview, new: bool = False
    ) -> None:
        """Writes a file whose bytes are all here: now if others are to be linked to it, else soon.

        Raises TargetFullError, also for earlier ones.
        """
        if entry.link_group:
            self._write_linked(path, entry, pieces, new=new)
            return
        parent, _, name = path.rpartition(b"/")
        try:
            if not self._crew.takes(parent):
                dir_fd, _ = self._parent_of(path, writing=True)
                self._crew.enter(parent, dir_fd, ours=parent in self._ours)
        except OSError as error:
            self._tally.not_written(path, error)
            return
        self._last_file = self._target.replaceable = path
        self._crew.add(SmallFile(path, name, entry, pieces, self._exclusive or new))

    def _begun(self, path: bytes, entry: pb.Entry, *, new: bool) -> TemporaryFile:
        dir_fd, name = self._parent_of(path, writing=True)
        return TemporaryFile(os.dup(dir_fd), name, path, entry, closes=True, exclusive=self._exclusive or new)

    def _write_linked(
        self, path: bytes, entry: pb.Entry, pieces: tuple[bytes | memoryview, ...], *, new: bool
    ) -> None:
        try:
            file = self._begun(path, entry, new=new)
        except OSError as error:
            self._tally.not_written(path, error)
            return
        try:
            for piece in pieces:
                file.write(piece)
        except OSError as error:
            file.abandon()
            self._tally.not_written(path, error)
            return
        self.finish_file(file)

    def special(self, path: bytes, entry: pb.Entry, *, new: bool = False) -> None:
        """Makes a symlink, fifo or device. Sockets are counted, and not made."""
        if entry.type == pb.ENTRY_TYPE_SOCKET:
            self._tally.sockets += 1
            return
        try:
            dir_fd, name = self._parent_of(path, writing=True)
            for left in reversed(range(SWEPT_TRIES)):
                try:
                    self._make_special(dir_fd, path, name, entry, exclusive=self._exclusive or new)
                    break
                except (
                    FileNotFoundError
                ):  # another restore swept it: nothing but a regular file can be locked
                    if not left:
                        raise
        except OSError as error:
            self._tally.not_written(path, error)
            return
        self._target.replaceable = path
        self._tally.written += 1

    def _make_special(
        self, dir_fd: int, path: bytes, name: bytes, entry: pb.Entry, *, exclusive: bool
    ) -> None:
        temporary = make_temporary(lambda temporary: make_special(dir_fd, temporary, entry))
        try:
            self.applier.to_name(dir_fd, temporary, entry, self._reporter(path))
        except BaseException:
            discard(dir_fd, temporary)
            raise
        settle(dir_fd, temporary, name, exclusive=exclusive)

    def _parent_of(self, path: bytes, *, writing: bool = False) -> tuple[int, bytes]:
        """The directory of a path, open until the next one is asked for, and its name in it. Raises OSError."""
        self._settle_above(path)
        parent, _, name = path.rpartition(b"/")
        if parent in self.ways and parent not in self._swept_ways:
            self._swept_ways.add(parent)
            self._target.sweep(parent)
        return self._target.directory(parent, writing=writing), name

    def _settle_above(self, path: bytes) -> None:
        """Waits for the crew if it has a file in hand where a directory has to be; what is below a path comes right behind it."""
        if self._last_file and path.startswith(self._last_file + b"/"):
            self.drain()

    def _reporter(self, path: bytes) -> Callable[[str], None]:
        return lambda message: self._tally.note(ProblemKind.NOT_WRITTEN, path, message)
