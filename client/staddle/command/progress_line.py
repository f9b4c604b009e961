"""The moving line: how far, how fast, how long still, how much of it is new."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from staddle import Progress
from staddle._base.figures import counted, size
from staddle.command.text import escaped, seconds

Total = Callable[[], int | None]
"""How many bytes there are to read, as far as is known."""

REDRAWS_PER_S: Final = 8
RATE_WINDOW_S: Final = 5.0
ETA_AFTER_S: Final = 2.0
"""Before that an estimate would jump about."""


class Meter:
    """Shows the latest Progress on standard error, until it is left; then the line goes away. Threads may share it."""

    def __init__(self, total: Total, console: Console | None = None) -> None:
        self._total = total
        self._console = console or Console(stderr=True, highlight=False, markup=False)
        self._lock = threading.Lock()
        self._begun_s = monotonic()
        self._progress = Progress("connect")
        self._seen: deque[tuple[float, int]] = deque([(self._begun_s, 0)])
        self._live = Live(
            console=self._console,
            get_renderable=self._line,
            refresh_per_second=REDRAWS_PER_S,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, progress: Progress) -> None:
        """Takes what is to be shown next."""
        with self._lock:
            self._progress = progress

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Takes the line away for a while."""
        self._live.stop()
        try:
            yield
        finally:
            self._live.start()

    def say(self, line: str) -> None:
        """Writes a line that stays, above the moving one."""
        self._console.print(Text(line), soft_wrap=True)

    def _line(self) -> Text:
        with self._lock:
            progress = self._progress
        return Text(words(progress, *self._pace(progress)), no_wrap=True, overflow="ellipsis")

    def _pace(self, progress: Progress) -> tuple[float, float | None]:
        """Bytes a second of late, and the seconds that are left, if that is known."""
        now_s = monotonic()
        self._seen.append((now_s, progress.bytes_done))
        while len(self._seen) > 2 and self._seen[1][0] < now_s - RATE_WINDOW_S:
            self._seen.popleft()
        then_s, then_bytes = self._seen[0]
        rate = max(0, progress.bytes_done - then_bytes) / max(now_s - then_s, 1e-3)
        return rate, left_s(progress, self._total(), now_s - self._begun_s)


def left_s(progress: Progress, total_bytes: int | None, elapsed_s: float) -> float | None:
    """An estimate from the larger of the two shares that are done, bytes and entries; None while it would be a guess."""
    bytes_total = total_bytes if progress.bytes_total is None else progress.bytes_total
    shares = [
        min(1.0, done / total)
        for done, total in (
            (progress.bytes_done, bytes_total),
            (progress.entries_done, progress.entries_total),
        )
        if total
    ]
    share = max(shares, default=0.0)
    if share <= 0.0 or elapsed_s < ETA_AFTER_S:
        return None
    return elapsed_s * (1.0 - share) / share


def words(progress: Progress, rate: float, remaining_s: float | None) -> str:
    """The line, without control characters: rate, ETA, new against reused, and where it is."""
    parts = [
        progress.phase,
        counted(progress.entries_done, "entry", "entries"),
        f"{size(progress.bytes_done)} at {size(int(rate))}/s",
    ]
    if progress.new_bytes or progress.reused_bytes:
        parts.append(f"{size(progress.new_bytes)} new, {size(progress.reused_bytes)} reused")
    if remaining_s is not None:
        parts.append(f"{seconds(remaining_s)} left")
    return "  ".join([*parts, escaped(progress.path)])
