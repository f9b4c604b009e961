"""What a backup was asked to hold: whether its source can be backed up, what is left out, and how much may be missing."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Final

from staddle._base.figures import counted, size
from staddle._errors import BadRequestError, TooMuchRemovedError
from staddle._fs.chosen_paths import Source, source_of
from staddle._fs.excludes import Excludes, excludes_of
from staddle._fs.noatime import open_quietly
from staddle._fs.omissions import Omissions, is_server_directory
from staddle._types.entries import path_to_bytes
from staddle._types.options import BackupOptions
from staddle.v1 import resources_pb2 as pb

ALL_PERCENT: Final = 100.0

_WORDS: Final = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


def check_source(path: bytes, *, exclude_caches: bool) -> None:
    """Whether a path can be backed up by its name: a directory or a regular file, also through a symbolic link.

    Raises OSError if it is not there, BadRequestError if it is something else, or is the data directory of a Staddle server, which is left
    out unless that is meant.
    """
    mode = os.stat(path).st_mode
    facts = {"field": "path", "path": os.fsdecode(path)}
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        what = _WORDS.get(stat.S_IFMT(mode), "neither a directory nor a file")
        raise BadRequestError(
            f"{os.fsdecode(path)!r} is {what}, so it cannot be backed up by its name. To back up what can be read from it, send that "
            "as a stream: `staddle backup - --dataset NAME --name FILE < PATH`, or `Client.backup_stream`.",
            facts=facts,
        )
    if exclude_caches and stat.S_ISDIR(mode) and _is_server(path):
        raise BadRequestError(
            f"{os.fsdecode(path)!r} is the data directory of a Staddle server, with its master key. If a backup of it is meant, say "
            "`--no-exclude-caches` (`exclude_caches=False`).",
            facts=facts,
        )


def find_source(paths: bytes | Sequence[bytes], options: BackupOptions) -> Source:
    """What a backup of PATHs takes. Raises OSError if one does not exist, BadRequestError for what cannot be backed up."""
    paths = [paths] if isinstance(paths, bytes) else paths
    for path in paths:
        check_source(path, exclude_caches=options.exclude_caches)
    names = None if options.paths is None else map(path_to_bytes, options.paths)
    return source_of(paths, names)


def check_excludes(source: Source, excluded: Excludes) -> None:
    """Raises BadRequestError if the patterns leave out a PATH of several, or what leads to it."""
    if source.chosen is None or not source.chosen.overrules:
        return
    for path in sorted(source.chosen.named):
        parts = path.split(b"/") if path else []
        for count in range(1, len(parts) + 1):
            part = b"/".join(parts[:count])
            if excluded(part, os.path.isdir(os.path.join(source.root, part))):
                raise BadRequestError(
                    f"The exclude patterns leave out all of {os.fsdecode(os.path.join(source.root, path))!r}. Patterns are relative to "
                    f"{os.fsdecode(source.root)!r}, which all PATHs have in common; '!/{os.fsdecode(part)}' takes it back.",
                    facts={"field": "exclude"},
                )


def _is_server(path: bytes) -> bool:
    try:
        descriptor = open_quietly(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False  # the scan meets it and says so
    try:
        return is_server_directory(descriptor, [os.fsencode(name) for name in os.listdir(descriptor)])
    except OSError:
        return False
    finally:
        os.close(descriptor)


def excludes_for(patterns: Sequence[str], root: bytes) -> Excludes:
    """What patterns leave out below a root. Raises BadRequestError for one that cannot be meant."""
    try:
        return excludes_of(patterns, root=root)
    except ValueError as error:
        raise BadRequestError(f"{error}.", facts={"field": "exclude"}) from error


def omissions_of(options: BackupOptions) -> Omissions:
    """What is left out because of what it is. Raises BadRequestError."""
    marks = tuple(map(os.fsencode, options.exclude_if_present))
    for mark in marks:
        if mark in {b"", b".", b".."} or any(letter in mark for letter in (b"/", b"\0", b"*", b"?")):
            raise BadRequestError(
                f"{os.fsdecode(mark)!r} cannot mark a directory: give the name of a file in it, without a path or wildcards.",
                facts={"field": "exclude_if_present"},
            )
    most = options.exclude_larger_than_bytes
    if most is not None and most < 0:
        raise BadRequestError(
            f"A file cannot be smaller than {most} bytes.", facts={"field": "exclude_larger_than_bytes"}
        )
    check_percent(options.max_removed_percent)
    return Omissions(options.exclude_caches, marks, most)


def check_percent(max_removed: float | None) -> None:
    """Raises BadRequestError for a `max_removed_percent` that is none."""
    if max_removed is not None and not 0 <= max_removed <= ALL_PERCENT:
        raise BadRequestError(
            f"max_removed_percent is 0 to 100, not {max_removed}.", facts={"field": "max_removed_percent"}
        )


class NothingReadError(OSError):
    """Nothing could be read of all that was to be backed up."""


def nothing_read(path: bytes, why: str, count: int) -> NothingReadError:
    """The error for `count` PATHs or listed paths of which none could be read, such as `path`."""
    of_all = "" if count == 1 else f", and so it is with all {counted(count, 'path')} that were named"
    return NothingReadError(None, f"{why}{of_all}. Nothing was backed up", path)


def emptied(path: bytes, *, excluded: bool = False) -> TooMuchRemovedError:
    """The error for a directory that has become empty, or of which everything is excluded."""
    root = os.fsdecode(path)
    if excluded:
        what = f"Everything in {root!r} is excluded, and the backup before has entries in it. Nothing was backed up. Change what is excluded"
    else:
        what = (
            f"There is nothing in {root!r}, and the backup before has entries in it. Is its disk mounted? "
            "Nothing was backed up. If it is meant to be empty"
        )
    meant = "; if that is meant" if excluded else ""
    return TooMuchRemovedError(
        f"{what}{meant}, say `--max-removed 100` (max_removed_percent=100).", facts={"root": root}
    )


def check_removed(
    root: bytes, before: int, kept: int, *, nothing: bool, excluded: bool, max_percent: float | None
) -> None:
    """Raises TooMuchRemovedError if of `before` entries of the base too few are left. `nothing`: not one is, all are excluded if `excluded`."""
    if not before:
        return
    removed = before - kept
    if nothing:
        raise emptied(root, excluded=excluded)
    facts = {"root": os.fsdecode(root), "base_entries": str(before), "removed_entries": str(removed)}
    if max_percent is not None and removed * ALL_PERCENT > max_percent * before:
        raise TooMuchRemovedError(
            f"{removed:,} of {counted(before, 'entry', 'entries')} of the backup before {'is' if removed == 1 else 'are'} gone from {os.fsdecode(root)!r} or excluded now: more than {max_percent:g} %. "
            "Nothing was backed up. If that is meant, allow more with `--max-removed` (max_removed_percent).",
            facts=facts,
        )


def check_stream(
    dataset: str, before: pb.Backup | None, size_bytes: int, *, max_percent: float | None
) -> None:
    """Raises TooMuchRemovedError if a stream has become empty, or has lost more of its bytes since the backup `before` than it may have."""
    if before is None or (max_percent is not None and max_percent >= ALL_PERCENT):
        return
    lost = before.data_bytes - size_bytes
    facts = {
        "dataset": dataset,
        "base_bytes": str(before.data_bytes),
        "stream_bytes": str(size_bytes),
    }
    if lost > 0 and not size_bytes:
        raise TooMuchRemovedError(
            f"The stream is empty, and the backup before has {size(before.data_bytes)}. Did the program fail that wrote it? "
            "Nothing was backed up. If it is meant to be empty, say `--max-removed 100` (max_removed_percent=100).",
            facts=facts,
        )
    if max_percent is not None and lost * ALL_PERCENT > max_percent * before.data_bytes:
        raise TooMuchRemovedError(
            f"The stream has {size(size_bytes)}, and the backup before {size(before.data_bytes)}: it has lost more than {max_percent:g} %. "
            "Nothing was backed up. If that is meant, allow more with `--max-removed` (max_removed_percent).",
            facts=facts,
        )
