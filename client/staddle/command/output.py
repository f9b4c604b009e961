"""Where results, notices and errors go: results and the summary to standard output, all else to standard error.

In words, or with --json one object a line. Everything that is written is printable: a name cannot steer the terminal.
"""

import itertools
import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Final

from staddle._base.standard_streams import StdoutError
from staddle._base.terminal import columns, fitted
from staddle.command.text import one_line

BATCH_ROWS: Final = 500
"""A table fits its columns to so many rows at a time, so that a long one needs no memory."""

Cells = Sequence[str]


_BEGINS_WITH_A_WORD: Final = re.compile(r"[a-z]+[ ,:]")


class Output:
    """What a command says. Threads may share it."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._has_stdout = True
        self._done = ""
        self._lock = threading.Lock()
        self._say: Callable[[str], None] | None = None
        self._pause: Callable[[], AbstractContextManager[None]] = nullcontext

    # --- standard output

    def record(self, record: Mapping[str, Any]) -> None:
        """One result, as JSON."""
        self._write(_json_line(record))

    def summary(self, command: str, record: Mapping[str, Any], words: str) -> None:
        """The last line of every command that worked."""
        if self.as_json:
            line = _json_line({"summary": command, **record})
        else:
            line = fitted(one_line(words), sys.stdout if self._has_stdout else sys.stderr) + "\n"
        self._write(line, flush=True)

    def line(self, words: str) -> None:
        """A printable line of a result, on a terminal broken between words."""
        self._write((fitted(words, sys.stdout) if self._has_stdout else words) + "\n")

    def table(
        self, rows: Iterable[Cells], *, heading: Cells = (), right: frozenset[int] = frozenset()
    ) -> None:
        """Rows of printable cells in columns; those in `right` are flush right. No rows, no output."""
        rows = iter(rows)
        widths = [0] * len(heading)
        first = [heading] if heading else []
        while batch := list(itertools.islice(rows, BATCH_ROWS)):
            shown = first + batch
            first = []
            width = max(map(len, shown))
            widths = [
                max([*widths[column : column + 1], *(len(row[column]) for row in shown if column < len(row))])
                for column in range(width)
            ]
            self._write("".join(_aligned(row, widths, right) for row in shown))

    @property
    def width(self) -> int:
        """How many letters a line of standard output may have; 0: any number, since it is not a terminal."""
        return columns(sys.stdout) if self._has_stdout and sys.stdout.isatty() else 0

    def acted(self, what: str) -> None:
        """The command has done what it changes, such as a backup: if the rest cannot be written, only its report is lost."""
        self._done = what

    def require_told(self) -> None:
        """The command has ended well. Raises StdoutError if its only purpose was output, and that could not be written."""
        if sys.__stdout__ is None and not self._done:
            raise StdoutError.closed()

    def give_away_stdout(self) -> None:
        """Standard output is for data: results and the summary go to standard error, too."""
        self._has_stdout = False

    def _write(self, text: str, *, flush: bool = False) -> None:
        if not self._has_stdout:
            self._write_error(text)
            return
        try:
            sys.stdout.write(text)
            if flush:
                sys.stdout.flush()
        except StdoutError as error:
            if self._done:
                error.add_note(f"The {self._done} itself is done: only its report is lost.")
            raise

    # --- standard error

    def notice(self, message: str) -> None:
        """A notice, which is not a result."""
        if self.as_json:
            self._write_error(_json_line({"notice": message}))
        else:
            self.error_line(f"staddle: {one_line(message)}")

    def error(
        self, reason: str, message: str, facts: Mapping[str, Any] | None = None, hint: str = ""
    ) -> None:
        """Why the command failed, and what to do."""
        if self.as_json:
            record = {"reason": reason, "message": message}
            record |= {"hint": hint} if hint else {}
            self._write_error(
                _json_line(record | {k: v for k, v in (facts or {}).items() if k not in record})
            )
            return
        end = "" if message.endswith((".", "!", "?")) else "."
        # A name at the beginning keeps its own letters.
        message = message[:1].upper() + message[1:] if _BEGINS_WITH_A_WORD.match(message) else message
        self.error_line(f"staddle: {one_line(message)}{end}{' ' if hint else ''}{one_line(hint)}")

    def error_line(self, line: str) -> None:
        """A printable line, on a terminal broken between words."""
        self._write_error(fitted(line, sys.stderr) + "\n")

    def divert(
        self,
        say: Callable[[str], None] | None,
        pause: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Has notices and errors shown by `say`, while something else moves on the terminal; None: written again.

        `pause` makes it stand still.
        """
        self._say = say
        self._pause = pause

    @contextmanager
    def asking(self) -> Iterator[None]:
        """While the user answers a question on the terminal, nothing else writes there."""
        say, pause = self._say, self._pause
        with pause():
            self.divert(None)
            try:
                yield
            finally:
                self.divert(say, pause)

    def _write_error(self, text: str) -> None:
        say = self._say
        if say is not None:
            say(text.rstrip("\n"))
            return
        # A notice that cannot be written neither stops the work nor changes the exit code.
        with self._lock, suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()


class NoticeHandler(logging.Handler):
    """The library's own warnings, as notices."""

    def __init__(self, output: Output) -> None:
        super().__init__(logging.WARNING)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record as a notice."""
        self._output.notice(record.getMessage())


def _json_line(record: Mapping[str, Any]) -> str:
    # ASCII alone, and json leaves DEL as it is.
    return json.dumps(record, separators=(", ", ": ")).replace("\x7f", "\\u007f") + "\n"


def _aligned(row: Cells, widths: Sequence[int], right: frozenset[int]) -> str:
    cells = [
        cell.rjust(width) if column in right else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=False))
    ]
    if len(row) - 1 not in right:
        cells[-1] = row[-1]  # a name may itself end in spaces
    line = "  ".join(cells)
    return (line if row[-1] else line.rstrip(" ")) + "\n"
