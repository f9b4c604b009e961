"""Options that commands share: the settings table of app/settings.py as flags, and `--data`."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

import click
from staddle._base.figures import DURATION_S_MAX, duration_s

from staddle_server.app.addresses import parse_path
from staddle_server.app.data_directory import DataDirectory
from staddle_server.app.disk_reserve import give_up_at_start
from staddle_server.app.owner import act_as_owner
from staddle_server.app.settings import OPTIONS, Settings, SettingsError
from staddle_server.app.settings_reading import CONFIG_NAME, CONFIG_VARIABLE, load

F = TypeVar("F", bound=Callable[..., object])

_PROBE_FIELDS: Final = frozenset({"data", "min_free", "tls_cert", "tls_key", "tls_client_ca"})


def settings_options(*, only: frozenset[str] | None = None) -> Callable[[F], F]:
    """Add a flag for each setting (or for those fields), and `--config`.

    The values arrive as text, for `load`.
    """

    def decorate(command: F) -> F:
        flag = "--config"
        decorated = click.option(
            flag,
            metavar="FILE",
            help=f"Settings file (TOML). [env: {CONFIG_VARIABLE}; else DIR/{CONFIG_NAME}]",
        )(command)
        for option in reversed(OPTIONS):
            if only is None or option.field in only:
                default = f"; default: {option.default}" if option.default else ""
                decorated = click.option(
                    f"--{option.name}",
                    option.field,
                    metavar=option.metavar,
                    help=f"{option.help} [env: {option.variable}{default}]",
                )(decorated)
        return decorated

    return decorate


def probe_options(command: F) -> F:
    """Add the settings that a health probe needs."""
    return settings_options(only=_PROBE_FIELDS)(command)


def data_option(command: F) -> F:
    """Add `--data DIR`, else STADDLED_DATA: an existing data directory. Arrives as DataDirectory."""
    return _data_option(_made)(command)


def unchecked_data_option(command: F) -> F:
    """Add `--data DIR` as `data_option` does, of which the command requires itself that it is one."""
    return _data_option(_named)(command)


def _data_option(
    callback: Callable[[click.Context, click.Parameter, str], DataDirectory],
) -> Callable[[F], F]:
    return click.option(
        "--data",
        metavar="DIR",
        envvar="STADDLED_DATA",
        required=True,
        callback=callback,
        help="Data directory; a server may run on it. [env: STADDLED_DATA]",
    )


def duration(flag: str, text: str, most_s: float = DURATION_S_MAX, *, bare: bool = False) -> float:
    """Return the seconds of a duration option. Raises SettingsError, which names it."""
    try:
        return duration_s(text, most_s=most_s, bare=bare)
    except ValueError as error:
        raise SettingsError(f"{flag} is {text!r}: {error}") from error


def json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line.")(command)


def _made(context: click.Context, parameter: click.Parameter, value: str) -> DataDirectory:
    directory = _named(context, parameter, value)
    directory.require()
    give_up_at_start(directory.path, directory.store)
    return directory


def _named(_context: click.Context, _parameter: click.Parameter, value: str) -> DataDirectory:
    try:
        directory = DataDirectory(parse_path(value))
    except ValueError as error:
        raise SettingsError(f"--data is {value[:200]!r}: {error}") from error
    act_as_owner(directory.path)
    return directory


def settings_from(flags: dict[str, str | None], *, again: bool = False) -> Settings:
    """Return the settings of a command that has settings_options; `again`: read once more.

    Raises SettingsError.
    """
    texts = dict(flags)
    file = texts.pop("config", None)
    return load(texts, os.environ, file, again=again)


def print_rows(rows: Iterable[Mapping[str, Any]], *, as_json: bool, empty: str) -> None:
    """Print a table with a heading, or one JSON object per line; in words if it is empty."""
    listed = list(rows)
    if as_json:
        for row in listed:
            click.echo(json.dumps(row))
        return
    if not listed:
        click.echo(empty, err=True)
        return
    columns = list(listed[0])
    widths = [max(len(column), *(len(row[column]) for row in listed)) for column in columns]
    for cells in (columns, *([row[column] for column in columns] for row in listed)):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
