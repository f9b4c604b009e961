"""`staddle-server replicate`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Final

import click
from staddle._base.figures import counted, listed, size, size_bytes
from staddle._base.figures import duration as in_words

from staddle_server.app.bootstrap import Rooms, open_rooms
from staddle_server.app.data_directory import DataDirectory
from staddle_server.app.second_site import SecondSite
from staddle_server.app.settings import SettingsError, parse_site
from staddle_server.app.signals import asked_to_stop
from staddle_server.base.clock import NS
from staddle_server.base.errors import StaddleError
from staddle_server.base.limits import KIB, REPLICA_GRACE_S
from staddle_server.catalog.replicas import ReplicaState
from staddle_server.catalog.validation import rfc3339
from staddle_server.cli.options import data_option, duration, json_option, print_rows
from staddle_server.cli.text import Line, say
from staddle_server.upkeep.replication.run import Replication, ReplicationPlan, ReplicationProgress
from staddle_server.upkeep.replication.site import ReplicationReport

LOOK_S: Final = 0.2
RATE_BYTES_MIN: Final = 64 * KIB


@click.command()
@click.option("--to", metavar="PLACE", help="Where to: a directory, or the URL of an object store.")
@click.option("--verify", is_flag=True, help="Read back every byte, also of what is there already.")
@click.option("--every", metavar="DURATION", help="Do not end, and copy what is new this often.")
@click.option("--rate", metavar="SIZE", help="How many bytes per second to send at most.")
@click.option(
    "--grace",
    metavar="DURATION",
    default=in_words(REPLICA_GRACE_S),
    show_default=True,
    help="How long an object stays there after it is gone here.",
)
@click.option("--status", is_flag=True, help="List the places, and how far each is behind. Copies nothing.")
@click.option("--forget", is_flag=True, help="Forget what is known of a place that is given up.")
@data_option
@json_option
def replicate(
    *,
    to: str | None,
    verify: bool,
    every: str | None,
    rate: str | None,
    grace: str,
    status: bool,
    forget: bool,
    data: DataDirectory,
    as_json: bool,
) -> None:
    """Copy the store to another place.

    Copies what is new since the last time, records last: a rebuild there finds every backup whose record has
    arrived. Runs beside a server, resumes after any interruption, and removes there what has been gone here
    for --grace. Exit codes: 0: everything is there; 1: something could not be copied, and is listed.
    """
    pause_s = None if every is None else duration("--every", every)
    plan = ReplicationPlan(
        bytes_per_s=_rate(rate), grace_s=duration("--grace", grace), verify=verify, look=every is None
    )
    if status:
        with open_rooms(data, only_look=True) as rooms:
            _print_states(rooms, as_json=as_json)
        return
    site = SecondSite(data, _place(to), os.environ)
    if forget:
        with open_rooms(data) as rooms:
            known = rooms.catalog.replicas.forget(site.name)
        say(f"{site.name} is forgotten; what is there stays." if known else f"{site.name} was not known.")
        return
    with open_rooms(data) as rooms, Line() as line, asked_to_stop() as stopping:
        printer = _Printer(line, as_json=as_json)
        replication = Replication(rooms.kept(), site, plan, show=printer.show)
        right = _run(replication, printer, stopping, pause_s)
    if not right:
        sys.exit(1)


def _run(
    replication: Replication, printer: _Printer, stopping: Callable[[], bool], pause_s: float | None
) -> bool:
    """Run once or, with a pause, until a signal says stop; return whether the last run copied everything."""
    while True:
        printer.begin()
        try:
            report = replication.run(stopping)
        except StaddleError as error:
            if pause_s is None:
                raise
            printer.failed(error)
            right = False
        else:
            printer.report(report, quiet=pause_s is not None)
            right = not report.problem_count and (not report.stopped or pause_s is not None)
        if pause_s is None:
            return right
        due_s = time.monotonic() + pause_s
        while time.monotonic() < due_s and not stopping():
            time.sleep(LOOK_S)
        if stopping():
            return right


def _place(to: str | None) -> str:
    if not to:
        raise SettingsError("name the second place: --to PLACE")
    try:
        return parse_site(os.path.abspath(to) if "://" not in to else to)
    except ValueError as error:
        raise SettingsError(f"--to is not a place for a store: {error}") from error


def _rate(text: str | None) -> float:
    if text is None:
        return 0
    try:
        return size_bytes(text, RATE_BYTES_MIN)
    except ValueError as error:
        raise SettingsError(f"--rate is {text!r}: {error}") from error


class _Printer:
    """Prints progress, and what each run did."""

    def __init__(self, line: Line, *, as_json: bool) -> None:
        self._line = line
        self._as_json = as_json
        self._begun_s = 0.0

    def begin(self) -> None:
        self._begun_s = time.monotonic()

    def show(self, progress: ReplicationProgress) -> None:
        rate = progress.bytes_sent / max(0.1, time.monotonic() - self._begun_s)
        self._line.show(
            f"{progress.packs:,} of {counted(max(progress.packs, progress.packs_total), 'pack')}, "
            f"{size(progress.bytes_sent)} of {size(max(progress.bytes_sent, progress.bytes_total))}, {size(int(rate))}/s"
        )

    def failed(self, error: StaddleError) -> None:
        self._line.clear()
        say(f"Failed, and tried again later: {error.message}", err=True)

    def report(self, report: ReplicationReport, *, quiet: bool) -> None:
        """Print what a run did; `quiet`: nothing if it did nothing."""
        self._line.clear()
        seconds = time.monotonic() - self._begun_s
        if self._as_json:
            click.echo(json.dumps(_as_json(report, seconds)))
            return
        if not (quiet and not (report.objects or report.removed or report.problem_count)):
            _tell(report, seconds)


def _as_json(report: ReplicationReport, seconds: float) -> dict[str, object]:
    problems = [{"what": each.what, "message": each.message} for each in report.problems]
    whole = rfc3339(report.whole_ns) if report.whole_ns else ""
    figures = {key: value for key, value in asdict(report).items() if key != "whole_ns"}
    return {**figures, "problems": problems, "whole_time": whole, "seconds": round(seconds, 3)}


def _tell(report: ReplicationReport, seconds: float) -> None:
    for problem in report.problems:
        say(f"PROBLEM: {problem.message}")
    if report.problem_count > len(report.problems):
        say(f"… and {report.problem_count - len(report.problems):,} more")
    for note in report.notes:
        say(f"Note: {note}.")
    rate = f", {size(int(report.bytes_sent / max(seconds, 0.001)))}/s" if report.bytes_sent else ""
    say(f"Copied {_what(report)} to {report.place}: {size(report.bytes_sent)} in {seconds:.1f} s{rate}.")
    for count, one, many in (
        (report.there, "pack was there already", "packs were there already"),
        (
            report.missing,
            "pack had been copied before, and was missing there",
            "packs had been copied before, and were missing there",
        ),
        (report.verified, "pack was read there, and is intact", "packs were read there, and are intact"),
    ):
        if count:
            say(f"{counted(count, one, many)}.")
    if report.removed or report.waiting:
        say(
            f"Removed there: {counted(report.removed, 'object')}; {report.waiting:,} more are gone here, and wait for the grace "
            "period."
        )
    if report.stopped:
        say("Interrupted: what was copied stays, and the next run continues.")
    elif report.whole_ns:
        say(f"Everything decided before {rfc3339(report.whole_ns)} is there.")
    else:
        say(f"{counted(report.problem_count, 'problem')}: the place is not whole.")


def _what(report: ReplicationReport) -> str:
    kinds = (
        (report.packs, "pack"),
        (report.records, "record"),
        (report.keys, "keys object"),
        (report.parities, "parity object"),
    )
    return listed([counted(count, one) for count, one in kinds if count]) or "nothing new"


def _print_states(rooms: Rooms, *, as_json: bool) -> None:
    now_ns = time.time_ns()
    replicas = rooms.catalog.replicas
    rows = [
        _row(state, now_ns, copying=bool(replicas.lease(state.place).holder(now_ns)))
        for state in replicas.list_all()
    ]
    print_rows(rows, as_json=as_json, empty="The store is copied to no other place.")


def _row(state: ReplicaState, now_ns: int, *, copying: bool) -> dict[str, str]:
    return {
        "place": state.place,
        "state": "copying" if copying else "idle",
        "whole": "-" if state.whole_ns is None else rfc3339(state.whole_ns)[:19] + "Z",
        "lag": _lag(state, now_ns),
        "behind": size(state.bytes_behind),
        "outcome": state.outcome or "-",
    }


def _lag(state: ReplicaState, now_ns: int) -> str:
    if state.is_whole:
        return "0s"
    return "-" if state.whole_ns is None else in_words(max(0, (now_ns - state.whole_ns) // NS))
