"""Paths of a backup onto a target, one after another: files with their holes, links, special files, directories."""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from staddle._apply import Applier
from staddle._convert import link_target_of
from staddle._metadata import type_of
from staddle._reading import OPEN_FLAGS
from staddle._scan import reason_of
from staddle._stream import is_file
from staddle._target import Target, discard, look, make_temporary, settle
from staddle._types import Overwrite, PathProblem, ProblemKind
from staddle.v1 import resources_pb2 as pb

LINKS_MAX: Final = 100_000
"""So many groups of hard links are remembered; files of others come as files of their own."""
PROBLEMS_MAX: Final = 100_000
ZEROS: Final = bytes(1024 * 1024)
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""What makes going on pointless."""
DEVICES: Final = {
    pb.ENTRY_TYPE_CHAR_DEVICE: stat.S_IFCHR,
    pb.ENTRY_TYPE_BLOCK_DEVICE: stat.S_IFBLK,
}


class TargetFullError(OSError):
    """The target takes nothing more."""


@dataclass(slots=True)
class WriteTally:
    """What a restore has done so far."""

    problems: dict[PathProblem, None] = field(default_factory=dict)
    problems_dropped: int = 0
    written: int = 0
    unchanged: int = 0
    kept: int = 0
    data_bytes: int = 0
    sockets: int = 0
    path: bytes = b""

    def note(self, kind: ProblemKind, path: bytes, message: str) -> None:
        """Notes a path that is not as it was in the backup."""
        problem = PathProblem(kind, path, message)
        if problem in self.problems or len(self.problems) < PROBLEMS_MAX:
            self.problems[problem] = None
        else:
            self.problems_dropped += 1

    def not_written(self, path: bytes, error: OSError) -> None:
        """Notes a path that the target did not take. Raises TargetFullError if it will take no other either."""
        if error.errno in FULL:
            raise TargetFullError(error.errno, reason_of(error), path) from error
        self.note(ProblemKind.NOT_WRITTEN, path, reason_of(error))


class OpenedFile:
    """A file that is being written under a temporary name. Zeros where the entry has holes take no space."""

    def __init__(self, dir_fd: int, name: bytes, path: bytes, entry: pb.Entry) -> None:
        self.path = path
        self.entry = entry
        self.name = name
        self.dir_fd = os.dup(dir_fd)
        mode = 0o600 if entry.HasField("mode") else 0o666
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._temporary, self.descriptor = make_temporary(
                lambda temporary: os.open(temporary, flags, mode, dir_fd=dir_fd)
            )
        except BaseException:
            os.close(self.dir_fd)
            raise
        self._position = 0
        self._end_of_data = 0
        self._holes = [(hole.offset_bytes, hole.offset_bytes + hole.length_bytes) for hole in entry.holes]
        self._holes.reverse()

    def write(self, data: bytes) -> None:
        """The next bytes."""
        if not self._holes:
            self._put(memoryview(data))
            return
        view = memoryview(data)
        while view:
            in_hole, length = self._stretch(len(view))
            piece = view[:length]
            if in_hole and _is_zeros(piece):
                self._position += length
            else:
                self._put(piece)
            view = view[length:]

    def write_zeros(self, count: int) -> None:
        """So many zero bytes."""
        while count:
            in_hole, length = self._stretch(count)
            if in_hole:
                self._position += length
            else:
                length = min(length, len(ZEROS))
                self._put(memoryview(ZEROS)[:length])
            count -= length

    def finish(self, applier: Applier, tally: WriteTally) -> os.stat_result:
        """Sets the metadata and gives it its name. Its stat."""
        try:
            if self._end_of_data < self._position:
                os.ftruncate(self.descriptor, self._position)
            applier.to_descriptor(
                self.descriptor,
                self.entry,
                lambda message: tally.note(ProblemKind.NOT_WRITTEN, self.path, message),
            )
            status = os.fstat(self.descriptor)
        except BaseException:
            self.abandon()
            raise
        os.close(self.descriptor)
        try:
            settle(self.dir_fd, self._temporary, self.name)
        finally:
            os.close(self.dir_fd)
        return status

    def abandon(self) -> None:
        """Leaves nothing of it."""
        os.close(self.descriptor)
        try:
            discard(self.dir_fd, self._temporary)
        finally:
            os.close(self.dir_fd)

    def _stretch(self, length_max: int) -> tuple[bool, int]:
        """Whether the position is in a hole, and how far that is so."""
        while self._holes and self._holes[-1][1] <= self._position:
            self._holes.pop()
        if not self._holes:
            return False, length_max
        start, end = self._holes[-1]
        if self._position < start:
            return False, min(length_max, start - self._position)
        return True, min(length_max, end - self._position)

    def _put(self, view: memoryview) -> None:
        while view:
            count = os.pwrite(self.descriptor, view, self._position)
            self._position += count
            view = view[count:]
        self._end_of_data = self._position


def _is_zeros(piece: memoryview) -> bool:
    return all(
        piece[start : start + len(ZEROS)] == memoryview(ZEROS)[: len(piece) - start]
        for start in range(0, len(piece), len(ZEROS))
    )


class Writer:
    """Puts entries into a target, in their order. A path that fails is noted, and the next one goes on."""

    def __init__(self, target: Target, overwrite: Overwrite, tally: WriteTally) -> None:
        self._target = target
        self._overwrite = overwrite
        self._tally = tally
        self.applier = Applier()
        self._links: OrderedDict[tuple[bytes, bytes], tuple[bytes, tuple[int, int]]] = OrderedDict()
        self._directories: list[tuple[bytes, pb.Entry]] = []
        """Those above the last path, whose metadata is set when all in them is there."""
        self._left: list[tuple[bytes, pb.Entry]] = []
        """Directories that were left, but get files still."""

    # --- directories

    def enter(self, path: bytes) -> None:
        """Says that `path` comes next: directories that it is not in have all they get but `finish_directories`."""
        while self._directories and not _is_in(path, self._directories[-1][0]):
            self._left.append(self._directories.pop())

    @property
    def left_count(self) -> int:
        """Directories that wait for finish_directories."""
        return len(self._left)

    def finish_directories(self, *, all_of_them: bool = False) -> None:
        """Sets the metadata of the directories that were left; `all_of_them`: nothing comes any more."""
        if all_of_them:
            self._left.extend(reversed(self._directories))
            self._directories.clear()
        for path, entry in self._left:
            try:
                descriptor = self._target.directory(path)
                self.applier.to_descriptor(descriptor, entry, self._reporter(path))
            except OSError as error:
                self._tally.not_written(path, error)
        self._left.clear()

    def directory(self, path: bytes, entry: pb.Entry) -> None:
        """Makes a directory, whose metadata comes later."""
        try:
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
            parent, name = os.path.split(path)
            dir_fd = self._target.directory(parent)
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
            parent, name = os.path.split(path)
            dir_fd = self._target.directory(parent)
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

    def open_file(self, path: bytes, entry: pb.Entry) -> OpenedFile | None:
        """Begins a file. None, noted, if that fails."""
        try:
            parent, name = os.path.split(path)
            return OpenedFile(self._target.directory(parent), name, path, entry)
        except OSError as error:
            self._tally.not_written(path, error)
            return None

    def finish_file(self, opened: OpenedFile) -> None:
        """Ends a file whose bytes have all come."""
        try:
            status = opened.finish(self.applier, self._tally)
        except OSError as error:
            self._tally.not_written(opened.path, error)
            return
        self._tally.written += 1
        self._tally.data_bytes += status.st_size
        self._remember(opened.path, opened.entry, status)

    def whole_file(self, path: bytes, entry: pb.Entry) -> None:
        """Writes a file whose bytes stand in its entry."""
        opened = self.open_file(path, entry)
        if opened is None:
            return
        try:
            opened.write(entry.data)
        except OSError as error:
            opened.abandon()
            self._tally.not_written(path, error)
            return
        self.finish_file(opened)

    def special(self, path: bytes, entry: pb.Entry) -> None:
        """Makes a symlink, fifo or device. Sockets are counted, and not made."""
        if entry.type == pb.ENTRY_TYPE_SOCKET:
            self._tally.sockets += 1
            return
        parent, name = os.path.split(path)
        try:
            dir_fd = self._target.directory(parent)
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
