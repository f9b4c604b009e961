"""Progress of a backup or restore: a moving line on a terminal, nothing in a file or pipe. Notices are said in both."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from staddle import Progress
from staddle._types import ProgressCallback
from staddle.command._output import Output

Total = Callable[[], int | None]
"""How many bytes there are to read, as far as somebody knows."""


@contextmanager
def watched(output: Output, total: Total = lambda: None) -> Iterator[ProgressCallback]:
    """Gives what `progress=` takes."""
    if output.as_json or not sys.stderr.isatty():
        yield lambda progress: _say_notice(output, progress)
        return
    from staddle.command._meter import Meter  # rich takes its time to load

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
