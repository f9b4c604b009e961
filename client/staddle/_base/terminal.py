"""Lines for people, as wide as the terminal that they are written to."""

import os
import textwrap
from typing import Final, TextIO

COLUMNS_DEFAULT: Final = 80
INDENT: Final = "  "


def fitted(line: str, stream: TextIO) -> str:
    """A line, broken between words where `stream` is a terminal that is narrower; what follows the first line is indented.

    A word that is wider stays whole. In a file or a pipe a line stays one line.
    """
    if not stream.isatty():
        return line
    words = line.lstrip(" ")
    margin = line[: len(line) - len(words)]
    broken = textwrap.wrap(
        words,
        max(columns(stream), 2 * len(margin) + len(INDENT) + 1),
        initial_indent=margin,
        subsequent_indent=margin + INDENT,
        expand_tabs=False,
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(broken) or line


def columns(stream: TextIO) -> int:
    """The width of a terminal; COLUMNS comes first, as in other programs."""
    told = os.environ.get("COLUMNS", "")
    if told.isascii() and told.isdecimal() and int(told):
        return int(told)
    try:
        return os.get_terminal_size(stream.fileno()).columns or COLUMNS_DEFAULT
    except (OSError, ValueError):
        return COLUMNS_DEFAULT
