"""The server's handlers, called as gRPC calls them, on the caller's thread without gRPC: one step at a time, by a seed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import grpc
import staddle_server.api.grpc.server as wire_server
from staddle.v1 import service_pb2 as sv

PREFIX = f"/{wire_server.SERVICE.full_name}/"


class Failed(grpc.RpcError):
    """The end of a call with a status, as a caller sees it."""

    def __init__(self, code: grpc.StatusCode, details: str, trailing: tuple[Any, ...] = ()) -> None:
        super().__init__(f"{code.name}: {details}")
        self._code, self._details, self._trailing = code, details, trailing

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[Any, ...]:
        return self._trailing


class Context:
    """The part of gRPC's context that a handler needs."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._callbacks: list[Callable[[], None]] = []

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self._callbacks.append(callback)
        return True

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [("authorization", f"Bearer {self._token}")]

    def peer(self) -> str:
        return "here"

    def cancel(self) -> None: ...

    def abort_with_status(self, status: Any) -> None:
        raise Failed(status.code, status.details, status.trailing_metadata)

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise Failed(code, details)

    def end(self) -> None:
        """The call has ended: as the library does, whatever became of it."""
        for callback in self._callbacks:
            callback()


class _Details(NamedTuple):
    method: str


class Door:
    """Stands where gRPC's server stands, and keeps the handlers of the service that was made last."""

    last: ClassVar[Door]

    def __init__(self, *_: object, **__: object) -> None:
        self.handlers: list[Any] = []
        Door.last = self

    def add_generic_rpc_handlers(self, handlers: list[Any]) -> None:
        self.handlers += handlers

    def add_registered_method_handlers(self, *_: object) -> None: ...

    def add_insecure_port(self, _address: str) -> int:
        return 1

    def start(self) -> None: ...

    def stop(self, grace: object) -> threading.Event:
        stopped = threading.Event()
        stopped.set()
        return stopped


class WideDoor(Door):
    """A door that also serves by gRPC."""

    make: ClassVar[Callable[..., Any]]

    def __init__(self, *arguments: object, **more: object) -> None:
        super().__init__()
        self._server = WideDoor.make(*arguments, **more)
        for name in ("add_registered_method_handlers", "add_insecure_port", "start", "stop"):
            setattr(self, name, getattr(self._server, name))

    def add_generic_rpc_handlers(self, handlers: list[Any]) -> None:
        super().add_generic_rpc_handlers(handlers)
        self._server.add_generic_rpc_handlers(handlers)


@contextmanager
def open_door(door: type[Door] = Door) -> Iterator[None]:
    """Services that are made while the context lasts have handlers, and no gRPC, or, with WideDoor, both."""
    before, wire_server.grpc.server = wire_server.grpc.server, door
    WideDoor.make = before
    try:
        yield
    finally:
        wire_server.grpc.server = before


class Stub:
    """Calls the handlers as the generated client calls the server. Streamed answers come as a list."""

    def __init__(self, token: str, before_message: Callable[[], None] = lambda: None) -> None:
        """`before_message` runs when a call has begun and the server waits for its message."""
        self._token = token
        self._before_message = before_message
        self._handlers = Door.last.handlers
        self.context = Context(token)
        """Of the last call."""

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Around each call."""
        yield

    def __getattr__(self, name: str) -> Any:
        details = _Details(PREFIX + name)
        handler = next(found for each in self._handlers if (found := each.service(details)) is not None)
        described = wire_server.SERVICE.methods_by_name[name]
        answer = getattr(sv, described.output_type.name).FromString

        def call(requests: Any) -> Any:
            context = self.context = Context(self._token)
            encoded = self._encoded(requests if described.client_streaming else [requests])
            try:
                with self.calling():
                    if described.server_streaming:
                        found = handler.stream_stream(encoded, context)
                        return [answer(handler.response_serializer(each)) for each in found]
                    return answer(handler.response_serializer(handler.stream_unary(encoded, context)))
            finally:
                context.end()

        return call

    def _encoded(self, requests: Iterable[Any]) -> Iterator[bytes]:
        self._before_message()
        for request in requests:
            yield request.SerializeToString()
