"""The command `staddle-server`."""

import importlib
import os
import platform
import sys

SUPPORTED = ("x86_64", "aarch64")


def refusal(system: str, machine: str) -> str | None:
    """Why the server does not run here, in words; None where it does."""
    if system == "linux" and machine in SUPPORTED:
        return None
    return (
        f"staddle-server runs on Linux on {' and '.join(SUPPORTED)}, not on {system} on {machine}. "
        "The client, `staddle`, also runs on macOS."
    )


def main() -> None:
    """Runs the command, or says what is missing to run it."""
    hold_closed_streams()
    refused = refusal(sys.platform, platform.machine())
    if refused is not None:
        sys.exit(refused)
    try:
        commands = importlib.import_module("staddle_server.cli.commands")
    except ModuleNotFoundError as error:
        missing(error)
    commands.run()


def hold_closed_streams() -> None:
    """Puts /dev/null where a standard stream is closed: the next pack or socket would get its number, and what is meant for the stream."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for as long as the process lives


def missing(error: ModuleNotFoundError) -> None:
    """Ends the process with the package to install, if what is missing is not ours. Raises the error if it is."""
    if (error.name or "").split(".")[0] in {"staddle", "staddle_server"}:
        raise error
    sys.exit(
        f"staddle-server needs the Python package {error.name}, which is not installed: pip install 'staddle[server]'"
    )
