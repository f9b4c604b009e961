"""Output of the commands: lines and progress."""

import sys
import time
from typing import Final, Self

import click
from staddle._base.terminal import columns, fitted

SHOW_S: Final = 0.2


def say(line: str, *, err: bool = False) -> None:
    """Print a line, on a terminal wrapped between words."""
    click.echo(fitted(line, sys.stderr if err else sys.stdout), err=err)


class Line:
    """One line on standard error, updated a few times a second; nothing without a terminal.

    Cleared when the context ends.
    """

    def __init__(self, *, on: bool = True) -> None:
        self._on = on and sys.stderr.isatty()
        self._shown = False
        self._shown_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def show(self, text: str) -> None:
        """Show the progress."""
        now_s = time.monotonic()
        if self._on and now_s - self._shown_s >= SHOW_S:
            self._shown, self._shown_s = True, now_s
            self._write(
                text[: columns(sys.stderr) - 1]
            )  # a line that the terminal wraps cannot be cleared completely

    def clear(self) -> None:
        """Clear the line before other output."""
        if self._shown:
            self._shown = False
            self._write("")

    @staticmethod
    def _write(text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
