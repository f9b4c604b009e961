"""Standard output that cannot be written: a command finishes its work, and then says so and fails, as GNU's tools do."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator

import click

from staddle_server.config import OperatorError


class OutputLostError(OperatorError):
    """Standard output could not be written. The message says why."""

    def __init__(self, error: OSError) -> None:
        words = {errno.EBADF: "it is closed", errno.EPIPE: "its reader has closed it"}
        why = words.get(error.errno or 0, error.strerror or str(error))
        super().__init__(f"standard output could not be written: {why}")


class _Output(io.FileIO):
    """Takes everything that is written, and remembers the first failure. A reader that closed its pipe ends the command."""

    def __init__(self, descriptor: int, *, closed: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.failure: OSError | None = None
        self._closed = closed

    def write(self, data: object, /) -> int | None:  # type: ignore[override]  # any buffer, whose name differs between versions
        """As FileIO does; what was lost counts as written."""
        size = memoryview(data).nbytes  # type: ignore[arg-type]
        if self._closed:
            self.failure = OSError(errno.EBADF, os.strerror(errno.EBADF))
        if self.failure is not None:
            return size
        try:
            return super().write(data)  # type: ignore[arg-type]
        except BlockingIOError:
            raise
        except BrokenPipeError as error:
            # Raised once, to end a long list; what is flushed at the end of the process is dropped.
            self.failure = error
            raise
        except OSError as error:
            self.failure = error
            return size


@contextlib.contextmanager
def watched(*, required: bool) -> Iterator[None]:
    """Standard output for one command, which ends with exit code 1 if that could not be written.

    Not `required`: what is printed is a courtesy, and the exit code stands.
    """
    before = sys.stdout
    raw = _raw_of(before)
    if raw is None:
        yield
        return
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=before.encoding, errors=before.errors, line_buffering=before.isatty()
    )
    try:
        yield
    except SystemExit as end:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        if raw.failure is None or isinstance(raw.failure, BrokenPipeError) or not required:
            raise
        with contextlib.suppress(OSError):
            click.echo(f"Error: {OutputLostError(raw.failure)}", err=True)
        sys.exit(end.code or 1)


def _raw_of(stream: object) -> _Output | None:
    """What stands below standard output from now on; None: it is no file, but for example a test's."""
    try:
        descriptor = stream.fileno()  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return None
    return _Output(descriptor, closed=sys.__stdout__ is None)


def require_written() -> None:
    """Raises OutputLostError unless everything that was printed so far has arrived."""
    try:
        sys.stdout.flush()
    except OSError as error:
        raise OutputLostError(error) from error
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _Output) and raw.failure is not None:
        raise OutputLostError(raw.failure)
