"""What commands take: the connection, which backup, paths inside it, and the forms of durations, ranges and tags."""

import functools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec

import click

from staddle import BadRequestError, Client, StaddleError
from staddle._convert import path_fault
from staddle._when import HOW_TO_SAY_WHEN, selector_of
from staddle.command._output import Output
from staddle.command._words import escaped

P = ParamSpec("P")

RETRY_S_MAX: Final = 7 * 24 * 3600.0
BYTES_MAX: Final = 2**63 - 1

_DURATION: Final = re.compile(r"(?:(\d+(?:\.\d+)?)([dhms]))+")
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d+)?)([dhms])")
_UNITS_S: Final = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}


@dataclass(frozen=True, slots=True)
class Session:
    """What every command gets: where to write, and a server to ask."""

    output: Output
    connect: Callable[[], Client]
    """Opens a client as flags, environment and files say. A command calls it once its arguments are known to be right."""


class ByteRange(NamedTuple):
    """From `start`, up to and without `end`; None: to the end of the file."""

    start: int
    end: int | None


class Duration(click.ParamType):
    """A duration in seconds, from text such as 30s, 10m, 1h30m."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value).strip()
        if text == "0":
            return 0.0
        if not _DURATION.fullmatch(text):
            self.fail(f"{value!r} is no duration: write 30s, 10m, 1h30m, or 0 for none.", param, ctx)
        total_s = sum(float(count) * _UNITS_S[unit] for count, unit in _DURATION_PART.findall(text))
        if total_s > RETRY_S_MAX:
            self.fail(f"{value!r} is too long: at most 7d.", param, ctx)
        return total_s


class Range(click.ParamType):
    """A:B in bytes, 0-based, without B; either may be missing."""

    name = "range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ByteRange:
        if isinstance(value, ByteRange):
            return value
        found = re.fullmatch(r"([0-9]{0,19}):([0-9]{0,19})", str(value))
        if found is None:
            self.fail(f"{value!r} is no range: write A:B, A: or :B, in bytes from 0, without B.", param, ctx)
        start, end = int(found[1] or 0), int(found[2]) if found[2] else None
        if start > BYTES_MAX or (end or 0) > BYTES_MAX or (end is not None and end < start):
            self.fail(f"{value!r} is no range: B is not smaller than A, and both are below 2^63.", param, ctx)
        return ByteRange(start, end)


class Tag(click.ParamType):
    """K=V."""

    name = "tag"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is no tag: write KEY=VALUE.", param, ctx)
        try:
            str(value).encode()
        except UnicodeEncodeError:
            self.fail(f"{escaped(str(value))} is not Unicode text.", param, ctx)
        return key, text


class StoredPath(click.ParamType):
    """A path inside a backup, as bytes. One slash at its end is let pass: a directory is shown with one."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        if isinstance(value, bytes):
            return value
        path = os.fsencode(value)
        path = path.removesuffix(b"/") if len(path) > 1 else path
        fault = path_fault(path)
        if fault:
            self.fail(f"{escaped(path)} is no path inside a backup: {fault}.", param, ctx)
        return path


def _checked_backup(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    return _accepted(value, lambda: selector_of(value, None))


def _checked_time(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    return _accepted(value, lambda: selector_of(None, value))


def _accepted(value: str | None, check: Callable[[], object]) -> str | None:
    try:
        if value is not None:
            check()
    except BadRequestError as error:
        raise click.BadParameter(error.message) from None
    return value


def command(name: str) -> Callable[[Callable[Concatenate[Session, P], int | None]], click.Command]:
    """Makes a command of a function: it gets a Session, and has --json and the connection's options. Its result is the exit code."""

    def decorate(function: Callable[Concatenate[Session, P], int | None]) -> click.Command:
        @functools.wraps(function)
        def run(*args: Any, as_json: bool, **options: Any) -> int:
            connection = {field: options.pop(field) for field in CONNECTION_FIELDS}

            def connect() -> Client:
                return Client.from_config(connection.pop("config"), **connection)

            output: Output = click.get_current_context().obj
            output.as_json = as_json
            return function(Session(output, connect), *args, **options) or 0

        decorated: Callable[..., int] = run
        for option in reversed(COMMON):
            decorated = option(decorated)
        return click.command(name)(decorated)

    return decorate


COMMON: Final = (
    click.option(
        "--server",
        metavar="HOST:PORT",
        help="The server. [env: STADDLE_SERVER]",
    ),
    click.option(
        "--token",
        metavar="TOKEN",
        help="What the server knows you by. Other users of this machine can read it in `ps`: better set STADDLE_TOKEN, "
        "or keep it in the configuration file.",
    ),
    click.option(
        "--ca",
        metavar="FILE",
        help="The authority that signed the server's certificate, or `system` for the public ones. [env: STADDLE_CA]",
    ),
    click.option("--cert", metavar="FILE", help="Your own certificate, for mutual TLS. [env: STADDLE_CERT]"),
    click.option("--key", metavar="FILE", help="Its private key. [env: STADDLE_KEY]"),
    click.option(
        "--server-name",
        metavar="NAME",
        help="The name in the server's certificate, if it is not its host. [env: STADDLE_SERVER_NAME]",
    ),
    click.option(
        "--config",
        metavar="FILE",
        help="Where what is not said here is looked up. [env: STADDLE_CONFIG; else ~/.config/staddle/client.toml, "
        "/etc/staddle/client.toml]",
    ),
    click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="One JSON object per line, the summary last; errors as JSON on standard error.",
    ),
)
CONNECTION_FIELDS: Final = ("server", "token", "ca", "cert", "key", "server_name", "config")


def picking(function: Callable[P, int | None]) -> Callable[P, int | None]:
    """Adds --backup and --at, of which one may be given."""

    @functools.wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> int | None:
        if options["backup"] is not None and options["at"] is not None:
            raise click.UsageError("--backup and --at exclude each other: name one backup, or a time.")
        return function(*args, **options)

    run = click.option(
        "--at",
        metavar="TIME",
        callback=_checked_time,
        help=f"The newest backup that began at or before: {HOW_TO_SAY_WHEN}, counted back by the server's clock.",
    )(run)
    return click.option(
        "--backup",
        metavar="ID",
        callback=_checked_backup,
        help="This backup: its id, the first digits of it (4 or more), or `latest`, which is what you get without --backup and --at.",
    )(run)


dataset_argument = click.argument("dataset")


def hint_for(error: StaddleError) -> str:
    """What to type next, for errors of which the command knows more than the library."""
    dataset = escaped(error.facts.get("dataset", "")) or "DATASET"
    if error.reason == "BACKUP_NOT_FOUND" and "earliest" in error.facts:
        return f"`--at {error.facts['earliest']}` picks the earliest one."
    return _HINTS.get(error.reason, "").format(dataset=dataset)


_HINTS: Final = {
    "BACKUP_NOT_FOUND": "`staddle list {dataset}` shows those that are there.",
    "AMBIGUOUS_BACKUP": "`staddle list {dataset}` shows enough digits of each.",
    "DATASET_NOT_FOUND": "`staddle list` shows those that are there.",
    "PATH_NOT_FOUND": "Paths are relative to the backup's root: `staddle ls {dataset} -R` lists them all.",
    "NOT_A_FILE": "`staddle ls` shows what it is.",
    "ROOT_DIFFERS": "If it is, add --new-root; if only this machine's name has changed, --host keeps the old one.",
    "NO_BASE": "`--kind full`, or no --kind at all, makes the first one.",
    "LEASE_HELD": "It goes away by itself when that one has ended, or a few minutes after it broke off.",
    "UNAUTHENTICATED": "On the server: `staddle-server token create --data DIR --role writer`.",
    "PERMISSION_DENIED": "On the server: `staddle-server token create --data DIR --role ROLE`.",
}
