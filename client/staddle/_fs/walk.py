"""A tree on disk as a sequence of entries, in Staddle's order, with flat memory at any depth.

Directories are opened relative to their parent and never through a symbolic link, so the scan stays in the tree
whatever others rename meanwhile, and paths longer than the system's limit work. What cannot be read is reported and skipped.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from staddle._fs.chosen_paths import Chosen
from staddle._fs.excludes import Excludes, no_excludes
from staddle._fs.found import (
    Found,
    Marked,
    Note,
    ReportUnread,
    Skip,
    Unsent,
    WallClock,
    identity_of,
    ignored,
    reason_of,
    was_replaced,
)
from staddle._fs.level import Level, names_of
from staddle._fs.noatime import open_quietly
from staddle._fs.observer import ObservedChildren, Observer
from staddle._fs.omissions import NOTHING, Omissions
from staddle._fs.temporary_names import is_temporary
from staddle._protocol.convert import COMPONENT_BYTES_MAX, COMPONENTS_MAX, PATH_BYTES_MAX
from staddle._types.reports import ProblemKind

T = TypeVar("T")

TOO_LONG: Final = "the path is longer than a backup can hold"
VANISHED: Final = "it was removed during the backup"
ABSENT: Final = "it was named, and does not exist"
NO_DIRECTORY: Final = (
    "it was named, and what lies above it is not a directory (symbolic links are not followed there)"
)
ELSEWHERE: Final = "it lies on another file system, so what was named in it is left out"
MOVED: Final = "a directory above it was moved while it was read"
DESCRIPTORS_MAX: Final = 64
"""So many directories stay open; those further up are opened again through ".." on the way back."""

_NONE: Final[frozenset[bytes]] = frozenset()
ROOT_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
DIRECTORY_FLAGS: Final = ROOT_FLAGS | os.O_NOFOLLOW
PATH_FLAG: Final = getattr(os, "O_PATH", 0)
"""Opens a directory that may be entered but not read, where the system can do that."""

LOOKS_MAX: Final = 3
"""A path that disappears while it is read, and is listed afterwards, is looked at again so many times."""


@dataclass(slots=True)
class Walk(ABC, Generic[T]):
    """The way through the tree at `root`, down and back again. What it looks at, and in which steps, is its children's.

    Raises OSError, when walked, if the root itself cannot be opened.
    """

    root: bytes
    report: ReportUnread
    excluded: Excludes = no_excludes
    one_file_system: bool = False
    skip: Skip | None = None
    """Paths that a resumed backup has behind it: those directories are not opened."""
    clock: WallClock = time.time_ns
    observer: Observer | None = None
    note: Note = ignored
    omissions: Omissions = NOTHING
    sync: Callable[[int], None] | None = None
    """Brings the file system of a descriptor to its disk, once before anything of it is looked at."""
    chosen: Chosen | None = None
    """What is taken of the root; None: everything."""
    unsent: Unsent = field(default_factory=Unsent)
    excluded_count: int = 0
    empty: list[bytes] = field(default_factory=list)
    """Directories that were named as PATHs and have nothing in them."""
    _followed: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)
    """Where PATHs lead that are symbolic links, and directories above them: an open directory, and a name in it."""
    _synced_ns: dict[int, int] = field(default_factory=dict)
    """By device, when that was done."""
    _levels: list[Level] = field(default_factory=list)
    _unentered: bool = False
    """The directory that was to be entered last exists and cannot be read."""

    def __iter__(self) -> Generator[T]:
        try:
            root_fd = self._open(self.root, None, ROOT_FLAGS, is_way=not self._takes_all_of(b""))
        except NotADirectoryError:
            yield from self._single()
            return
        try:
            yield from self._walk(root_fd)
        finally:
            for level in self._levels:
                if level.descriptor is not None:
                    os.close(level.descriptor)
            self._levels.clear()
            for descriptor, _ in self._followed.values():
                os.close(descriptor)
            self._followed.clear()

    @abstractmethod
    def _single(self) -> Iterator[T]:
        """The root is not a directory."""

    @abstractmethod
    def _walk(self, root_fd: int) -> Iterator[T]:
        """The root is a directory, opened."""

    def _start(self, root_fd: int) -> Found:
        """Enters the root; what it is. `_list_root` follows, once that was dealt with."""
        status = os.fstat(root_fd)
        seen_ns = self._sync(status.st_dev, root_fd)
        status = os.fstat(root_fd)
        everything = self._takes_all_of(b"")
        root = Level(b"", b"", identity_of(status), [], root_fd, everything, status.st_dev, status=status)
        if self.observer is not None:
            self.observer.at_root(status)
            root.place = self.observer.place
        self._levels.append(root)
        return Found(b"", b".", root_fd, status, b"", seen_ns)

    def _list_root(self) -> None:
        (root,) = self._levels
        root.names = self._names_in(root)

    # --- the selection

    def _takes_all_of(self, path: bytes) -> bool:
        """Whether a directory is taken with all that is in it because it was named, or everything is."""
        return self.chosen is None or path in self.chosen.named

    def _is_chosen(self, path: bytes) -> bool:
        """Whether a path was named, or leads to one that was."""
        return self.chosen is not None and self.chosen.knows(path)

    def _must_have(self, path: bytes) -> bool:
        return self.chosen is not None and self.chosen.must_have(path)

    def _place_of(self, level: Level, name: bytes, path: bytes) -> tuple[int, bytes]:
        """An open directory, and the name in it, of a child: elsewhere if it is a link that was named. Raises OSError."""
        assert level.descriptor is not None
        if level.everything or not self._must_have(path):
            return level.descriptor, name
        if path not in self._followed:
            if not stat.S_ISLNK(os.stat(name, dir_fd=level.descriptor, follow_symlinks=False).st_mode):
                return level.descriptor, name
            above, _, real = os.path.realpath(os.path.join(self.root, path)).rpartition(b"/")
            self._followed[path] = self._open(above or b"/", None, ROOT_FLAGS, is_way=True), real or b"."
        return self._followed[path]

    def _open(
        self, name: bytes, dir_fd: int | None, flags: int, *, is_way: bool, owner: int | None = None
    ) -> int:
        """Opens a directory. One that is only passed through need not be readable."""
        try:
            return open_quietly(name, flags, dir_fd=dir_fd, owner=owner)
        except PermissionError:
            if not is_way or not PATH_FLAG:
                raise
            return os.open(name, flags | PATH_FLAG, dir_fd=dir_fd)

    def _look(self, level: Level, name: bytes) -> Found | None:
        path = level.path + b"/" + name if level.path else name
        wanted = self._must_have(path)
        if (
            is_temporary(name) and not wanted
        ):  # a restore that was killed, or still runs, makes it: not the user's data
            self.excluded_count += 1
            return None
        # The patterns come first: what is excluded may be a mount that does not answer.
        verdict = False if wanted or self.excluded is no_excludes else self.excluded.of_name(path)
        if verdict:
            self.excluded_count += 1
            return None
        if self._is_too_long(name, path):
            self._leave_out(level, path[:PATH_BYTES_MAX], TOO_LONG)
            return None
        if level.descriptor is None:
            self._leave_out(level, path, MOVED)
            return None
        seen_ns = self.clock()
        try:
            dir_fd, name = self._place_of(level, name, path)
            status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except OSError as error:
            self._not_seen(level, name, path, error, may_be_excluded=verdict is None)
            return None
        is_directory = stat.S_ISDIR(status.st_mode)
        if (verdict is None and self.excluded(path, is_directory)) or self._is_omitted(path, status):
            self.excluded_count += 1
            return None
        if not is_directory and self.chosen is not None and self.chosen.below(path):
            self._tell_all_beyond(level, [path])
            if not (level.everything or self._takes_all_of(path)):
                return None
        seen_ns = self._synced_ns.get(status.st_dev, seen_ns)
        mounted_here = is_directory and status.st_dev != level.identity[0]
        return Found(path, name, dir_fd, status, path if mounted_here else level.mount, seen_ns, level.late)

    def _leave_out(self, level: Level, path: bytes, why: str) -> None:
        """A path in a directory cannot be in the backup."""
        self.report(path, why)
        level.lacks = True

    def _take_unsent(self, level: Level, name: bytes) -> None:
        """Takes what came of a child that was given out."""
        unsent = self.unsent
        level.lacks = level.lacks or unsent.left_out
        if unsent.replaced is not None:
            level.vanished.append((name, unsent.replaced))
        unsent.left_out, unsent.replaced = False, None

    def _marks(self, level: Level) -> Iterator[Marked]:
        """The directory that the walk is in, if it has to be marked now. A mark comes before all that follows what was left out, so that
        it is durable before that, too.
        """
        if not level.lacks or level.marked:
            return
        level.marked = True
        descriptor, status = level.descriptor, level.status
        assert status is not None
        if descriptor is not None:
            status = os.fstat(descriptor)
        seen_ns = self._synced_ns.get(status.st_dev, self.clock())
        self._doubt(level.place)
        yield Marked(
            Found(level.path, b"", -1 if descriptor is None else descriptor, status, level.mount, seen_ns)
        )

    def _marks_of_unentered(
        self, level: Level, name: bytes, path: bytes, place: tuple[ObservedChildren, int] | None
    ) -> Iterator[Marked]:
        """The directory that could not be entered just before, if there is one: nothing in it is in the backup."""
        if not self._unentered:
            return
        self._unentered = False
        self._doubt(place)
        seen_ns = self.clock()
        try:
            dir_fd, name = self._place_of(level, name, path)
            status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except OSError:
            return  # it was removed since
        if stat.S_ISDIR(status.st_mode):
            yield Marked(Found(path, name, dir_fd, status, level.mount, seen_ns))

    def _doubt(self, place: tuple[ObservedChildren, int] | None) -> None:
        """Has the next backup look at a directory that is marked now."""
        if self.observer is None:
            return
        if place is None:
            self.observer.abandon()
        else:
            piece, index = place
            piece.doubt(index)

    def _is_too_long(self, name: bytes, path: bytes) -> bool:
        """Whether a child of the current directory cannot be in any backup."""
        return (
            len(name) > COMPONENT_BYTES_MAX
            or len(path) > PATH_BYTES_MAX
            or len(self._levels) > COMPONENTS_MAX
        )

    def _not_seen(
        self, level: Level, name: bytes, path: bytes, error: OSError, *, may_be_excluded: bool
    ) -> None:
        """A child cannot be looked at. Where it is excluded if it is a directory, it is taken for one, such as a dead mount."""
        if isinstance(error, FileNotFoundError) and self._is_chosen(path):
            self._tell_named(level, path, ABSENT)
        elif isinstance(error, FileNotFoundError):
            level.vanished.append((name, error))
        elif may_be_excluded and self.excluded(path, True):
            self.excluded_count += 1
        else:
            self._leave_out(level, path, reason_of(error))

    def _tell_named(self, level: Level, path: bytes, why: str) -> None:
        """Report the named paths at and below a path that cannot exist."""
        assert self.chosen is not None
        for each in self.chosen.under(path):
            self._leave_out(level, each, why)

    def _tell_all_beyond(self, level: Level, paths: list[bytes]) -> None:
        """Report the named paths below children that are not directories."""
        assert self.chosen is not None
        for path in paths:
            for name in self.chosen.below(path):
                self._tell_named(level, path + b"/" + name, NO_DIRECTORY)

    def _is_omitted(self, path: bytes, status: os.stat_result) -> bool:
        """Whether a file is left out because of its size."""
        most = self.omissions.larger_than_bytes
        if most is None or not stat.S_ISREG(status.st_mode) or status.st_size <= most:
            return False
        if self._must_have(path):
            return False
        self.note(ProblemKind.SKIPPED, path, f"it has {status.st_size:,} bytes")
        return True

    def _sync(self, device: int, descriptor: int) -> int:
        """Brings a file system to its disk, unless that was done; answers when that began."""
        known = self._synced_ns.get(device)
        if known is not None:
            return known
        now_ns = self.clock()
        if self.sync is not None and not _is_path_only(descriptor):
            self.sync(descriptor)
            self._synced_ns[device] = now_ns
        return now_ns

    def _enter(
        self,
        level: Level,
        name: bytes,
        path: bytes,
        device: int,
        owner: int,
        *,
        place: tuple[ObservedChildren, int] | None = None,
    ) -> bool:
        """Enters a directory that was looked at; whether that was wanted and went well. `place` is where the observer has it."""
        child = name
        everything = level.everything or self._takes_all_of(path)
        home = level.home
        crosses = self.one_file_system and device != home
        if self._must_have(path):
            if self._takes_all_of(path) or not level.everything:
                home = device
            elif crosses:
                everything, home = False, device
        elif crosses:
            if self._is_chosen(path):
                self.note(ProblemKind.SKIPPED, path, ELSEWHERE)
            return False
        if self.skip is not None and self.skip(path):
            return False
        assert level.descriptor is not None
        try:
            dir_fd, name = self._place_of(level, name, path)
            descriptor = self._open(name, dir_fd, DIRECTORY_FLAGS, is_way=not everything, owner=owner)
        except OSError as error:
            if was_replaced(error):
                level.vanished.append((child, error))
            else:
                self.report(path, reason_of(error))
                self._unentered = True
            return False
        status = os.fstat(descriptor)
        if self.sync is not None and status.st_dev not in self._synced_ns:
            self._sync(status.st_dev, descriptor)
        mount = level.mount if device == level.identity[0] else path
        self._push(
            Level(
                path,
                mount,
                identity_of(status),
                [],
                descriptor,
                everything,
                home,
                status=status,
                place=place,
                late=level.late,
            )
        )
        return True

    def _push(self, level: Level) -> None:
        """Enter a directory whose names are not listed yet."""
        level.names = self._names_in(level)
        self._levels.append(level)
        if len(self._levels) > DESCRIPTORS_MAX:
            far = self._levels[-1 - DESCRIPTORS_MAX]
            # The way back to a directory on the way to a PATH may lead elsewhere, where a link was followed.
            if far.descriptor is not None and (far.everything or not self._must_have(far.path)):
                os.close(far.descriptor)
                far.descriptor = None

    def _names_in(self, level: Level) -> list[bytes]:
        """The names in a directory that are to be looked at, the next one last."""
        assert level.descriptor is not None
        path = level.path
        below = _NONE if self.chosen is None else self.chosen.below(path)
        overrules = self.chosen is not None and self.chosen.overrules
        if not level.everything and (overrules or self.omissions == NOTHING):
            return sorted(below, reverse=True)
        try:
            names = names_of(level.descriptor)
        except OSError as error:
            if not level.everything:
                return sorted(below, reverse=True)
            self._leave_out(level, path, reason_of(error))
            return []
        if below:
            for name in sorted(below.difference(names)):
                self._tell_named(level, path + b"/" + name if path else name, ABSENT)
        named = not path or (overrules and self._takes_all_of(path))
        if named and path and not names:
            self.empty.append(path)
        omitted = self.omissions.of_directory(level.descriptor, names, named=named)
        if omitted is None:
            return names if level.everything else sorted(below, reverse=True)
        kept, why = omitted
        self.note(ProblemKind.SKIPPED, path, f"{why}, so what is in it is left out")
        if not level.everything:
            return sorted(below.intersection(kept), reverse=True)
        if not overrules or not below:
            return kept
        level.everything = False  # named paths in it are still backed up
        return sorted({*kept, *below}, reverse=True)

    def _pop(self) -> None:
        level = self._levels.pop()
        if self.observer is not None and level.piece is not None:
            level.piece.end()
        above = self._levels[-1] if self._levels else None
        if above is not None and above.descriptor is None and level.descriptor is not None:
            above.descriptor = self._open_above(level.descriptor, above)
        if level.descriptor is not None:
            os.close(level.descriptor)

    def _again(self, level: Level) -> list[bytes]:
        """Once all names of a directory were looked at: those that disappeared meanwhile and are listed again. The others are gone."""
        if not level.vanished:
            return []
        try:
            listed = set() if level.descriptor is None else set(names_of(level.descriptor))
        except OSError:
            listed = set()
        back = {name: error for name, error in level.vanished if name in listed}
        for name, _ in level.vanished:
            if name not in listed:
                self.note(ProblemKind.VANISHED, _joined(level.path, name), VANISHED)
        level.vanished = []
        level.looks += 1
        if level.looks <= LOOKS_MAX:
            if back and self.observer is not None:
                self.observer.abandon()
            level.late = level.late or bool(back)
            return sorted(back, reverse=True)
        for name, error in back.items():
            self._leave_out(level, _joined(level.path, name), reason_of(error))
        return []

    def _open_above(self, descriptor: int, above: Level) -> int | None:
        try:
            opened = self._open(b"..", descriptor, DIRECTORY_FLAGS, is_way=not above.everything)
        except OSError as error:
            self._leave_out(above, above.path, f"the way back to the directory was lost: {reason_of(error)}")
            return None
        status = os.fstat(opened)
        if (status.st_dev, status.st_ino) == above.identity:
            return opened
        os.close(opened)
        return None


def _joined(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def _is_path_only(descriptor: int) -> bool:
    """Whether a directory was opened only to pass through it."""
    return bool(PATH_FLAG and fcntl.fcntl(descriptor, fcntl.F_GETFL) & PATH_FLAG)
