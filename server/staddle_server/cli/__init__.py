"""The command `staddle-server`."""

import importlib
import platform
import signal
import sys

from staddle._base.standard_streams import open_standard_streams

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
    open_standard_streams(late=True)
    if sys.argv[1:2] == ["serve"] and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        # Modules load for a second before the server listens to signals; what a SIGHUP asks for, the start does anyway.
        signal.signal(signal.SIGHUP, lambda *_: None)
    refused = refusal(sys.platform, platform.machine())
    if refused is not None:
        sys.exit(refused)
    try:
        commands = importlib.import_module("staddle_server.cli.run")
    except ModuleNotFoundError as error:
        missing(error)
    commands.run()


def missing(error: ModuleNotFoundError) -> None:
    """Ends the process with the package to install, if what is missing is not ours. Raises the error if it is."""
    if (error.name or "").split(".")[0] in {"staddle", "staddle_server"}:
        raise error
    sys.exit(
        f"staddle-server needs the Python package {error.name}, which is not installed: pip install 'staddle[server]'"
    )
