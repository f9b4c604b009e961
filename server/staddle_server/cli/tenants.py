"""`staddle-server tenant`."""

import time

import click

from staddle_server.catalog.words import rfc3339
from staddle_server.cli.options import data_option, json_option, print_rows
from staddle_server.datadir import DataDirectory
from staddle_server.rooms import create_tenant, open_rooms


@click.group()
def tenant() -> None:
    """Make and list tenants: each has keys, datasets and tokens of its own."""


@tenant.command()
@click.argument("name")
@data_option
def create(name: str, data: DataDirectory) -> None:
    """Make the tenant NAME: 1 to 64 of a-z 0-9 . _ -"""
    with open_rooms(data) as rooms:
        create_tenant(rooms, name, time.time_ns())
    click.echo(
        f"Made the tenant {name}. Next: staddle-server token create --tenant {name} --role writer --name NAME"
    )


@tenant.command("list")
@data_option
@json_option
def list_(data: DataDirectory, as_json: bool) -> None:
    """List the tenants."""
    with open_rooms(data) as rooms:
        tenants = rooms.catalog.tenants.list_all()
    rows = [{"name": each.name, "id": each.id.hex(), "created": rfc3339(each.created_ns)} for each in tenants]
    print_rows(rows, as_json=as_json, empty="There is no tenant.")
