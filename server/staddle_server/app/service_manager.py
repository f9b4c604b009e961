"""Messages to the service manager, in systemd's sd_notify protocol: ready, reloading, stopping, a status,
signs of life.

The protocol is one datagram of NAME=VALUE lines to the socket in NOTIFY_SOCKET: sd_notify(3), whose page has
such an implementation as an example. Nothing here blocks or raises: a manager that does not listen does not
stop the server.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

SOCKET_VARIABLE: Final = "NOTIFY_SOCKET"
WATCHDOG_VARIABLE: Final = "WATCHDOG_USEC"
WATCHDOG_PID_VARIABLE: Final = "WATCHDOG_PID"
LOOK_EVERY_S: Final = 10.0
"""How often the server checks itself if the manager expects no signs of life."""
ASK_S: Final = 10.0
"""The longest wait for the server's own answer."""
STATUS_CHARACTERS_MAX: Final = 500

_log = logging.getLogger(__name__)


class Manager:
    """The service manager; without one, every call does nothing."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get(SOCKET_VARIABLE, "")
        # A name that begins with @ is in the abstract namespace. Other kinds (vsock) are for managers outside
        # a machine.
        self._address = b"\0" + os.fsencode(address[1:]) if address.startswith("@") else os.fsencode(address)
        self.listens = address[:1] in {"@", "/"}
        self.watchdog_s = _watchdog_s(environ) if self.listens else None
        """Within this time the manager expects a sign of life; None for never."""
        self._status = ""

    def ready(self, status: str) -> None:
        """Report that the server serves."""
        self._status = status
        self._say("READY=1", _line(status))

    def reload(self, work: Callable[[], None]) -> None:
        """Do the work of a reload, and report its start and end."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._say("RELOADING=1", f"MONOTONIC_USEC={now_us}", _line("Reading settings and certificates again"))
        try:
            work()
        finally:
            self.ready(self._status)

    def stopping(self, status: str) -> None:
        """Report that the server drains."""
        self._say("STOPPING=1", _line(status))

    def alive(self) -> None:
        """Send a sign of life."""
        self._say("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Send a sentence for `systemctl status`, if it has changed."""
        if text != self._status:
            self._status = text
            self._say(_line(text))

    def _say(self, *lines: str) -> None:
        if not self.listens:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
                to.sendto("\n".join(lines).encode(), socket.MSG_DONTWAIT, self._address)
        except OSError as error:
            _log.debug("the message %s to the service manager failed: %s", lines[0], error)


class Pulse:
    """Checks from time to time whether the server answers itself, and reports the result to the manager.

    For one thread.
    """

    def __init__(
        self, manager: Manager, ask: Callable[[float], str], clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        """`ask` calls the server as a client does, with a timeout in seconds, and returns a sentence on its
        state.

        It raises OperatorError, or any other exception, without an answer; then no sign of life is sent.
        """
        self._manager = manager
        self._ask = ask
        self._clock_s = clock_s
        watchdog_s = manager.watchdog_s
        self._every_s = LOOK_EVERY_S if watchdog_s is None else min(LOOK_EVERY_S, watchdog_s / 4)
        self._ask_s = ASK_S if watchdog_s is None else min(ASK_S, watchdog_s / 2)
        self._due_s = clock_s()
        self._silent = False

    def tick(self) -> None:
        """Called every second or so; checks when it is time to. Never raises."""
        if not self._manager.listens or self._clock_s() < self._due_s:
            return
        try:
            status = self._ask(self._ask_s)
        except Exception as error:  # noqa: BLE001  whatever it is, it is no answer
            if not self._silent:
                _log.warning("the server does not answer itself: %s", error)
            self._silent = True
            self._manager.status(f"Does not answer itself: {error}")
        else:
            self._silent = False
            if self._manager.watchdog_s is not None:
                self._manager.alive()
            self._manager.status(status)
        self._due_s = self._clock_s() + self._every_s


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    """Return how long the manager waits for this process; None if it does not."""
    time_us, process = environ.get(WATCHDOG_VARIABLE, ""), environ.get(WATCHDOG_PID_VARIABLE, "")
    if not (time_us.isascii() and time_us.isdecimal() and 0 < int(time_us) < 1 << 63):
        return None
    return int(time_us) / 1e6 if process in {"", str(os.getpid())} else None


def _line(status: str) -> str:
    """Return a STATUS line: one line, whatever is in the text."""
    return "STATUS=" + " ".join(status.split())[:STATUS_CHARACTERS_MAX]
