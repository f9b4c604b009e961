"""`staddle-server`, which ends itself by SIGKILL where a plan says so: python crash_launcher.py PLAN LOG SERVER-ARGUMENTS…

PLAN is a file that may appear at any time, with the words NAME, `before` or `after`, and N: the process dies there at the
step's N-th time from then on. LOG gets the name of each step as it begins.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from crash_steps import Observer, Step, watched
from staddle_server.cli import main


class Killer(Observer):
    def __init__(self, plan: str, log: str) -> None:
        self._plan = plan
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._lock = threading.Lock()
        self._words: list[str] = []
        self._left = 0

    def before(self, step: Step) -> None:
        os.write(self._log, f"{step.name}\n".encode())
        self._at(step, "before")

    def after(self, step: Step) -> None:
        self._at(step, "after")

    def _at(self, step: Step, phase: str) -> None:
        with self._lock:
            if not self._words and os.path.exists(self._plan):
                with open(self._plan) as file:
                    self._words = file.read().split()
                self._left = int(self._words[2])
            if self._words[:2] == [step.name, phase]:
                self._left -= 1
                if not self._left:
                    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    plan, log, *arguments = sys.argv[1:]
    sys.argv = ["staddle-server", *arguments]
    with watched(Killer(plan, log)):
        main()
