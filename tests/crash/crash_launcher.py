"""`staddle-server`, which a signal ends or stops where a plan says so: python crash_launcher.py PLAN LOG SERVER-ARGUMENTS…

PLAN is a file that may appear at any time, with the words NAME, `before` or `after`, N, and a signal's number: the process sends itself
that signal at the step's N-th time from then on. It removes the plan first, so that of several processes with one plan a single one
follows it: it writes its process id to PLAN.done. LOG gets the name of each step as it begins.

SIGUSR2 makes it hang: no code of Python runs any more, while gRPC itself still accepts connections and answers pings.

CRASH_CLOCK_AHEAD_S in the environment sets the process's wall clock ahead.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack
from importlib.util import find_spec

from crash_steps import Observer, Step, watched, watched_objects
from staddle_server.base.clock import SystemClock
from staddle_server.cli import main


class Killer(Observer):
    def __init__(self, plan: str, log: str) -> None:
        self._plan = plan
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._lock = threading.Lock()
        self._words: list[str] = []
        self._read: tuple[int, int] | None = None
        """Which plan was read: its inode, and when it was written."""
        self._left = 0

    def before(self, step: Step) -> None:
        os.write(self._log, f"{step.name}\n".encode())
        self._at(step, "before")

    def after(self, step: Step) -> None:
        self._at(step, "after")

    def _at(self, step: Step, phase: str) -> None:
        with self._lock:
            self._look()
            if self._words[:2] == [step.name, phase]:
                self._left -= 1
                if not self._left:
                    self._follow()

    def _look(self) -> None:
        try:
            status = os.stat(self._plan)
            if self._read != (status.st_ino, status.st_mtime_ns):
                with open(self._plan) as file:
                    self._words = file.read().split()
                self._read = status.st_ino, status.st_mtime_ns
                self._left = int(self._words[2])
        except FileNotFoundError:
            self._words = []

    def _follow(self) -> None:
        try:
            os.unlink(self._plan)
        except FileNotFoundError:
            return
        with open(f"{self._plan}.done.new", "w") as file:
            file.write(f"{os.getpid()}")
        os.replace(f"{self._plan}.done.new", f"{self._plan}.done")
        os.kill(os.getpid(), int(self._words[3]))


def set_clock_ahead(seconds: float) -> None:
    SystemClock.now_ns = lambda _: time.time_ns() + int(seconds * 1e9)  # type: ignore[method-assign]


def hang(*_: object) -> None:
    """Sleeps for an hour in C, with the interpreter's lock."""
    ctypes.PyDLL(None).sleep(3600)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR2, hang)
    plan, log, *arguments = sys.argv[1:]
    sys.argv = ["staddle-server", *arguments]
    if ahead := float(os.environ.get("CRASH_CLOCK_AHEAD_S", "0")):
        set_clock_ahead(ahead)
    with ExitStack() as stack:
        killer = Killer(plan, log)
        stack.enter_context(watched(killer))
        if find_spec("obstore") is not None:
            stack.enter_context(watched_objects(killer))
        main()
