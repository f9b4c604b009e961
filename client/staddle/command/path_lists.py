"""Lists of paths, as --files-from takes them. Each is read once, so it may be a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

import click

from staddle._fs.excludes import decoded
from staddle.command.text import escaped

STDIN: Final = "-"
LIST_BYTES_MAX: Final = 512 * 1024 * 1024


def listed_paths(lines: Sequence[str], nul: Sequence[str]) -> tuple[bytes, ...]:
    """The paths of all lists: those with one path a line, and those with NUL behind each. Raises OSError."""
    if (*lines, *nul).count(STDIN) > 1:
        raise click.UsageError("Standard input (`-`) can be read only once.")
    found = [path for file in lines for path in _of_lines(_read(file), file)]
    found.extend(path for file in nul for path in _read(file).split(b"\0") if path)
    return tuple(found)


def _read(file: str) -> bytes:
    if file == STDIN:
        data = sys.stdin.buffer.read(LIST_BYTES_MAX + 1)
    else:
        with open(file, "rb") as opened:
            data = opened.read(LIST_BYTES_MAX + 1)
    if len(data) > LIST_BYTES_MAX:
        raise click.UsageError(f"The list {escaped(file)} is larger than {LIST_BYTES_MAX:,} bytes.")
    return data


def _of_lines(data: bytes, file: str) -> list[bytes]:
    """Text as editors write it. Empty lines and lines that begin with # name nothing; spaces and all other letters stand for themselves."""
    text = decoded(data)
    if "\0" in text:
        raise click.UsageError(f"The list {escaped(file)} holds NUL: read it with --files-from0.")
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    return [line.encode("utf-8", "surrogateescape") for line in lines if line.strip() and line[0] != "#"]
