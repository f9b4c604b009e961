"""The command `staddle`. This module imports nothing that `pip install staddle` alone does not bring."""

import gc
import importlib
import json
import os
import sys
from contextlib import suppress

from staddle._base.extra_packages import CLI_PACKAGES
from staddle._base.standard_streams import open_standard_streams


def main() -> None:
    """Runs the command, and ends the process with its exit code; without the extra `cli` it says what to install."""
    open_standard_streams(stdin=False)
    gc.disable()  # what modules make while they load stays: looking for garbage in it takes 12 ms; see options.command
    try:
        code = importlib.import_module("staddle.command.run").run(sys.argv[1:])
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in CLI_PACKAGES:
            raise
        _say_missing(error.name or "")
        code = 1
    except KeyboardInterrupt:
        code = 130  # before the command could say anything about it
    _end(code)


def _end(code: int) -> None:
    """Ends the process without taking the interpreter down piece by piece, which takes 30 ms: everything is closed and written by now."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # who read it has gone, or it never was open
            stream.flush()
    os._exit(code)


def _say_missing(package: str) -> None:
    message = (
        f"The command staddle needs the Python package {package}, which is not installed. "
        "This installs it: pip install 'staddle[cli]'"
    )
    if "--json" in sys.argv[1:]:
        message = json.dumps({"reason": "UNSUPPORTED", "message": message, "package": package})
    sys.stderr.write(message + "\n")
