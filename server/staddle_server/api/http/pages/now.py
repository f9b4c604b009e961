"""The first page: whether all is well, what is not, and what runs."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from staddle._base.figures import counted, listed, size

from staddle_server.api.http.pages.history import is_shown
from staddle_server.api.http.pages.visit import Shown, Visit
from staddle_server.api.http.pages.words import span
from staddle_server.base.clock import DAY_NS, NS
from staddle_server.base.types import RunOutcome
from staddle_server.catalog import BackupRun, Concern, DatasetTotals, Event, RunFilter, Troubled
from staddle_server.catalog.replicas import ReplicaState
from staddle_server.catalog.servers import ServerState
from staddle_server.upkeep.condition import Condition
from staddle_server.upkeep.events import kinds
from staddle_server.upkeep.events.forecast import WINDOW_S, days_left
from staddle_server.upkeep.replication.lag import SiteLag

BAD_MAX: Final = 50
"""What is wrong beyond these is counted, and listed by `staddle status`."""
RUNNING_MAX: Final = 20
USUAL_OF: Final = 9
"""How long a backup usually takes is the median of so many."""
SOON_DAYS: Final = 14.0
SCRUBS_MAX: Final = 2
"""The scrub reads everything within its period: after so many, it does not keep up."""
OF_DATASETS: Final = frozenset({kinds.LATE.name, kinds.FAILED.name, kinds.PROBLEMS.name})
"""Kinds of alarms that `status` knows first, and in more detail."""
COPY_FAILED: Final = "failed: "
"""How the outcome of a copy to the second site begins that did not work."""
RANKS: Final = {"critical": 0, "late": 1, "failed": 2, "problems": 3, "warning": 4}


class Bad(NamedTuple):
    """Something that needs a human.

    Attributes:
        rank: What comes first; see RANKS.
        title: What is wrong.
        since_ns: Since when.
        facts: More about it, in sentences.
        error: The text of the error; empty for none.
        host: Where; empty if unknown.
        advice: What to do, in a sentence; empty where the command says it.
        commands: What helps, as words of a command each.
        trouble: The dataset that it is about; None for none.
        run: The run that failed; None for none.
        kind: The kind of the alarm that says it; empty for none.

    """

    rank: str
    title: str
    since_ns: int
    facts: Sequence[str] = ()
    error: str = ""
    host: str = ""
    advice: str = ""
    commands: Sequence[Sequence[str]] = ()
    trouble: Troubled | None = None
    run: BackupRun | None = None
    kind: str = ""

    @property
    def is_red(self) -> bool:
        """Whether data is not protected, or not safe, until somebody acts."""
        return self.rank in {"critical", "late", "failed"}


class Tile(NamedTuple):
    """One figure of the service. `state` is good, warning, bad or plain. `kinds` are of alarms that say that it is
    bad.
    """

    title: str
    value: str
    state: str
    notes: Sequence[str] = ()
    since_ns: int | None = None
    link: str = ""
    kinds: Sequence[str] = ()


class Running(NamedTuple):
    """A run in progress, and the server that receives it, where there are several. `part` and `left_s` are None where
    nothing is known to compare with.
    """

    run: BackupRun
    server: str
    seconds: float
    rate_bytes_s: float
    part: float | None
    usual_s: float | None
    left_s: float | None


def now_page(visit: Visit) -> Shown:
    """Show what is wrong now, and what runs."""
    status = visit.sources.runs.status(visit.principal)
    tiles = [_store(visit), _service(visit), _damage(visit), _unread(visit), _keys(visit)]
    events = list(_of_events(visit))
    bad = sorted(
        [
            *map(_of_dataset, status.troubled),
            *events,
            *_of_far_places(visit, events),
            *_of_tiles(tiles, events, visit.now_ns),
        ],
        key=lambda each: (RANKS[each.rank], each.since_ns),
    )
    running = list(_running(visit))
    return Shown(
        "now.html",
        {
            "headline": headline(status.totals, status.troubled, bad, visit.now_ns),
            "totals": status.totals,
            "bad": bad[:BAD_MAX],
            "more": len(bad) - BAD_MAX,
            "is_red": any(each.is_red for each in bad),
            "tiles": tiles,
            "running": running,
        },
    )


def headline(totals: DatasetTotals, troubled: Sequence[Troubled], bad: Sequence[Bad], now_ns: int) -> str:
    """Return the state of everything in one sentence."""
    others = len(bad) - len(troubled)
    if not totals.datasets and not bad:
        return "Nothing is backed up yet."
    parts = []
    if troubled:
        parts.append(f"{len(troubled):,} of {counted(totals.datasets, 'dataset')}")
    if others:
        parts.append(counted(others, "other thing" if troubled else "thing"))
    if parts:
        need = "needs" if len(troubled) + others == 1 else "need"
        return f"{listed(parts)} {need} you."
    datasets = counted(totals.datasets, "dataset")
    all_are = "The dataset is" if totals.datasets == 1 else f"All {datasets} are"
    if not totals.oldest_success_ns:
        return "No dataset has a backup yet."
    oldest = span((now_ns - totals.oldest_success_ns) / NS)
    # Of one without an expectation nobody said how old its newest backup may be; a muted one may be late.
    is_known = totals.expected == totals.datasets and not totals.muted
    state = f"{all_are} safe" if is_known else "Nothing needs you"
    return f"{state}; the oldest success is {oldest} ago."


# ---------------------------------------------------------------------- what is wrong


def _of_dataset(found: Troubled) -> Bad:
    rank = {Concern.LATE: "late", Concern.FAILED: "failed", Concern.PROBLEMS: "problems"}[found.concern]
    title = {
        "late": f"{found.dataset} is late",
        "failed": f"The last backup of {found.dataset} failed",
        "problems": f"The newest backup of {found.dataset} is incomplete",
    }[rank]
    run = found.run
    facts = []
    if run is not None and run.outcome is RunOutcome.ABANDONED:
        facts.append("The last attempt was abandoned: its client or its server was gone.")
    if run is not None and run.outcome is RunOutcome.PROBLEMS:
        facts.append(f"{counted(run.problem_count, 'entry', 'entries')} could not be read.")
    return Bad(
        rank,
        title,
        found.since_ns,
        facts,
        "" if run is None else run.reason,
        "" if run is None else run.host,
        "" if run is not None else "No attempt is known since: check that its client still runs.",
        [("staddle", "runs", found.dataset)],
        found,
        run,
    )


def _of_events(visit: Visit) -> Iterator[Bad]:
    """Yield the open events that are not about one dataset: the tenant's, and for an administrator the service's."""
    for event in visit.sources.catalog.events.open(visit.now_ns).events:
        alarm = event.alarm
        if event.absent_ns is not None or not is_shown(visit, event) or alarm.key.kind in OF_DATASETS:
            continue
        advice = alarm.advice if visit.is_admin else ""
        yield Bad(alarm.severity, alarm.text, _since(event), advice=advice, kind=alarm.key.kind)
    if not visit.sources.events_work():
        yield Bad(
            "warning",
            "This server cannot tell whether something new is wrong",
            visit.now_ns,
            ["its watch for events fails: the list may lack something"],
            advice="Its log says why." if visit.is_admin else "",
        )


def _of_far_places(visit: Visit, events: Sequence[Bad]) -> Iterator[Bad]:
    """Yield, for an administrator, what does not reach another place now and is no alarm yet: these wait a while."""
    if not visit.is_admin:
        return
    known = {each.kind for each in events}
    catalog = visit.sources.catalog
    place = failed_copy(visit) if kinds.SECOND_SITE.name not in known else None
    if place is not None:
        yield Bad(
            "warning",
            f"The second site {place.place} cannot be copied to",
            place.whole_ns or place.begun_ns or visit.now_ns,
            ["What is decided from now on is not there; backups and restores work."],
            place.outcome.removeprefix(COPY_FAILED),
            commands=[("staddle-server", "replicate", "--status", "--data", "DIR")],
        )
    states = catalog.deliveries.states() if kinds.TARGET.name not in known else {}
    for name in sorted(visit.sources.targets() & states.keys()):
        state = states[name]
        if state.failing_ns is not None:
            facts = [f"{counted(state.pending, 'message waits', 'messages wait')} for it."]
            commands = [("staddle-server", "notify", "test", name, "--data", "DIR")]
            title = f"The notification target {name} cannot be reached"
            yield Bad("warning", title, state.failing_ns, facts, state.error, commands=commands)


def _of_tiles(tiles: Sequence[Tile], events: Sequence[Bad], now_ns: int) -> Iterator[Bad]:
    """Yield what a tile says is bad and no event does: it may be newer than the last look for events, or one that
    only administrators see.
    """
    known = {each.kind for each in events}
    for tile in tiles:
        if tile.state == "bad" and known.isdisjoint(tile.kinds):
            yield Bad("critical", f"{tile.title}: {tile.value}", tile.since_ns or now_ns, tile.notes)


def _since(event: Event) -> int:
    return event.began_ns if event.alarm.since_ns is None else event.alarm.since_ns


# ---------------------------------------------------------------------- the tiles


def _store(visit: Visit) -> Tile:
    sources = visit.sources
    stored = sources.catalog.overview.stored(visit.principal.tenant)
    packs = counted(stored.packs, "pack")
    if sources.space is None or not visit.is_admin or not (free := sources.space.free()):
        value = f"{size(stored.live_bytes)} stored"
        return Tile("Store", value, "plain", [f"in {packs}"], visit.now_ns, "/store")
    notes = [f"{size(stored.live_bytes)} stored, in {packs}"]
    least = min(free, key=lambda each: each.free_bytes - each.min_bytes)
    samples = sources.catalog.space_samples.of(sources.this_server(), least.path)
    past = [sample for sample in samples if sample[0] <= visit.now_ns]
    days = days_left([*past, (visit.now_ns, least.free_bytes)], least.min_bytes)
    if days is not None:
        notes.append(
            f"full in about {counted(round(days), 'day')}, as it filled in the last {span(WINDOW_S)}"
        )
    else:
        notes.append(
            "not filling up" if len(past) > 1 and _covers(past) else "no forecast yet: it takes 3 days"
        )
    is_short = sources.space.flaw() is not None
    state = "bad" if is_short else "warning" if days is not None and days < SOON_DAYS else "good"
    value, alarms = f"{size(least.free_bytes)} free", (kinds.DISK.name, kinds.RESTORE_ONLY.name)
    return Tile("Store", value, state, notes, visit.now_ns, "/store", alarms)


def _covers(samples: Sequence[tuple[int, int]]) -> bool:
    return samples[-1][0] - samples[0][0] >= 3 * DAY_NS


def _service(visit: Visit) -> Tile:
    condition = visit.sources.conditions.of(visit.principal.tenant)
    notes = []
    clock = condition.clock
    if clock is not None and clock.jump_ns:
        notes.append("its clock jumped: nothing is purged, expired or deleted by policy")
    if condition.lock is not None:
        notes.append(
            "the object lock is late" if condition.lock.warnings else "the object lock is extended in time"
        )
    if condition.site is not None:
        notes.append(_site_words(visit, condition.site))
    notes += _servers(visit)
    if not condition.takes_backups:
        return Tile(
            "Service",
            "Restore-only",
            "bad",
            ["backups are refused; restores work", *notes],
            visit.now_ns,
            kinds=(kinds.RESTORE_ONLY.name, kinds.STORE.name),
        )
    return Tile(
        "Service",
        "Serving",
        "warning" if clock is not None and clock.jump_ns else "good",
        notes or ["backups and restores work"],
        visit.now_ns,
        "/store" if visit.sources.this_server() else "",
    )


def _site_words(visit: Visit, site: SiteLag) -> str:
    if failed_copy(visit) is not None:
        return "copying to the second site fails"
    if site.lag_s is None:
        return "the copy at the second site was never whole"
    if site.warning:
        return f"the second site is {span(site.lag_s)} behind"
    return "the second site is up to date"


def failed_copy(visit: Visit) -> ReplicaState | None:
    """Return the second site if the last copy there failed."""
    site = visit.sources.conditions.of(visit.principal.tenant).site
    state = None if site is None else visit.sources.catalog.replicas.get(site.place)
    return state if state is not None and state.outcome.startswith(COPY_FAILED) else None


def _servers(visit: Visit) -> Iterator[str]:
    """Yield what there is to say of several servers: how many there are, by their state."""
    if visit.sources.this_server():
        states = Counter(each.state for each in visit.sources.catalog.servers.list_all())
        parts = [f"{states[state]:,} {state.value}" for state in ServerState if states[state]]
        yield f"{counted(states.total(), 'server')}: {', '.join(parts)}"


def damage_parts(condition: Condition) -> list[str]:
    """Return in words what is known to be damaged or missing."""
    damage, lost = condition.damage, condition.lost
    return [
        counted(number, one)
        for number, one in (
            (damage.packs, "damaged pack"),
            (damage.segments, "damaged segment"),
            (damage.footers, "damaged footer"),
            (lost.missing, "missing object"),
            (lost.hidden, "hidden object"),
        )
        if number
    ]


def _damage(visit: Visit) -> Tile:
    parts = damage_parts(visit.sources.conditions.of(visit.principal.tenant))
    if parts:
        return Tile(
            "Damage",
            parts[0].capitalize(),
            "bad",
            [*parts[1:], "`staddle-server check` names the files"],
            visit.now_ns,
            kinds=(kinds.DAMAGE.name,),
        )
    return Tile("Damage", "None known", "good", ["all that was read is whole"], visit.now_ns)


def _unread(visit: Visit) -> Tile:
    stored = visit.sources.catalog.overview.stored(visit.principal.tenant)
    if stored.unread_ns is None:
        return Tile("Oldest unread byte", "Nothing stored", "plain")
    seconds = max(0.0, (visit.now_ns - stored.unread_ns) / NS)
    notes = ["since a byte was last read and checked, or written"]
    if stored.unread:
        notes.append(f"{counted(stored.unread, 'pack')} not read since written")
    period_s = visit.sources.scrub_period_s
    if not period_s:
        notes.append("the scrub is off")
    state = "warning" if period_s and seconds > SCRUBS_MAX * period_s else "good" if period_s else "plain"
    return Tile("Oldest unread byte", span(seconds), state, notes, stored.unread_ns, "/store")


def _keys(visit: Visit) -> Tile:
    ends = []
    tokens = [
        token
        for token in visit.sources.catalog.tokens.list_all(visit.principal.tenant)
        if token.revoked_ns is None and token.expires_ns is not None and token.expires_ns > visit.now_ns
    ]
    if visit.sources.certificate_ends is not None:
        ends.append(("certificate", visit.sources.certificate_ends() * NS))
    if tokens and visit.is_admin:
        token = min(tokens, key=lambda each: each.expires_ns or 0)
        ends.append((f"token {token.name}", float(token.expires_ns or 0)))
    link = "/access" if visit.is_admin else ""
    if not ends:
        notes = ["no certificate: this listener has no TLS"]
        return Tile("Keys and certificates", "None ends", "plain", notes, visit.now_ns, link)
    what, at_ns = min(ends, key=lambda each: each[1])
    left_s = (at_ns - visit.now_ns) / NS
    state = "bad" if left_s <= 0 else "warning" if left_s < SOON_DAYS * 86_400 else "good"
    value = f"{span(left_s)} left" if left_s > 0 else "Ended"
    alarms = (kinds.CERTIFICATE.name, kinds.TOKEN.name)
    return Tile(
        "Keys and certificates", value, state, [f"the first to end: {what}"], visit.now_ns, link, alarms
    )


# ---------------------------------------------------------------------- what runs


def _running(visit: Visit) -> Iterator[Running]:
    asked = RunFilter(outcomes=frozenset({RunOutcome.RUNNING}))
    usual: dict[str, float | None] = {}
    runs = visit.sources.runs.list_page(visit.principal, asked, RUNNING_MAX, None)
    overview = visit.sources.catalog.overview
    servers = overview.receivers([run.id for run in runs]) if visit.sources.this_server() else {}
    for run in runs:
        if run.dataset not in usual:
            usual[run.dataset] = _usual_s(visit, run.dataset)
        seconds = max(0.001, (visit.now_ns - run.begin_ns) / NS)
        takes_s = usual[run.dataset]
        left_s = None if takes_s is None or takes_s < seconds else takes_s - seconds
        part = None if takes_s is None else min(seconds / max(takes_s, 0.001), 1.0)
        yield Running(run, servers.get(run.id, ""), seconds, run.data_bytes / seconds, part, takes_s, left_s)


def _usual_s(visit: Visit, dataset: str) -> float | None:
    took = visit.sources.catalog.overview.durations_s(visit.principal.tenant, dataset, USUAL_OF)
    return statistics.median(took) if took else None
