"""What the service reports about its work while it works, for whoever counts or traces it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

TRACE_KEYS: Final = ("traceparent", "tracestate")
"""What carries a caller's trace context, in metadata and headers."""
_NO_SPAN: Final[AbstractContextManager[Any]] = nullcontext()


class Observer:
    """Hears of calls, of store and catalog, and of what collections free; does nothing by itself.

    Called from any thread, and often: implementations are quick and never raise.
    """

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """A call has ended, with this name of its code."""

    def received(self, size_bytes: int) -> None:
        """A message has arrived."""

    def sent(self, size_bytes: int) -> None:
        """A message was handed to the transport."""

    def store_used(self, operation: str, seconds: float, *, failed: bool) -> None:
        """An operation of the store has ended. Looking for what is not there is no failure."""

    def catalog_used(self, operation: str, seconds: float, *, failed: bool) -> None:
        """A transaction of the catalog has ended, with the caller's work in it."""

    def freed(self, size_bytes: int) -> None:
        """A collection has removed this much from the store."""

    def call_span(
        self,
        method: str,  # noqa: ARG002
        call: str,  # noqa: ARG002
        carrier: Mapping[str, str],  # noqa: ARG002
    ) -> AbstractContextManager[Any]:
        """Return the context in which a call works, by its id. `carrier` has the caller's trace context."""
        return _NO_SPAN

    def span(self, name: str) -> AbstractContextManager[Any]:  # noqa: ARG002
        """Return the context of a part of a call's work; of other work nothing is recorded."""
        return _NO_SPAN


NOTHING: Final = Observer()
