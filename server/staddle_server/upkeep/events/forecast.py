"""When a disk will be full, from samples of its free space."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from itertools import combinations, groupby
from typing import Final

from staddle_server.base.clock import NS

DAY_S: Final = 86_400.0
WINDOW_S: Final = 14 * DAY_S
"""How far back samples count."""
SPAN_MIN_S: Final = 3 * DAY_S
SAMPLES_MIN: Final = 48
STEP_S: Final = 6 * 3600.0
"""Samples of this long become one, their median: at most 57 of a window."""
BEGINS_DAYS: Final = 14.0
ENDS_DAYS: Final = 17.0
"""A forecast that alarmed does so until it is this far again."""


def days_left(samples: Sequence[tuple[int, int]], kept_bytes: int) -> float | None:
    """Return in how many days only `kept_bytes` are free, if the disk fills as it did; None if it does not
    fill, or too little is known.

    `samples` are times in nanoseconds and free bytes, in the order of time. The slope is the median of the
    slopes between all pairs (Theil 1950, Sen 1968): a third of the samples may be anything, such as a large
    file that came and went, without moving it much. Both halves of the window must show that the disk fills:
    one that was filled or emptied once does not.
    """
    if not samples:
        return None
    last_ns, free_bytes = samples[-1]
    recent = [(at, free) for at, free in samples if 0 <= last_ns - at <= WINDOW_S * NS]
    span_s = (last_ns - recent[0][0]) / NS
    if len(recent) < SAMPLES_MIN or span_s < SPAN_MIN_S:
        return None
    steps = list(_steps(recent))
    middle = len(steps) // 2
    slopes = [_slope(part) for part in (steps, steps[: middle + 1], steps[middle:])]
    if max(slopes) >= 0:
        return None
    return max(0.0, (free_bytes - kept_bytes) / -slopes[0]) / DAY_S


def _steps(samples: Sequence[tuple[int, int]]) -> Iterator[tuple[float, float]]:
    """Yield the median free bytes of each step, by its time in seconds."""
    for step, group in groupby(samples, lambda sample: int(sample[0] / NS // STEP_S)):
        yield step * STEP_S, statistics.median(free for _, free in group)


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the median slope in bytes per second; 0 for fewer than two points."""
    slopes = [(free - before) / (at - then) for (then, before), (at, free) in combinations(points, 2)]
    return statistics.median(slopes) if slopes else 0.0
