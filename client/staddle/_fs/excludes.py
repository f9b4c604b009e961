"""What a backup leaves out: patterns as in .gitignore files, relative to the root."""

from __future__ import annotations

import codecs
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from staddle._errors import BadRequestError

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

PATTERN_FILE_BYTES_MAX: Final = 16 * 1024 * 1024
UNMATCHED_SHOWN_MAX: Final = 20

_CLASS: Final = re.compile(r"\[:(\w+):\]")
_BRACKETS: Final = re.compile(r"(?<!\\)\[[!^]?(\]?(?:\[:\w+:\]|(?!\[:\w+:\])[^\]])*)\]")
_CLASSES: Final = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": " \t",
    "cntrl": "\x01-\x1f\x7f",
    "digit": "0-9",
    "graph": "0-~!-.",
    "lower": "a-z",
    "print": " -.0-~",
    "punct": ":-@[-`{-~!-.",
    "space": " \t-\r",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}
"""What the classes of .gitignore, such as [:digit:], stand for: pathspec takes them for their letters. None contains a slash, begins
with ! or has a ] in it, which would mean something else."""
_RANGE: Final = re.compile(r"(.)-(.)", re.DOTALL)
_WILD: Final = re.compile(r"[*?\[]")


class Excludes:
    """Patterns, the last one that matches a path decides. What lies below a path that is left out is not asked."""

    def __init__(self, patterns: Sequence[str], spec: GitIgnoreSpec | None) -> None:
        """`patterns` are those of the spec, as they were given."""
        self._given = patterns
        self._spec = spec
        self._by_type = any(pattern.startswith("!") for pattern in patterns)
        self._unmatched = set(range(len(patterns)))

    def __call__(self, path: bytes, is_directory: bool) -> bool:
        """Whether a path of this type is left out."""
        if self._spec is None:
            return False
        name = os.fsdecode(path)
        return self._decide(name + "/" if is_directory else name, counts=True)

    def of_name(self, path: bytes) -> bool | None:
        """Whether a path is left out, of whatever type it is; None if that depends on whether it is a directory."""
        if self._spec is None:
            return False
        name = os.fsdecode(path)
        directory = self._decide(name + "/", counts=False)
        if not directory and not self._by_type:
            return False  # what matches a file matches a directory
        if self._decide(name, counts=False) is not directory:
            return None
        return self._decide(name, counts=True)

    def unmatched(self) -> list[str]:
        """The patterns that have matched no path so far."""
        return [self._given[index] for index in sorted(self._unmatched)]

    def _decide(self, name: str, *, counts: bool) -> bool:
        assert self._spec is not None
        found = self._spec.check_file(name)
        if counts and self._unmatched and found.index is not None:
            # A pattern that another one overrules has matched, too.
            patterns = self._spec.patterns
            self._unmatched -= {
                index for index in self._unmatched if patterns[index].match_file(name) is not None
            }
        return bool(found.include)


no_excludes: Final = Excludes((), None)
"""Leaves nothing out."""


def excludes_of(
    patterns: Sequence[str], root: str | bytes | None = None, *, resolve: bool = True
) -> Excludes:
    """Joins patterns.

    A pattern that begins with the path of `root` means what lies there; `resolve`: `root` is a path of this
    machine, which may contain symbolic links. Raises ValueError for an invalid pattern, and
    ModuleNotFoundError, saying what to install, if there are patterns and `pathspec` is not installed.
    """
    if not patterns:
        return no_excludes
    try:
        from pathspec import GitIgnoreSpec  # only the extra `cli` installs it
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "excluding needs the package pathspec: pip install 'staddle[cli]'", name=error.name
        ) from error
    roots = _names_of_root(root, resolve=resolve)
    lines = [_normal(pattern, roots) for pattern in patterns]
    for pattern, line in zip(patterns, lines, strict=True):
        try:
            with warnings.catch_warnings():
                # Of && or [ between brackets, which a later Python may take for more than characters.
                warnings.simplefilter("ignore", FutureWarning)
                compiled = GitIgnoreSpec.from_lines([line]).patterns
        except (ValueError, re.error) as error:
            raise ValueError(f"invalid pattern {pattern!r}: {error}") from error
        if not compiled or compiled[0].include is None:
            raise ValueError(f"invalid pattern {pattern!r}: it can match no path")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return Excludes(patterns, GitIgnoreSpec.from_lines(lines))


def lines_of(file: str | os.PathLike[str]) -> list[str]:
    """The patterns of a file, which is read once and may be a pipe. Empty lines and comments are skipped.

    Raises OSError, or ValueError for a file larger than 16 MiB.
    """
    with open(file, "rb") as opened:
        data = opened.read(PATTERN_FILE_BYTES_MAX + 1)
    if len(data) > PATTERN_FILE_BYTES_MAX:
        raise ValueError(f"the pattern file {os.fspath(file)} is larger than {PATTERN_FILE_BYTES_MAX} bytes")
    lines = (line.removesuffix("\r") for line in decoded(data).split("\n"))
    return [line for line in lines if line.strip() and not line.startswith("#")]


def all_patterns(
    field: str, files: Iterable[str | os.PathLike[str]], given: Iterable[str]
) -> tuple[str, ...]:
    """Patterns of files, each read once, then the patterns given directly, which so have the last word.

    Raises OSError, or BadRequestError, which names `field`, as `lines_of` does.
    """
    try:
        lines = [line for file in files for line in lines_of(file)]
    except ValueError as error:
        raise BadRequestError(str(error), facts={"field": field}) from error
    return (*lines, *given)


def decoded(data: bytes) -> str:
    """Text as editors write it: UTF-8, with or without a byte order mark, or UTF-16 with one."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")


def _names_of_root(root: str | bytes | None, *, resolve: bool) -> tuple[list[str], ...]:
    """The components of the root's path, as it was given and, with `resolve`, without symbolic links."""
    if root is None:
        return ()
    given = os.path.abspath(root)
    paths = dict.fromkeys((given, os.path.realpath(root) if resolve else given))
    found = (os.fsdecode(path).strip("/").split("/") for path in paths)
    return tuple(components for components in found if components != [""])


def _normal(pattern: str, roots: Sequence[list[str]]) -> str:
    """A pattern as the matching takes it. Raises ValueError for one that cannot be meant."""
    mark, body = ("!", pattern[1:]) if pattern.startswith("!") else ("", pattern)
    wrong = _fault(pattern, body)
    if wrong:
        raise ValueError(f"invalid pattern {pattern!r}: {wrong}")
    body = _BRACKETS.sub(lambda found: _CLASS.sub(lambda name: _CLASSES[name[1]], found[0]), body)
    components = body.split("/")
    if "." in components or "" in components[1:-1]:
        anchored = components[0] in {"", "."} or components[-1] == "."
        end = [""] if components[-1] in {"", "."} else []
        components = [""] * anchored + [each for each in components if each not in {"", "."}] + end
    if components[0] == "":
        components = _below_root(components, roots) or components
    if all(each in {"", "."} for each in components):
        raise ValueError(f"invalid pattern {pattern!r}: it matches all of PATH")
    return mark + "/".join(components)


def _fault(pattern: str, body: str) -> str:
    """What is wrong with the text of a pattern, which is `body` without its !; empty: nothing."""
    if not pattern.strip():
        return "it is empty"
    if "\0" in pattern:
        return "it contains NUL"
    if pattern.startswith("#"):
        return f"it is a comment: write '\\{pattern}' for a name that begins with #"
    if not body.strip():
        return "there is nothing behind the !"
    if ".." in body.split("/"):
        return "it leads out of PATH by '..', and patterns are relative to PATH"
    return _fault_in_brackets(body)


def _fault_in_brackets(body: str) -> str:
    """What is wrong with the classes and ranges of a pattern; empty: nothing."""
    for brackets in _BRACKETS.finditer(body):
        if _CLASS.fullmatch(brackets[0]):
            return f"the class {brackets[0]} needs brackets around it: write [{brackets[0]}]"
        for name in _CLASS.findall(brackets[0]):
            if name not in _CLASSES:
                return f"the class [:{name}:] does not exist"
        for first, last in _RANGE.findall(_CLASS.sub("", brackets[1])):
            if first > last:
                return f"the range {first}-{last} is empty: write {last}-{first}"
    return ""


def _below_root(components: list[str], roots: Sequence[list[str]]) -> list[str] | None:
    """An absolute path below the root (or the root itself), made relative to it; None: it is not one."""
    named = components[1:]
    for root in roots:
        above = named[: len(root)]
        first_is_literal = above[0] == root[0] or _unescaped(above[0]) == root[0]
        if len(above) == len(root) and first_is_literal and all(map(_stands_for, above, root)):
            return ["", *named[len(root) :]]
    return None


def _stands_for(component: str, name: str) -> bool:
    if name in {component, _unescaped(component)}:
        return True
    return bool(_WILD.search(component)) and component != "**" and fnmatchcase(name, component)


def _unescaped(component: str) -> str:
    return re.sub(r"\\(.)", r"\1", component)
