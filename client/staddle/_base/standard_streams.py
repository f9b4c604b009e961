"""Standard streams as the caller of the program left them: closed, or on a disk that is full."""

import errno
import io
import os
import sys
from typing import Any, BinaryIO, Final, cast

_WHY: Final = {errno.EBADF: "it is closed", errno.EPIPE: "its reader has closed it"}


class StdoutError(OSError):
    """Standard output cannot be written. A disk that is full is that of the output, not that of the data."""

    @classmethod
    def closed(cls) -> "StdoutError":
        """It was closed when the program began."""
        return cls(errno.EBADF, os.strerror(errno.EBADF))

    def __str__(self) -> str:
        return f"cannot write to standard output: {_WHY.get(self.errno or 0, self.strerror)}"


class _Stdout(io.FileIO):
    """Standard output, whose failures name it. A reader that has gone stays a BrokenPipeError.

    Attributes:
        failure: The first one.

    """

    def __init__(self, descriptor: int, *, closed: bool, late: bool) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.failure: OSError | None = StdoutError.closed() if closed else None
        self._late = late

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        if not size or self.failure is not None:
            return size  # click tries a stream with nothing, and takes a failure for another kind of stream
        try:
            return super().write(data)
        except BlockingIOError:
            raise
        except BrokenPipeError as error:
            self.failure = error if self._late else None
            raise
        except OSError as error:
            self.failure = StdoutError(error.errno, error.strerror)
            if self._late:
                return size
            raise self.failure from error


def open_standard_streams(*, stdin: bool = True, late: bool = False) -> None:
    """Makes closed standard streams /dev/null, before the program opens anything else. A write to a standard output that is full fails with
    StdoutError; what is written to one that was closed is lost, and `sys.__stdout__` stays None.

    Otherwise the next file that is opened gets such a number, and what is printed there, also by libraries in C, ends up in that file.
    Without `stdin`, `sys.stdin` stays None, for programs that have to know. With `late`, writing
    never fails, and `stdout_failure` says in the end whether all has arrived; then a closed standard output is a failure, too.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is that of the stream
            if name != "stdin" or stdin:
                setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8"))
    closed = sys.__stdout__ is None
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper) or (stream is not sys.__stdout__ and not (closed and late)):
        return  # closed, or somebody else's
    raw = _Stdout(stream.fileno(), closed=closed, late=late)
    sys.stdout = io.TextIOWrapper(
        cast("BinaryIO", raw) if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def stdout_failure() -> OSError | None:
    """Why not everything that was printed has arrived: a StdoutError, or BrokenPipeError where its reader has gone."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    buffer: Any = getattr(sys.stdout, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    return raw.failure if isinstance(raw, _Stdout) else None
