"""The page of the store: how full it is, what upkeep did, what was read again, servers, the second site, the lock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from staddle._base.figures import counted

from staddle_server.api.http.pages.dataset import Column, Plot
from staddle_server.api.http.pages.now import COPY_FAILED, damage_parts, failed_copy
from staddle_server.api.http.pages.visit import Shown, Visit
from staddle_server.base.clock import DAY_NS
from staddle_server.catalog.collection_runs import CollectionRun
from staddle_server.store.space import Free
from staddle_server.upkeep.events.forecast import days_left

FORECAST_DAYS: Final = 90
AGES_DAYS: Final = (1, 7, 30, 90)
SERVERS_MAX: Final = 100


class Disk(NamedTuple):
    """A disk of this server, with its past and its forecast."""

    free: Free
    days: float | None
    known_days: float
    plot: Plot


class Covered(NamedTuple):
    """Packs by when they were last read and checked."""

    title: str
    packs: int
    bytes: int
    part: float


class WaterfallStep(NamedTuple):
    """A step of a collection: so many packs and bytes, which are the part of all that was looked at that begins at
    `start`.
    """

    title: str
    packs: int
    bytes: int
    start: float
    part: float
    kind: str = ""


class CollectionLine(NamedTuple):
    """A collection, and its steps in order; none if it looked at nothing."""

    run: CollectionRun
    steps: Sequence[WaterfallStep]


def store_page(visit: Visit) -> Shown:
    """Show the store. What is about all tenants is for administrators."""
    sources = visit.sources
    tenant, overview = visit.principal.tenant, sources.catalog.overview
    stored, totals = overview.stored(tenant), overview.backups(tenant)
    row = sources.catalog.tenants.get(tenant)
    condition, failed = sources.conditions.of(tenant), failed_copy(visit)
    return Shown(
        "store.html",
        {
            "stored": stored,
            "totals": totals,
            "ratio": totals.data_bytes / stored.live_bytes if stored.live_bytes else None,
            "coverage": coverage(visit),
            "scrub_period_s": sources.scrub_period_s,
            "condition": condition,
            "damage": damage_parts(condition),
            "copy_failure": "" if failed is None else failed.outcome.removeprefix(COPY_FAILED),
            "servers": sources.catalog.servers.list_all()[:SERVERS_MAX],
            "gc_waits": row is not None and row.gc_waits,
            "gc_failure": "" if row is None else row.gc_failure,
            "collections": [
                CollectionLine(run, steps_of(run.figures)) for run in sources.catalog.collections.last(tenant)
            ],
            "forecast_days": FORECAST_DAYS,
            **(_of_service(visit) if visit.is_admin else {"disks": [], "tasks": [], "tasks_of": {}}),
        },
    )


def _of_service(visit: Visit) -> dict[str, Any]:
    space = visit.sources.space
    free = [] if space is None else space.free()
    disks = [_disk(visit, number, each) for number, each in enumerate(free)]
    catalog = visit.sources.catalog
    return {"disks": disks, "tasks": catalog.figures.tasks(), "tasks_of": catalog.servers.working().tasks}


def _disk(visit: Visit, number: int, free: Free) -> Disk:
    samples = visit.sources.catalog.space_samples.of(visit.sources.this_server(), free.path)
    past = [*(each for each in samples if each[0] <= visit.now_ns), (visit.now_ns, free.free_bytes)]
    by_day = {at_ns // DAY_NS: (at_ns, free_bytes) for at_ns, free_bytes in past}
    daily = [by_day[day] for day in sorted(by_day)]
    plot = Plot(
        f"disk-{number}",
        f"Free space of {free.path}",
        "bytes",
        [Column("Free"), Column("Kept free")],
        [[free_bytes, free.min_bytes] for _, free_bytes in daily],
    )
    known_days = (past[-1][0] - past[0][0]) / DAY_NS
    return Disk(free, days_left(past, free.min_bytes), known_days, plot.dated([at_ns for at_ns, _ in daily]))


def coverage(visit: Visit) -> list[Covered]:
    """Return how much was last read within some times, the most recent first."""
    found = visit.sources.catalog.overview.coverage(
        visit.principal.tenant, [visit.now_ns - days * DAY_NS for days in AGES_DAYS]
    )
    titles = ["Within a day", *(f"Within {counted(days, 'day')}" for days in AGES_DAYS[1:])]
    titles += [f"More than {counted(AGES_DAYS[-1], 'day')} ago", "Never since it was written"]
    total = sum(size for _, size in found) or 1
    return [
        Covered(title, packs, size, size / total)
        for title, (packs, size) in zip(titles, found, strict=True)
        if packs
    ]


def steps_of(figures: Mapping[str, int]) -> list[WaterfallStep]:
    """Return the steps of a collection: what was found dead is taken from what was looked at, down to what is left.

    What waits and what was freed were condemned by this collection or by earlier ones, so they stand beside.
    """
    packs, size = figures.get("packs_looked_at", 0), figures.get("bytes_looked_at", 0)
    dead_packs, dead = figures.get("packs_condemned", 0), figures.get("bytes_condemned", 0)
    old_packs, old = figures.get("packs_compacted", 0), figures.get("bytes_compacted", 0)
    new_packs, new = figures.get("packs_written", 0), figures.get("bytes_written", 0)
    waiting, freed = figures.get("bytes_waiting", 0), figures.get("bytes_freed", 0)
    whole = max(size, waiting, freed)
    if not whole:
        return []
    reached, saved = size - dead, max(0, old - new)
    found = [
        WaterfallStep("Looked at", packs, size, 0, size),
        WaterfallStep("Found dead, and condemned", dead_packs, dead, reached, dead, "taken"),
        WaterfallStep("Compacted away", old_packs, saved, reached - saved, saved, "taken"),
        WaterfallStep(
            "Left", packs - dead_packs - old_packs + new_packs, reached - saved, 0, reached - saved, "kept"
        ),
        WaterfallStep(
            "Waits for the end of its grace", figures.get("packs_waiting", 0), waiting, 0, waiting, "grace"
        ),
        WaterfallStep("Freed", figures.get("packs_reaped", 0), freed, 0, freed, "kept"),
    ]
    return [each._replace(start=each.start / whole, part=each.part / whole) for each in found]
