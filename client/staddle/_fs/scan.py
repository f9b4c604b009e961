"""All that is in a tree, path by path."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from staddle._fs.found import Found, Marked, reason_of
from staddle._fs.level import Level
from staddle._fs.observer import Observer
from staddle._fs.walk import LOOKS_MAX, Walk


@dataclass(slots=True)
class Scan(Walk[Found | Marked]):
    """Everything found, path by path. The root may also be a single file: then its base name is the only path."""

    def _single(self) -> Iterator[Found | Marked]:
        path = os.path.basename(os.path.abspath(self.root))
        parent, name = os.path.split(os.path.realpath(self.root))  # a path that was named is followed
        parent_fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            status = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
            seen_ns = self._sync(status.st_dev, parent_fd)
            status = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
            if self.observer is not None:
                self.observer.at_root(status)
                self.observer.abandon()
            yield Found(path, name, parent_fd, status, b"", seen_ns)
            for _ in range(LOOKS_MAX):
                if self.unsent.replaced is None:
                    return
                self.unsent.replaced = None
                status = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
                yield Found(path, name, parent_fd, status, b"", seen_ns, late=True)
            if self.unsent.replaced is not None:
                self.report(path, reason_of(self.unsent.replaced))
        finally:
            os.close(parent_fd)

    def _walk(self, root_fd: int) -> Iterator[Found | Marked]:
        yield self._start(root_fd)
        self._list_root()
        while self._levels:
            level = self._levels[-1]
            yield from self._marks(level)
            if not level.names:
                level.names = self._again(level)
                if not level.names and level.lacks == level.marked:
                    self._pop()
                continue
            index = 0 if self.observer is None else self._begun(self.observer, level)
            name = level.names.pop()
            found = self._look(level, name)
            if found is None:
                continue
            place = None
            if self.observer is not None and level.piece is not None:
                level.piece.at(index, found.stat)
                place = self.observer.place
            yield found
            self._take_unsent(level, name)
            yield from self._marks(level)
            if found.is_directory():
                self._enter(level, name, found.path, found.stat.st_dev, found.stat.st_uid, place=place)
                yield from self._marks_of_unentered(level, name, found.path, place)

    def _begun(self, observer: Observer, level: Level) -> int:
        """The place of the next name among those that the observer has begun with."""
        piece = level.piece
        if piece is None or piece.full:
            if piece is not None:
                piece.end()
            names = level.names[: -observer.children_max - 1 : -1]
            more = len(level.names) > len(names)
            piece = level.piece = observer.begin(level.path, names, first=piece is None, more=more)
        piece.next_index += 1
        return piece.next_index - 1
