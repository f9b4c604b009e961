"""The received part of an upload: entries in memory, sorted runs in the store, and the counts of both."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from staddle_server.base.errors import BadRequest
from staddle_server.base.limits import CHECKPOINT_ENTRIES, CHECKPOINT_ENTRY_BYTES, RUNS_MERGE
from staddle_server.base.types import Entry, EntryType, Root, sort_key
from staddle_server.manifest.columns import CheckedColumns
from staddle_server.manifest.content import ContentBuilder
from staddle_server.manifest.entries import shown
from staddle_server.manifest.merge import join, merge_runs
from staddle_server.manifest.pages import PageSink, PageSource
from staddle_server.manifest.read import entries_of
from staddle_server.manifest.runs import Gathered, fold
from staddle_server.manifest.tree import write_run
from staddle_server.upload.progress import OpenEntry, Progress, Run
from staddle_server.upload.refusals import other_entries

REPLAYS_KNOWN: Final = 64
"""PutEntries calls whose digest is kept, to distinguish a replay from another call with the same number."""


class IncomingFile(NamedTuple):
    """The file in transfer: its metadata, and its list of chunks so far."""

    entry: Entry
    content: ContentBuilder


class _Way:
    """The directories above the last entry, as long as entries arrive in manifest order."""

    def __init__(self) -> None:
        self._last_key: bytes | None = None
        self._directories: list[bytes] = []
        """Their sort keys, from the top down."""

    def goes_on(self, entry: Entry) -> bool:
        """Return whether the entry comes after all earlier ones, and its directory has arrived."""
        last = self._last_key
        self._last_key = key = sort_key(entry.path)
        if entry.type == EntryType.REMOVED or (last is not None and key <= last):
            return False
        return self._reaches(key, is_directory=entry.type == EntryType.DIRECTORY)

    def goes_on_over(self, entries: CheckedColumns) -> bool:
        """Return the same of entries in order."""
        keys, last = entries.keys, self._last_key
        self._last_key = keys[-1]
        if last is not None and keys[0] <= last:
            return False
        above = None
        for key, kind in zip(keys, entries.columns.types, strict=True):
            is_directory = kind == EntryType.DIRECTORY
            parent = key.rpartition(b"\0")[0]
            # Most entries lie beside the one before, of which this is known.
            if is_directory or parent != above:
                if not self._reaches(key, is_directory=is_directory):
                    return False
                above = None if is_directory else parent
        return True

    def _reaches(self, key: bytes, *, is_directory: bool) -> bool:
        """Return whether the directory of an entry has arrived."""
        parent, slash, _ = key.rpartition(b"\0")
        way = self._directories
        while way and way[-1] != parent:
            way.pop()
        if slash and not way:
            return False
        if is_directory and key:
            way.append(key)
        return True


class Received:
    """Entries and removals in order of acceptance; of one upload, under its writer's lock."""

    def __init__(self, progress: Progress, pages: PageSink, source: PageSource, page_key: bytes) -> None:
        self._pages = pages
        self._source = source
        self._page_key = page_key
        self.position = progress.position
        self.entry_count = progress.entry_count
        self.data_bytes = progress.data_bytes
        self.last_path = progress.last_path
        self.put_entries_number = progress.put_entries_number
        self.put_entries_digest = progress.put_entries_digest
        self._digests: deque[tuple[int, bytes]] = deque(maxlen=REPLAYS_KNOWN)
        """The last PutEntries calls."""
        self.open: IncomingFile | None = None
        if progress.open_entry is not None:
            content = ContentBuilder.restore(progress.open_entry.content, source, pages)
            self.open = IncomingFile(progress.open_entry.entry, content)
        self._runs = list(progress.runs)
        self._gathered = Gathered()
        self._way = _Way() if progress.position == 0 else None
        """None: the received entries may not be in manifest order."""

    def accept_number(self, number: int, digest: bytes) -> None:
        """Record that the PutEntries call with this number was accepted; `digest` is that of its changes."""
        self.put_entries_number = number
        self.put_entries_digest = digest
        self._digests.append((number, digest))

    def check_replay(self, number: int, digest: bytes) -> None:
        """Check that a repeated PutEntries call has the same changes again, as far as its digest is known.

        Raises:
            AlreadyExists: REQUEST_ID_REUSED.

        """
        known = {self.put_entries_number: self.put_entries_digest, **dict(self._digests)}
        if known.get(number, digest) not in {digest, b""}:
            raise other_entries(number)

    @property
    def open_size(self) -> int:
        """The bytes of the open file's chunks so far; 0 without an open file."""
        return 0 if self.open is None else self.open.content.size

    def check_open(self, path: bytes, size: int) -> None:
        """Check that the file at this path is open and has so many bytes.

        Raises:
            BadRequest: BAD_SEQUENCE.

        """
        opened = self.open
        if opened is not None and (opened.entry.path, opened.content.size) == (path, size):
            return
        found = (
            "none is" if opened is None else f"{shown(opened.entry.path)} is open, at {opened.content.size}"
        )
        raise BadRequest(
            "BAD_SEQUENCE",
            f"{shown(path)} cannot continue at byte {size} as the open entry: {found}",
            path=shown(path),
        )

    def append(self, entry: Entry) -> None:
        """Accept an entry, or a removal, which does not count."""
        self.position += 1
        self.last_path = entry.path
        self._gathered.append(entry)
        if self._way is not None and not self._way.goes_on(entry):
            self._way = None

    def extend(self, entries: CheckedColumns) -> None:
        """Accept and count entries in path order."""
        self.position += len(entries)
        self.last_path = entries.columns.paths[-1]
        self.entry_count += len(entries)
        self.data_bytes += entries.data_bytes
        self._gathered.extend(entries)
        if self._way is not None and not self._way.goes_on_over(entries):
            self._way = None

    def count(self, entry: Entry) -> None:
        """Count an entry as Finish counts them."""
        self.entry_count += 1
        self.data_bytes += entry.content.size if entry.content is not None else 0

    @property
    def unwritten_bytes(self) -> int:
        """What the entries in memory will take on the disk."""
        return self._gathered.size_bytes

    @property
    def full(self) -> bool:
        """Whether memory holds the most entries allowed."""
        return (
            len(self._gathered) >= CHECKPOINT_ENTRIES or self._gathered.size_bytes >= CHECKPOINT_ENTRY_BYTES
        )

    def write_run(self) -> None:
        """Write the entries in memory as a sorted run."""
        if not self._gathered:
            return
        last = self._runs[-RUNS_MERGE:]
        if len(last) == RUNS_MERGE and len({run.tier for run in last}) == 1:
            # Many runs of one size become one, so that a long upload has few.
            self._runs[-RUNS_MERGE:] = [Run(last[0].tier + 1, self._merged([run.root for run in last]))]
        self._runs.append(Run(0, self._gathered_run()))
        self._gathered = Gathered()

    def _merged(self, runs: Sequence[Root]) -> Root:
        if self._way is not None:
            return join(runs, (), self._source, self._pages, self._page_key)
        merged = merge_runs([entries_of(run, self._source) for run in runs])
        return write_run(merged, self._pages, self._page_key)

    def _gathered_run(self) -> Root:
        if self._gathered.in_order:
            return join((), self._gathered.parts(), self._source, self._pages, self._page_key)
        return write_run(self._gathered.sorted(), self._pages, self._page_key)

    def whole(self) -> Root | None:
        """Return the manifest of everything received, if it arrived in manifest order with every directory
        first.

        None: it did not, or that is unknown; then `runs` must be merged. Raises Damaged.
        """
        if self._way is None:
            return None
        runs = [run.root for run in self._runs]
        return join(runs, self._gathered.parts(), self._source, self._pages, self._page_key)

    def runs(self) -> list[Iterator[Entry]]:
        """Return everything received as sorted streams, oldest first.

        The runs among them must be published.
        """
        return [*(entries_of(run.root, self._source) for run in self._runs), self._gathered.sorted()]

    def find(self, paths: Iterable[bytes]) -> Iterator[Entry]:
        """Yield what was received at these paths, in order, from one pass over `runs`."""
        wanted = {sort_key(path) for path in paths}
        return (each.entry for each in fold(self.runs()) if each.key in wanted and each.entry is not None)

    def progress(self) -> Progress:
        """Return the durable point of the upload once everything written so far is published; call after
        `write_run`.
        """
        opened = self.open
        return Progress(
            position=self.position,
            entry_count=self.entry_count,
            data_bytes=self.data_bytes,
            last_path=self.last_path,
            put_entries_number=self.put_entries_number,
            put_entries_digest=self.put_entries_digest,
            runs=tuple(self._runs),
            open_entry=opened and OpenEntry(opened.entry, opened.content.state(), opened.content.size),
        )
