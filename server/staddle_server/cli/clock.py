"""`staddle-server clock`."""

import json
import sys

import click

from staddle_server.app.bootstrap import confirm_clock, open_rooms
from staddle_server.app.data_directory import DataDirectory
from staddle_server.base.clock import SystemClock
from staddle_server.catalog.validation import rfc3339
from staddle_server.cli.options import data_option
from staddle_server.tenancy.clock_guard import ClockGuard


@click.command()
@click.option("--confirm", is_flag=True, help="Confirm that the machine's clock is right now.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@data_option
def clock(*, confirm: bool, as_json: bool, data: DataDirectory) -> None:
    """Show whether the server trusts the machine's clock.

    While it does not, nothing is purged, expired, collected or deleted by policy. Runs beside a server. Exit
    codes: 0: it does; 3: it does not.
    """
    with open_rooms(data) as rooms:
        standing = confirm_clock(rooms) if confirm else ClockGuard(rooms.catalog, SystemClock()).look()
    in_doubt = bool(standing.jump_ns) and not confirm
    if as_json:
        shown = {
            "believed": not in_doubt,
            "clock": rfc3339(standing.wall_ns),
            "expected": rfc3339(standing.expected_ns),
            "jump_seconds": standing.jump_ns // 10**9,
            "believed_after_seconds": standing.left_ns // 10**9 if in_doubt else 0,
        }
        click.echo(json.dumps(shown))
    elif in_doubt:
        click.echo(f"In doubt: {standing.words}.")
    else:
        click.echo(f"Trusted: the clock says {rfc3339(standing.wall_ns)}.")
    if in_doubt:
        sys.exit(3)
