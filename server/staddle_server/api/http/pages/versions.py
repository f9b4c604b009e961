"""The versions of a file over all backups of its dataset, with what differs between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from staddle._base.figures import size

from staddle_server.api.http.pages.dataset import number_in
from staddle_server.api.http.pages.visit import Visit
from staddle_server.api.http.pages.words import path_words
from staddle_server.base.types import Entry, EntryType
from staddle_server.restore.search import Limit, PathVersion

VERSIONS: Final = 50
"""Versions on one page."""
BACKUPS_MAX: Final = 5000
"""Backups that are looked into for one page."""
SECONDS: Final = 2.0
"""Then the page shows what was found, and can be continued."""


class VersionLine(NamedTuple):
    """A version, with what differs from the older one beside it, in words."""

    version: PathVersion
    what: str
    differs: str


class VersionLines(NamedTuple):
    """Versions, the newest first. `before`: the number to continue below; None: there is no more."""

    lines: Sequence[VersionLine]
    looked_at: int
    before: int | None
    continues: bool


def history_of(visit: Visit, dataset: str, path: bytes) -> VersionLines:
    """Return the versions of a path, from the backup that the address says on."""
    before = number_in(visit, "before")
    found = visit.sources.reads.versions(
        visit.principal,
        dataset,
        path,
        before_number=before,
        most=VERSIONS,
        limit=Limit(BACKUPS_MAX, SECONDS, visit.sources.monotonic_s),
        check=visit.call.check,
    )
    older = [*found.versions[1:], found.older]
    lines = [
        VersionLine(each, _what(each), _differs(each, beside))
        for each, beside in zip(found.versions, older, strict=True)
    ]
    return VersionLines(lines, found.looked_at, found.stopped_before, before is not None)


def _what(version: PathVersion) -> str:
    entry = version.entry
    if entry is None:
        return "unknown" if version.damage else "not there"
    if entry.type is EntryType.FILE:
        return size(_size(entry))
    if entry.link_target is not None:
        return f"link to {path_words(entry.link_target)}"
    return entry.type.name.lower().replace("_", " ")


def _differs(version: PathVersion, older: PathVersion | None) -> str:
    if version.damage:
        return version.damage
    if older is None or older.damage:
        return ""
    if version.entry is None or older.entry is None:
        return "removed" if version.entry is None else "new"
    return ", ".join(_differences(older.entry, version.entry))


def _differences(old: Entry, new: Entry) -> Iterator[str]:
    if old.type is not new.type:
        yield "another type"
    if (old.content and old.content.content_id) != (new.content and new.content.content_id):
        more = _size(new) - _size(old)
        sign = "+" if more > 0 else "−"
        yield f"content ({sign}{size(abs(more))})" if more else "content (same size)"
    if old.link_target != new.link_target:
        yield "target"
    if old.device != new.device:
        yield "device"
    if old.mode != new.mode:
        yield f"mode {_mode(old)} → {_mode(new)}"
    if (old.uid, old.gid, old.owner, old.group) != (new.uid, new.gid, new.owner, new.group):
        yield f"owner {_owner(old)} → {_owner(new)}"
    if old.mtime_ns != new.mtime_ns:
        yield "time"


def _size(entry: Entry) -> int:
    return 0 if entry.content is None else entry.content.size


def _mode(entry: Entry) -> str:
    return "–" if entry.mode is None else f"{entry.mode:o}"


def _owner(entry: Entry) -> str:
    user = entry.owner or ("–" if entry.uid is None else str(entry.uid))
    group = entry.group or ("–" if entry.gid is None else str(entry.gid))
    return f"{user}:{group}"
