"""`staddle-server health`."""

import contextlib
import sys
import time
from typing import Final

import click
from staddle._base.figures import size

from staddle_server.app import health_probe, tls
from staddle_server.app.addresses import Address, UnixAddress, parse_address
from staddle_server.app.data_directory import DataDirectory, read_client_config
from staddle_server.app.settings import LISTEN_DEFAULT, Settings, SettingsError
from staddle_server.cli.options import duration, probe_options, settings_from
from staddle_server.store.space import look

READ_ONLY: Final = 3
"""The exit code for a server that only restores: waiting does not fix that."""
DAMAGE: Final = 4
"""The exit code for a server that serves, and knows of damaged data."""


@click.command(name="health")
@probe_options
@click.option(
    "--server",
    metavar="HOST:PORT|unix:PATH",
    help="Ask this address instead of the one in DIR/client.toml.",
)
@click.option(
    "--timeout", metavar="DURATION", default="5s", show_default=True, help="How long to wait for one answer."
)
@click.option(
    "--wait",
    metavar="DURATION",
    default="0s",
    show_default=True,
    help="Keep asking for this long, until the server serves.",
)
def health_command(server: str | None, timeout: str, wait: str, **flags: str | None) -> None:
    """Check whether the server of DIR serves.

    For containers and scripts; needs no token. Exit codes: 0: it serves; 1: it does not; 3: it only restores;
    4: it serves and knows of damage.
    """
    settings = settings_from({**flags, "listen": LISTEN_DEFAULT})
    timeout_s, wait_s = duration("--timeout", timeout, bare=True), duration("--wait", wait, bare=True)
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            _ask(settings, server, timeout_s)
            _say_room(settings)
            return
        except health_probe.ReadOnlyError as error:
            _say_room(settings)
            click.echo(f"Error: {error}", err=True)
            sys.exit(READ_ONLY)
        except health_probe.DamageKnownError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(DAMAGE)
        except health_probe.ProbeError:
            if not health_probe.still(deadline_s):
                raise


def _ask(settings: Settings, server: str | None, timeout_s: float) -> None:
    address = _address(settings, server)
    warnings = health_probe.check(address, tls.files_of(settings), timeout_s)
    click.echo(f"{address} {health_probe.SERVING}")
    for warning in warnings:
        click.echo(f"Warning: {warning}", err=True)


def _say_room(settings: Settings) -> None:
    """Print the free space of the disks, if they are local and readable."""
    for path in DataDirectory(settings.data).disks():
        with contextlib.suppress(OSError):
            free = look(str(path), settings.min_free)
            inodes = "" if free.free_inodes is None else f" and {free.free_inodes:,} inodes"
            least = f" and {free.min_inodes:,} inodes" if free.min_inodes else ""
            click.echo(
                f"{path}: {size(free.free_bytes)}{inodes} free; backups need {size(free.min_bytes)}{least}"
            )


def _address(settings: Settings, server: str | None) -> Address | UnixAddress:
    text = server or read_client_config(DataDirectory(settings.data).client_toml).get("server")
    if text is None:
        raise health_probe.ProbeError(
            f"no server has run on {settings.data} yet; or name one: --server HOST:PORT or --server unix:PATH"
        )
    try:
        return parse_address(text)
    except ValueError as error:
        raise SettingsError(f"{text!r} is not an address: {error}") from error
