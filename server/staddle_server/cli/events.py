"""`staddle-server events`."""

import json
from typing import Final

import click

from staddle_server.app.bootstrap import open_rooms
from staddle_server.app.data_directory import DataDirectory
from staddle_server.catalog import Event, EventFilter
from staddle_server.catalog.validation import rfc3339, utc_minute
from staddle_server.cli.options import data_option, json_option
from staddle_server.cli.text import say

SHOWN_MAX: Final = 10_000
MARGIN: Final = "    "


@click.command()
@click.option("--open", "only_open", is_flag=True, help="Only events that are not over.")
@click.option(
    "--last",
    type=click.IntRange(1, SHOWN_MAX),
    default=50,
    show_default=True,
    help="How many events to list.",
)
@data_option
@json_option
def events(*, only_open: bool, last: int, data: DataDirectory, as_json: bool) -> None:
    """List what the service found to be wrong, the newest event last.

    Past events are kept for 90 days. Runs beside a server.
    """
    with open_rooms(data, only_look=True) as rooms:
        shown = rooms.catalog.events.listed(last, EventFilter(open_only=only_open))
    for event in reversed(shown):
        if as_json:
            click.echo(json.dumps(_object(event)))
        else:
            _print(event)
    if not shown and not as_json:
        click.echo("No open event." if only_open else "No event.", err=True)


def _object(event: Event) -> dict[str, object]:
    key, alarm = event.alarm.key, event.alarm
    return {
        "id": event.id.hex(),
        "kind": key.kind,
        "severity": alarm.severity,
        "tenant": key.tenant,
        "server": key.server,
        "subject": key.subject,
        "text": alarm.text,
        "advice": alarm.advice,
        "since": rfc3339(alarm.since_ns or event.began_ns),
        "began": rfc3339(event.began_ns),
        "over": None if event.over_ns is None else rfc3339(event.over_ns),
    }


def _print(event: Event) -> None:
    alarm = event.alarm
    since = utc_minute(alarm.since_ns or event.began_ns)
    until = "open" if event.over_ns is None else f"over {utc_minute(event.over_ns)}"
    click.echo(f"{since}  {alarm.key.kind}, {alarm.severity}, {until}")
    say(f"{MARGIN}{alarm.text}")
    if event.over_ns is None:
        say(f"{MARGIN}{alarm.advice}")
