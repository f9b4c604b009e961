"""What `staddle info` says of the condition of a server."""

import datetime
from collections.abc import Iterator

from staddle import SecondSite, ServerCondition, StoreLock
from staddle._base.figures import age, counted, duration, size
from staddle.command import text

CHECK = "`staddle-server check` lists it, and how to repair it"


def rows(condition: ServerCondition) -> Iterator[tuple[str, str]]:
    """What protects the store besides itself, if anything does."""
    if condition.lock is not None:
        yield "object lock", _lock(condition.lock)
    if condition.second_site is not None:
        yield "second site", _second_site(condition.second_site)


def warnings(condition: ServerCondition) -> Iterator[str]:
    """What an operator should look at, a sentence each."""
    if not condition.takes_backups:
        yield "the server restores and takes no backups: `staddle-server health` says why"
    if condition.clock_in_doubt:
        yield (
            f"the server does not trust its clock, which jumped by {text.length(abs(condition.clock_jump))}: it purges, expires and "
            "deletes nothing. `staddle-server clock` says more"
        )
    damage = [
        counted(number, noun)
        for number, noun in (
            (condition.damaged_packs, "pack"),
            (condition.damaged_segments, "segment"),
            (condition.damaged_footers, "footer"),
        )
        if number
    ]
    if damage:
        yield f"stored data is damaged ({', '.join(damage)}): {CHECK}"
    if condition.hidden_objects:
        yield (
            f"somebody has hidden {counted(condition.hidden_objects, 'object')} in the store, which object lock keeps: "
            "`staddle-server lock` lists them, and says what to do"
        )
    elif condition.missing_objects:
        yield f"{counted(condition.missing_objects, 'record or key is', 'records or keys are')} missing in the store: {CHECK}"
    if condition.lock is not None and condition.lock.late:
        yield "the object lock is not extended in time: `staddle-server lock` says why"
    if condition.second_site is not None and condition.second_site.late:
        yield "the copy at the second site is too far behind: `staddle-server replicate --status` says more"
    yield from (text.escaped(words.removesuffix(".")) for words in condition.warnings)


def _lock(lock: StoreLock) -> str:
    ends = [each for each in (lock.packs_until, lock.records_until) if each is not None]
    until = f"; now until {_day(min(ends))} or later" if ends else ""
    return f"at least {duration(lock.promise.total_seconds())}{until}"


def _day(moment: datetime.datetime) -> str:
    return text.local(moment)[:10]


def _second_site(site: SecondSite) -> str:
    if site.lag is None:
        return f"not complete yet{f', {size(site.bytes_behind)} missing' if site.bytes_behind else ''}"
    if not site.lag:
        return "complete"
    return f"{age(site.lag.total_seconds())} behind, {size(site.bytes_behind)} missing"
