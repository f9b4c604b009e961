"""`staddle events`: what the service found to be wrong, and whether it still is."""

import datetime
from typing import Final

import click

from staddle import Event
from staddle._base import figures
from staddle.command import json_output, text
from staddle.command.options import Session, at_most, between, command, limited
from staddle.command.output import Output

SHOWN: Final = 20
MARGIN: Final = "    "


@command(
    "events",
    "List what the service found to be wrong.",
    "staddle events",
    "staddle events --open",
    "staddle events www --kind late --since 30d",
)
@click.argument("dataset", required=False)
@click.option("--open", "open_only", is_flag=True, help="Only what is not over.")
@click.option(
    "--kind", "kinds", metavar="KIND", multiple=True, help="Only events of KIND, such as `late`. Repeatable."
)
@between("events that were found")
@limited("newest", SHOWN)
def events(
    session: Session,
    dataset: str | None,
    *,
    open_only: bool,
    kinds: tuple[str, ...],
    since: datetime.datetime | None,
    until: datetime.datetime | None,
    limit: int,
) -> None:
    """List what the service found to be wrong, the newest first: about all datasets, or about one.

    An event is open until nothing is wrong any more. With an administrator's token, events of the service itself are listed too, and what
    to do about each.
    """
    output = session.output
    with session.connect() as client:
        found = client.events(dataset or "", since=since, until=until, kinds=kinds, open_only=open_only)
        listed, more = at_most(found, limit)
    for event in listed:
        if output.as_json:
            output.record(json_output.of_event(event))
        else:
            _show(output, event)
    still_open = sum(event.over_time is None for event in listed)
    record = {"event_count": len(listed), "open_count": still_open, "more": more}
    output.summary("events", record, _summed_up(len(listed), still_open, more=more, open_only=open_only))


def _show(output: Output, event: Event) -> None:
    over = "open" if event.over_time is None else f"over {text.minute(event.over_time)}"
    severity = event.severity.value
    output.line(f"{text.minute(event.since_time)}  {text.one_line(event.kind)}, {severity}, {over}")
    output.line(f"{MARGIN}{text.one_line(event.text)}")
    if event.advice and event.over_time is None:
        output.line(f"{MARGIN}{text.one_line(event.advice)}")


def _summed_up(listed: int, still_open: int, *, more: bool, open_only: bool) -> str:
    if not listed:
        return "No open events." if open_only else "No events."
    state = "open" if still_open == listed else f"{still_open:,} open, {listed - still_open:,} over"
    total = figures.counted(listed, "event")
    return f"The newest {total}: {state}; `-n 0` shows all." if more else f"{total}: {state}."
