"""`staddle-server cert`."""

import datetime
from pathlib import Path

import click

from staddle_server.app import certificates
from staddle_server.app.owner import act_as_owner


@click.command()
@click.option(
    "--dir",
    "directory",
    metavar="DIR",
    required=True,
    help="Directory for the files and the authority.",
)
@click.option(
    "--host",
    "hosts",
    metavar="NAME",
    multiple=True,
    help="Name or address that clients use for the server; localhost is always included. Can be repeated.",
)
@click.option(
    "--client",
    "clients",
    metavar="NAME",
    multiple=True,
    help="Create a certificate for the client of this name. Can be repeated.",
)
@click.option(
    "--days",
    type=click.IntRange(1, certificates.DAYS_MAX),
    default=certificates.DAYS_DEFAULT,
    show_default=True,
    help="How long the certificates are valid; the authority is valid for ten years.",
)
def cert(directory: str, hosts: tuple[str, ...], clients: tuple[str, ...], days: int) -> None:
    """Create a private certificate authority and certificates.

    The authority (ca.crt, ca.key) is created once and reused. Without --client, creates a server certificate;
    with --client alone, only client certificates. Existing files are never overwritten.
    """
    path = Path(directory).expanduser().absolute()
    act_as_owner(path)
    for_server = hosts or (() if clients else ("localhost",))
    made = certificates.make(path, for_server, clients, days, datetime.datetime.now(datetime.UTC))
    for files in made:
        click.echo(f"created {files.certificate} and {files.key}")
    if for_server:
        server = certificates.files_of(path, "server")
        click.echo(f"server:  staddle-server serve … --tls-cert {server.certificate} --tls-key {server.key}")
        click.echo(f"clients: give them {path / 'ca.crt'} (it is public); {path / 'ca.key'} must stay secret")
    if clients:
        click.echo(
            f"mutual TLS: start the server with --tls-client-ca {path / 'ca.crt'}; give each client its own two files"
        )
