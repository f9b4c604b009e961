"""Health, which needs no token: so its callers can only hold up one another.

The library's own servicer sends to watchers while it holds its lock: a watcher that left at that moment, or
that did not read, stopped the whole server.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2

from staddle_server.api.grpc.status import abort_with
from staddle_server.api.slots import Slots
from staddle_server.base.errors import Exhausted, StaddleError

SERVICE: Final = health_pb2.DESCRIPTOR.services_by_name["Health"]
WATCHES_MAX: Final = 64
"""Concurrent calls of Watch; each holds a thread."""
ASKED_MAX: Final = 16
"""Concurrent calls whose message has not arrived; each holds a thread."""
ASKED_S: Final = 10.0
"""Their message must arrive within this time."""

_Answer = health_pb2.HealthCheckResponse


class Health:
    """Answers grpc.health.v1.Health for some names; NOT_SERVING until another status is set.

    Attributes:
        asked: The slots of calls whose message has not arrived yet.

    """

    def __init__(self, names: Iterable[str], now_s: Callable[[], float]) -> None:
        self._status: dict[str, Any] = dict.fromkeys(names, _Answer.NOT_SERVING)
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._watches = Slots(WATCHES_MAX, now_s, what="health watchers")
        self.asked = Slots(ASKED_MAX, now_s, what="health calls without a message", first_s=ASKED_S)

    def say(self, status: Any, *names: str) -> None:
        """Set the status of these names, and send it to their watchers."""
        with self._lock:
            self._status.update(dict.fromkeys(names, status))
            self._changed.notify_all()

    def check(self, requests: Iterator[Any], context: grpc.ServicerContext) -> _Answer:
        request = self._request(requests, context)
        if request.service not in self._status:
            context.abort(grpc.StatusCode.NOT_FOUND, "this server has no service of that name")
        return _Answer(status=self._status_of(request.service))

    def watch(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[_Answer]:
        request = self._request(requests, context)
        try:
            self._watches.enter(context)
        except StaddleError as e:
            abort_with(context, e)
        context.add_callback(self._wake)
        while context.is_active():
            status = self._status_of(request.service)
            yield _Answer(status=status)
            with self._lock:
                while context.is_active() and self._status_of(request.service) == status:
                    self._changed.wait()

    def _status_of(self, name: str) -> Any:
        return self._status.get(name, _Answer.SERVICE_UNKNOWN)

    def _wake(self) -> None:
        with self._lock:
            self._changed.notify_all()

    def _request(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        """Read a call's request. If too many calls send none, the oldest end in favour of the next."""
        try:
            try:
                return self.asked.only(requests, context)
            except Exhausted:
                self.asked.end_oldest()
                return self.asked.only(requests, context)
        except StaddleError as e:
            abort_with(context, e)

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return both methods, which stream their requests as all methods do (see call.handle)."""
        read, write = health_pb2.HealthCheckRequest.FromString, _Answer.SerializeToString
        return grpc.method_handlers_generic_handler(
            SERVICE.full_name,
            {
                "Check": grpc.stream_unary_rpc_method_handler(self.check, read, write),
                "Watch": grpc.stream_stream_rpc_method_handler(self.watch, read, write),
            },
        )
