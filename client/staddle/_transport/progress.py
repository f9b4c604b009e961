"""How a long piece of work reports its progress: a few times a second, and at once before a failed call is tried again."""

from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import Final

from staddle._transport.advice import retry_words
from staddle._transport.retry import RetryNotice
from staddle._types.reports import Progress, ProgressCallback

PROGRESS_S: Final = 0.2
"""The time between two reports."""


class ProgressReporter:
    """Calls the callback of one piece of work, if it has one. `state` says where the work is; phase and notice are added here."""

    def __init__(self, callback: ProgressCallback | None, state: Callable[[], Progress]) -> None:
        self._callback = callback
        self._state = state
        self._reported_s: float | None = None

    def report(self, phase: str) -> None:
        """Reports the state, unless that was done a moment ago."""
        if self._callback is None:
            return
        now_s = monotonic()
        if self._reported_s is None or now_s - self._reported_s >= PROGRESS_S:
            self._reported_s = now_s
            self._callback(replace(self._state(), phase=phase))

    def report_now(self, phase: str, notice: str = "") -> None:
        """Reports the state at once."""
        if self._callback is not None:
            self._callback(replace(self._state(), phase=phase, notice=notice))

    def report_retry(self, notice: RetryNotice) -> None:
        """Reports that a call failed and is tried again."""
        self.report_now("retry", retry_words(notice))
