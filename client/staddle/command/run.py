"""The commands as one group, and the one place that turns what happened into an exit code and words.

0 done, 1 failed, 2 wrong usage, 3 done but not all of it, 4 somebody is needed, 130 interrupted.
"""

import importlib
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Final

import click

from staddle import BadRequestError, StaddleError
from staddle._base.standard_streams import StdoutError
from staddle.command.exit_codes import (
    DONE,
    FAILED,
    INCOMPLETE,
    INTERRUPTED,
    NEEDED,
    WRONG_USAGE,
    Interruption,
)
from staddle.command.output import NoticeHandler, Output
from staddle.command.text import escaped

COMMANDS: Final = {
    "backup": "backup",
    "restore": "restore",
    "list": "list_diff_info",
    "ls": "ls_cat",
    "diff": "list_diff_info",
    "cat": "ls_cat",
    "delete": "delete_hold",
    "undelete": "delete_hold",
    "hold": "delete_hold",
    "release": "delete_hold",
    "retain": "delete_hold",
    "retention": "retention",
    "status": "status",
    "runs": "runs",
    "events": "events",
    "expect": "expect",
    "uploads": "uploads",
    "info": "list_diff_info",
}
"""The modules in which the commands are, in the order in which a newcomer needs them. Only the one that runs is loaded."""


def command_named(name: str) -> click.Command:
    """A command of these."""
    module = importlib.import_module(f"staddle.command.{COMMANDS[name]}")
    return next(
        each for each in vars(module).values() if isinstance(each, click.Command) and each.name == name
    )


class _InOrder(click.Group):
    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        return command_named(name) if name in COMMANDS else None


def _show_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # takes longer to load than all of click

        click.echo(f"staddle {version('staddle')}")
        ctx.exit()


@click.group(
    cls=_InOrder,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="\b\nFirst steps:\n  staddle backup /srv/www --dataset www\n  staddle list www\n"
    "  staddle restore www --target /tmp/www\n\nExit codes: 0 done, 1 failed, 2 wrong usage, 3 done but not all of it, 4 somebody is needed, 130 interrupted.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def group() -> None:
    """Back up data to a Staddle server, browse the backups, and restore them."""


def run(arguments: Sequence[str]) -> int:
    """Runs the command line; answers its exit code."""
    _prepare_streams()
    _heed_interrupts()
    output = Output(as_json=_wants_json(arguments))
    log, handler = logging.getLogger("staddle"), NoticeHandler(output)
    log.addHandler(handler)
    try:
        code = _code_of(list(arguments) or ["--help"], output)
        sys.stdout.flush()
        if code in (DONE, INCOMPLETE, NEEDED):
            output.require_told()
    except BrokenPipeError:
        return _end_by_broken_pipe()
    except OSError as error:
        return _failed(error, output)
    finally:
        log.removeHandler(handler)
    return code


def _code_of(arguments: list[str], output: Output) -> int:
    try:
        return _invoke(arguments, output)
    except BrokenPipeError:
        raise
    except (
        StaddleError,
        click.ClickException,
        Interruption,
        KeyboardInterrupt,
        OSError,
        MemoryError,
    ) as error:
        return _failed(error, output)


def _invoke(arguments: list[str], output: Output) -> int:
    try:
        with group.make_context("staddle", arguments, obj=output) as context:
            result = group.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    return result if isinstance(result, int) else DONE


def _failed(error: BaseException, output: Output) -> int:
    """Says what went wrong; answers the exit code for it."""
    if isinstance(error, click.ClickException):
        return _wrong_usage(error, output)
    if isinstance(error, Interruption):
        output.error("INTERRUPTED", error.message, {"resumable": error.resumable})
        return INTERRUPTED
    if isinstance(error, KeyboardInterrupt):
        output.error("INTERRUPTED", "Interrupted.", {"resumable": False})
        return INTERRUPTED
    if isinstance(error, StaddleError):
        from staddle._transport.advice import words_of
        from staddle.command.options import hint_for

        told = words_of(error)
        message = " ".join([told, *getattr(error, "__notes__", ())])
        detail = {} if told == error.message else {"detail": error.message}
        output.error(error.reason, message, detail | error.facts, hint_for(error))
        wrong = isinstance(error, BadRequestError) and error.reason == BadRequestError.default_reason
        return WRONG_USAGE if wrong else FAILED
    if isinstance(error, MemoryError):
        message = "This machine has no memory left for this: free some, or raise the limit of this process, and try again."
        output.error("NO_MEMORY", message)
        return FAILED
    assert isinstance(error, OSError)  # nothing else is caught
    output.error(
        "STDOUT" if isinstance(error, StdoutError) else "OS_ERROR", _os_message(error), {"errno": error.errno}
    )
    return FAILED


def _wrong_usage(error: click.ClickException, output: Output) -> int:
    if output.as_json:
        output.error("USAGE", error.format_message())
    else:
        shown = io.StringIO()
        error.show(shown)
        for line in shown.getvalue().splitlines():
            output.error_line(escaped(line).replace("\\\\", "\\"))
    return WRONG_USAGE if isinstance(error, click.UsageError) else FAILED


def _os_message(error: OSError) -> str:
    if isinstance(error, StdoutError):
        return ". ".join([str(error), *getattr(error, "__notes__", ())])
    why = error.strerror or str(error) or type(error).__name__
    if error.filename is None:
        return f"{why}"
    name = error.filename if isinstance(error.filename, str | bytes) else str(error.filename)
    # A message begins with a capital letter, and a name must keep its own.
    return f"cannot use {escaped(name) or repr('')}: {why}"


def _wants_json(arguments: Sequence[str]) -> bool:
    """Known before the arguments are parsed, so that a usage error is reported as JSON, too."""
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in ours


def _prepare_streams() -> None:
    """A name that the terminal's encoding lacks is shown escaped; it never ends the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _heed_interrupts() -> None:
    """Ctrl-C, SIGTERM and SIGHUP end what is under way in order; the same signal again, or Ctrl-C, ends the process.

    A signal that is ignored, as SIGHUP under nohup, stays ignored.
    """

    def interrupt(number: int, _frame: FrameType | None) -> None:
        for each in heeded:
            # A service manager may send SIGTERM and SIGHUP together: the second one does not count as a second request.
            again = each in (number, signal.SIGINT)
            signal.signal(each, signal.SIG_DFL if again else signal.SIG_IGN)
        # An interrupt inside Condition.wait can release the lock of a thread of gRPC. That thread then fails, at no cost.
        threading.excepthook = lambda _: None
        raise KeyboardInterrupt

    heeded = [
        each
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(each) in (signal.default_int_handler, signal.SIG_DFL)
    ]
    for each in heeded:
        signal.signal(each, interrupt)


def _end_by_broken_pipe() -> int:
    """The reader of the output has gone: end as other filters do, by SIGPIPE and without a message."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)
    return FAILED
