"""The command `staddle`. This module imports nothing that `pip install staddle` alone does not bring."""

import importlib
import json
import sys

EXTRAS = frozenset({"click", "rich", "pathspec", "pyfastcdc", "zstandard"})
"""What the extra `cli` installs."""


def main() -> None:
    """Runs the command, and ends the process with its exit code; without the extra `cli` it says what to install."""
    try:
        code = importlib.import_module("staddle.command._run").run(sys.argv[1:])
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRAS:
            raise
        _say_missing(error.name or "")
        code = 1
    except KeyboardInterrupt:
        code = 130  # before the command could say anything about it
    sys.exit(code)


def _say_missing(package: str) -> None:
    message = (
        f"The command staddle needs the Python package {package}, which is not installed. "
        "This installs it: pip install 'staddle[cli]'"
    )
    if "--json" in sys.argv[1:]:
        message = json.dumps({"reason": "UNSUPPORTED", "message": message, "package": package})
    sys.stderr.write(message + "\n")
