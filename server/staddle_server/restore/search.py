"""Searching a backup for names, and all backups of a dataset for one path. Both stop at a limit, and can continue."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from staddle_server.base.errors import BadRequest, Damaged
from staddle_server.base.types import Entry, EntryType, sort_key
from staddle_server.catalog import Backup
from staddle_server.manifest.read import Gap, Manifest

PATTERN_CHARS_MAX: Final = 1024
ANY_DEPTH: Final = "**"
_WILD: Final = re.compile(r"[*?\[]")
GAPS_MAX: Final = 10
_LOOKS_EVERY: Final = 64
"""Entries between two looks at the time."""


class Limit:
    """How far a search goes: so many steps, and not beyond a time, which `now_s` tells."""

    def __init__(self, steps: int, seconds: float, now_s: Callable[[], float]) -> None:
        self.steps = 0
        self._steps_max = steps
        self._now_s = now_s
        self._end_s = now_s() + seconds

    def is_over(self) -> bool:
        """Return whether the search stops here. The first step is always taken, so that a search gets on."""
        return self.steps >= self._steps_max or (self.steps > 0 and self._now_s() >= self._end_s)


class NamePattern:
    """What is searched for, below a directory.

    Without a slash it is about the name of an entry at any depth: part of it, in capitals or not, or, with
    `*`, `?` or `[…]`, all of it. With a slash it is about the path from the directory on, component by
    component; `**` stands for any number of directories.

    Attributes:
        prefix: What every path that matches begins with.
        is_path: Whether that is the only path that matches.

    """

    def __init__(self, text: str) -> None:
        """Raise BadRequest if the text is empty or too long."""
        text = text.strip("/")
        if not text or len(text) > PATTERN_CHARS_MAX:
            why = f"the limit is {PATTERN_CHARS_MAX} characters" if text else "required"
            raise BadRequest("BAD_FIELD", f"name: {why}", field="name")
        is_wild = _WILD.search(text) is not None
        self._by_path = "/" in text
        self._part = "" if is_wild or self._by_path else text.casefold()
        self.is_path = self._by_path and not is_wild
        parts = text.split("/")
        self._components = [
            None if self._by_path and each == ANY_DEPTH else re.compile(fnmatch.translate(each))
            for each in parts
        ]
        self.prefix = _literal(parts) if self._by_path else b""

    def matches(self, path: bytes) -> bool:
        """Return whether a path, given from the directory on, is one of those that are searched for."""
        names = path.decode("utf-8", "surrogateescape").split("/")
        if self._by_path:
            return _fits(self._components, names)
        if self._part:
            return self._part in names[-1].casefold()
        return self._components[0] is not None and self._components[0].match(names[-1]) is not None


def _literal(parts: Sequence[str]) -> bytes:
    """Return what precedes the first wildcard."""
    kept = []
    for part in parts:
        wild = _WILD.search(part)
        kept.append(part[: wild.start()] if wild else part)
        if wild:
            break
    return "/".join(kept).encode("utf-8", "surrogateescape")


def _fits(patterns: Sequence[re.Pattern[str] | None], names: Sequence[str]) -> bool:
    """Return whether the names fit the patterns one by one; None fits any number of names.

    Only the last None before a misfit is tried with one name more: those before it need not change.
    """
    place = at = 0
    any_place, any_at = -1, 0
    while at < len(names):
        pattern = patterns[place] if place < len(patterns) else None
        if place < len(patterns) and pattern is None:
            any_place, any_at = place, at
            place += 1
        elif pattern is not None and pattern.match(names[at]):
            place, at = place + 1, at + 1
        elif any_place >= 0:
            any_at += 1
            place, at = any_place + 1, any_at
        else:
            return False
    return all(each is None for each in patterns[place:])


@dataclass
class Matches:
    """What a search found.

    Attributes:
        entries: The entries, in order.
        looked_at: How many entries were looked at.
        stopped_after: The last path that was looked at, if the search stopped before its end; continue there.
        gaps: What could not be read, in sentences: the first GAPS_MAX.
        has_more_gaps: Whether more than that could not be read.

    """

    entries: list[Entry] = field(default_factory=list)
    looked_at: int = 0
    stopped_after: bytes | None = None
    gaps: list[str] = field(default_factory=list)
    has_more_gaps: bool = False


def search(
    manifest: Manifest, below: bytes, pattern: NamePattern, *, after: bytes | None, most: int, limit: Limit
) -> Matches:
    """Return at most `most` entries below a directory that a pattern matches, after a path if one is given.

    Reads only the part of the manifest in which paths begin as the pattern does, whatever `after` is. `limit`
    counts the entries that are looked at, and the parts that cannot be read.
    """
    found = Matches()
    base = below + b"/" if below else b""
    behind = below
    for each in _beginning(manifest, below, pattern, after):
        if len(found.entries) >= most or (limit.steps % _LOOKS_EVERY == 0 and limit.is_over()):
            found.stopped_after = behind
            break
        limit.steps += 1
        if isinstance(each, Gap):
            if each.message not in found.gaps:
                found.has_more_gaps = len(found.gaps) == GAPS_MAX
                found.gaps += [] if found.has_more_gaps else [each.message]
            behind = each.upto or behind
            continue
        behind = each.path
        found.looked_at += 1
        if pattern.matches(each.path[len(base) :]):
            found.entries.append(each)
    return found


def _beginning(
    manifest: Manifest, below: bytes, pattern: NamePattern, after: bytes | None
) -> Iterator[Entry | Gap]:
    """Yield what is below a directory and begins as the pattern does, in order, behind a path if one is given."""
    base = below + b"/" if below else b""
    start = base + pattern.prefix
    # What is at `first` itself comes before all that begins with it, so the walk can begin behind it.
    first = start.rstrip(b"/")
    if pattern.prefix and (after is None or sort_key(after) < sort_key(first)):
        after = first
        try:
            found = manifest.find(first)
        except Damaged as error:
            yield Gap(None, None, error.message)
        else:
            # It fits without the last slash, too, if `**` follows: any number of directories may be none.
            if found is not None and (first == start or pattern.matches(first[len(base) :])):
                yield found
    if pattern.is_path:
        return
    for each in manifest.walk(below, after=after):
        if isinstance(each, Gap) or (each.path.startswith(start) and each.path != below):
            yield each
        elif sort_key(each.path) > sort_key(start):
            return


class PathVersion(NamedTuple):
    """A path in some backups that follow each other and have the same of it.

    Attributes:
        newest: The newest of them.
        oldest: The oldest of them.
        backups: How many they are.
        entry: What they have; None: no such path.
        damage: Why that is unknown; empty if it is known.

    """

    newest: Backup
    oldest: Backup
    backups: int
    entry: Entry | None
    damage: str

    def is_like(self, entry: Entry | None, damage: str) -> bool:
        """Return whether another backup has the same."""
        return damage == self.damage and essence(entry) == essence(self.entry)


def essence(entry: Entry | None) -> tuple[object, ...] | None:
    """Return what makes a version of a path: what restores differently."""
    if entry is None:
        return None
    content = None if entry.content is None else (entry.content.content_id, entry.content.size)
    if entry.type is EntryType.DIRECTORY:
        return (entry.type,)
    owner = (entry.uid, entry.gid, entry.owner, entry.group)
    return (entry.type, content, entry.link_target, entry.device, entry.mode, owner, entry.mtime_ns)


@dataclass
class PathHistory:
    """The versions of a path, the newest first.

    Attributes:
        versions: The versions.
        older: The one before them, which the continuation begins with; None: unknown, or there is none.
        looked_at: How many backups were looked into.
        stopped_before: The number to continue below, if the search stopped before the oldest backup.

    """

    versions: list[PathVersion] = field(default_factory=list)
    older: PathVersion | None = None
    looked_at: int = 0
    stopped_before: int | None = None


def versions(
    backups: Iterator[Backup], find: Callable[[Backup], Entry | None], most: int, limit: Limit
) -> PathHistory:
    """Return at most `most` versions of a path in backups, which come newest first.

    `limit` counts the backups. Where it stops within a version, that one is left to the continuation, unless
    it is the only one.
    """
    history = PathHistory()
    found = history.versions
    for backup in backups:
        if limit.is_over() or len(found) > most:
            history.stopped_before = backup.number + 1
            if len(found) > 1:
                history.older = found.pop()
                history.stopped_before = history.older.newest.number + 1
            break
        limit.steps += 1
        entry, damage = None, ""
        try:
            entry = find(backup)
        except Damaged as error:
            damage = error.message
        if found and found[-1].is_like(entry, damage):
            found[-1] = found[-1]._replace(oldest=backup, backups=found[-1].backups + 1)
        else:
            found.append(PathVersion(backup, backup, 1, entry, damage))
    history.looked_at = limit.steps
    return history
