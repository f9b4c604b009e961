"""What commands take: the connection, which backup, paths inside it, and the forms of durations, ranges and tags."""

from __future__ import annotations

import datetime
import functools
import gc
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Concatenate, Final, NamedTuple, ParamSpec, Protocol, TypeVar, cast

import click

from staddle import BadRequestError, RetentionTag, StaddleError
from staddle._base import figures
from staddle._fs.excludes import all_patterns
from staddle._protocol.convert import datetime_of, path_fault
from staddle._protocol.selectors import HOW_TO_SAY_WHEN, period_of, selector_of
from staddle.command.output import Output
from staddle.command.text import escaped
from staddle.v1.resources_pb2 import BackupSelector

if TYPE_CHECKING:
    from staddle import Client

P = ParamSpec("P")
R = TypeVar("R")
V = TypeVar("V")
F = TypeVar("F", bound=Callable[..., Any])

BACKUP_RETRY_S: Final = 600.0
RESTORE_RETRY_S: Final = 60.0
RETRY_S_MAX: Final = 7 * 24 * 3600.0
COUNT_MAX: Final = 1_000_000


class Connect(Protocol):
    """Opens a client."""

    def __call__(self, *, cache_dir: str | None = None) -> Client: ...


@dataclass(frozen=True, slots=True)
class Session:
    """What every command gets: where to write, and a server to ask."""

    output: Output
    connect: Connect
    """Opens a client as flags, environment and files say. A command calls it once its arguments are known to be right."""
    retry_s: float | None = None
    """--retry, where it was given."""

    def budget_s(self, usual_s: float) -> float:
        """How long to try again: as --retry says, else as usual."""
        return usual_s if self.retry_s is None else self.retry_s


class ByteRange(NamedTuple):
    """From `start`, up to and without `end`; None: to the end of the file."""

    start: int
    end: int | None


def _read_as(kind: str, text: str, read: Callable[[str], V]) -> V:
    """What `read` makes of a text. Its ValueError gets the text, and what it should have been."""
    try:
        return read(text)
    except ValueError as error:
        raise ValueError(f"invalid {kind} '{escaped(text)}': {error}") from error


def duration(text: str) -> float:
    """A duration in seconds, from text such as 30s, 10m, 1h30m or 7 days. Raises ValueError."""
    return _read_as("duration", text, lambda given: figures.duration_s(given, most_s=RETRY_S_MAX))


def long_duration(text: str) -> datetime.timedelta:
    """A duration of up to a hundred years, in whole seconds: 36h, 14d, 4w, 7y. Raises ValueError."""
    return datetime.timedelta(seconds=round(_read_as("duration", text, figures.duration_s)))


def size_bytes(text: str) -> int:
    """A size in bytes, from text such as 500, 100k, 20M, 1.5G; units are binary. Raises ValueError."""
    return _read_as("size", text, figures.size_bytes)


def percent(text: str) -> float:
    """A percentage from 0 to 100, with or without a % at its end. Raises ValueError."""
    return _read_as("percentage", text, figures.percent)


def byte_range(text: str) -> ByteRange:
    """Reads A:B in bytes, from 0, without B; either may be missing. Raises ValueError."""
    found = re.fullmatch(r"([0-9]{0,19}):([0-9]{0,19})", text)
    if found is None:
        raise ValueError(f"invalid range '{escaped(text)}': use A:B, A: or :B, in bytes from 0, without B")
    start, end = int(found[1] or 0), int(found[2]) if found[2] else None
    if end is not None and end < start:
        raise ValueError(f"invalid range '{escaped(text)}': B is smaller than A")
    if max(start, end or 0) > figures.BYTES_MAX:
        raise ValueError(f"invalid range '{escaped(text)}': it lies behind the end of any file")
    return ByteRange(start, end)


def tag(text: str) -> tuple[str, str]:
    """Reads K=V. Raises ValueError."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError(f"invalid tag '{escaped(text)}': use KEY=VALUE")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"invalid tag '{escaped(text)}': it is not Unicode text") from None
    return key, value


def count(text: str) -> int:
    """A whole number, such as of backups to keep. Raises ValueError."""
    if re.fullmatch(r"[0-9]{1,7}", text) is None or int(text) > COUNT_MAX:
        raise ValueError(f"invalid number '{escaped(text)}': use 0 to {COUNT_MAX:,}")
    return int(text)


def kept_tag(text: str) -> RetentionTag:
    """Reads K or K=V. Raises ValueError."""
    key, value = tag(text) if "=" in text else tag(f"{text}=")
    return RetentionTag(key, value if "=" in text else None)


def one_backup(text: str) -> str:
    """An id or its first digits, in lower case, and not `latest`: what is deleted or protected is named. Raises ValueError."""
    if re.fullmatch(r"[0-9A-Fa-f]{4,32}", text) is None:
        raise ValueError(f"invalid backup '{escaped(text)}': use its id, or the first 4 or more digits of it")
    return text.lower()


def end_of(text: str) -> datetime.datetime:
    """A moment to come: a date is its end. Raises ValueError."""
    selector = _accepted_selector(text)
    if not selector.HasField("at"):
        raise ValueError(f"invalid time '{escaped(text)}': use a date or a time to come, such as 2031-12-31")
    return datetime_of(selector.at)


def stored_path(text: str) -> bytes:
    """A path inside a backup, as bytes. One slash at its end is let pass: directories are shown with one. Raises ValueError."""
    path = os.fsencode(text)
    path = path.removesuffix(b"/") if len(path) > 1 else path
    fault = path_fault(path)
    if fault:
        raise ValueError(f"invalid path '{escaped(path)}': {fault}")
    return path


def backup_named(text: str) -> str:
    """An id, its first digits, or `latest`; unchanged. Raises ValueError."""
    return _accepted(text, lambda: selector_of(text, None))


def moment(text: str) -> str:
    """A time or an age; unchanged. Raises ValueError."""
    return _accepted(text, lambda: selector_of(None, text))


def _accepted_selector(text: str) -> BackupSelector:
    try:
        return selector_of(None, text, future=True)
    except BadRequestError as error:
        raise ValueError(error.message) from error


def _accepted(text: str, check: Callable[[], object]) -> str:
    try:
        check()
    except BadRequestError as error:
        raise ValueError(error.message) from error
    return text


def reading(read: Callable[[str], V]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """For `callback=`: each text that was given becomes what `read` makes of it; its ValueError is a wrong usage."""

    def callback(_ctx: click.Context, _param: click.Parameter, value: Any) -> Any:
        try:
            if value is None:
                return None
            return tuple(map(read, value)) if isinstance(value, tuple) else read(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return callback


def command(
    name: str, short: str, *examples: str
) -> Callable[[Callable[Concatenate[Session, P], int | None]], click.Command]:
    """Makes a command of a function: it gets a Session, and has --json and the connection's options. Its result is the exit code.

    Its docstring, and the examples, are its help; `short` is what the list of commands says.
    """

    def decorate(function: Callable[Concatenate[Session, P], int | None]) -> click.Command:
        @functools.wraps(function)
        def run(*args: Any, as_json: bool, **options: Any) -> int:
            config = options.pop("config")
            connection = {field: options.pop(field) for field in CONNECTION_FIELDS}
            retry_s: float | None = options.pop("retry")

            def connect(*, cache_dir: str | None = None) -> Client:
                from staddle import Client
                from staddle._transport.channel import tune_malloc

                tune_malloc()
                return Client.from_config(
                    config,
                    cache_dir=cache_dir,
                    retry_s=retry_s,
                    await_server=retry_s is not None,
                    **connection,
                )

            output: Output = click.get_current_context().obj
            output.as_json = as_json
            gc.freeze()
            gc.enable()
            return function(Session(output, connect, retry_s), *args, **options) or 0

        shown = "\n".join(f"  {example}" for example in examples)
        words = f"{inspect.cleandoc(function.__doc__ or '')}\n\n\b\n{shown}"
        made = click.command(name, short_help=short, help=words)(run)
        made.params += _common_options()
        return made

    return decorate


def _common_options() -> list[click.Parameter]:
    return [
        click.Option(
            ["--server"],
            metavar="HOST:PORT|unix:PATH",
            help="Connect to this server, or to one of several: HOST:PORT,HOST:PORT. [env: STADDLE_SERVER]",
        ),
        click.Option(
            ["--token"],
            metavar="TOKEN",
            help="Use this token. Other users of this machine can read it in `ps`: better set STADDLE_TOKEN, or put it in the configuration file.",
        ),
        click.Option(
            ["--ca"],
            metavar="FILE",
            help="Trust this authority, which signed the server's certificate; `system` trusts the public ones. [env: STADDLE_CA]",
        ),
        click.Option(
            ["--cert"], metavar="FILE", help="Present this certificate, for mutual TLS. [env: STADDLE_CERT]"
        ),
        click.Option(["--key"], metavar="FILE", help="Use this private key of --cert. [env: STADDLE_KEY]"),
        click.Option(
            ["--server-name"],
            metavar="NAME",
            help="Expect this name in the server's certificate, if it is not its host. [env: STADDLE_SERVER_NAME]",
        ),
        click.Option(
            ["--config"],
            metavar="FILE",
            help="Read other settings from FILE. [env: STADDLE_CONFIG; else ~/.config/staddle/client.toml, /etc/staddle/client.toml]",
        ),
        click.Option(
            ["--retry"],
            callback=reading(duration),
            metavar="DURATION",
            help="Retry for this long if the server goes away, or does not answer yet: 30s, 10m, 1h30m; 0 does not retry.",
        ),
        click.Option(
            ["--json", "as_json"],
            is_flag=True,
            help="Print one JSON object per line, the summary last; errors are JSON on standard error.",
        ),
    ]


CONNECTION_FIELDS: Final = ("server", "token", "ca", "cert", "key", "server_name")


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
        callback=reading(moment),
        help=f"Use the newest backup that began at or before TIME: {HOW_TO_SAY_WHEN}, counted back by the server's clock.",
    )(run)
    return click.option(
        "--backup",
        metavar="ID",
        callback=reading(backup_named),
        help="Use this backup: its id, the first 4 or more digits of it, or `latest`, which is the default.",
    )(run)


class _Period(NamedTuple):
    """What a time may mean that is not written to the last digit."""

    text: str
    first: datetime.datetime
    behind: datetime.datetime


def _period(text: str) -> _Period:
    try:
        return _Period(text, *period_of(text))
    except BadRequestError as error:
        raise ValueError(error.message) from error


def _require_time_between(since: _Period | None, until: _Period | None) -> None:
    """Raises UsageError for --since and --until that nothing can lie between."""
    if since is not None and since.first > datetime.datetime.now(datetime.UTC):
        raise click.UsageError(
            f"--since {escaped(since.text)} is in the future, by the clock of this machine: use a time that has passed, or an age such as 7d."
        )
    if since is not None and until is not None and since.first >= until.behind:
        raise click.UsageError(
            f"--since {escaped(since.text)} is later than --until {escaped(until.text)}: nothing lies between them."
        )


def between(what: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Adds --since and --until, as the datetimes `since` and `until`, or None. `what` says what of: "runs that began"."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def run(*args: P.args, **options: P.kwargs) -> R:
            since = cast("_Period | None", options["since"])
            until = cast("_Period | None", options["until"])
            _require_time_between(since, until)
            options["since"], options["until"] = since and since.first, until and until.behind
            return function(*args, **options)

        run = click.option(
            "--until",
            metavar="TIME",
            callback=reading(_period),
            help=f"Only {what} at TIME or before; a date is its whole day.",
        )(run)
        return click.option(
            "--since",
            metavar="TIME",
            callback=reading(_period),
            help=f"Only {what} at TIME or later: a time, a date, or an age such as 7d.",
        )(run)

    return decorate


def limited(newest: str, shown: int = 0) -> Callable[[F], F]:
    """Adds -n, of which 0 is no limit; `shown` is its default. `newest` is how the command calls the ones that it shows: "newest"."""
    default = "0 shows all" if shown else "by default all"
    return click.option(
        "-n",
        "--limit",
        metavar="N",
        callback=reading(count),
        default=str(shown),
        show_default=shown > 0,
        help=f"Show at most the {newest} N; {default}.",
    )


def at_most(found: Iterator[V], limit: int) -> tuple[list[V], bool]:
    """The first `limit` of them, 0 for all, and whether there are more."""
    return list(islice(found, limit) if limit else found), next(found, None) is not None


def pattern_file_option(name: str) -> Callable[[F], F]:
    """The option `--NAME-file`, whose values are files of patterns; - is standard input."""

    def as_files(
        _context: click.Context, _option: click.Parameter, files: tuple[str, ...]
    ) -> tuple[str, ...]:
        return tuple("/dev/stdin" if file == "-" else file for file in files)

    return click.option(
        f"--{name}-file",
        metavar="FILE",
        multiple=True,
        callback=as_files,
        help="Read such patterns from FILE, one a line; - is standard input. Repeatable.",
    )


def selecting(function: Callable[P, int | None]) -> Callable[P, int | None]:
    """Adds --include, --exclude and files of such patterns, as `include` and `exclude`. Each file is read once, and may be a pipe."""

    @functools.wraps(function)
    def run(*args: P.args, **options: P.kwargs) -> int | None:
        for name in ("include", "exclude"):
            files = cast("tuple[str, ...]", options.pop(f"{name}_file"))
            given = cast("tuple[str, ...]", options[name])
            options[name] = all_patterns(f"{name}_files", files, given)
        return function(*args, **options)

    for name, what in (("exclude", "Leave out what matches"), ("include", "Restore only what matches")):
        run = pattern_file_option(name)(run)
        run = click.option(
            f"--{name}",
            metavar="PATTERN",
            multiple=True,
            help=f"{what}, as in .gitignore, with all below it. Repeatable.",
        )(run)
    return run


dataset_argument = click.argument("dataset")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


def require_somebody(session: Session, *, yes: bool) -> None:
    """Raises UsageError where a confirmation is needed and cannot be asked for: then --yes is needed."""
    if not yes and (session.output.as_json or sys.stdin is None or not sys.stdin.isatty()):
        raise click.UsageError("This needs a confirmation, and there is no terminal to ask on: add --yes.")


def require_stdout() -> None:
    """A wrong usage where data is to be written to standard output and that is closed."""
    if sys.__stdout__ is None:
        raise click.UsageError("Standard output is closed, so there is nowhere to write to: write `> FILE`.")


def confirmed(session: Session, question: str, *, yes: bool) -> bool:
    """Whether it shall be done: asks on the terminal, unless --yes was given."""
    if yes:
        return True
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() in {"y", "yes"}:
        return True
    session.output.error("NOT_CONFIRMED", "Nothing was done.")
    return False


def backup_argument(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """An argument that names a backup, and may be missing."""
    return click.argument(name, required=False, callback=reading(backup_named))


def hint_for(error: StaddleError) -> str:
    """What to type next, for errors of which the command knows more than the library."""
    dataset = escaped(error.facts.get("dataset", "")) or "DATASET"
    if error.reason == "BACKUP_NOT_FOUND" and "earliest" in error.facts:
        return f"`--at {error.facts['earliest']}` picks the earliest one."
    return _HINTS.get(error.reason, "").format(dataset=dataset)


_HINTS: Final = {
    "BACKUP_NOT_FOUND": "`staddle list {dataset}` shows the existing ones.",
    "AMBIGUOUS_BACKUP": "`staddle list {dataset}` shows enough digits of each.",
    "DATASET_NOT_FOUND": "`staddle list` shows the existing ones.",
    "PATH_NOT_FOUND": "Paths are relative to the backup's root: `staddle ls {dataset} -R` lists them all.",
    "NOT_A_FILE": "`staddle ls -l` shows its type.",
    "PLAN_CHANGED": "`staddle retention plan {dataset}` makes a new one.",
    "ROOT_DIFFERS": "To declare it, add --new-root; if only this machine's name has changed, keep the old one with --host.",
    "NO_BASE": "`--kind full`, or no --kind at all, makes the first one.",
    "UNAUTHENTICATED": "On the server: `staddle-server token create --data DIR --role writer`.",
    "PERMISSION_DENIED": "On the server: `staddle-server token create --data DIR --role ROLE`.",
}
