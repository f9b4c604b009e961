"""The connection to one server: opened when first used, opened again after a fork, ended by close.

No thread watches its state: a process that forks must have no thread inside gRPC.
"""

import ctypes
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from staddle._base.shortage import start
from staddle._errors import CancelledError, ConfigError, UnsupportedError
from staddle._transport.addresses import Address
from staddle._transport.settings import Settings
from staddle._transport.tls import SYSTEM_CA, Failure, Identity, explain, load
from staddle.v1 import service_pb2 as sv

CONNECT_S: Final = 5.0
MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024

_MIB: Final = 1024 * 1024

# Of malloc.h, each with the values of which the first that is accepted is set. With an arena for each thread, or a larger pad,
# the same backup takes 70 MiB more and no less time.
_MALLOPT: Final = (
    (-3, (64 * _MIB, 32 * _MIB)),  # M_MMAP_THRESHOLD; older versions take 32 MiB at most
    (-1, (32 * _MIB,)),  # M_TRIM_THRESHOLD
    (-2, (4 * _MIB,)),  # M_TOP_PAD
    (-8, (1,)),  # M_ARENA_MAX
)


class UnderWay:
    """Counts the calls in flight of this process, over all clients."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self.cut_by_fork = False
        """This process was forked while a call was in flight."""
        os.register_at_fork(after_in_child=self._after_fork)

    def begin(self) -> None:
        """A call begins; each needs one `end`."""
        with self._lock:
            self._count += 1

    def end(self) -> None:
        """A call has ended."""
        with self._lock:
            self._count -= 1

    def __enter__(self) -> None:
        self.begin()

    def __exit__(self, *_: object) -> None:
        self.end()

    def _after_fork(self) -> None:
        self.cut_by_fork = self.cut_by_fork or self._count > 0
        # Threads that held the lock, or would have ended a call, are not in the child.
        self._lock = threading.Lock()
        self._count = 0


under_way: Final = UnderWay()

# Never used again, and never freed: to end a channel that a parent opened would wait for threads that a fork left behind.
_inherited: list[grpc.Channel] = []


def refuse_other_platforms(system: str = sys.platform, machine: str = "") -> None:
    """Raises UnsupportedError on untested platforms: anything but Linux on x86_64 or aarch64, and macOS."""
    machine = machine or platform.machine()
    if system == "darwin" or (system == "linux" and machine in {"x86_64", "aarch64"}):
        return
    raise UnsupportedError(
        f"Staddle runs on Linux (x86_64, aarch64) and macOS; this is {system} on {machine}. "
        "Any machine can use the service through code generated from protos/staddle/v1."
    )


def tune_malloc() -> bool:
    """Lets glibc keep large blocks instead of giving each back to the kernel, in one heap for all threads: a stream of messages is 2 to
    3 times as fast, and what is kept is bounded.

    It changes the whole process, so a command calls it, before threads start, and a library does not. Answers whether it was done
    (glibc only).
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt.restype = ctypes.c_int
    return all(any(mallopt(name, value) == 1 for value in values) for name, values in _MALLOPT)


class Channel:
    """One gRPC channel, for all threads of a process."""

    def __init__(self, settings: Settings, address: Address, identity: Identity | None) -> None:
        """`identity` None: without TLS."""
        self.address: Final = address
        self._settings = replace(settings, server_name=settings.server_name or address.name)
        self._identity = identity
        self._credentials = None if identity is None else identity.credentials()
        self._options = _options(self._settings, address)
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._channel: grpc.Channel | None = None
        self._methods: dict[str, Callable[..., Any]] | None = None
        self._closed = threading.Event()
        self.was_ready = False
        """Whether a server ever answered here."""
        self.is_checked = False
        """Whether the server was asked if it takes calls."""

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed.is_set()

    def method(self, name: str) -> Callable[..., Any]:
        """A method of the service, or HEALTH, which answers bytes; it connects with its first call. Raises CancelledError when closed."""
        self._after_fork()
        with self._lock:
            if self._closed.is_set():
                raise CancelledError("This client is closed.")
            if self._methods is None:
                self._methods = self._open()
            return self._methods[name]

    def explain(self, detail: str) -> Failure | None:
        """Why the connection failed of which gRPC says `detail`, if TLS is why; may take some seconds."""
        if self.address.path:
            return None
        if self._identity is None and self.was_ready:
            return None  # it has answered without TLS before
        return explain(self.address.host, self.address.port, self._identity, self._settings, detail)

    def sleep(self, seconds: float) -> None:
        """Waits. Raises CancelledError when the client is closed meanwhile."""
        if self._closed.wait(seconds):
            raise CancelledError("This client was closed while it waited to try again.")

    def close(self) -> None:
        """Ends the channel and every call on it; calls in flight raise CancelledError. May be called from any thread, more than once."""
        if under_way.cut_by_fork:
            self._closed.set()  # and leave alone what cannot be used
            return
        self._after_fork()
        self._closed.set()
        with self._lock:
            channel, self._channel, self._methods = self._channel, None, None
        if channel is not None:
            channel.close()

    def _after_fork(self) -> None:
        """In a child of the process that opened the channel: leaves that one alone, and starts afresh.

        Raises UnsupportedError in a child that was made while a call was under way: gRPC's state in it is beyond use.
        """
        if under_way.cut_by_fork:
            raise UnsupportedError(
                "This process was forked while a call to Staddle was under way, and gRPC cannot be used in it. "
                "Fork before, or start processes with spawn: multiprocessing.get_context('spawn')."
            )
        if os.getpid() == self._pid:
            return
        # The lock may have been held by a thread that the child does not have.
        self._lock = threading.Lock()
        if self._channel is not None:
            _inherited.append(self._channel)
        closed = self._closed.is_set()
        self._closed = threading.Event()
        if closed:
            self._closed.set()
        self._channel = self._methods = None
        self.was_ready = self.is_checked = False
        self._pid = os.getpid()

    def _open(self) -> dict[str, Callable[..., Any]]:
        target = self.address.target
        # gRPC kills the process if it cannot get a thread.
        start("staddle-probe", bool)
        if self._credentials is None:
            channel = grpc.insecure_channel(target, options=self._options)
        else:
            channel = grpc.secure_channel(target, self._credentials, options=self._options)
        self._channel = channel
        kinds: dict[tuple[bool, bool], Callable[..., Callable[..., Any]]] = {
            (False, False): channel.unary_unary,
            (False, True): channel.unary_stream,
            (True, False): channel.stream_unary,
        }
        health: dict[str, Callable[..., Any]] = {HEALTH: channel.unary_unary(HEALTH)}
        return health | {
            method.name: kinds[method.client_streaming, method.server_streaming](
                f"/{_SERVICE.full_name}/{method.name}",
                # A request may be bytes: what is in it is bytes already, and through a message it would be copied twice more.
                request_serializer=_encoded,
                # Answers stay bytes: how much they stand for is looked at before they are decoded.
                response_deserializer=None,
            )
            for method in _SERVICE.methods
        }


HEALTH: Final = "/grpc.health.v1.Health/Check"
_SERVICE: Final = sv.DESCRIPTOR.services_by_name["StaddleService"]


def _encoded(request: Message | bytes) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


def identity_of(settings: Settings, addresses: Iterable[Address]) -> Identity | None:
    """TLS as the settings say; None: plain text, on this machine only. Raises ConfigError."""
    if bool(settings.cert) != bool(settings.key):
        raise ConfigError("cert and key belong together: give both, or neither.")
    if settings.ca:
        return load(settings)
    if settings.cert:
        raise ConfigError(f"cert and key need ca, the server's authority: a file, or {SYSTEM_CA!r}.")
    for address in addresses:
        if not address.loopback:
            raise ConfigError(
                f"{address} is not this machine, and ca is not set: without TLS the token and the data could be read on the way. "
                f"Set ca to the file of the server's authority (STADDLE_CA, `ca` in client.toml), or to {SYSTEM_CA!r} for a public one."
            )
    return None


def _options(settings: Settings, address: Address) -> list[tuple[str, int | str]]:
    options: list[tuple[str, int | str]] = [
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.bdp_probe", 1),
        # This client retries itself: the retries of gRPC cannot replay a stream.
        ("grpc.enable_retries", 0),
        # Two clients never share a connection: closing one must not touch the other.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 500),
        # By this name the library also limits how long one attempt to connect may take, and by the next one a name's look-up.
        ("grpc.min_reconnect_backoff_ms", int(CONNECT_S * 1000)),
        ("grpc.dns_ares_query_timeout", int(CONNECT_S * 1000)),
        ("grpc.max_reconnect_backoff_ms", 5_000),
    ]
    if address.loopback:
        options.append(("grpc.enable_http_proxy", 0))
    if settings.server_name:
        options.append(("grpc.ssl_target_name_override", settings.server_name))
    return options
