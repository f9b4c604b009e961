"""`staddle-server lock`."""

import json
import sys
import time
from typing import Final

import click
from staddle._base.figures import age, counted, duration

from staddle_server.app.bootstrap import open_rooms
from staddle_server.app.data_directory import DataDirectory
from staddle_server.app.store_place import ObjectStorePlace
from staddle_server.base.clock import NS
from staddle_server.catalog.tasks import TaskRun
from staddle_server.catalog.validation import rfc3339
from staddle_server.cli.options import unchecked_data_option
from staddle_server.cli.text import say
from staddle_server.store.blobs import FORMAT_NAME
from staddle_server.store.locks import ObjectLock, lock_of, unhide
from staddle_server.upkeep.integrity.hidden import hidden_objects, hidden_words
from staddle_server.upkeep.integrity.lock_standing import LockStanding, lock_standing

LATE: Final = 4
"""The exit code for locks that are extended late, and for hidden objects."""


@click.command()
@click.option("--unhide", "unhide_", is_flag=True, help="Remove delete markers from what backups need.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@unchecked_data_option
def lock(*, unhide_: bool, as_json: bool, data: DataDirectory) -> None:
    """Show until when the object lock protects the store of DIR.

    Also lists what somebody with the store's credentials has hidden by delete markers, as far as the catalog
    needs it. Runs beside a server. Exit codes: 0: all is well, or the store has no object lock; 4: it is not.
    """
    if unhide_:
        _unhide_format(data)
    data.require()
    with open_rooms(data, only_look=True) as rooms:
        locks = lock_of(rooms.blobs)
        if locks is None:
            _print_without(as_json=as_json)
            return
        hidden = list(hidden_objects(rooms.kept(), locks))
        shown = _unhidden(locks, hidden) if unhide_ else []
        standing = lock_standing(rooms.catalog, locks.span_s, locks.now_ns())
        if flaw := locks.flaw():
            standing = standing._replace(
                warnings=(*standing.warnings, f"the bucket cannot lock objects: {flaw}")
            )
    left = [name for name in hidden if name not in shown]
    if as_json:
        click.echo(json.dumps(_object(standing, left, shown)))
    else:
        _print(standing, left, shown)
    if left or standing.warnings:
        sys.exit(LATE)


def _unhide_format(data: DataDirectory) -> None:
    """Without its format a store cannot be opened."""
    if isinstance(data.place, ObjectStorePlace) and (locks := lock_of(data.place.open())) is not None:
        unhide(locks, FORMAT_NAME)


def _unhidden(locks: ObjectLock, hidden: list[str]) -> list[str]:
    return [name for name in hidden if unhide(locks, name)]


def _print_without(*, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"promise_seconds": 0}))
    else:
        say("The store has no object lock: whoever has its credentials can delete the backups.")


def _object(standing: LockStanding, hidden: list[str], shown: list[str]) -> dict[str, object]:
    return {
        "promise_seconds": standing.promise_s,
        "packs_until": _time(standing.packs_until_ns),
        "records_until": _time(standing.others_until_ns),
        "packs_task": _run(standing.packs),
        "records_task": _run(standing.others),
        "warnings": list(standing.warnings),
        "hidden": hidden,
        "unhidden": shown,
    }


def _run(run: TaskRun) -> dict[str, str]:
    return {"begun": _time(run.begun_ns), "ended": _time(run.ended_ns), "outcome": run.outcome}


def _time(at_ns: int | None) -> str:
    return "" if at_ns is None else rfc3339(at_ns)


def _print(standing: LockStanding, hidden: list[str], shown: list[str]) -> None:
    now_ns = time.time_ns()
    say(f"What backups need is locked for at least {duration(standing.promise_s)} at any time.")
    for what, until_ns, run in (
        ("Packs", standing.packs_until_ns, standing.packs),
        ("Keys and records", standing.others_until_ns, standing.others),
    ):
        until = "end not known yet" if until_ns is None else f"locked until {_day(until_ns)} or later"
        say(f"{what}: {until}; {_extended(run, now_ns)}.")
    if shown:
        say(f"{counted(len(shown), 'object is', 'objects are')} visible again. Run `staddle-server check`.")
    for warning in (*standing.warnings, *([hidden_words(hidden)] if hidden else ())):
        say(f"WARNING: {warning}.")


def _day(at_ns: int) -> str:
    return rfc3339(at_ns)[:10]


def _extended(run: TaskRun, now_ns: int) -> str:
    if run.begun_ns is None:
        return "no server has extended the locks yet"
    if run.ended_ns is None:
        return f"being extended since {rfc3339(run.begun_ns)[:19]}Z"
    return f"last extended {age(max(0, now_ns - run.begun_ns) / NS)} ago"
