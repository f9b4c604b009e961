"""How a call ends: its log line, and the error that its caller gets for whatever was raised."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final

from staddle_server.api.gate import Call
from staddle_server.base.errors import Fault, StaddleError
from staddle_server.base.logs import CALLS
from staddle_server.base.threads import shortage

log = logging.getLogger(CALLS)
FACT_CHARS_MAX: Final = 256


def refusal_of(error: Exception, method: str) -> StaddleError:
    """The error that the caller of a method gets. What is not the service's own becomes a Fault, and the log has its traceback."""
    if isinstance(error, StaddleError):
        return error
    scarce = shortage(error)
    log.error("a fault in %s", method, exc_info=error)
    return scarce or Fault("INTERNAL", f"a fault of the server in {method}; its log has more")


def free_frames(error: BaseException | None) -> None:
    """Frees what the frames that an error went through hold: messages, packs. In Python 3.13 such frames may be part of a cycle.

    A frame that was cleared still keeps its function, and what that encloses, so the traceback goes as well: a refusal stays with its call.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


class CallLine:
    """The log line of a call, written once: at `level` if it succeeds, else at INFO.

    Attributes:
        call: The call, once it was admitted.

    """

    def __init__(self, method: str, peer: Callable[[], str], level: int = logging.INFO) -> None:
        self.call: Call | None = None
        self._level = level
        self._method = method
        self._peer = peer
        self._start_s = time.monotonic()
        self._lock = threading.Lock()
        self._written = False

    def gone(self) -> None:
        """The call has ended; if the handler did not say how, the client went away."""
        self.end("CANCELLED")

    def end(self, outcome: str, error: StaddleError | None = None) -> None:
        """Writes the line."""
        with self._lock:
            if self._written:
                return
            self._written = True
        level = self._level if outcome == "OK" else logging.INFO
        if not log.isEnabledFor(level):
            return
        call = self.call
        fields: dict[str, object] = {
            "method": self._method,
            "tenant": call.tenant if call else None,
            "principal": call.principal.name if call else None,
            "peer": self._peer(),
            **(_short(call.facts) if call else {}),
            "seconds": round(time.monotonic() - self._start_s, 4),
            "outcome": outcome,
        }
        if error is not None:
            fields["reason"] = error.reason
            fields["detail"] = error.message
        log.log(level, "call", extra={"fields": fields})


def _short(facts: dict[str, object]) -> dict[str, object]:
    """What a caller said may be long, and is not checked yet when it is noted."""
    return {key: value[:FACT_CHARS_MAX] if isinstance(value, str) else value for key, value in facts.items()}
