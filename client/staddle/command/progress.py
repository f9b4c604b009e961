"""Progress of a backup or restore: a moving line on a terminal, nothing in a file or pipe. Notices are said in both."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from staddle import Progress
from staddle._types.reports import ProgressCallback
from staddle.command.output import Output

if TYPE_CHECKING:
    from staddle.command.progress_line import Total


@contextmanager
def watched(output: Output, total: Total = lambda: None) -> Iterator[ProgressCallback]:
    """Gives what `progress=` takes."""
    if output.as_json or not sys.stderr.isatty():
        yield lambda progress: _say_notice(output, progress)
        return
    from staddle.command.progress_line import Meter  # rich takes its time to load

    with Meter(total) as meter:

        def show(progress: Progress) -> None:
            _say_notice(output, progress)
            meter.show(progress)

        output.divert(meter.say, meter.paused)
        try:
            yield show
        finally:
            output.divert(None)


def _say_notice(output: Output, progress: Progress) -> None:
    if progress.notice:
        output.notice(progress.notice)
