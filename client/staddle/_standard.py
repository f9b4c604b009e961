"""Standard streams as the caller of the program left them: closed, or on a disk that is full."""

import io
import os
import sys
from typing import Any, BinaryIO, cast


class StdoutError(OSError):
    """Standard output cannot be written. A disk that is full is that of the output, not that of the data."""

    def __str__(self) -> str:
        return f"cannot write to standard output: {self.strerror}"


class _Stdout(io.FileIO):
    """Standard output, whose failures name it. A reader that has gone stays a BrokenPipeError."""

    def write(self, data: Any, /) -> int:
        if not data:
            return 0  # click tries a stream so, and takes a failure for another kind of stream
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            # What is still in buffers is lost; it must not fail once more when the program ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), self.fileno())
            raise StdoutError(error.errno, error.strerror) from error


def open_standard_streams(*, stdin: bool = True) -> None:
    """Makes closed standard streams /dev/null, before the program opens anything else. A write to standard output then fails with StdoutError.

    Otherwise the next file that is opened gets such a number, and what is printed there, also by libraries in C, ends up in that file.
    Without `stdin`, `sys.stdin` stays None, for programs that have to know; so does `sys.__stdout__` in any case.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is that of the stream
            if name != "stdin" or stdin:
                setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8"))
    _name_stdout()


def _name_stdout() -> None:
    """Has failures of standard output named."""
    stream = sys.stdout
    if stream is not sys.__stdout__ or not isinstance(stream, io.TextIOWrapper):
        return  # closed, or somebody else's
    raw = _Stdout(stream.fileno(), "wb", closefd=False)
    sys.stdout = io.TextIOWrapper(
        cast("BinaryIO", raw) if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
