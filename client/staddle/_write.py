"""Paths of a backup onto a target, one after another: files with their holes, links, special files, directories."""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from staddle._apply import Applier
from staddle._convert import link_target_of
from staddle._crew import Crew, SmallFile
from staddle._metadata import type_of
from staddle._opened import OpenedFile
from staddle._reading import OPEN_FLAGS
from staddle._stream import is_file
from staddle._tally import WriteTally
from staddle._target import Target, discard, look, make_temporary, settle
from staddle._types import Overwrite, ProblemKind
from staddle.v1 import resources_pb2 as pb

LINKS_MAX: Final = 100_000
"""So many groups of hard links are remembered; files of others come as files of their own."""
GATHER_BYTES_MAX: Final = 512 * 1024
"""A file up to this size is written when all of it has come, by whoever of the crew is free."""
LEFT_DIRECTORIES_MAX: Final = 4_096
DEVICES: Final = {
    pb.ENTRY_TYPE_CHAR_DEVICE: stat.S_IFCHR,
    pb.ENTRY_TYPE_BLOCK_DEVICE: stat.S_IFBLK,
}


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
    pieces: list[bytes | memoryview] = field(default_factory=list)

    def write(self, data: bytes | memoryview) -> None:
        """The next bytes."""
        self.pieces.append(data)

    def write_zeros(self, count: int) -> None:
        """So many zero bytes."""
        self.pieces.append(bytes(count))

    def abandon(self) -> None:
        """Leaves nothing of it."""
        self.pieces.clear()


FileInProgress = OpenedFile | GatheredFile


class Writer:
    """Puts entries into a target, in their order. A path that fails is noted, and the next one goes on.

    Files may be written a little later, by a crew; `drain` waits for that. Close it at the end.
    """

    def __init__(self, target: Target, overwrite: Overwrite, tally: WriteTally) -> None:
        self._target = target
        self._overwrite = overwrite
        self._tally = tally
        self.applier = Applier()
        self._crew = Crew(tally, self.applier)
        self._last_file = b""
        """The last path that was handed to the crew."""
        self._links: OrderedDict[tuple[bytes, bytes], tuple[bytes, tuple[int, int]]] = OrderedDict()
        self._directories: list[tuple[bytes, pb.Entry]] = []
        """Those above the last path, whose metadata is set when all in them is there."""
        self._left: deque[_Left] = deque()
        """Directories that were left, but get files still."""

    def drain(self) -> None:
        """Waits until every file that was handed over is written. Raises TargetFullError."""
        self._crew.drain()

    def close(self) -> None:
        """Ends the crew; what it has not begun is not written."""
        self._crew.close()

    # --- directories

    def enter(self, path: bytes) -> None:
        """Says that `path` comes next: directories that it is not in have all they get but `finish_directories`."""
        while self._directories and not _is_in(path, self._directories[-1][0]):
            self._left.append(_Left(*self._directories.pop(), self._crew.mark))

    @property
    def left_count(self) -> int:
        """Directories that wait for finish_directories."""
        return len(self._left)

    def finish_directories(self, *, all_of_them: bool = False) -> None:
        """Sets the metadata of the directories that were left and whose files are all written; `all_of_them`: nothing comes any more."""
        if all_of_them:
            while self._directories:
                self._left.append(_Left(*self._directories.pop(), self._crew.mark))
        if all_of_them or len(self._left) >= LEFT_DIRECTORIES_MAX:
            self.drain()
        while self._left and self._left[0].mark <= self._crew.written:
            path, entry, _ = self._left.popleft()
            try:
                descriptor = self._target.directory(path)
                self.applier.to_descriptor(descriptor, entry, self._reporter(path))
            except OSError as error:
                self._tally.not_written(path, error)

    def directory(self, path: bytes, entry: pb.Entry) -> None:
        """Makes a directory, whose metadata comes later."""
        try:
            self._settle_above(path)
            made = self._target.make_directory(path, private=entry.HasField("mode"))
        except OSError as error:
            self._tally.not_written(path, error)
            return
        if made:
            self._tally.written += 1
        else:
            self._tally.unchanged += 1
        ours = made or (self._overwrite != "never" if path else self._target.is_fresh)
        if ours and not entry.implied:
            self._directories.append((path, entry))

    # --- everything else

    def is_there(self, path: bytes, entry: pb.Entry) -> bool:
        """Whether what lies at `path` stays: as `overwrite` says, or (if-changed) because it is the same already.

        Of what is the same the metadata is put right.
        """
        try:
            dir_fd, name = self._parent_of(path)
            status = look(dir_fd, name)
            if status is None or self._overwrite == "always":
                return False
            if self._overwrite == "never":
                self._tally.kept += 1
                return True
            if not _is_same(dir_fd, name, status, entry):
                return False
            if is_file(entry):
                return self._same_file(dir_fd, path, name, entry, status)
            self.applier.to_name(dir_fd, name, entry, self._reporter(path))
        except OSError as error:
            self._tally.not_written(path, error)
            return True
        self._tally.unchanged += 1
        return True

    def _same_file(
        self, dir_fd: int, path: bytes, name: bytes, entry: pb.Entry, status: os.stat_result
    ) -> bool:
        linked = self._links.get(_link_key(entry)) if entry.link_group else None
        if linked is not None and linked[1] != (status.st_dev, status.st_ino):
            return False  # the same bytes, but not the same file
        descriptor = os.open(name, OPEN_FLAGS, dir_fd=dir_fd)
        try:
            self.applier.to_descriptor(descriptor, entry, self._reporter(path))
        finally:
            os.close(descriptor)
        self._remember(path, entry, status)
        self._tally.unchanged += 1
        return True

    def link(self, path: bytes, entry: pb.Entry) -> bool:
        """Makes a file by linking it to one of its group that is there already; False if it must be written."""
        key = _link_key(entry)
        known = self._links.get(key) if entry.link_group else None
        if known is None:
            return False
        source, identity = known
        try:
            if self._link(source, identity, path):
                self._tally.written += 1
                return True
        except OSError as error:
            if error.errno not in (errno.EMLINK, errno.EPERM, errno.EXDEV, errno.ENOENT, errno.ENOTSUP):
                self._tally.not_written(path, error)
                return True
        del self._links[key]
        return False

    def _link(self, source: bytes, identity: tuple[int, int], path: bytes) -> bool:
        source_parent, source_name = os.path.split(source)
        source_fd = os.dup(self._target.directory(source_parent))
        try:
            dir_fd, name = self._parent_of(path)
            temporary, _ = make_temporary(
                lambda temporary: os.link(
                    source_name, temporary, src_dir_fd=source_fd, dst_dir_fd=dir_fd, follow_symlinks=False
                )
            )
            status = look(dir_fd, temporary)
            if status is None or (status.st_dev, status.st_ino) != identity:
                discard(dir_fd, temporary)
                return False
            settle(dir_fd, temporary, name)
            discard(dir_fd, temporary)  # renaming one of two links onto the other leaves both
            return True
        finally:
            os.close(source_fd)

    def open_file(self, path: bytes, entry: pb.Entry) -> FileInProgress | None:
        """Begins a file. None, noted, if that fails."""
        if entry.content.size_bytes <= GATHER_BYTES_MAX and not entry.holes:
            return GatheredFile(path, entry)
        try:
            dir_fd, name = self._parent_of(path)
            return OpenedFile(os.dup(dir_fd), name, path, entry, closes=True)
        except OSError as error:
            self._tally.not_written(path, error)
            return None

    def finish_file(self, file: FileInProgress) -> None:
        """Ends a file whose bytes have all come, and were checked."""
        if isinstance(file, GatheredFile):
            self.whole_file(file.path, file.entry, *file.pieces)
            return
        try:
            status = file.finish(self.applier, self._reporter(file.path))
        except OSError as error:
            self._tally.not_written(file.path, error)
            return
        self._tally.written += 1
        self._tally.data_bytes += status.st_size
        self._remember(file.path, file.entry, status)

    def whole_file(self, path: bytes, entry: pb.Entry, *pieces: bytes | memoryview) -> None:
        """Writes a file whose bytes are all here: now if others are to be linked to it, else soon. Raises TargetFullError, also for earlier ones."""
        if entry.link_group:
            self._write_linked(path, entry, pieces)
            return
        parent, _, name = path.rpartition(b"/")
        try:
            if not self._crew.takes(parent):
                self._crew.enter(parent, self._parent_of(path)[0])
        except OSError as error:
            self._tally.not_written(path, error)
            return
        self._last_file = path
        self._crew.add(SmallFile(path, name, entry, pieces))

    def _write_linked(self, path: bytes, entry: pb.Entry, pieces: tuple[bytes | memoryview, ...]) -> None:
        try:
            dir_fd, name = self._parent_of(path)
            file = OpenedFile(os.dup(dir_fd), name, path, entry, closes=True)
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

    def special(self, path: bytes, entry: pb.Entry) -> None:
        """Makes a symlink, fifo or device. Sockets are counted, and not made."""
        if entry.type == pb.ENTRY_TYPE_SOCKET:
            self._tally.sockets += 1
            return
        try:
            dir_fd, name = self._parent_of(path)
            temporary, _ = make_temporary(lambda temporary: _make_special(dir_fd, temporary, entry))
            try:
                self.applier.to_name(dir_fd, temporary, entry, self._reporter(path))
            except BaseException:
                discard(dir_fd, temporary)
                raise
            settle(dir_fd, temporary, name)
        except OSError as error:
            self._tally.not_written(path, error)
            return
        self._tally.written += 1

    def _parent_of(self, path: bytes) -> tuple[int, bytes]:
        """The directory of a path, open until the next one is asked for, and its name in it. Raises OSError."""
        self._settle_above(path)
        parent, _, name = path.rpartition(b"/")
        return self._target.directory(parent), name

    def _settle_above(self, path: bytes) -> None:
        """Waits for the crew if it has a file in hand where a directory has to be; what is below a path comes right behind it."""
        if self._last_file and path.startswith(self._last_file + b"/"):
            self.drain()

    def _remember(self, path: bytes, entry: pb.Entry, status: os.stat_result) -> None:
        if not entry.link_group:
            return
        self._links[_link_key(entry)] = (path, (status.st_dev, status.st_ino))
        if len(self._links) > LINKS_MAX:
            self._links.popitem(last=False)

    def _reporter(self, path: bytes) -> Callable[[str], None]:
        return lambda message: self._tally.note(ProblemKind.NOT_WRITTEN, path, message)


def _link_key(entry: pb.Entry) -> tuple[bytes, bytes]:
    return entry.link_group, entry.content.content_id


def _is_in(path: bytes, directory: bytes) -> bool:
    return path == directory or not directory or path.startswith(directory + b"/")


def _is_same(dir_fd: int, name: bytes, status: os.stat_result, entry: pb.Entry) -> bool:
    """Whether what is there has the entry's content, as far as stat and readlink tell."""
    if is_file(entry):
        return (
            stat.S_ISREG(status.st_mode)
            and status.st_size == entry.content.size_bytes
            and entry.HasField("mtime_ns")
            and status.st_mtime_ns == entry.mtime_ns
        )
    if type_of(status) != entry.type:
        return False
    if entry.type == pb.ENTRY_TYPE_SYMLINK:
        return os.readlink(name, dir_fd=dir_fd) == link_target_of(entry)
    if entry.type in DEVICES:
        return (os.major(status.st_rdev), os.minor(status.st_rdev)) == (
            entry.device_major,
            entry.device_minor,
        )
    return True


def _make_special(dir_fd: int, name: bytes, entry: pb.Entry) -> None:
    if entry.type == pb.ENTRY_TYPE_SYMLINK:
        os.symlink(link_target_of(entry), name, dir_fd=dir_fd)
        return
    mode = 0o600 if entry.HasField("mode") else 0o666
    make = os.mkfifo if entry.type == pb.ENTRY_TYPE_FIFO else os.mknod
    if make not in os.supports_dir_fd:
        raise OSError(errno.ENOTSUP, "this system cannot make it safely")
    if entry.type == pb.ENTRY_TYPE_FIFO:
        os.mkfifo(name, mode, dir_fd=dir_fd)
    elif entry.type in DEVICES:
        device = _device_of(entry)
        os.mknod(name, mode | DEVICES[entry.type], device, dir_fd=dir_fd)
    else:
        raise OSError(errno.ENOTSUP, f"an entry of type {entry.type} cannot be made by this client")


def _device_of(entry: pb.Entry) -> int:
    try:
        return os.makedev(entry.device_major, entry.device_minor)
    except OverflowError as error:
        raise OSError(errno.EINVAL, "the device number is out of the range of this system") from error
