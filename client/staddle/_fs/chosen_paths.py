"""Which paths below one root a backup holds, where it does not hold all of them: those that were named, with everything below
them, and the directories on the way to them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from staddle._errors import BadRequestError
from staddle._protocol.convert import is_below, path_fault, sort_key

_NONE: Final[frozenset[bytes]] = frozenset()


class Chosen:
    """The named paths, relative to the root; an empty one is the root itself.

    `overrules`: each was named as a PATH itself. Then it is followed if it is a symbolic link, and no rule leaves it out. Otherwise
    the names come from a list, to which all rules apply.
    """

    def __init__(self, named: Iterable[bytes], *, overrules: bool) -> None:
        self.named = frozenset(named)
        self.overrules = overrules
        self._below: dict[bytes, set[bytes]] = {}
        for path in self.named:
            at = path
            while at:
                above, _, name = at.rpartition(b"/")
                names = self._below.setdefault(above, set())
                if name in names:
                    break
                names.add(name)
                at = above

    def below(self, path: bytes) -> set[bytes] | frozenset[bytes]:
        """The names in a directory that are named or lead to something named."""
        return self._below.get(path, _NONE)

    def knows(self, path: bytes) -> bool:
        """Whether a path is named, or is on the way to one that is."""
        return path in self.named or path in self._below

    def must_have(self, path: bytes) -> bool:
        """Whether no rule may leave a path out."""
        return self.overrules and self.knows(path)

    def under(self, path: bytes) -> Iterator[bytes]:
        """The named paths at and below a path, in order."""
        ahead = [path]
        while ahead:
            at = ahead.pop()
            if at in self.named:
                yield at
            names = sorted(self.below(at), reverse=True)
            ahead.extend(at + b"/" + name if at else name for name in names)

    def fingerprint(self) -> str:
        """A key that differs for each different choice."""
        hasher = blake3(b"paths" if self.overrules else b"list")
        for path in sorted(self.named):
            hasher.update(b"\0" + path)
        return hasher.hexdigest()


@dataclass(frozen=True, slots=True)
class Source:
    """Where a backup comes from: a root, and what is chosen below it; None: everything."""

    root: bytes
    chosen: Chosen | None = None


def absolute(path: bytes) -> bytes:
    """A path from the top. A symbolic link before `..` is followed, as the system does."""
    parts = path.split(b"/")
    if b".." in parts:
        last = len(parts) - parts[::-1].index(b"..")
        path = os.path.join(os.path.realpath(b"/".join(parts[:last])), *parts[last:])
    path = os.path.abspath(path)
    return path[1:] if path.startswith(b"//") else path


def source_of(paths: Sequence[bytes], names: Iterable[bytes] | None = None) -> Source:
    """The source of one or several PATHs, which exist; or, with `names`, of a list of names below one.

    The root of several is the directory that all have in common. Raises OSError, or BadRequestError for what cannot be meant.
    """
    whole = sorted({absolute(path) for path in paths}, key=sort_key)
    if not whole:
        raise _bad("No path was given.")
    if names is not None:
        if len(whole) > 1:
            raise _bad("Names in a list are relative to one PATH, and there are several.")
        return Source(whole[0], _listed(whole[0], names))
    outer: list[bytes] = []
    inner: list[tuple[bytes, bytes]] = []
    for path in whole:
        if outer and _is_within(path, outer[-1]):
            inner.append((outer[-1], path))
        else:
            outer.append(path)
    if len(whole) == 1:
        return Source(whole[0])
    root = os.path.commonpath(outer)
    named = [_relative(path, root) for path in outer]
    for above, path in inner:
        # The link stays a link in the backup, and what it leads to is named by its own path.
        real, real_above = os.path.realpath(path), os.path.realpath(above)
        if not _is_within(real, real_above):
            raise _bad(
                f"{os.fsdecode(path)!r} leads out of {os.fsdecode(above)!r} by a symbolic link, and a backup of both would hold only the link. "
                "Give the path that it leads to."
            )
        named.append(_relative(os.path.join(above, _relative(real, real_above)), root))
    return Source(root, Chosen(named, overrules=True))


def _is_within(path: bytes, directory: bytes) -> bool:
    """Whether an absolute path is a directory, or lies below it."""
    return path == directory or is_below(path, directory.rstrip(b"/"))


def _relative(path: bytes, root: bytes) -> bytes:
    """A path at or below a root, relative to it."""
    return b"" if path == root else path[len(root.rstrip(b"/")) + 1 :].rstrip(b"/")


def _listed(root: bytes, names: Iterable[bytes]) -> Chosen:
    """Names below a root. Raises BadRequestError for one that cannot be, and if there is none of them."""
    if not stat.S_ISDIR(os.stat(root).st_mode):
        raise _bad(f"{os.fsdecode(root)!r} is not a directory, so no names in it can be listed.")
    roots = {root, os.path.realpath(root)}
    named = {_listed_name(name, root, roots) for name in names}
    if not named:
        raise _bad("The list of paths is empty: there is nothing to back up.")
    if not any(os.path.lexists(os.path.join(root, name)) for name in named):
        raise _bad(
            f"None of the {len(named):,} listed paths exists, such as {os.fsdecode(min(named))!r}: they are relative to "
            f"{os.fsdecode(root)!r}."
        )
    return Chosen(named, overrules=False)


def _listed_name(name: bytes, root: bytes, roots: set[bytes]) -> bytes:
    parts = [part for part in name.split(b"/") if part not in {b"", b"."}]
    if not name or b"\0" in name or b".." in parts:
        raise _bad(f"{os.fsdecode(name)!r} in the list of paths is not a path below {os.fsdecode(root)!r}.")
    path = b"/".join(parts)
    if name.startswith(b"/"):
        path = b"/" + path
        above = next((each for each in roots if _is_within(path, each)), None)
        if above is None:
            raise _bad(
                f"{os.fsdecode(name)!r} in the list of paths does not lie below {os.fsdecode(root)!r}."
            )
        path = _relative(path, above)
    fault = path_fault(path)
    if fault:
        raise _bad(
            f"{os.fsdecode(name)!r} in the list of paths is not a path that a backup can hold: {fault}."
        )
    return path


def _bad(message: str) -> BadRequestError:
    return BadRequestError(message, facts={"field": "path"})
