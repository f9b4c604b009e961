"""The page of all datasets."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from staddle_server.api import convert
from staddle_server.api.http.pages.drawings import strip
from staddle_server.api.http.pages.visit import Shown, Visit
from staddle_server.base.clock import DAY_NS
from staddle_server.base.errors import BadRequest
from staddle_server.base.limits import DATASET_BYTES_MAX
from staddle_server.catalog import Concern, DatasetState, DayRuns, Troubled

PAGE: Final = 50
STRIP_DAYS: Final = 30
TROUBLED: Final = "troubled"
TROUBLED_MAX: Final = 1000
STATES: Final = {
    "all": "All",
    TROUBLED: "Needs you",
    "never": "Never backed up",
    "unexpected": "Without an expectation",
    "muted": "Muted",
}
CONCERNS: Final = {Concern.LATE: "late", Concern.FAILED: "failed", Concern.PROBLEMS: "incomplete"}


def datasets_page(visit: Visit) -> Shown:
    """Show datasets in the order of their names."""
    named, state = visit.query.get("named", "").strip(), visit.query.get("state", "all")
    if state not in STATES:
        raise BadRequest("BAD_FIELD", f"There is no filter {state[:40]!r}", field="state")
    after = visit.query.get("after", "")
    for field, text in (("named", named), ("after", after)):
        convert.words(text, field, DATASET_BYTES_MAX)
    troubled = {each.dataset: each for each in visit.sources.runs.status(visit.principal).troubled}
    overview = visit.sources.catalog.overview
    found = overview.datasets(
        visit.principal.tenant,
        named=named,
        state=DatasetState.ALL if state == TROUBLED else DatasetState(state),
        names=list(troubled)[:TROUBLED_MAX] if state == TROUBLED else None,
        after_name=after,
        limit=PAGE,
        now_ns=visit.now_ns,
    )
    today = visit.now_ns // DAY_NS
    days: dict[int, dict[int, DayRuns]] = defaultdict(dict)
    for day in overview.days([each.row for each in found], today - STRIP_DAYS + 1):
        days[day.dataset][day.day] = day
    return Shown(
        "datasets.html",
        {
            "datasets": found,
            "more": found.more,
            "named": named,
            "state": state,
            "states": STATES,
            "after": after,
            "strips": {each.row: strip(days[each.row], today, STRIP_DAYS) for each in found},
            "badges": {each.name: badge_of(troubled.get(each.name)) for each in found},
        },
    )


def badge_of(troubled: Troubled | None) -> str:
    """Return in a word what is wrong with a dataset; empty for nothing."""
    return "" if troubled is None else CONCERNS[troubled.concern]
