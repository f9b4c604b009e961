"""A master key that is given to a server: in a file, in an environment variable, or by a command."""

import os
import shlex
import subprocess
from typing import Final

from staddle_server.app.settings import KEY_OF_COMMAND, KEY_OF_VARIABLE, OperatorError
from staddle_server.store.keys import load_master_key, parse_master_key

COMMAND_S: Final = 60
"""How long the command may take, which may ask a key service."""


def given_master_key(where: str) -> bytes:
    """Return the master key that `where` names: FILE, env:VARIABLE, or command:WORDS, whose output it is.

    Raises OperatorError or MasterKeyError, which never repeat the key.
    """
    if where.startswith(KEY_OF_VARIABLE):
        variable = where.removeprefix(KEY_OF_VARIABLE)
        line = os.environ.get(variable)
        if line is None:
            raise OperatorError(f"--master-key {where}: the environment has no variable {variable}")
        return parse_master_key(line.encode(), f"the variable {variable}")
    if where.startswith(KEY_OF_COMMAND):
        return parse_master_key(
            _output(where.removeprefix(KEY_OF_COMMAND)), "the output of the --master-key command"
        )
    return load_master_key(where)


def _output(command: str) -> bytes:
    try:
        done = subprocess.run(  # noqa: S603  the operator's own command, without a shell
            shlex.split(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=COMMAND_S,
            check=False,
        )
    except (OSError, ValueError, IndexError) as error:
        raise OperatorError(f"the --master-key command cannot be run: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise OperatorError(f"the --master-key command did not end within {COMMAND_S} s") from error
    if done.returncode:
        raise OperatorError(f"the --master-key command failed with exit code {done.returncode}")
    return done.stdout
