"""The page of one dataset: how it was over time, its backups, and what its policy will delete."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from staddle.v1 import service_pb2 as sv
from starlette.responses import RedirectResponse, Response

from staddle_server.api import convert
from staddle_server.api.http.pages.actions import done_words
from staddle_server.api.http.pages.datasets import badge_of
from staddle_server.api.http.pages.drawings import calendar
from staddle_server.api.http.pages.visit import Shown, Visit
from staddle_server.base.clock import DAY_NS, NS
from staddle_server.base.errors import BadRequest, Exhausted, NotFound, StaddleError
from staddle_server.catalog import (
    BackupPoint,
    DatasetLine,
    DatasetState,
    RunFilter,
    Troubled,
    protection_of,
)
from staddle_server.upkeep.lifecycle.retention import Policy, decode_policy

POINTS: Final = 180
"""Backups in the plots, the newest ones."""
BACKUPS: Final = 20
YEAR_DAYS: Final = 53 * 7
GOING_MAX: Final = 10
USUAL_OF: Final = 30
"""A backup is compared with so many before it."""
USUAL_MIN: Final = 7
SPREAD: Final = 3 * 1.4826
"""Three times the standard deviation, as the median deviation of a normal distribution estimates it."""
LEAST_SPREAD: Final = 0.1
"""A tenth of the median is nothing unusual, however even the backups before were."""


class Usual(NamedTuple):
    """The range in which a figure is usual after the figures before it; None where too few are known."""

    low: float | None
    high: float | None

    def is_outlier(self, value: float) -> bool:
        """Return whether a figure is outside."""
        return self.low is not None and self.high is not None and not self.low <= value <= self.high


class Going(NamedTuple):
    """What the policy deletes the next time that it is applied."""

    policy: str
    total: int
    damaged: int
    shown: Sequence[tuple[BackupPoint, str]]
    error: str


def usual(values: Sequence[float], place: int) -> Usual:
    """Return the usual range for the value at a place: the median of those before it, and their median deviation
    around it. One that is far off does not widen it.
    """
    before = values[max(0, place - USUAL_OF) : place]
    if len(before) < USUAL_MIN:
        return Usual(None, None)
    middle = statistics.median(before)
    spread = SPREAD * statistics.median(abs(value - middle) for value in before)
    wide = max(spread, LEAST_SPREAD * middle)
    return Usual(max(0.0, middle - wide), middle + wide)


def dataset_page(visit: Visit) -> Shown | Response:
    """Show one dataset; of one that only failed runs named, these runs."""
    name = convert.dataset_name(visit.query.get("name", ""))
    try:
        line = line_of(visit, name)
    except NotFound:
        # Raises NotFound too if there is no run of that name.
        visit.sources.runs.list_page(visit.principal, RunFilter(dataset=name), 1, None)
        return RedirectResponse(f"/runs?dataset={quote(name, safe='')}", 303)
    tenant, overview = visit.principal.tenant, visit.sources.catalog.overview
    points = overview.points(tenant, name, POINTS)
    today = visit.now_ns // DAY_NS
    days = {each.day: each for each in overview.days([line.row], today - YEAR_DAYS)}
    retention = visit.sources.catalog.retention.get(tenant, name)
    trouble = _trouble(visit, name)
    return Shown(
        "dataset.html",
        {
            "line": line,
            "done": done_words(visit),
            "trouble": trouble,
            "badge": badge_of(trouble),
            "calendar": calendar(days, today),
            "plots": plots(points),
            "retention": retention,
            "going": _going(visit, name, points),
            "freed": _freed(visit, name) if "freed" in visit.query else None,
            **_backups(visit, name),
        },
    )


def line_of(visit: Visit, name: str) -> DatasetLine:
    """Return a dataset. Raises NotFound."""
    found = visit.sources.catalog.overview.datasets(
        visit.principal.tenant,
        named="",
        state=DatasetState.ALL,
        names=[name],
        after_name="",
        limit=1,
        now_ns=visit.now_ns,
    )
    if not found:
        raise NotFound("DATASET_NOT_FOUND", f"Dataset {name!r} does not exist", dataset=name)
    return found[0]


def _trouble(visit: Visit, name: str) -> Troubled | None:
    troubled = visit.sources.runs.status(visit.principal).troubled
    return next((each for each in troubled if each.dataset == name), None)


def number_in(visit: Visit, field: str) -> int | None:
    """Return a number in the address; None for none. Raises BadRequest."""
    text = visit.query.get(field, "")
    if not text:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise BadRequest("BAD_FIELD", f"{field}: expected a number", field=field)
    return int(text)


def _backups(visit: Visit, name: str) -> dict[str, Any]:
    found = visit.sources.catalog.backups.list_page(
        visit.principal.tenant,
        name,
        limit=BACKUPS,
        before_number=number_in(visit, "before"),
        show_deleted=True,
    )
    return {
        "backups": found,
        "more": found.more,
        "protections": {each.id: protection_of(each, visit.now_ns) for each in found},
    }


# ---------------------------------------------------------------------- plots


class Column(NamedTuple):
    """A column of the table behind a plot. `role` says how it is drawn; "" for not at all."""

    title: str
    role: str = "line"


class Plot(NamedTuple):
    """A plot over time, and its table. `values` has a row for each backup, the oldest first."""

    id: str
    title: str
    unit: str
    columns: Sequence[Column]
    values: Sequence[Sequence[float | None]]
    note: str = ""
    rows: Sequence[tuple[int, Sequence[float | None]]] = ()

    def dated(self, times_ns: Sequence[int]) -> Plot:
        """Return it with the rows of its table: a time and its values, the newest first."""
        return self._replace(rows=list(zip(times_ns, self.values, strict=True))[::-1])


BAND: Final = (
    Column("This one"),
    Column("Usual from", "low"),
    Column("Usual to", "high"),
    Column("Unusual", "outlier"),
)
RATE_NOTE: Final = "What the backup holds, by the time that it took: carried over entries count, too."


def plots(points: Sequence[BackupPoint]) -> list[Plot]:
    """Return the plots of a dataset's backups, which are given oldest first."""
    seconds = [max(0.001, (each.commit_ns - each.begin_ns) / NS) for each in points]
    sums, total = [], 0
    for each in points:
        total += each.stored_bytes
        sums.append(total)
    times = [each.begin_ns for each in points]
    rates = [each.data_bytes / took for each, took in zip(points, seconds, strict=True)]
    made = [
        Plot(
            "new", "New bytes in the store", "bytes", BAND, _with_band([each.stored_bytes for each in points])
        ),
        Plot("took", "Duration", "seconds", BAND, _with_band(seconds)),
        Plot("entries", "Entries", "count", [Column("Entries")], [[each.entry_count] for each in points]),
        Plot("rate", "Rate", "bytes", [Column("Bytes a second")], [[rate] for rate in rates], RATE_NOTE),
        Plot(
            "sizes",
            "Logical against stored",
            "bytes",
            [Column("Logical"), Column("Stored by all shown")],
            [[each.data_bytes, stored] for each, stored in zip(points, sums, strict=True)],
        ),
    ]
    return [each.dated(times) for each in made]


def _with_band(values: Sequence[float]) -> list[list[float | None]]:
    """Return each value with its usual range, and once more if it is outside."""
    rows: list[list[float | None]] = []
    for place, value in enumerate(values):
        range_ = usual(values, place)
        rows.append([value, range_.low, range_.high, value if range_.is_outlier(value) else None])
    return rows


# ---------------------------------------------------------------------- retention


def _going(visit: Visit, name: str, points: Sequence[BackupPoint]) -> Going:
    """Return what the policy would delete now: the next run does."""
    tenant, policies = visit.principal.tenant, visit.sources.policies
    try:
        with policies.planning.of(tenant):
            made = policies.plan(tenant, name, visit.call.check)
    except Exhausted as error:
        return Going("", 0, 0, [], _busy(error))
    except StaddleError as error:
        return Going("", 0, 0, [], error.message)
    by_id = {each.id: each for each in points}
    shown = [
        (by_id[each.id], "; ".join(each.reasons)) for each in made.planned if each.goes and each.id in by_id
    ]
    policy = decode_policy(made.state.retention.policy)
    damaged = sum(each.damaged for each in made.planned)
    return Going(policy_words(policy), len(made.going), damaged, shown[:GOING_MAX], "")


def _busy(error: Exhausted) -> str:
    return f"The server is busy: {error.message}"


def policy_words(policy: Policy) -> str:
    """Return the rules of a policy as the options that set them; empty for none."""
    counts = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
    words = [
        f"--keep-{each} {getattr(policy, f'keep_{each}')}"
        for each in counts
        if getattr(policy, f"keep_{each}")
    ]
    if policy.keep_within_s:
        words.append(f"--keep-within {policy.keep_within_s // 3600}h")
    words += [f"--keep-tag {tag.key}" for tag in policy.keep_tags]
    return " ".join(words)


def _freed(visit: Visit, name: str) -> str | int:
    """Return how many bytes the deletion frees, or why that is unknown. Takes a call's share of plans."""
    request = sv.PlanRetentionRequest(dataset=name, page_size=1)
    try:
        answer = visit.methods["PlanRetention"].handler(request, visit.call)
    except Exhausted as error:
        return _busy(error)
    return int(answer.free_bytes) if answer.HasField("free_bytes") else str(answer.free_bytes_unknown)
