"""Small drawings inside pages, as SVG. A policy without inline styles allows no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Final

from markupsafe import Markup
from staddle._base.figures import counted, listed

from staddle_server.catalog import DayRuns

EPOCH: Final = date(1970, 1, 1)
CELL: Final = 12
STEP: Final = 14
WEEK: Final = 7
WORDS: Final = {
    "ok": "with a backup",
    "partial": "with an incomplete backup",
    "bad": "with failures alone",
    "none": "without a run",
}
MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def kind_of(day: DayRuns | None) -> str:
    """Return how a day was: a success counts, whatever failed besides it."""
    if day is None:
        return "none"
    if day.good:
        return "ok"
    if day.incomplete:
        return "partial"
    return "bad" if day.bad else "none"


def day_words(number: int, day: DayRuns | None) -> str:
    """Return a day and what ran on it, in words."""
    parts = []
    if day is not None:
        if day.good:
            parts.append(counted(day.good, "backup"))
        if day.incomplete:
            parts.append(counted(day.incomplete, "incomplete backup"))
        if day.bad:
            parts.append(counted(day.bad, "failed run"))
    return f"{EPOCH + timedelta(days=number):%a %Y-%m-%d}: {listed(parts) if parts else 'nothing ran'}"


def strip(days: Mapping[int, DayRuns], today: int, count: int) -> Markup:
    """Draw the last `count` days beside each other, today last. A list has many: each kind of day is one shape."""
    kinds = [kind_of(days.get(number)) for number in range(today - count + 1, today + 1)]
    shapes = []
    for kind in WORDS:
        places = [place * STEP for place, each in enumerate(kinds) if each == kind]
        if places:
            drawn = "".join(f"M{x} 0h{CELL}v{CELL}h-{CELL}z" for x in places)
            shapes.append(f'<path class="{kind}" d="{drawn}"/>')
    return _drawing("strip", count * STEP - (STEP - CELL), CELL, shapes, _summary(kinds))


def calendar(days: Mapping[int, DayRuns], today: int) -> Markup:
    """Draw the last 53 weeks: a column each, from Monday to Sunday."""
    weekday = (EPOCH + timedelta(days=today)).weekday()
    first = today - weekday - 52 * WEEK
    numbers = range(first, today + 1)
    cells = []
    for number in numbers:
        week, row = divmod(number - first, WEEK)
        cells.append(_cell(week * STEP, STEP + row * STEP, number, days.get(number)))
        when = EPOCH + timedelta(days=number)
        if when.day == 1 and week < 52:
            cells.append(f'<text x="{week * STEP}" y="{CELL - 2}">{MONTHS[when.month - 1]}</text>')
    label = _summary([kind_of(days.get(number)) for number in numbers])
    return _drawing("calendar", 53 * STEP, 8 * STEP, cells, label)


def bar(part: float, words: str, kind: str = "", start: float = 0.0) -> Markup:
    """Draw a part of a whole, both from 0 to 1; it begins at `start`."""
    left = round(100 * min(max(start, 0.0), 1.0), 1)
    filled = round(min(100 * max(part, 0.0), 100 - left), 1)
    return Markup(
        '<svg class="bar {}" viewBox="0 0 100 6" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<rect class="whole" width="100" height="6"/><rect class="part" x="{}" width="{}" height="6"/></svg>'
    ).format(kind, words, left, filled)


def _cell(x: int, y: int, number: int, day: DayRuns | None) -> str:
    return (
        f'<rect class="{kind_of(day)}" x="{x}" y="{y}" width="{CELL}" height="{CELL}" rx="2">'
        f"<title>{day_words(number, day)}</title></rect>"
    )


def _summary(kinds: Sequence[str]) -> str:
    parts = [f"{kinds.count(kind)} {words}" for kind, words in WORDS.items() if kind in kinds]
    return f"{counted(len(kinds), 'day')}: {listed(parts)}"


def _drawing(name: str, width: int, height: int, cells: Sequence[str], label: str) -> Markup:
    # The cells have only numbers and words of this module.
    drawn = Markup("").join(map(Markup, cells))
    return Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        name, width, height, label, drawn
    )
