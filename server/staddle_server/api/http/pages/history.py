"""The pages of what happened: attempts to back up, and events."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlencode

from staddle_server.api import convert
from staddle_server.api.convert_events import shown_to
from staddle_server.api.http.pages.visit import Shown, Visit
from staddle_server.base.errors import BadRequest
from staddle_server.base.limits import DATASET_BYTES_MAX
from staddle_server.base.types import RunOutcome
from staddle_server.catalog import Event, RunFilter
from staddle_server.manifest.entries import I64_MAX
from staddle_server.upkeep.events.kinds import KINDS

RUNS: Final = 50
EVENTS: Final = 100
EVENTS_READ_MAX: Final = 2000
"""The newest events, among which those that are open are shown first."""
OUTCOMES: Final = {"": "All"} | {
    outcome.name.lower(): title
    for outcome, title in (
        (RunOutcome.RUNNING, "Running"),
        (RunOutcome.DONE, "Done"),
        (RunOutcome.PROBLEMS, "Incomplete"),
        (RunOutcome.FAILED, "Failed"),
        (RunOutcome.ABANDONED, "Abandoned"),
    )
}


def runs_page(visit: Visit) -> Shown:
    """Show attempts to back up, the latest first."""
    dataset, outcome = visit.query.get("dataset", ""), visit.query.get("outcome", "")
    convert.words(dataset, "dataset", DATASET_BYTES_MAX)
    if outcome not in OUTCOMES:
        raise BadRequest("BAD_FIELD", f"There is no outcome {outcome[:40]!r}", field="outcome")
    wanted = frozenset({RunOutcome[outcome.upper()]}) if outcome else frozenset[RunOutcome]()
    before = _position(visit.query.get("before", ""))
    found = visit.sources.runs.list_page(
        visit.principal, RunFilter(dataset=dataset, outcomes=wanted), RUNS, before
    )
    filters = {"dataset": dataset, "outcome": outcome}
    following = ""
    if found.more:
        following = urlencode(filters | {"before": f"{found[-1].begin_ns}.{found[-1].id.hex()}"})
    return Shown(
        "runs.html",
        {
            "runs": found,
            "dataset": dataset,
            "outcome": outcome,
            "outcomes": OUTCOMES,
            "is_first": before is None,
            "here_again": f"/runs?{urlencode(filters)}",
            "following": following,
        },
    )


def _position(text: str) -> tuple[int, bytes] | None:
    """Return the begin and the id of a run, as the link to older ones has them. Raises BadRequest."""
    if not text:
        return None
    begin, _, id_ = text.partition(".")
    try:
        if len(begin) > 19 or not begin.isascii() or not begin.isdecimal() or int(begin) > I64_MAX:
            raise ValueError(begin)
        return int(begin), bytes.fromhex(id_)
    except ValueError:
        raise BadRequest(
            "BAD_FIELD", "before: expected what the link to older runs has", field="before"
        ) from None


def events_page(visit: Visit) -> Shown:
    """Show events: those that are open, then those that are over, the newest first."""
    found = visit.sources.catalog.events.listed(EVENTS_READ_MAX, shown_to(visit.call))
    ordered = sorted(found, key=lambda each: each.over_ns is not None)
    return Shown(
        "events.html",
        {
            "events": ordered[:EVENTS],
            "more": max(0, len(ordered) - EVENTS),
            "titles": {name: kind.begins for name, kind in KINDS.items()},
        },
    )


def is_shown(visit: Visit, event: Event) -> bool:
    """Return whether somebody may see an event: of their tenant, and as an administrator of the service and of tokens."""
    key, shown = event.alarm.key, shown_to(visit.call)
    return key.tenant in shown.tenants and key.kind not in shown.hidden_kinds
