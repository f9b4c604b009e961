"""`staddle runs`: attempts to back up, and how each of them ended."""

import datetime
from collections import Counter
from typing import Final

import click

from staddle import Run, RunOutcome
from staddle._base import figures
from staddle.command import json_output, text
from staddle.command.options import Session, at_most, between, command, limited
from staddle.command.tables import fit_columns

SHOWN: Final = 100


@command(
    "runs",
    "List attempts to back up, and how they ended.",
    "staddle runs",
    "staddle runs www --outcome failed --since 7d",
)
@click.argument("dataset", required=False)
@click.option(
    "--outcome",
    "outcomes",
    type=click.Choice([each.value for each in RunOutcome]),
    multiple=True,
    help="Only runs that ended so. Repeatable.",
)
@between("runs that began")
@limited("latest", SHOWN)
def runs(
    session: Session,
    dataset: str | None,
    *,
    outcomes: tuple[str, ...],
    since: datetime.datetime | None,
    until: datetime.datetime | None,
    limit: int,
) -> None:
    """List attempts to back up, the latest first: of all datasets, or of one.

    `running` is in progress; `done` made a backup, and `problems` one without what could not be read; `failed` says why; of an `abandoned`
    one, the client or the server stopped without a word.
    """
    output = session.output
    with session.connect() as client:
        found = client.runs(
            dataset or "",
            since=since,
            until=until,
            outcomes=outcomes,
        )
        listed, more = at_most(found, limit)
    if output.as_json:
        for run in listed:
            output.record(json_output.of_run(run))
    elif listed:
        show_runs(session, listed, of_one=dataset is not None)
    counts = Counter(run.outcome for run in listed)
    record = {"run_count": len(listed), "more": more, **{each.value: counts[each] for each in RunOutcome}}
    output.summary("runs", record, _summed_up(counts, more=more))


def show_runs(session: Session, listed: list[Run], *, of_one: bool) -> None:
    """Shows runs as a table that fits the terminal: names are cut, and what came of each."""
    named = () if of_one else ("DATASET",)
    heading = ("BEGAN", "TOOK", "OUTCOME", *named, "FROM", "WHAT")
    rows = [
        (
            text.minute(run.begin_time),
            took(run),
            run.outcome.value,
            *(() if of_one else (text.escaped(run.dataset),)),
            origin(run) if of_one else place(run),
            what(run),
        )
        for run in listed
    ]
    fitting = fit_columns([heading, *rows], session.output.width, names=range(3, 4 + len(named)))
    session.output.table(fitting[1:], heading=heading, right=frozenset({1}))


def origin(run: Run) -> str:
    """On which host it ran, and with which token."""
    return text.escaped(f"{run.host} ({run.principal})" if run.host else run.principal)


def place(run: Run) -> str:
    """On which host it ran; the token's name, if that is unknown."""
    return text.escaped(run.host or run.principal)


def took(run: Run) -> str:
    """How long it took; empty while it runs."""
    return "" if run.end_time is None else text.seconds((run.end_time - run.begin_time).total_seconds())


def what(run: Run) -> str:
    """What came of it: how much, or why not."""
    size = f"{figures.size(run.data_bytes)}, {figures.size(run.stored_bytes)} new"
    if run.outcome is RunOutcome.PROBLEMS:
        return f"{figures.counted(run.problem_count, 'path')} not read; {size}"
    if run.outcome is RunOutcome.DONE:
        return size
    if run.outcome is RunOutcome.RUNNING:
        return f"{figures.size(run.data_bytes)} so far"
    return text.escaped(run.reason) or "no reason known"


def _summed_up(counts: Counter[RunOutcome], *, more: bool) -> str:
    total = figures.counted(counts.total(), "run")
    if not counts:
        return "No runs."
    parts = ", ".join(f"{counts[each]:,} {each.value}" for each in RunOutcome if counts[each])
    return f"The latest {total}: {parts}; `-n 0` shows all." if more else f"{total}: {parts}."
