"""Tables that fit the terminal: which columns they lose first, and which are cut."""

from collections.abc import Collection, Sequence
from typing import Final

from staddle.command import text

Row = tuple[str, ...]

WHAT_CHARS: Final = 24
"""Room for what came of a run, in a table on a terminal; names are cut before."""
CUT_CHARS: Final = 12
"""A column that may be cut keeps so many letters at least; other columns go before."""


def fit_columns(rows: Sequence[Row], width: int, *, names: range) -> Sequence[Row]:
    """Rows cut to a width, 0 for none: first the columns `names`, each to a fair share; the rest goes to the last column."""
    if not width:
        return rows
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    room = width - sum(each + 2 for column, each in enumerate(widths) if column not in names)
    room -= 2 * len(names) + min(WHAT_CHARS, max(len(row[-1]) for row in rows))
    for left, column in zip(range(len(names), 0, -1), sorted(names, key=widths.__getitem__), strict=True):
        widths[column] = min(widths[column], max(room // left, 4))
        room -= widths[column]
    last = max(width - sum(widths) - 2 * len(widths), 4)
    return [
        tuple(text.shortened(cell, most) for cell, most in zip(row, [*widths, last], strict=True))
        for row in rows
    ]


def narrowed(
    rows: Sequence[Row], width: int, *, least: Sequence[str], cut: Collection[str] = ()
) -> Sequence[Row]:
    """Rows, the heading first, as wide as `width` at most; 0: any width.

    Columns that are empty go first, then those of `least`, the least important one first, as long as the table is too wide; then those of `cut` are
    cut, each to a fair share.
    """
    heading, *others = rows
    widths = [max(len(row[column]) for row in rows) for column in range(len(heading))]

    def needed(columns: Collection[int]) -> int:
        """How wide these columns are, cut as far as they may be."""
        cells = (min(widths[each], CUT_CHARS) if heading[each] in cut else widths[each] for each in columns)
        return sum(cells) + 2 * (len(columns) - 1)

    kept = list(range(len(heading)))
    if not width or sum(widths) + 2 * (len(kept) - 1) <= width:
        return rows
    kept = [each for each in kept if any(row[each] for row in others)]
    for name in least:
        if needed(kept) > width:
            kept = [each for each in kept if heading[each] != name]
    room = width - needed(kept)
    by_width = sorted((each for each in kept if heading[each] in cut), key=widths.__getitem__)
    for left, column in zip(range(len(by_width), 0, -1), by_width, strict=True):
        least_chars = min(widths[column], CUT_CHARS)
        more = min(widths[column] - least_chars, max(0, room // left))
        widths[column] = least_chars + more
        room -= more
    return [tuple(text.shortened(row[each], widths[each]) for each in kept) for row in rows]
