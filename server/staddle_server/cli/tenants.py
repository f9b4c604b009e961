"""`staddle-server tenant`."""

import time

import click
from staddle._base import figures

from staddle_server.app.bootstrap import create_tenant, open_rooms, set_grace, tenant_named
from staddle_server.app.data_directory import DataDirectory
from staddle_server.base.limits import GRACE_S_MAX
from staddle_server.catalog.validation import rfc3339
from staddle_server.cli.options import data_option, duration, json_option, print_rows


@click.group()
def tenant() -> None:
    """Create, list and configure tenants.

    Each tenant has its own keys, datasets and tokens.
    """


@tenant.command()
@click.argument("name")
@data_option
def create(name: str, data: DataDirectory) -> None:
    """Create the tenant NAME.

    A name has 1 to 64 characters out of a-z 0-9 . _ -
    """
    with open_rooms(data) as rooms:
        create_tenant(rooms, name, time.time_ns())
    click.echo(
        f"Created the tenant {name}. Next: staddle-server token create --tenant {name} --role writer --name NAME"
    )


@tenant.command("set")
@click.argument("name")
@click.option(
    "--grace",
    metavar="DURATION",
    required=True,
    help="How long deleted backups can be undeleted. Also applies to backups that are already deleted.",
)
@data_option
def set_(name: str, grace: str, data: DataDirectory) -> None:
    """Change the settings of the tenant NAME."""
    grace_s = int(duration("--grace", grace, GRACE_S_MAX))
    with open_rooms(data) as rooms:
        set_grace(rooms, tenant_named(rooms, name), grace_s, time.time_ns())
    click.echo(f"Deleted backups of the tenant {name} can be undeleted for {figures.duration(grace_s)}.")


@tenant.command("list")
@data_option
@json_option
def list_(data: DataDirectory, as_json: bool) -> None:
    """List the tenants."""
    with open_rooms(data) as rooms:
        tenants = rooms.catalog.tenants.list_all()
    rows = [
        {
            "name": each.name,
            "id": each.id.hex(),
            "created": rfc3339(each.created_ns),
            "grace": figures.duration(each.grace_s),
            "collection": "waits for you"
            if each.gc_waits
            else each.gc_failure and f"failed: {each.gc_failure}",
        }
        for each in tenants
    ]
    print_rows(rows, as_json=as_json, empty="No tenant.")
