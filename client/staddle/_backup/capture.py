"""What both ways of sending do with a difference: make its entry, or read its file, once more if that changes meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

from staddle._backup.changes import Changed, Difference, Removed
from staddle._backup.entries import BackupTally, entry_of_file, entry_without_content, marked_entry
from staddle._backup.entry_digest import digest_of
from staddle._fs.file_reader import FileReader, open_file
from staddle._fs.found import Marked, WallClock
from staddle._fs.metadata import OwnerNames
from staddle._protocol.columns import row_of
from staddle.v1 import resources_pb2 as pb


def to_send(
    differences: Iterable[Difference],
    names: OwnerNames,
    tally: BackupTally,
    takes_over: Callable[[Changed, bytes], bool] = lambda _changed, _digest: False,
) -> Iterator[Removed | pb.Entry | Changed]:
    """What to send, in order: removals, entries without content, and regular files, which the sender reads.

    An entry is left out if `takes_over` says of its digest that the backup takes it over from the base.
    A file of which the sender does not report what the backup has is removed from it.
    """
    for difference in differences:
        if isinstance(difference, Removed):
            yield difference
        elif isinstance(difference, Marked):
            entry = marked_entry(difference.found, names, tally)
            if entry is not None:
                yield entry
        else:
            found = difference.found
            tally.at(found.path)
            if found.is_file():
                yield difference
            else:
                entry = entry_without_content(found, names, tally)
                if entry is not None:
                    row = row_of(entry)
                    digest = b"" if row is None else digest_of(row)
                    difference.holds(found.stat, read_again=entry.read_again, digest=digest)
                    if not takes_over(difference, digest):
                        yield entry
            if difference.held is None and (difference.in_base or difference.sent):
                yield Removed(found.path)


@dataclass(slots=True)
class Capture:
    """One reading of a changed file. After all pieces the sender asks `counts`."""

    opened: FileReader
    entry: pb.Entry
    is_last: bool
    settled: bool = False
    read_again: bool = True
    digest: bytes = b""
    """Of the entry that was sent for it; empty: unknown."""

    def counts(self) -> bool:
        """Whether the backup uses this reading: the file did not change during it, or changed for the second time."""
        self.settled = self.opened.is_settled()
        self.read_again = self.opened.racy or not self.settled or self.opened.size_is_wrong()
        return self.settled or self.is_last


def captures(changed: Changed, clock: WallClock, names: OwnerNames, tally: BackupTally) -> Generator[Capture]:
    """Open a file for reading; if it changes meanwhile, once more, and then use it as it is.

    Nothing follows, and it was reported, if its entry cannot be made. Raises OSError if it cannot be opened. Close
    it to close the file.
    """
    found = changed.found
    for last in (False, True):
        with open_file(found, clock) as opened:
            entry = entry_of_file(found, opened, names, tally)
            if entry is None:
                return
            capture = Capture(opened, entry, last)
            yield capture
            if capture.settled or last:
                changed.holds(opened.status, read_again=capture.read_again, digest=capture.digest)
        if capture.settled:
            return
    tally.kept_changing(found.path)
