"""The chain of a tenant's records: which are missing, and whether each follows its predecessor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from staddle_server.base.types import NO_LINK
from staddle_server.store.records import ForgottenRecord, Stored, sequence_of

BREAKS_MAX: Final = 100
"""The most breaks reported, the newest: two mixed histories have one for each record, and a rebuild settles
those before it.
"""


class Span(NamedTuple):
    """Sequence numbers, `first` to `last`."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"record {self.first}" if self.first == self.last else f"records {self.first} to {self.last}"

    def missing_of(self, tenant: str) -> str:
        """Return in words that a tenant's records with these numbers are missing."""
        return f"{self} of tenant {tenant} {'is' if self.first == self.last else 'are'} missing"


class Break(NamedTuple):
    """A record that does not follow its predecessor: its number, and what is wrong in words."""

    sequence: int
    words: str

    def __str__(self) -> str:
        return self.words


class Chain:
    """Takes the records of one tenant in name order. Memory grows with the gaps, not with the records."""

    def __init__(self) -> None:
        self.newest = 0
        """The number of the last record taken."""
        self.link = NO_LINK
        """Its link; NO_LINK if it is unreadable."""
        self.breaks: list[Break] = []
        """Records that do not follow their predecessor."""
        self._gaps: list[Span] = []
        self._forgotten: list[Span] = []

    def take(self, name: str, stored: Stored | None) -> None:
        """Add the next record; None for an unreadable object. Skips names that no record has."""
        sequence = sequence_of(name)
        if sequence is None:
            return
        if sequence > self.newest + 1:
            self._gaps.append(Span(self.newest + 1, sequence - 1))
        elif sequence == self.newest:
            self._break(sequence, f"two records have the number {sequence}, one of them is {name}")
        elif (
            stored is not None
            and sequence == self.newest + 1
            and NO_LINK not in {self.link, stored.place.previous}
            and stored.place.previous != self.link
        ):
            self._break(sequence, f"the record {name} does not follow record {self.newest}")
        self.newest = sequence
        self.link = NO_LINK if stored is None else stored.link
        if stored is not None and isinstance(stored.record, ForgottenRecord):
            self.forget(stored.record.spans)

    def forget(self, spans: Iterable[tuple[int, int]]) -> None:
        """Permit records with these numbers to be absent."""
        self._forgotten += [Span(*span) for span in spans]

    def missing(self, upto: int) -> list[Span]:
        """Return the numbers up to `upto` without a record that may not be absent."""
        gaps = [*self._gaps, Span(self.newest + 1, upto)]
        return subtract([Span(gap.first, min(gap.last, upto)) for gap in gaps], merge_spans(self._forgotten))

    def _break(self, sequence: int, words: str) -> None:
        self.breaks.append(Break(sequence, words))
        del self.breaks[:-BREAKS_MAX]


def merge_spans(spans: Iterable[tuple[int, int]]) -> list[Span]:
    """Return the same numbers in as few spans as possible, in order."""
    merged: list[Span] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1].last + 1:
            merged[-1] = Span(merged[-1].first, max(merged[-1].last, last))
        else:
            merged.append(Span(first, last))
    return merged


def subtract(spans: Iterable[Span], without: list[Span]) -> list[Span]:
    """Return the numbers in `spans` (in order, apart) that are not in `without` (merged)."""
    left: list[Span] = []
    at = 0
    for first, last in spans:
        start = first
        while at < len(without) and without[at].last < start:
            at += 1
        index = at
        while index < len(without) and without[index].first <= last:
            if start < without[index].first:
                left.append(Span(start, without[index].first - 1))
            start = without[index].last + 1
            index += 1
        if start <= last:
            left.append(Span(start, last))
    return left
