"""Searching a backup for names."""

from __future__ import annotations

from typing import Final

from staddle_server.api.http.pages.browse import BrowsedPath, after_in, entry_link, looked_at, values_of
from staddle_server.api.http.pages.visit import Shown, Visit
from staddle_server.api.http.pages.words import path_words
from staddle_server.base.errors import BadRequest, Damaged, NotFound
from staddle_server.restore.search import Limit, Matches, NamePattern

FOUND: Final = 200
"""Entries on one page."""
ENTRIES_MAX: Final = 1 << 17
"""Entries that are looked at for one page."""
SECONDS: Final = 2.0
"""Then the page shows what was found, and can be continued."""


def search_page(visit: Visit) -> Shown:
    """Show what a backup has below a directory that is named as asked for."""
    looked = looked_at(visit)
    name = visit.query.get("name", "")
    after = after_in(visit)
    values = values_of(looked) | {"name": name, "why": "", "found": None, "kept": {"name": name}}
    if not name.strip("/"):
        return Shown("search.html", values)
    try:
        found = _search(visit, looked, NamePattern(name), after)
    except NotFound:
        return Shown("search.html", values | {"why": "This backup has no such directory"})
    except (BadRequest, Damaged) as error:
        return Shown("search.html", values | {"why": error.message})
    base = len(looked.path) + 1 if looked.path else 0
    rows = [(each, path_words(each.path[base:]), entry_link(looked, each)) for each in found.entries]
    stopped = found.stopped_after
    return Shown(
        "search.html",
        values
        | {
            "found": found,
            "rows": rows,
            "following": ""
            if stopped is None
            else looked.link("search", more={"name": name, "after": stopped.hex()}),
            "behind": path_words(stopped or b""),
            "continues": after is not None,
        },
    )


def _search(visit: Visit, looked: BrowsedPath, pattern: NamePattern, after: bytes | None) -> Matches:
    return visit.sources.reads.search(
        visit.principal,
        looked.backup,
        looked.path,
        pattern,
        after=after,
        most=FOUND,
        limit=Limit(ENTRIES_MAX, SECONDS, visit.sources.monotonic_s),
        check=visit.call.check,
    )
