"""The command `staddle-server`."""

import importlib
import platform
import signal
import sys

from staddle._base.standard_streams import open_standard_streams

SUPPORTED = ("x86_64", "aarch64")


def refusal(system: str, machine: str) -> str | None:
    """Return why the server cannot run here, in words; None if it can."""
    if system == "linux" and machine in SUPPORTED:
        return None
    return (
        f"staddle-server runs on Linux on {' and '.join(SUPPORTED)}, not on {system} on {machine}. "
        "The client, `staddle`, also runs on macOS."
    )


def main() -> None:
    """Run the command, or report what is missing."""
    open_standard_streams(late=True)
    if sys.argv[1:2] == ["serve"] and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        # Modules load for a second before the server handles signals; the start does what a SIGHUP would ask
        # for anyway.
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
    """Exit with the name of the package to install, if the missing module is a third party's.

    Raises the error otherwise.
    """
    if (error.name or "").split(".")[0] in {"staddle", "staddle_server"}:
        raise error
    sys.exit(
        f"staddle-server needs the Python package {error.name}, which is not installed: pip install 'staddle[server]'"
    )
