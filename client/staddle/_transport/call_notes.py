"""Each call has an id, which the server logs too, and a line in the log of this library at DEBUG."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Final, Self

from staddle._errors import StaddleError

CALL_KEY: Final = "staddle-call"
"""The id's name in metadata."""
_log = logging.getLogger("staddle")


class CallNote:
    """One call: a context from its start to its end.

    Attributes:
        metadata: The id; and, if the program traces with OpenTelemetry, the context of its current span.

    """

    def __init__(self, method: str, address: str) -> None:
        self._method = method
        self._address = address
        self._id = os.urandom(8).hex()
        self._start_s = time.monotonic()
        self.metadata: tuple[tuple[str, str], ...] = ((CALL_KEY, self._id), *_trace_context())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """The call has ended. An error of this library gets its id."""
        outcome = "OK" if error is None else type(error).__name__
        if isinstance(error, StaddleError):
            error.call, outcome = self._id, error.reason
        _log.debug(
            "%s at %s: %s after %.3f s (call %s)",
            self._method,
            self._address,
            outcome,
            time.monotonic() - self._start_s,
            self._id,
        )


def _trace_context() -> tuple[tuple[str, str], ...]:
    """The context to pass on, as W3C's traceparent; nothing is loaded for it unless the program uses OpenTelemetry."""
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())
