"""The gRPC server: the table of methods, health, reflection, and draining."""

from __future__ import annotations

import contextlib
import logging
import resource
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, cast

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection
from staddle._base.figures import counted

from staddle_server.api.answering import Method
from staddle_server.api.gate import CallerGone, Gate
from staddle_server.api.grpc.call import handle, token_in
from staddle_server.api.grpc.events import EventCalls
from staddle_server.api.grpc.health import ASKED_MAX, WATCHES_MAX, Health
from staddle_server.api.grpc.health import SERVICE as HEALTH
from staddle_server.api.grpc.info import InfoCalls
from staddle_server.api.grpc.reads import ReadCalls
from staddle_server.api.grpc.retention import RetentionCalls
from staddle_server.api.grpc.runs import RunCalls
from staddle_server.api.grpc.status import abort_with
from staddle_server.api.grpc.uploads import UploadCalls
from staddle_server.api.messages import SERVICE, reading_of
from staddle_server.base.errors import StaddleError
from staddle_server.base.limits import (
    CALLS_MAX,
    CALLS_WAITING_MAX,
    CONNECTIONS_MAX,
    MESSAGE_BYTES_MAX,
    MIB,
    UNARY_THREADS,
)
from staddle_server.base.threads import Background, Threads, no_thread
from staddle_server.base.types import TokenRole

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

log = logging.getLogger(__name__)

REFLECTION: Final = "/grpc.reflection.v1alpha.ServerReflection/"
WRITES: Final = f"{SERVICE.full_name}/writes"
"""The health name of the writing half of the service: NOT_SERVING once the store refuses writes."""
UPKEEP: Final = f"{SERVICE.full_name}/upkeep"
"""The health name of purging, expiry and policies: NOT_SERVING while the clock is in doubt."""
ROOM: Final = f"{SERVICE.full_name}/room"
"""The health name of disk space: NOT_SERVING while it is too low for backups, and then writes are too."""
INTEGRITY: Final = f"{SERVICE.full_name}/integrity"
"""The health name of the integrity of stored data: NOT_SERVING while damage is known; the service itself
continues.
"""
CERTIFICATE: Final = f"{SERVICE.full_name}/certificate"
"""The health name of the server's certificate: NOT_SERVING from 30 days before its expiry; the service itself
continues.
"""
NOTIFICATIONS: Final = f"{SERVICE.full_name}/notifications"
"""The health name of the notification targets: NOT_SERVING while one fails; the service itself continues."""
LOCK: Final = f"{SERVICE.full_name}/lock"
"""The health name of the store's object lock: NOT_SERVING while locks are extended late, or not at all."""
SECOND_SITE: Final = f"{SERVICE.full_name}/second-site"
"""The health name of the copy at a second site: NOT_SERVING while it is behind for too long."""
WAITING_CALLS_MAX: Final = 512
"""Calls that may wait for a thread; more are refused at once."""
THREADS_LEFT_MIN: Final = 4
"""If the system gives no more threads, calls leave so many for health and refusals, and streams twice as
many.
"""
IDLE_CHECK_S: Final = 5.0
HEALTH_CHECK_S: Final = 1.0
TOKEN_CHECK_S: Final = 2.0
"""How often the tokens of calls in progress are checked."""
GRACE_S: Final = 1.0
"""How long remaining calls may take for their last answer when a server stops."""

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING

OPTIONS: Final = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # The window of a stream that is not read; bandwidth probing would grow it to several MiB.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", MIB),
    ("grpc.max_metadata_size", 16 * 1024),
    # Connections that are silent or idle are closed; a client's library reconnects when necessary.
    ("grpc.server_handshake_timeout_ms", 20_000),
    ("grpc.max_connection_idle_ms", 300_000),
)


def connections_max() -> int:
    """Return the limit of connections: callers never take the files that the store needs."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return CONNECTIONS_MAX if files == resource.RLIM_INFINITY else min(CONNECTIONS_MAX, files // 2)


def methods(
    uploads: UploadCalls,
    reads: ReadCalls,
    retention: RetentionCalls,
    runs: RunCalls,
    info: InfoCalls,
    *,
    events: EventCalls,
) -> dict[str, Method]:
    """Return every method with its role and handler. Methods that are not listed are not served."""
    reader, writer, admin = TokenRole.READER, TokenRole.WRITER, TokenRole.ADMIN
    return {
        "Backup": Method(writer, uploads.backup),
        "BeginUpload": Method(writer, uploads.begin_upload),
        "GetUpload": Method(writer, uploads.get_upload),
        "ResumeUpload": Method(writer, uploads.resume_upload),
        "CheckpointUpload": Method(writer, uploads.checkpoint_upload),
        "RenewUpload": Method(writer, uploads.renew_upload),
        "CommitUpload": Method(writer, uploads.commit_upload),
        "AbortUpload": Method(writer, uploads.abort_upload),
        "ListUploads": Method(admin, uploads.list_uploads),
        "FindMissingChunks": Method(writer, uploads.find_missing_chunks, one_of_many=True),
        "PutChunks": Method(writer, uploads.put_chunks, one_of_many=True),
        "PutEntries": Method(writer, uploads.put_entries, one_of_many=True),
        "Restore": Method(reader, reads.restore),
        "ReadRange": Method(reader, reads.read_range),
        "ListDatasets": Method(reader, reads.list_datasets),
        "ListBackups": Method(reader, reads.list_backups),
        "GetBackup": Method(reader, reads.get_backup),
        "ListEntries": Method(reader, reads.list_entries),
        "ListChanges": Method(reader, reads.list_changes),
        "DeleteBackup": Method(admin, retention.delete_backup),
        "UndeleteBackup": Method(admin, retention.undelete_backup),
        "SetHold": Method(admin, retention.set_hold),
        "ReleaseHold": Method(admin, retention.release_hold),
        "RetainBackup": Method(admin, retention.retain_backup),
        "GetRetention": Method(reader, retention.get_retention),
        "SetRetention": Method(admin, retention.set_retention),
        "PlanRetention": Method(reader, retention.plan_retention),
        "ApplyRetention": Method(admin, retention.apply_retention),
        "ListRuns": Method(reader, runs.list_runs),
        "ReportRun": Method(writer, runs.report_run),
        "SetExpectation": Method(admin, runs.set_expectation),
        "DeleteExpectation": Method(admin, runs.delete_expectation),
        "ListExpectations": Method(reader, runs.list_expectations),
        "GetStatus": Method(reader, runs.get_status),
        "ListEvents": Method(reader, events.list_events),
        "GetServerInfo": Method(reader, info.get_server_info),
    }


def _handlers(gate: Gate, table: dict[str, Method]) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """Return gRPC's handlers with the protocol's message types; `handle` says why all stream
    their requests.
    """
    made: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def encoded(response: Message | bytes) -> bytes:
        """Return a message as bytes; Restore's already are."""
        data = response if isinstance(response, bytes) else response.SerializeToString()
        gate.observer.sent(len(data))
        return data

    for name, method in table.items():
        described = SERVICE.methods_by_name[name]
        downstream = described.server_streaming
        kind = "upstream" if described.client_streaming else "downstream" if downstream else "unary"
        make = grpc.stream_stream_rpc_method_handler if downstream else grpc.stream_unary_rpc_method_handler
        made[name] = make(
            handle(gate, name, method, kind, reading_of(name)),
            request_deserializer=None,
            response_serializer=encoded,
        )
    return made


class _Door(grpc.ServerInterceptor):
    """Requires a valid token for reflection; the service's own methods and health check for themselves."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        handler = continuation(details)
        if handler is None or not details.method.startswith(REFLECTION):
            return handler
        return self._reflection(handler)

    def _reflection(self, handler: Any) -> Any:
        serve = handler.stream_stream

        def checked(requests: Any, context: grpc.ServicerContext) -> Any:
            try:
                call = self._gate.admit(
                    "Reflection", TokenRole.READER, token_in(context), context, stream=True
                )
                slot = self._gate.streams.enter(context, call.principal.tenant)
                yield from serve(call.passing(slot.moving(requests)), context)
            except StaddleError as e:
                abort_with(context, e)
            except CallerGone:
                context.abort(grpc.StatusCode.CANCELLED, "the client is gone")

        return grpc.stream_stream_rpc_method_handler(
            checked,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


class _Symbols:
    """The default descriptor pool, which also finds the file of a method: `grpcurl describe SERVICE.METHOD`
    needs that.
    """

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802 - protobuf's name
        """Return the file that defines a symbol. Raises KeyError."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            return self._pool.FindMethodByName(symbol).containing_service.file


class CallThreads(Threads):
    """The threads of calls.

    Attributes:
        most: How many may exist.

    """

    def __init__(self, streams_max: int) -> None:
        # Calls that wait for their client hold the first ones; the last ones are for calls at work.
        self.most = streams_max + CALLS_MAX + CALLS_WAITING_MAX + ASKED_MAX + WATCHES_MAX + UNARY_THREADS
        super().__init__(self.most, "call", ahead=UNARY_THREADS)

    def check(self, is_stream: bool) -> None:
        """Check that a call may keep its thread.

        If the system gives no more, the last ones are for calls that end soon.

        Raises:
            Exhausted: TOO_MANY.

        """
        if self.is_short and self.left < THREADS_LEFT_MIN * (2 if is_stream else 1):
            raise no_thread()


class WireServer:
    """A gRPC server that can be started once, drained, and stopped."""

    def __init__(
        self,
        gate: Gate,
        table: dict[str, Method],
        threads: CallThreads,
        parts: Mapping[str, Callable[[], bool]],
    ) -> None:
        """`parts` checks each part of the service that has a health name, such as WRITES, every
        few seconds.
        """
        self._gate = gate
        self._parts = parts
        self._health = Health({"", SERVICE.full_name, *parts}, time.monotonic)
        self._looked_s = self._tokens_looked_s = time.monotonic()
        self._look_after = Background("look-after", HEALTH_CHECK_S, self._look)
        self._threads = threads
        self._slots = (gate.streams, gate.calls, self._health.asked)
        self._server = grpc.server(
            cast("ThreadPoolExecutor", self._threads),  # gRPC only submits
            interceptors=[_Door(gate)],
            options=(*OPTIONS, ("grpc.max_allowed_incoming_connections", connections_max())),
            maximum_concurrent_rpcs=threads.most + WAITING_CALLS_MAX,
        )
        self._server.add_generic_rpc_handlers(
            [
                grpc.method_handlers_generic_handler(SERVICE.full_name, _handlers(gate, table)),
                self._health.handlers(),
            ]
        )
        names = [SERVICE.full_name, HEALTH.full_name, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, self._server, pool=cast("DescriptorPool", _Symbols()))

    def start(
        self,
        address: str,
        credentials: grpc.ServerCredentials | None,
        own: str = "",
        place: contextlib.AbstractContextManager[object] | None = None,
    ) -> int:
        """Listen and serve; return the port.

        `own` is a second address, without TLS, for the server's own checks. `place` holds the addresses'
        places while they are bound.

        Raises:
            RuntimeError: The address is in use or invalid.
            Exhausted: TOO_MANY, the system does not give the threads that the server needs.

        """
        with place or contextlib.nullcontext():
            if credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
            if own:
                self._server.add_insecure_port(own)
        self._threads.start()
        if self._threads.is_short:
            raise no_thread()
        self._look_after.start()
        self._server.start()
        self._health.say(_SERVING, "", SERVICE.full_name)
        self._say_parts()
        return port

    def _look(self) -> None:
        """End stalled calls, and update the health of the parts of the service."""
        self._say_parts()
        now_s = time.monotonic()
        if now_s - self._tokens_looked_s >= TOKEN_CHECK_S:
            self._tokens_looked_s = now_s
            self._end_invalid()
        if now_s - self._looked_s >= IDLE_CHECK_S:
            self._looked_s = now_s
            if ended := sum(slots.end_idle() for slots in self._slots):
                log.info("%s ended because no message moved", counted(ended, "call was", "calls were"))

    def _end_invalid(self) -> None:
        try:
            if ended := self._gate.end_invalid():
                log.warning(
                    "%s ended after the token was revoked or expired",
                    counted(ended, "call was", "calls were"),
                )
        except StaddleError as e:
            log.warning("the tokens of calls in progress could not be checked: %s", e.message)

    def _say_parts(self) -> None:
        for name, is_true in self._parts.items():
            serves = is_true() and not self._gate.draining
            self._health.say(_SERVING if serves else _NOT_SERVING, name)

    def close(self, drain_s: float) -> None:
        """Refuse new calls, and give the streams in progress this much time."""
        self._gate.close()
        self._health.say(_NOT_SERVING, "", SERVICE.full_name, *self._parts)
        self._gate.streams.wait_idle(drain_s)

    def stop(self) -> None:
        """End the calls in progress."""
        self._look_after.stop()
        try:
            ended = self._server.stop(grace=GRACE_S)
        except RuntimeError:  # the library waits on its own thread, and the system gives none
            ended = self._server.stop(grace=None)
        ended.wait()
        self._threads.shutdown(wait=False)
