"""Several servers of one service in memory. An upload belongs to the server that began it, or took it over last."""

# ruff: noqa: N802 - the methods have the names of the protocol

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from memory_service import MemoryService, rpc_abort
from ports import free_port
from staddle._transport.servers import UPLOAD_KEY
from staddle.v1.service_pb2_grpc import add_StaddleServiceServicer_to_server

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class _Health(health.HealthServicer):
    """Health, which may keep who asks waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[], None] = lambda: None

    def Check(self, request, context):
        self.before()
        return super().Check(request, context)


class Member(MemoryService):
    """One of the servers, listening.

    Attributes:
        keys: for each call the method and what it carried for a balancer.
        refused: how many calls were for another server.

    """

    def __init__(self, first: Member | None, address: str = "") -> None:
        super().__init__()
        self.owners: dict[str, Member] = {}
        if first is not None:
            self.lock, self.ids, self.owners = first.lock, first.ids, first.owners
            self.uploads, self.backups = first.uploads, first.backups
        self.keys: list[tuple[str, str | None]] = []
        self.refused = 0
        self.endpoint: str | None = None
        """What others say of this server; None: its address."""
        self.health = _Health()
        self.set_health(SERVING)
        self.address = address or f"127.0.0.1:{free_port()}"
        self.start()

    def start(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
        add_StaddleServiceServicer_to_server(self, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        port = self._server.add_insecure_port(self.address)
        self.address = f"{self.address.rpartition(':')[0]}:{port}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait()

    def set_health(self, status: int) -> None:
        self.health.set("", status)

    def drain(self) -> None:
        """From now on each call is refused, as by a server that shuts down; health still says that it serves."""

        def refuse(_method: str, context: grpc.ServicerContext) -> None:
            rpc_abort(context, grpc.StatusCode.UNAVAILABLE, "DRAINING", "It shuts down.", retry_after_s=0.5)

        self.before = refuse

    def _enter(self, method: str, context: grpc.ServicerContext) -> None:
        carried = dict(context.invocation_metadata())
        self.keys.append((method, carried.get(UPLOAD_KEY)))
        super()._enter(method, context)

    def BeginUpload(self, request, context):
        answer = super().BeginUpload(request, context)
        self.owners.setdefault(answer.upload.id, self)
        return answer

    def ResumeUpload(self, request, context):
        answer = super().ResumeUpload(request, context)
        self.owners[answer.upload.id] = self
        return answer

    def _upload(self, context, upload_id: str, epoch: int | None = None):
        found = super()._upload(context, upload_id, epoch)
        owner = self.owners.get(upload_id, self)
        if epoch is not None and owner is not self:
            self.refused += 1
            named = owner.address if owner.endpoint is None else owner.endpoint
            self.refuse_upload(context, upload_id, named)
        return found

    def refuse_upload(self, context, upload_id: str, endpoint: str) -> None:
        rpc_abort(
            context,
            grpc.StatusCode.FAILED_PRECONDITION,
            "WRONG_SERVER",
            "Another server writes it.",
            upload=upload_id,
            endpoint=endpoint,
        )


@contextmanager
def members(count: int) -> Iterator[list[Member]]:
    """So many servers over one state."""
    made: list[Member] = []
    try:
        for _ in range(count):
            made.append(Member(made[0] if made else None))
        yield made
    finally:
        for each in made:
            each.stop()


@contextmanager
def nobody() -> Iterator[str]:
    """An address of this machine at which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"
