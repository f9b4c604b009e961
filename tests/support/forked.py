"""Runs this project's commands as processes that start in milliseconds: forked from one that has loaded their modules.

`run` and `start` are `subprocess.run` and `subprocess.Popen` for `staddle` and `staddle-server`. A forked process has its own
descriptors, signals, environment, user and memory. Only its modules are loaded in advance, which is most of the work of a
short command. Tests about the start itself use `subprocess`. So do `run` and `start` when the environment has a variable
that the interpreter or a C library reads only at its start, with another value than here.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any

import pytest
import staddle
import staddle_server
from forked_child import MAINS, TESTS, Streams, become

BIN = Path(sys.executable).parent
READ_AT_START = ("GRPC_", "LANG", "LC_", "LD_", "MALLOC_", "OPENSSL_", "PYTHON")
LEFT_OUT = {"__main__", "demo", "env", "versions", "postgres", "postgres_link"}
"""Modules that no command loads, or only one whose catalog is in PostgreSQL."""
LOADED_LATE = (
    "encodings.idna",
    "google.rpc.error_details_pb2",
    "importlib.metadata",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "stringprep",
)
"""Modules that libraries load at their first use."""


def _modules(package: Any) -> list[str]:
    top = Path(package.__file__).parent
    names = [path.relative_to(top.parent).with_suffix("").parts for path in top.rglob("*.py")]
    return sorted(
        ".".join(each[:-1] if each[-1] == "__init__" else each) for each in names if not LEFT_OUT & {*each}
    )


_polling = threading.Lock()
"""Each start looks at all processes. Of two threads that read one's status, the second would get none: it says 255 then."""
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["__main__", *LOADED_LATE, *_modules(staddle), *_modules(staddle_server), "forked_child"]
)


def _read_at_start(environment: Mapping[Any, Any]) -> dict[str, str]:
    named = {os.fsdecode(name): os.fsdecode(value) for name, value in environment.items()}
    return {name: value for name, value in named.items() if name.startswith(READ_AT_START)}


@functools.cache
def _ready() -> dict[str, str]:
    """Starts the process that forks the others. Returns the variables that it read at its start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # for forked_child
        forkserver.ensure_running()
    return _read_at_start(os.environ)


class Forked(subprocess.Popen[Any]):
    """A `subprocess.Popen` whose process is a child of the fork server: only making it and waiting for it differ."""

    def _execute_child(self, args, *others):
        cwd, env, pipes = others[4], others[5], others[9:15]
        theirs = [pipes[end] if pipes[end] != -1 else number for number, end in enumerate((0, 3, 5))]
        words = [os.fsencode(each) for each in args]
        given = {os.fsencode(name): os.fsencode(value) for name, value in env.items()}
        umask = os.umask(0o022)
        os.umask(umask)
        self._made = _context.Process(
            target=become, args=(words, os.fspath(cwd), umask, given, Streams(theirs)), daemon=True
        )
        try:
            with _polling:
                self._made.start()
            self.pid = self._made.pid
            self._child_created = True
        finally:
            self._close_pipe_fds(*pipes)

    def _internal_poll(self, *_others, **_named):
        with _polling:
            if self.returncode is None:
                self.returncode = self._made._popen.poll()
            return self.returncode

    def _wait(self, timeout):
        if self.returncode is None and not connection.wait([self._made.sentinel], timeout):
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self._internal_poll()


def start(
    words: Sequence[Any], *, env: Mapping[Any, Any] | None = None, cwd: Any = None, **options: Any
) -> subprocess.Popen[Any]:
    """`subprocess.Popen` of `staddle` or `staddle-server`, or of `python FILE` for a launcher of them in these tests."""
    first, second = (Path(os.fsdecode(each)) for each in [*words, ""][:2])
    is_ours = first.parent == BIN and first.name in MAINS
    if not is_ours and not (first == Path(sys.executable) and second.is_relative_to(TESTS)):
        raise ValueError(f"{first} is not a command of this project: start it with subprocess")
    environment = dict(os.environ if env is None else env)
    if _read_at_start(environment) != _ready():
        return subprocess.Popen(words, env=environment, cwd=cwd, **options)
    return Forked(words, env=environment, cwd=os.getcwd() if cwd is None else cwd, **options)


def run(
    words: Sequence[Any],
    *,
    given: Any = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run` of `staddle` or `staddle-server`, with `given` as its standard input."""
    piped = {name: subprocess.PIPE for name in ("stdout", "stderr") if capture_output}
    if given is not None:
        piped["stdin"] = subprocess.PIPE
    with start(words, **options | piped) as process:
        try:
            out, err = process.communicate(given, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(words, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done
