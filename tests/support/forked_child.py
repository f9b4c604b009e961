"""Turns a process made by `forked` into a command of this project."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import resource
import runpy
import signal
import sys
import threading
import time
from collections.abc import Sequence
from importlib import import_module
from multiprocessing import reduction
from pathlib import Path

TESTS = Path(__file__).parents[1]
MAINS = {"staddle": "staddle.command", "staddle-server": "staddle_server.cli"}

# The fork server loads this module last: a collection in a command would copy all these shared pages.
gc.freeze()


class Streams:
    """The three standard streams; pickling sends their descriptors to the new process."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        self.descriptors = descriptors

    def __getstate__(self):
        return [reduction.DupFd(each) for each in self.descriptors]

    def __setstate__(self, sent):
        self.descriptors = [each.detach() for each in sent]


def become(
    words: list[bytes], cwd: str, umask: int, environment: dict[bytes, bytes], streams: Streams
) -> None:
    """Sets up what the system gives to a new process, runs the command, and ends as the interpreter does."""
    for number, descriptor in enumerate(streams.descriptors):
        os.dup2(descriptor, number)
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    os.environb.clear()
    os.environb.update(environment)
    time.tzset()
    os.chdir(cwd)
    os.umask(umask)
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        signal.signal(number, handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    sys.argv = [os.fsdecode(each) for each in words]
    sys.path = [each for each in sys.path if not Path(each).is_relative_to(TESTS)]
    for number, (name, mode, errors) in enumerate(
        (("stdin", "r", "strict"), ("stdout", "w", "strict"), ("stderr", "w", "backslashreplace"))
    ):
        stream = open(number, mode, encoding=sys.__stderr__.encoding, errors=errors, closefd=False)  # noqa: SIM115
        stream.reconfigure(line_buffering=name == "stderr" or os.isatty(number))
        setattr(sys, name, stream)
    try:
        if (name := Path(sys.argv[0]).name) in MAINS:
            import_module(MAINS[name]).main()
        else:
            del sys.argv[0]  # the interpreter
            sys.path.insert(0, str(Path(sys.argv[0]).parent))
            runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        logging.shutdown()  # registered before the fork, and from Python 3.13 on forgotten in it
