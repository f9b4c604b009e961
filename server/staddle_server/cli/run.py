"""The list of commands. Each is loaded on use, so that a probe every few seconds costs little."""

import contextlib
import importlib
import sys
from typing import Final

import click
from staddle._base.standard_streams import stdout_failure
from staddle._base.terminal import fitted

import staddle_server
from staddle_server.app.settings import OperatorError, SettingsError
from staddle_server.base.errors import StaddleError
from staddle_server.base.threads import shortage
from staddle_server.cli import missing

COMMANDS: Final = {
    "init": "staddle_server.cli.serve:init",
    "serve": "staddle_server.cli.serve:serve",
    "health": "staddle_server.cli.health:health_command",
    "tenant": "staddle_server.cli.tenants:tenant",
    "token": "staddle_server.cli.tokens:token",
    "parity": "staddle_server.cli.parity:parity",
    "gc": "staddle_server.cli.gc:gc",
    "drill": "staddle_server.cli.drill:drill",
    "check": "staddle_server.cli.check:check",
    "repair": "staddle_server.cli.check:repair",
    "rebuild": "staddle_server.cli.rebuild:rebuild",
    "replicate": "staddle_server.cli.replicate:replicate",
    "adopt": "staddle_server.cli.adopt:adopt",
    "uploads": "staddle_server.cli.uploads:uploads",
    "servers": "staddle_server.cli.servers:servers",
    "lock": "staddle_server.cli.lock:lock",
    "clock": "staddle_server.cli.clock:clock",
    "events": "staddle_server.cli.events:events",
    "notify": "staddle_server.cli.notify:notify",
    "cert": "staddle_server.cli.certificates:cert",
}


_ERROR: Final = "Error: "


class Commands(click.Group):
    """A group whose commands are imported by name, and whose errors are messages: exit 1, or 2 for wrong
    usage.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  click's signature
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name].split(":")
        try:
            command: click.Command = getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            missing(error)
            raise
        return command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except SettingsError as error:
            raise click.UsageError(_fitted(error), ctx) from error
        except BrokenPipeError:
            raise  # the reader of the output is gone (`| head`): click ends the command silently
        except (OperatorError, StaddleError, OSError) as error:
            raise click.ClickException(_fitted(error)) from error
        except (MemoryError, RuntimeError) as error:
            refused = shortage(error)
            if refused is None:
                raise
            raise click.ClickException(_fitted(refused)) from error


def _fitted(error: Exception) -> str:
    """Return an error's message, to be shown after click's own prefix."""
    return fitted(f"{_ERROR}{error}", sys.stderr).removeprefix(_ERROR)


def _show_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        from staddle._base.interpreter import interpreter  # takes longer to load than the version

        click.echo(f"staddle-server {staddle_server.__version__} ({interpreter()})")
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version, and how its Python was built, and exit.",
)
def group() -> None:
    """Run and administer a Staddle backup server."""


def run() -> None:
    try:
        group(prog_name="staddle-server")
    except SystemExit as end:
        # The answer of `health` is its exit code, and a server serves even if it cannot print where. Their
        # help is like any other's.
        is_help = not {"-h", "--help"}.isdisjoint(sys.argv[2:])
        failure = stdout_failure() if is_help or sys.argv[1:2] not in (["serve"], ["health"]) else None
        if failure is None or isinstance(failure, BrokenPipeError) or end.code:
            raise  # the failure was already reported
        with contextlib.suppress(OSError):
            click.echo(f"Error: {failure}", err=True)
        sys.exit(1)
