"""`staddle-server adopt`."""

import shlex

import click

from staddle_server.app import generation
from staddle_server.app.bootstrap import open_rooms
from staddle_server.app.data_directory import DataDirectory
from staddle_server.cli.options import data_option


@click.command()
@data_option
def adopt(*, data: DataDirectory) -> None:
    """Make a copied data directory or a restored store the valid one.

    No server may run on DIR, and the original must not be served any more: both would give the same numbers
    to different backups.
    """
    with data.locked(), data.store_locked(), open_rooms(data, only_look=True) as rooms:
        data.catalog_place.require_unserved(data.identity())
        flaw = generation.adopt(data, rooms.blobs, rooms.catalog)
    if flaw is None:
        click.echo(f"{data.path} is not a copy, and its parts belong together: nothing was changed.")
        return
    if flaw.kind == generation.COPY:
        click.echo(
            f"{data.path} is valid from now on. Do not serve the directory that it was copied from any more."
        )
        click.echo("If the copy is older than that one, the numbers of its newest backups are given again.")
    else:
        click.echo(f"{data.place} is valid from now on, as it is.")
        click.echo(f"See what it lacks: staddle-server check --data {shlex.quote(str(data.path))}")
    click.echo(f"Next: staddle-server serve --data {shlex.quote(str(data.path))}")
