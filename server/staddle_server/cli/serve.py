"""`staddle-server init` and `staddle-server serve`."""

import logging
import os
import shlex
import sys

import click

from staddle_server.app import run
from staddle_server.app.addresses import UnixAddress
from staddle_server.app.data_directory import DataDirectory
from staddle_server.app.owner import act_as_owner
from staddle_server.app.settings import Settings
from staddle_server.app.settings_reading import unknown_variables
from staddle_server.base import logs
from staddle_server.cli.options import settings_from, settings_options

_log = logging.getLogger(__name__)


@click.command()
@settings_options(only=frozenset({"data", "store", "catalog", "master_key"}))
def init(**flags: str | None) -> None:
    """Create a data directory.

    It gets keys, a catalog, a store, the tenant "default", and an admin token in DIR/client.toml. `serve`
    does the same where DIR is empty or missing.
    """
    settings = settings_from(flags)
    act_as_owner(settings.data)
    directory = run.data_directory(settings)
    if directory.is_complete():
        raise click.ClickException(f"{directory.path} is already a data directory; nothing was changed")
    with directory.claimed():
        new = run.initialise(directory, settings)
    _say_made(directory, joined=not new)
    click.echo(f"Next: staddle-server serve --data {_quoted(directory)}")


@click.command()
@settings_options()
def serve(**flags: str | None) -> None:
    """Run the server on DIR until a signal stops it.

    If DIR is empty or missing, it is created first, as by `init`.
    """
    settings = settings_from(flags)
    act_as_owner(settings.data)
    logs.setup(settings.log_format, settings.log_level)
    logs.never_block(1)
    logs.never_block(2)
    if unknown := unknown_variables(os.environ):
        _log.warning("unknown setting, ignored: %s", ", ".join(unknown))
    run.run_server(settings, _announce, reread=lambda: settings_from(flags, again=True))


def _announce(started: run.Started) -> None:
    """Print where the server is.

    No reader (`staddle-server serve | head -1`) or a full disk is no reason to stop.
    """
    try:
        _say_started(started)
    except OSError:
        # Nor a reason to complain at the end, when Python flushes the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say_started(started: run.Started) -> None:
    directory = DataDirectory(started.settings.data)
    if started.made:
        _say_made(directory, joined=started.joined)
    click.echo(f"Listening on {started.listening} ({_transport(started.settings)}).")
    if started.http is not None:
        scheme = "http" if started.settings.tls_cert is None else "https"
        click.echo(f"Dashboard and HTTP: {scheme}://{started.http}/ (log in with a token)")
    click.echo("Paste this in another terminal, so that `staddle` finds this server:")
    click.echo(f"  export STADDLE_CONFIG={shlex.quote(str(directory.client_toml))}")
    click.echo("Then: staddle backup PATH --dataset NAME")
    click.echo("Ctrl-C stops the server; what was acknowledged is kept.")


def _say_made(directory: DataDirectory, *, joined: bool) -> None:
    if joined:
        click.echo(f"Created {directory.path} for a further server of the catalog {directory.catalog_place}.")
        click.echo(f"The store is {directory.place}.")
        click.echo(
            f"{directory.client_toml} has no token, since the first server's has one: see `staddle-server token create`."
        )
        return
    click.echo(
        f'Created {directory.path}: keys, catalog, store, the tenant "default", and an admin token for this machine.'
    )
    if not directory.store.exists():
        click.echo(f"The store is {directory.place}.")
    click.echo(
        f"Keep a copy of {directory.master_key} somewhere else: without it the stored data is unreadable."
    )


def _transport(settings: Settings) -> str:
    if settings.tls_cert is None and isinstance(settings.listen, UnixAddress):
        return f"without TLS: everyone with write access to the socket, mode {settings.socket_mode:04o}, can connect"
    if settings.tls_cert is None:
        return "without TLS: only this machine can connect"
    return "mutual TLS" if settings.tls_client_ca is not None else "TLS"


def _quoted(directory: DataDirectory) -> str:
    return shlex.quote(str(directory.path))
