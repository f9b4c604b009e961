"""`staddle-server uploads`."""

from collections.abc import Iterator
from dataclasses import replace

import click
from staddle._base.figures import size

from staddle_server.app.bootstrap import Rooms, open_rooms, tenant_named
from staddle_server.app.data_directory import DataDirectory
from staddle_server.base.clock import SystemClock
from staddle_server.catalog import Upload
from staddle_server.catalog.validation import rfc3339
from staddle_server.cli.options import data_option, json_option, print_rows

_PAGE = 1000


@click.command()
@click.option("--tenant", metavar="NAME", help="Only uploads of this tenant.")
@click.option(
    "--abort",
    metavar="ID",
    multiple=True,
    help="Abort the upload with this id, or this unique prefix of an id. Can be repeated.",
)
@data_option
@json_option
def uploads(*, tenant: str | None, abort: tuple[str, ...], data: DataDirectory, as_json: bool) -> None:
    """List open uploads of all tenants, or abort some.

    The server refuses the writer of an aborted upload from then on, and the next collections free its space.
    Runs beside a server.
    """
    with open_rooms(data) as rooms:
        listed = list(_open(rooms, tenant))
        chosen = [_picked(listed, prefix) for prefix in dict.fromkeys(abort)]
        for _, each in chosen:
            rooms.catalog.uploads.abort(each.tenant, each.id, each.epoch, SystemClock().now_ns())
    if abort:
        for name, each in chosen:
            click.echo(
                f"Aborted {each.id.hex()} of the dataset {each.dataset!r} of the tenant {name}.", err=as_json
            )
    rows = [_row(name, each) for name, each in (chosen or listed)]
    if as_json or not abort:
        print_rows(rows, as_json=as_json, empty="No open upload.")


def _open(rooms: Rooms, tenant: str | None) -> Iterator[tuple[str, Upload]]:
    tenants = rooms.catalog.tenants.list_all() if tenant is None else [tenant_named(rooms, tenant)]
    for each in tenants:
        after = b""
        while page := rooms.catalog.uploads.list_open(each.id, "", after, _PAGE):
            # Without the durable point, which may be large: all of them are kept.
            yield from ((each.name, replace(upload, durable=b"")) for upload in page)
            after = page[-1].id


def _picked(listed: list[tuple[str, Upload]], prefix: str) -> tuple[str, Upload]:
    found = [each for each in listed if prefix and each[1].id.hex().startswith(prefix.lower())]
    if len(found) != 1:
        many = "more than one open upload has" if found else "no open upload has"
        raise click.UsageError(f"--abort {prefix!r}: {many} an id with this prefix; nothing was changed")
    return found[0]


def _row(tenant: str, upload: Upload) -> dict[str, str]:
    return {
        "id": upload.id.hex(),
        "tenant": tenant,
        "dataset": upload.dataset,
        "by": upload.principal,
        "began": rfc3339(upload.begin_ns),
        "until": rfc3339(upload.expires_ns),
        "entries": str(upload.entry_count),
        "size": size(upload.data_bytes),
        "last_failure": upload.last_failure,
    }
