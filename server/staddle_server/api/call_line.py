"""How a call ends: its log line, and the caller's error for whatever was raised."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable
from typing import Final

from staddle_server.api.gate import Call
from staddle_server.base.call_ids import CURRENT, call_id
from staddle_server.base.errors import Fault, StaddleError
from staddle_server.base.logs import CALLS
from staddle_server.base.observer import NOTHING, Observer
from staddle_server.base.threads import shortage

log = logging.getLogger(CALLS)
FACT_CHARS_MAX: Final = 256


def refusal_of(error: Exception, method: str) -> StaddleError:
    """Return the caller's error. Foreign exceptions become a Fault, and their traceback is logged."""
    if isinstance(error, StaddleError):
        return error
    scarce = shortage(error)
    log.error("a fault in %s", method, exc_info=error)
    where = f" (call {call})" if (call := CURRENT.get()) else ""
    return scarce or Fault("INTERNAL", f"a fault of the server in {method}; its log has the details{where}")


def free_frames(error: BaseException | None) -> None:
    """Free what the frames of an error hold: messages, packs.

    In Python 3.13 such frames may be part of a cycle. A cleared frame still keeps its function and closure,
    so the traceback is dropped too: a refusal outlives its call.
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
        call: The call, once admitted.
        id: What the log and the client know the call by.

    """

    def __init__(
        self,
        method: str,
        peer: Callable[[], str],
        level: int = logging.INFO,
        observer: Observer = NOTHING,
        *,
        given_id: str = "",
    ) -> None:
        """Begin: until `leave`, this thread's log lines have the call's id. `given_id` is the client's."""
        self.id = call_id(given_id)
        CURRENT.set(self.id)
        self.call: Call | None = None
        self._observer = observer
        self._level = level
        self._method = method
        self._peer = peer
        self._start_s = time.monotonic()
        self._lock = threading.Lock()
        self._written = False

    @staticmethod
    def leave() -> None:
        """End the work of this thread for the call."""
        CURRENT.set("")

    def gone(self) -> None:
        """Write the line for a client that went away, unless the handler already wrote one."""
        self.end("CANCELLED")

    def end(self, outcome: str, error: StaddleError | None = None) -> None:
        """Write the line."""
        with self._lock:
            if self._written:
                return
            self._written = True
        seconds = time.monotonic() - self._start_s
        self._observer.call_ended(self._method, outcome, seconds)
        level = self._level if outcome == "OK" else logging.INFO
        if not log.isEnabledFor(level):
            return
        call = self.call
        fields: dict[str, object] = {
            "call": self.id,
            "method": self._method,
            "tenant": call.tenant if call else None,
            "principal": call.principal.name if call else None,
            "peer": self._peer(),
            **(_short(call.facts) if call else {}),
            "seconds": round(seconds, 4),
            "outcome": outcome,
        }
        if error is not None:
            fields["reason"] = error.reason
            fields["detail"] = error.message
        log.log(level, "call", extra={"fields": fields})


def _short(facts: dict[str, object]) -> dict[str, object]:
    """Shorten what a caller sent: it may be long, and is not checked yet."""
    return {key: value[:FACT_CHARS_MAX] if isinstance(value, str) else value for key, value in facts.items()}
