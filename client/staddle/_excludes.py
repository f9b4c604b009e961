"""What a backup leaves out: patterns as in .gitignore files, relative to the root."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

PATTERN_FILE_BYTES_MAX: Final = 16 * 1024 * 1024

Excludes = Callable[[bytes, bool], bool]
"""Whether a path is left out; the flag says that it is a directory. What lies below one that is left out is not asked."""


def no_excludes(_path: bytes, _is_directory: bool) -> bool:
    """Leaves nothing out."""
    return False


def excludes_of(patterns: Sequence[str], files: Iterable[str | os.PathLike[str]] = ()) -> Excludes:
    """Joins patterns and the lines of pattern files, files first, so that a pattern given directly has the last word.

    Raises OSError if a file cannot be read, ValueError if a pattern is not one or a file is larger than 16 MiB, and
    ModuleNotFoundError, saying what to install, if there are patterns and `pathspec` is not there.
    """
    lines = [line for file in files for line in lines_of(file)]
    lines.extend(patterns)
    if not lines:
        return no_excludes
    try:
        from pathspec import GitIgnoreSpec  # only the extra `cli` installs it
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "excluding needs the package pathspec: pip install 'staddle[cli]'", name=error.name
        ) from error
    spec = GitIgnoreSpec.from_lines(lines)

    def excluded(path: bytes, is_directory: bool) -> bool:
        name = os.fsdecode(path)
        return spec.match_file(name + "/" if is_directory else name)

    return excluded


def lines_of(file: str | os.PathLike[str]) -> list[str]:
    """The lines of a pattern file. Raises OSError, or ValueError for one larger than 16 MiB."""
    path = Path(file)
    if path.stat().st_size > PATTERN_FILE_BYTES_MAX:
        raise ValueError(f"the pattern file {path} is larger than {PATTERN_FILE_BYTES_MAX} bytes")
    return path.read_bytes().decode("utf-8", "surrogateescape").splitlines()
