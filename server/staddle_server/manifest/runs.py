"""Sorted runs: what an upload received, in path order, with removals (docs/format.md, "Runs").

Everywhere here: a removal, or an entry that is not a directory, removes *older* records at its path and
below. A run states that by a removal right before the entry, if any: the one case in which a path appears
twice.
"""

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, groupby
from operator import itemgetter
from typing import Final, NamedTuple

from staddle_server.base.types import Entry, EntryType, sort_key
from staddle_server.manifest.columns import NOTHING_RARE, CheckedColumns, Rare, columns_of, keys_of, rare_of
from staddle_server.manifest.entries import removal, shown
from staddle_server.manifest.pages import encoder

_OVERHEAD_BYTES: Final = 480
"""What columns take in memory for an entry, beside the bytes of its path and its sort key."""
_RARE_BYTES: Final = 300
_PART_BYTES: Final = 1_200
"""What each set of columns takes beside its entries."""
_OBJECTS_MAX: Final = 256
"""Entries that are objects until they become columns."""

_Record = tuple[bytes, int, Entry]
"""Sort key, age (higher is newer), entry or removal."""


class Change(NamedTuple):
    """All changes of one path, combined."""

    key: bytes
    entry: Entry | None
    """The current entry, unless something at least as new above removes it. None: no statement."""
    cut: bool
    """Everything older than all runs is removed here and below, and no path above nor `entry` says so
    already.
    """


def fold(runs: Sequence[Iterable[Entry]]) -> Iterator[Change]:
    """Combine several runs, oldest first. Raises ValueError if one is not sorted."""
    return _fold(_records(runs))


def merge_runs(runs: Sequence[Iterable[Entry]]) -> Iterator[Entry]:
    """Merge several runs, oldest first, into one. Streams; raises ValueError if one is not sorted."""
    return _entries(fold(runs))


class Gathered:
    """Entries and removals in order of arrival, for a run.

    As columns: as objects they would take three times the memory, and every upload holds thousands.
    """

    def __init__(self) -> None:
        self._parts: list[CheckedColumns] = []
        self._last: list[Entry] = []
        """What came after the parts."""
        self._count = 0
        self._last_key: bytes | None = None
        self.size_bytes = 0
        """Their approximate memory."""
        self.in_order = True
        """They arrived in path order, each path once, without removals: already a run."""

    def __len__(self) -> int:
        return self._count

    def append(self, entry: Entry) -> None:
        """Add an entry or a removal, which is valid; it counts as newer than those before it."""
        key = sort_key(entry.path)
        self._last.append(entry)
        self._count += 1
        self.size_bytes += _OVERHEAD_BYTES + 2 * len(key) + _rare_bytes(rare_of(entry))
        self.size_bytes += len(entry.link_target or b"") + len(entry.owner) + len(entry.group)
        last, self._last_key = self._last_key, key
        if (last is not None and key <= last) or entry.type == EntryType.REMOVED:
            self.in_order = False
        if len(self._last) >= _OBJECTS_MAX:
            self._gather()

    def extend(self, entries: CheckedColumns) -> None:
        """Add entries in path order."""
        self._gather()
        keys = entries.keys
        self._parts.append(entries)
        self._count += len(keys)
        self.size_bytes += _PART_BYTES + _OVERHEAD_BYTES * len(keys) + 2 * sum(map(len, keys))
        self.size_bytes += sum(map(len, entries.columns.link_targets))
        self.size_bytes += sum(map(_rare_bytes, entries.columns.rare.values()))
        if self._last_key is not None and keys[0] <= self._last_key:
            self.in_order = False
        self._last_key = keys[-1]

    def _gather(self) -> None:
        if self._last:
            columns = columns_of(self._last)
            self._parts.append(CheckedColumns(columns, keys_of(columns.paths)))
            self._last = []
            self.size_bytes += _PART_BYTES

    def parts(self) -> Sequence[CheckedColumns]:
        """Return all of them, which must be `in_order`; else raises ValueError."""
        if not self.in_order:
            raise ValueError("what was gathered is out of order")
        self._gather()
        return self._parts

    def sorted(self) -> Iterator[Entry]:
        """Yield all of them as one run. Streams."""
        self._gather()
        keys = [key for part in self._parts for key in part.keys]
        # The sort is stable: of one path the newer comes last.
        order = sorted(range(len(keys)), key=keys.__getitem__)
        return _entries(_fold(zip(map(keys.__getitem__, order), order, self._at(order), strict=True)))

    def _at(self, order: Sequence[int]) -> Iterator[Entry]:
        """Yield what has these numbers, by stretches that arrived in this order."""
        firsts = list(accumulate(map(len, self._parts), initial=0))
        at = 0
        while at < len(order):
            number = order[at]
            place = bisect_right(firsts, number) - 1
            length = 1
            most = min(firsts[place + 1] - number, len(order) - at, _OBJECTS_MAX)
            while length < most and order[at + length] == number + length:
                length += 1
            part, start = self._parts[place], number - firsts[place]
            yield from part[start : start + length] if length > 1 else (part[start],)
            at += length


def _rare_bytes(rare: Rare) -> int:
    return 0 if rare is NOTHING_RARE else _RARE_BYTES + len(encoder.encode(rare))


def _entries(changes: Iterable[Change]) -> Iterator[Entry]:
    for key, entry, cut in changes:
        if cut:
            yield removal(key.replace(b"\0", b"/"))
        if entry is not None:
            yield entry


def _records(runs: Sequence[Iterable[Entry]]) -> Iterator[_Record]:
    streams = [_aged(run, age) for age, run in enumerate(runs)]
    if len(streams) == 1:
        return streams[0]
    return heapq.merge(*streams, key=itemgetter(0, 1))


def _aged(run: Iterable[Entry], age: int) -> Iterator[_Record]:
    before = b""
    for entry in run:
        key = sort_key(entry.path)
        if key < before:
            raise ValueError(f"{shown(entry.path)!r} is out of order in a run")
        before = key
        yield key, age, entry


def beginning(key: bytes, length: int) -> bytes:
    """Return the common prefix of all sort keys below a path, whose own key is the first `length` bytes of
    `key`.
    """
    return key[:length] + b"\0" if length else b""


def _fold(records: Iterable[_Record]) -> Iterator[Change]:
    # For each path above that removes older entries: its key's length, as a prefix of the last key, and the
    # age of the newest removal. Lengths, because the keys of all paths above a deep one would take many
    # bytes.
    takers: list[tuple[int, int]] = []
    last = b""
    for key, group in groupby(records, key=itemgetter(0)):
        while takers and not key.startswith(beginning(last, takers[-1][0])):
            takers.pop()
        last = key
        above = takers[-1][1] if takers else -1
        taker = -1
        entry: Entry | None = None
        for _, age, record in group:
            if age < above:
                continue
            entry = None if record.type == EntryType.REMOVED else record
            if record.type != EntryType.DIRECTORY:
                taker = age
        if taker >= 0:
            takers.append((len(key), taker))
        cut = taker >= 0 and above < 0 and (entry is None or entry.type == EntryType.DIRECTORY)
        if entry is not None or cut:
            yield Change(key, entry, cut)
