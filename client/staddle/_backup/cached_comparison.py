"""The changes since the base, found with the cache of its content: directory by directory, with flat memory.

All children of a directory are looked at in one go, and what stat says of them is compared, as bytes, with what the cache has. Where that is the
same, nothing more is done than to enter the directories among them. Only elsewhere are they compared one by one.
"""

from __future__ import annotations

import os
import stat
import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from staddle._backup.cache.file import (
    ABSENT,
    CHILDREN_MAX,
    DIGEST_BYTES,
    FILE_KIND,
    KIND,
    ROW_BYTES,
    SIZE_AT,
    CacheBlock,
    CacheError,
    CacheReader,
    pack_row,
    row_of,
)
from staddle._backup.changes import Changed, Difference, Removed
from staddle._fs.excludes import no_excludes
from staddle._fs.level import Level
from staddle._fs.walk import MOVED, TOO_LONG, Walk
from staddle._protocol.convert import PATH_BYTES_MAX

if TYPE_CHECKING:
    from staddle._backup.cache.recorder import CacheRecorder, ChildRows


_NOWHERE: Final = -1
"""The place of a child that was looked at again, out of order."""


class _Enter(NamedTuple):
    """A directory that is as in the base; its content may differ."""

    name: bytes
    device: int
    owner: int
    place: int
    """Among the children that were looked at together."""


class _Look(NamedTuple):
    """A child that may have changed."""

    name: bytes
    place: int
    """Among the children that were looked at together."""
    in_base: bool


class _Gone(NamedTuple):
    """A child that only the base has."""

    name: bytes
    vanished: bool
    """It was listed, and may come back."""


_Step = _Enter | _Look | _Gone


class _Seen(NamedTuple):
    """Children that were read together."""

    names: list[bytes]
    rows: list[bytes]
    directories: dict[bytes, tuple[int, int]]
    """Of the directories among them the device and the owner."""


class _Old:
    """A block of the cache; its first `used` children are done."""

    __slots__ = ("_names", "block", "used")

    def __init__(self, block: CacheBlock) -> None:
        self.block = block
        self.used = 0
        self._names: list[bytes] | None = None

    @property
    def names(self) -> list[bytes]:
        """All names. Raises CacheError if they are not in order."""
        if self._names is None:
            names = self.block.names.split(b"\0")
            if any(map(bytes.__ge__, names, names[1:])):
                raise CacheError("names are not in order")
            self._names = names
        return self._names

    @property
    def last(self) -> bytes:
        return self.block.names.rpartition(b"\0")[2]

    def row(self, index: int) -> bytes:
        return self.block.rows[index * ROW_BYTES : (index + 1) * ROW_BYTES]

    def is_as(self, seen: CacheBlock) -> bool:
        """Whether exactly this block was seen."""
        return self.used == 0 and self.block.rows == seen.rows and self.block.names == seen.names

    def digest(self, index: int) -> bytes:
        return self.block.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]

    def is_absent(self, index: int) -> bool:
        return bool(self.block.rows[index * ROW_BYTES] & ABSENT)


@dataclass(slots=True)
class _Way:
    """How far a directory is compared."""

    old: _Old | None
    steps: list[_Step] = field(default_factory=list)
    """What follows from the children that were looked at together; the next one last."""
    first: bool = True
    """None of it is recorded yet."""


@dataclass(slots=True, kw_only=True)
class CachedScan(Walk[Difference]):
    """The differences between a directory on disk and the base, in order; `unchanged` counts what is in both.

    Raises CacheError, when walked, if the cache contradicts itself: nothing that it yielded before can be relied on then.
    """

    known: CacheReader
    observer: CacheRecorder | None = None
    unchanged: int = 0
    _changed_count: int = 0
    _new_count: int = 0
    _lost_count: int = 0
    """Of those that changed: what could not be read, or disappeared."""
    _unheld_count: int = 0
    """Of the new ones likewise."""
    _replaced: set[bytes] = field(default_factory=set)
    """Paths of the base that disappeared when it was their turn, and may come again."""
    _ways: list[_Way] = field(default_factory=list)
    """For each directory on the way, as `_levels`."""

    def _single(self) -> Iterator[Difference]:
        raise NotADirectoryError(None, "it was a directory a moment ago", self.root)

    def _walk(self, root_fd: int) -> Iterator[Difference]:
        root = self._start(root_fd)
        if _is_same(self.known.root, row_of(root.stat)):
            self.unchanged += 1
            if self.observer is not None:
                self.observer.kept(self.known.root_digest)
        else:
            yield from self._told(Changed(root, in_base=True))
        self._list_root()
        self._ways.append(self._way_into(b""))
        while self._levels:
            level, way = self._levels[-1], self._ways[-1]
            yield from self._marks(level)
            if way.steps:
                yield from self._do(level, way.steps.pop())
            elif level.names or way.old is not None:
                self._refill(level, way)
            else:
                way.steps = [_Look(name, _NOWHERE, True) for name in self._again(level)]
                if not way.steps and level.lacks == level.marked:
                    self._ways.pop()
                    self._pop()

    # --- the current state

    def _refill(self, level: Level, way: _Way) -> None:
        """Read the next children of a directory, and plan the steps for them."""
        old = way.old
        if old is not None and old.used == old.block.children:
            old = way.old = _old_of(self.known.next(level.path))
        names = _take(level.names, old)
        before = len(level.vanished)
        seen = self._see(level, names) if level.everything else self._see_chosen(level, names)
        vanished = {name for name, _ in level.vanished[before:]}
        if self.observer is not None and level.piece is not None:
            level.piece.end()
            level.piece = None
        block = CacheBlock(
            level.path,
            way.first,
            bool(level.names),
            len(seen.names),
            b"\0".join(seen.names),
            b"".join(seen.rows),
        )
        if old is not None and old.is_as(block):
            level.piece = self._keep(old, block)
            way.steps = (
                [
                    _Enter(name, *seen.directories[name], index)
                    for index, name in enumerate(seen.names)
                    if name in seen.directories
                ]
                if seen.directories
                else []
            )
        else:
            digests = bytearray(block.children * DIGEST_BYTES)
            way.steps = self._compare(old, seen, _end_of(old, level.names, names), vanished, digests)
            if self.observer is not None and block.children:
                level.piece = self.observer.begin_with(block._replace(digests=bytes(digests)))
        way.steps.reverse()
        way.first = way.first and not block.children
        if old is not None and old.used == old.block.children and not old.block.more:
            way.old = None

    def _see(self, level: Level, names: list[bytes]) -> _Seen:
        """Stat children, all at once. Omits excluded ones and, with a report, unreadable ones."""
        prefix = level.path + b"/" if level.path else b""
        excluded = None if self.excluded is no_excludes else self.excluded
        undecided: set[bytes] = set()
        if excluded is not None:
            names, undecided = self._asked(prefix, names)
        directory_fd = level.descriptor
        if directory_fd is None:
            for name in names:
                self._leave_out(level, prefix + name, MOVED)
            return _Seen([], [], {})
        names = self._storable(level, prefix, names)
        look, pack = os.stat, pack_row
        limited = self.omissions.larger_than_bytes is not None
        rows: list[bytes] = []
        directories: dict[bytes, tuple[int, int]] = {}
        out: set[bytes] = set()
        for name in names:
            try:
                status = look(name, dir_fd=directory_fd, follow_symlinks=False)
            except OSError as error:
                self._not_seen(level, name, prefix + name, error, may_be_excluded=name in undecided)
                out.add(name)
                continue
            mode = status.st_mode
            is_directory = mode & 0o170000 == stat.S_IFDIR
            if (name in undecided and self.excluded(prefix + name, is_directory)) or (
                limited and self._is_omitted(prefix + name, status)
            ):
                self.excluded_count += 1
                out.add(name)
                continue
            try:
                row = pack(
                    mode >> 8 & KIND, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
                )
            except struct.error:
                row = row_of(status)
            rows.append(row)
            if is_directory:
                directories[name] = status.st_dev, status.st_uid
        names = [name for name in names if name not in out] if out else names
        if self.chosen is not None:
            self._tell_all_beyond(level, [prefix + name for name in names if name not in directories])
        return _Seen(names, rows, directories)

    def _see_chosen(self, level: Level, names: list[bytes]) -> _Seen:
        """The same on the way to what was named, where links may have to be followed. There are few."""
        found = [(name, each) for name in names if (each := self._look(level, name)) is not None]
        directories = {
            name: (each.stat.st_dev, each.stat.st_uid) for name, each in found if each.is_directory()
        }
        return _Seen([name for name, _ in found], [row_of(each.stat) for _, each in found], directories)

    def _asked(self, prefix: bytes, names: list[bytes]) -> tuple[list[bytes], set[bytes]]:
        """Those that the patterns do not leave out by their name alone, and of these the ones of which the type decides."""
        kept: list[bytes] = []
        undecided: set[bytes] = set()
        for name in names:
            verdict = self.excluded.of_name(prefix + name)
            if verdict:
                self.excluded_count += 1
                continue
            kept.append(name)
            if verdict is None:
                undecided.add(name)
        return kept, undecided

    def _storable(self, level: Level, prefix: bytes, names: list[bytes]) -> list[bytes]:
        """The names that a backup can hold; the others are reported."""
        longest = max(names, key=len, default=b"")
        if not self._is_too_long(longest, prefix + longest):
            return names
        kept = []
        for name in names:
            if self._is_too_long(name, prefix + name):
                self._leave_out(level, (prefix + name)[:PATH_BYTES_MAX], TOO_LONG)
            else:
                kept.append(name)
        return kept

    # --- differences

    def _keep(self, old: _Old, block: CacheBlock) -> ChildRows | None:
        self.unchanged += block.children
        old.used = block.children
        if self.observer is None:
            return None
        return self.observer.add_unchanged(block._replace(digests=old.block.digests))

    def _compare(
        self, old: _Old | None, seen: _Seen, end: int, vanished: set[bytes], digests: bytearray
    ) -> list[_Step]:
        """What to do about children, in order, where something differs; of the old ones those before `end` are dealt with.

        `digests` gets those of the unchanged children that are known.
        """
        old_names = [] if old is None else old.names
        at = 0 if old is None else old.used
        steps: list[_Step] = []
        for index, (name, row) in enumerate(zip(seen.names, seen.rows, strict=True)):
            while old is not None and at < end and old_names[at] < name:
                if not old.is_absent(at):
                    steps.append(_Gone(old_names[at], old_names[at] in vanished))
                at += 1
            known = old is not None and at < end and old_names[at] == name
            if old is not None and known:
                at += 1
                if _is_same(old.row(at - 1), row):
                    self.unchanged += 1
                    if old.block.digests:
                        digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES] = old.digest(at - 1)
                    if name in seen.directories:
                        steps.append(_Enter(name, *seen.directories[name], index))
                    continue
                known = not old.is_absent(at - 1)
            steps.append(_Look(name, index, known))
        if old is not None:
            steps.extend(
                _Gone(name, name in vanished)
                for i, name in enumerate(old_names[at:end], at)
                if not old.is_absent(i)
            )
            old.used = end
        return steps

    # --- the steps

    def _do(self, level: Level, step: _Step) -> Iterator[Difference]:
        path = level.path + b"/" + step.name if level.path else step.name
        if isinstance(step, _Gone):
            self._lost(path, may_come_back=step.vanished)
            yield Removed(path)
        elif isinstance(step, _Look):
            yield from self._look_at(level, step, path)
        elif level.descriptor is not None:
            yield from self._into(level, path, step)
        else:
            self._leave_out(level, path, MOVED)
            self.unchanged -= 1
            if self.observer is not None:
                self.observer.abandon()
            yield Removed(path)

    def _look_at(self, level: Level, step: _Look, path: bytes) -> Iterator[Difference]:
        """Stat the child again at its turn, since it may have waited long."""
        found = self._look(level, step.name)
        if found is None:
            if self.observer is not None and level.piece is not None and step.place != _NOWHERE:
                level.piece.nothing_at(step.place)
            if step.in_base:
                self._lost(path, may_come_back=bool(level.vanished) and level.vanished[-1][0] == step.name)
                yield Removed(path)
            return
        changed = Changed(found, step.in_base)
        if step.place == _NOWHERE:
            yield changed
            if changed.held is not None and path in self._replaced:
                self._replaced.discard(path)
                self._lost_count -= 1
            elif changed.held is not None and not found.is_directory():
                self._new_count += 1
        else:
            if self.observer is not None and level.piece is not None:
                level.piece.at(step.place, found.stat)
            yield from self._told(changed)
        self._take_unsent(level, step.name)
        yield from self._marks(level)
        if found.is_directory():
            entry = _Enter(step.name, found.stat.st_dev, found.stat.st_uid, step.place)
            yield from self._into(level, path, entry)

    def _lost(self, path: bytes, *, may_come_back: bool) -> None:
        """Counts a path of the base that has vanished as one that changed and could not be read, if it may come back."""
        if may_come_back:
            self._changed_count += 1
            self._lost_count += 1
            self._replaced.add(path)

    @property
    def kept_count(self) -> int:
        """After the walk: the number of base entries that the new backup also has, changed or not, without the root."""
        return self.unchanged + self._changed_count - self._lost_count - 1

    @property
    def found_count(self) -> int:
        """After the walk: the number of paths in the new backup, without the root."""
        return self.kept_count + self._new_count - self._unheld_count

    @property
    def base_count(self) -> int:
        """After the walk: the number of base entries, without the root. Raises CacheError."""
        return self.known.count_all()

    def _told(self, changed: Changed) -> Iterator[Changed]:
        self._changed_count += changed.in_base
        self._new_count += not changed.in_base
        yield changed
        if changed.held is None and changed.found.path:
            self._lost_count += changed.in_base
            self._unheld_count += not changed.in_base
            if changed.in_base and self.unsent.replaced is not None:
                self._replaced.add(changed.found.path)
        if self.observer is not None:
            self.observer.settle(changed)

    def _into(self, level: Level, path: bytes, way: _Enter) -> Iterator[Difference]:
        place = None if level.piece is None or way.place == _NOWHERE else (level.piece, way.place)
        if self._enter(level, way.name, path, way.device, way.owner, place=place):
            # What comes out of order was removed with all below it: the base says nothing about it.
            self._ways.append(_Way(None) if level.late else self._way_into(path))
            return
        yield from self._marks_of_unentered(level, way.name, path, place)
        block = self.known.first(path)
        while block is not None:
            old = _Old(block)
            for index, child in enumerate(old.names):
                if not old.is_absent(index):
                    yield Removed(path + b"/" + child)
            block = self.known.next(path) if block.more else None

    def _way_into(self, path: bytes) -> _Way:
        return _Way(_old_of(self.known.first(path)))


def _old_of(block: CacheBlock | None) -> _Old | None:
    return None if block is None else _Old(block)


def _take(names: list[bytes], old: _Old | None) -> list[bytes]:
    """The next names to look at together, taken out of all of a directory: at most as many as a block holds, and as far as the old one goes."""
    taken = names[: -CHILDREN_MAX - 1 : -1]
    if old is not None and old.block.more:
        taken = taken[: bisect_right(taken, old.last)]
    del names[len(names) - len(taken) :]
    return taken


def _end_of(old: _Old | None, left: list[bytes], taken: list[bytes]) -> int:
    """Up to where an old block is dealt with, once `taken` are: to its end, unless names that belong to it are left."""
    if old is None:
        return 0
    if taken and left and (not old.block.more or left[-1] <= old.last):
        return bisect_right(old.names, taken[-1])
    return old.block.children


def _is_same(old: bytes, new: bytes) -> bool:
    """Whether two rows prove a path unchanged, as `is_unchanged` does: of all but regular files the size says nothing."""
    if old[0] & ~KIND or old[:SIZE_AT] != new[:SIZE_AT]:
        return False
    return old[0] != FILE_KIND or old[SIZE_AT:] == new[SIZE_AT:]
