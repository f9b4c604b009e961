"""Sorted runs: what an upload received, in path order, with removals (docs/format.md, "Runs").

Everywhere here: a removal, or an entry that is not a directory, removes *older* records at its path and
below. A run states that by a removal right before the entry, if any: the one case in which a path appears
twice.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Final, NamedTuple

import msgspec

from staddle_server.base.types import Entry, EntryType, sort_key
from staddle_server.manifest.columns import Rows
from staddle_server.manifest.entries import removal, shown
from staddle_server.manifest.pages import encoder

_OVERHEAD_BYTES: Final = 200
"""Two bytes objects and a number in a list, beside the bytes."""
_decoder: Final = msgspec.msgpack.Decoder(Entry)

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


class Packed(NamedTuple):
    """An entry or a removal, encoded as in pages."""

    key: bytes
    """Its sort key."""
    packed: bytes
    data_bytes: int
    """The size of its content."""


class Gathered:
    """Entries and removals in order of arrival, for a run.

    Encoded: as objects they would take three times the memory, and every upload holds thousands.
    """

    def __init__(self) -> None:
        self._packed: list[Packed] = []
        self._last_key: bytes | None = None
        self.size_bytes = 0
        """Their approximate memory."""
        self.in_order = True
        """They arrived in path order, each path once, without removals: already a run."""

    def __len__(self) -> int:
        return len(self._packed)

    def append(self, entry: Entry) -> None:
        """Add an entry or a removal; it counts as newer than those before it."""
        key, packed, content = sort_key(entry.path), encoder.encode(entry), entry.content
        self._packed.append(Packed(key, packed, 0 if content is None else content.size))
        self.size_bytes += len(key) + len(packed) + _OVERHEAD_BYTES
        last, self._last_key = self._last_key, key
        if (last is not None and key <= last) or entry.type == EntryType.REMOVED:
            self.in_order = False

    def extend(self, rows: Rows) -> None:
        """Add entries in path order."""
        keys, packed = rows.keys, rows.packed
        self._packed.extend(map(Packed, keys, packed, rows.sizes))
        self.size_bytes += sum(map(len, keys)) + sum(map(len, packed)) + _OVERHEAD_BYTES * len(keys)
        if self._last_key is not None and keys[0] <= self._last_key:
            self.in_order = False
        self._last_key = keys[-1]

    def packed(self) -> Sequence[Packed]:
        """Return all of them in order of arrival."""
        return self._packed

    def sorted(self) -> Iterator[Entry]:
        """Yield all of them as one run. Streams."""
        # The sort is stable: of one path the newer comes last.
        order = sorted(range(len(self._packed)), key=lambda number: self._packed[number].key)
        return _entries(_fold(map(self._record, order)))

    def _record(self, number: int) -> _Record:
        key, packed, _ = self._packed[number]
        return key, number, _decoder.decode(packed)


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
