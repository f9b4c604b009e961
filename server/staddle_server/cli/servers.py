"""`staddle-server servers`."""

from typing import Final

import click
from staddle._base.figures import age, counted

from staddle_server.app.bootstrap import open_rooms
from staddle_server.app.data_directory import DataDirectory
from staddle_server.base.clock import NS
from staddle_server.catalog import Server, Working
from staddle_server.catalog.validation import rfc3339
from staddle_server.cli.options import data_option, json_option, print_rows

COLUMNS: Final = 80
NAME_CHARS_MIN: Final = 8
"""A host's name is cut to what the other columns leave, but not below this."""


@click.command()
@data_option
@json_option
def servers(*, data: DataDirectory, as_json: bool) -> None:
    """List the servers that use the catalog of DIR.

    A server that has been silent for 20 s is dead, and is forgotten after a day. Its open uploads are
    resumed at the others.
    """
    with open_rooms(data, only_look=True) as rooms:
        listed, working = rooms.catalog.servers.list_all(), rooms.catalog.servers.working()
    rows = (
        [_object(each, working) for each in listed]
        if as_json
        else _fitted([_row(each, working) for each in listed])
    )
    print_rows(rows, as_json=as_json, empty="No server.")


def _object(server: Server, working: Working) -> dict[str, object]:
    me = server.identity
    return {
        "id": me.id.hex(),
        "server": me.name,
        "endpoint": me.endpoint,
        "since": rfc3339(server.started_ns),
        "heartbeat": rfc3339(server.beat_ns),
        "state": server.state.value,
        "version": me.version,
        "uploads": working.uploads.get(me.id, 0),
        "tasks": list(working.tasks.get(me.process, ())),
    }


def _row(server: Server, working: Working) -> dict[str, str]:
    me = server.identity
    uploads = working.uploads.get(me.id, 0)
    does = [*([counted(uploads, "upload")] if uploads else ()), *working.tasks.get(me.process, ())]
    return {
        "server": me.name.partition(".")[0],
        "endpoint": me.endpoint,
        "up": age(max(0, server.beat_ns - server.started_ns) / NS),
        "state": server.state.value if server.alive else f"dead {age(abs(server.silent_ns) / NS)}",
        "version": me.version,
        "does": ", ".join(does),
    }


def _fitted(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Cut the names of hosts so that each row fits the columns, if the rest of it does."""
    others = [
        [column, *(row[column] for row in rows)] for column in (rows[0] if rows else ()) if column != "server"
    ]
    left = COLUMNS - sum(2 + max(map(len, cells)) for cells in others)
    return [{**row, "server": row["server"][: max(left, NAME_CHARS_MIN)]} for row in rows]
