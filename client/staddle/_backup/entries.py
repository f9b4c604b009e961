"""The entries of paths without content to send, and the state that both ways of sending share."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from staddle._backup.chunk_list import ChunkList
from staddle._fs.file_reader import FileReader, is_racy
from staddle._fs.found import Found, Unsent, reason_of, was_replaced
from staddle._fs.metadata import OwnerNames, add_xattrs, entry_of, via_descriptor
from staddle._transport.progress import ProgressReporter
from staddle._types.backups import Profile
from staddle._types.options import BackupOptions
from staddle._types.reports import PathProblem, ProblemKind, Progress
from staddle.v1 import resources_pb2 as pb

PROBLEMS_MAX: Final = 100_000
"""So many paths a report names; the rest is counted."""
LINKED_MAX: Final = 4_096
LINKED_CHUNKS_MAX: Final = 256
"""Hard-linked files are read once, while so many of them, with so many chunks each, are remembered."""


@dataclass(slots=True)
class BackupTally:
    """What a backup has done so far, over all its attempts. Written by several threads, each its own fields."""

    profile: Profile = Profile.CONTENT_DEFINED
    problems: dict[tuple[ProblemKind, bytes], PathProblem] = field(default_factory=dict)
    problems_dropped: int = 0
    notes: dict[tuple[ProblemKind, bytes], PathProblem] = field(default_factory=dict)
    notes_dropped: int = 0
    unchanged: int = 0
    excluded: int = 0
    """Paths that patterns or other rules leave out."""
    read_bytes: int = 0
    sent_bytes: int = 0
    reused_bytes: int = 0
    entries_done: int = 0
    path: bytes = b""
    unsent: Unsent = field(default_factory=Unsent)
    missing: set[bytes] = field(default_factory=set)
    """The first paths that could not be read at all; of a directory, nothing in it."""
    watch: Callable[[], None] = lambda: None
    """Called by who reads, often: between paths, and within a file as its bytes come."""

    @property
    def problem_count(self) -> int:
        """Problems so far, also those beyond what is kept."""
        return len(self.problems) + self.problems_dropped

    def unreadable(self, path: bytes, message: str) -> None:
        """Note a path that could not be read completely."""
        self._note(PathProblem(ProblemKind.UNREADABLE, path, message))

    def at(self, path: bytes) -> None:
        """Begin with a path, possibly again after a failure."""
        self.path = path
        self.missing.discard(path)

    def unread(self, path: bytes, message: str) -> None:
        """Note an existing path that could not be read at all."""
        self.unreadable(path, message)
        if len(self.missing) < PROBLEMS_MAX:
            self.missing.add(path)

    def left_out(self, path: bytes, message: str) -> None:
        """Notes a path that exists and is not in the backup. The scan marks its directory."""
        self.unread(path, message)
        self.unsent.left_out = True

    def failed(self, path: bytes, error: OSError) -> None:
        """A path could not be read, or was removed or replaced since the scan came to it, which then looks again."""
        if was_replaced(error):
            self.unsent.replaced = error
        else:
            self.left_out(path, reason_of(error))

    def altered(self, path: bytes, message: str) -> None:
        """Note a path with a value that does not fit into a backup."""
        self._note(PathProblem(ProblemKind.ALTERED, path, message))

    def note(self, kind: ProblemKind, path: bytes, message: str) -> None:
        """Note a path that the backup leaves out by intention."""
        if (kind, path) in self.notes or len(self.notes) < PROBLEMS_MAX:
            self.notes[kind, path] = PathProblem(kind, path, message)
        else:
            self.notes_dropped += 1

    def kept_changing(self, path: bytes) -> None:
        """Note a file whose backup may mix two versions."""
        self._note(
            PathProblem(ProblemKind.CHANGED, path, "it changed while it was read, also the second time")
        )

    def _note(self, problem: PathProblem) -> None:
        key = (problem.kind, problem.path_bytes)
        if key in self.problems or len(self.problems) < PROBLEMS_MAX:
            self.problems[key] = problem
        else:
            self.problems_dropped += 1


def progress_of(tally: BackupTally, options: BackupOptions) -> ProgressReporter:
    """Reports what a tally has counted, each time `watch` is called."""

    def state() -> Progress:
        return Progress(
            phase="send",
            path=os.fsdecode(tally.path),
            entries_done=tally.entries_done,
            bytes_done=tally.read_bytes,
            new_bytes=tally.sent_bytes,
            reused_bytes=tally.reused_bytes,
        )

    reporter = ProgressReporter(options.progress, state)
    tally.watch = lambda: reporter.report("send")
    return reporter


@dataclass(frozen=True, slots=True)
class Content:
    """The content read from a file."""

    chunks: ChunkList
    size_bytes: int
    content_id: bytes


class LinkedFiles:
    """Files with several names that were read already: the other names need no reading."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[int, int], tuple[tuple[int, int, int], pb.Entry, Content]] = (
            OrderedDict()
        )

    def find(self, found: Found) -> tuple[pb.Entry, Content] | None:
        """The entry and content of the same file under an earlier name, if nothing has changed since."""
        if found.stat.st_nlink < 2:
            return None
        known = self._known.get((found.stat.st_dev, found.stat.st_ino))
        return known[1:] if known is not None and known[0] == _signature(found.stat) else None

    def keep(self, opened: FileReader, entry: pb.Entry, content: Content) -> None:
        """Remembers a file that was read in one piece."""
        status = opened.status
        if status.st_nlink < 2 or len(content.chunks) > LINKED_CHUNKS_MAX:
            return
        copy = pb.Entry()  # the entry itself is on its way to the server, in another thread
        copy.CopyFrom(entry)
        self._known[status.st_dev, status.st_ino] = (_signature(status), copy, content)
        if len(self._known) > LINKED_MAX:
            self._known.popitem(last=False)


def _signature(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def entry_without_content(found: Found, names: OwnerNames, tally: BackupTally) -> pb.Entry | None:
    """The whole entry of anything but a regular file; None, reported, if it cannot be read."""
    entry = entry_of(found, names, tally)
    if entry is None:
        return None
    add_xattrs(entry, via_descriptor(found.dir_fd, found.name), tally.unreadable)
    entry.read_again = is_racy(found.stat, found.seen_ns)
    return entry


def marked_entry(found: Found, names: OwnerNames, tally: BackupTally) -> pb.Entry | None:
    """The entry of a directory something in which is left out; None, reported, if it cannot be read."""
    entry = entry_without_content(found, names, tally)
    if entry is not None:
        entry.incomplete = True
    return entry


def entry_of_file(found: Found, opened: FileReader, names: OwnerNames, tally: BackupTally) -> pb.Entry | None:
    """The entry of an open regular file, without its content, holes and `read_again`; None, reported, if that fails."""
    entry = entry_of(found, names, tally, opened.status)
    if entry is None:
        return None
    add_xattrs(entry, opened.descriptor, tally.unreadable)
    return entry


def add_holes(entry: pb.Entry, holes: list[tuple[int, int]], size: int) -> None:
    """Adds the holes that lie inside a file of that size."""
    for offset, length in holes:
        if offset < size:
            entry.holes.add(offset_bytes=offset, length_bytes=min(length, size - offset))
