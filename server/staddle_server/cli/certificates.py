"""`staddle-server cert`."""

import datetime
from pathlib import Path

import click

from staddle_server import certs
from staddle_server.owner import act_as_owner


@click.command()
@click.option(
    "--dir",
    "directory",
    metavar="DIR",
    required=True,
    help="Where the files go, and where the authority is kept.",
)
@click.option(
    "--host",
    "hosts",
    metavar="NAME",
    multiple=True,
    help="A name or address that clients use for the server; localhost is always in. May be given several times.",
)
@click.option(
    "--client",
    "clients",
    metavar="NAME",
    multiple=True,
    help="Make a client's certificate. May be given several times.",
)
@click.option(
    "--days",
    type=click.IntRange(1, certs.DAYS_MAX),
    default=certs.DAYS_DEFAULT,
    show_default=True,
    help="How long the certificates are valid; the authority lasts ten years.",
)
def cert(directory: str, hosts: tuple[str, ...], clients: tuple[str, ...], days: int) -> None:
    """Make a private certificate authority, and certificates of it for the server and for clients.

    The authority (ca.crt, ca.key) is made once and used again. Without --client a server certificate is made; with
    --client alone, only the clients'. Files that exist are never written over.
    """
    path = Path(directory).expanduser().absolute()
    act_as_owner(path)
    for_server = hosts or (() if clients else ("localhost",))
    made = certs.make(path, for_server, clients, days, datetime.datetime.now(datetime.UTC))
    for files in made:
        click.echo(f"made {files.certificate} and {files.key}")
    if for_server:
        server = certs.files_of(path, "server")
        click.echo(f"server:  staddle-server serve … --tls-cert {server.certificate} --tls-key {server.key}")
        click.echo(
            f"clients: give them {path / 'ca.crt'} (it is public); {path / 'ca.key'} belongs under lock and key"
        )
    if clients:
        click.echo(
            f"mutual TLS: start the server with --tls-client-ca {path / 'ca.crt'}; hand each client its own two files"
        )
