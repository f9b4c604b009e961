"""The health probe: asks a server, with gRPC's health protocol, whether it serves."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2

from staddle_server.app import tls
from staddle_server.app.addresses import Address, UnixAddress
from staddle_server.app.settings import OperatorError

SERVING: Final = "SERVING"
METHOD: Final = "/grpc.health.v1.Health/Check"
RETRY_S: Final = 0.1
WRITES: Final = "staddle.v1.StaddleService/writes"
"""The health name of the writing half of the service."""
UPKEEP: Final = "staddle.v1.StaddleService/upkeep"
"""The health name of purging, expiry and policies."""
CLOCK_IN_DOUBT: Final = "the server does not trust its clock, and purges, expires and deletes nothing: `staddle-server clock` says why"

ROOM: Final = "staddle.v1.StaddleService/room"
"""The health name of a server's disk space."""
INTEGRITY: Final = "staddle.v1.StaddleService/integrity"
"""The health name of the integrity of stored data."""


NOTIFICATIONS: Final = "staddle.v1.StaddleService/notifications"
"""The health name of the notification targets."""
TARGET_FAILS: Final = "a notification target fails: `staddle-server notify list` says which"
CERTIFICATE: Final = "staddle.v1.StaddleService/certificate"
"""The health name of the dates of the server's certificate."""
LOCK: Final = "staddle.v1.StaddleService/lock"
"""The health name of the store's object lock."""
LOCK_LATE: Final = "the object lock of the store is not extended in time: `staddle-server lock` says why"
SECOND_SITE: Final = "staddle.v1.StaddleService/second-site"
"""The health name of the copy at a second site."""
SITE_LATE: Final = (
    "the copy at the second site is too far behind: `staddle-server replicate --status` says how far"
)
CERTIFICATE_ENDS: Final = "the server's certificate is valid for less than 30 days: its log says until when"


class ProbeError(OperatorError):
    """The server does not serve, or cannot be reached."""


class ReadOnlyError(OperatorError):
    """The server restores backups, and accepts none."""


class DamageKnownError(OperatorError):
    """The server serves, and knows of damage."""


def check(address: Address | UnixAddress, files: tls.TlsFiles | None, timeout_s: float) -> list[str]:
    """Return if the server at the address serves everything that it should, with warnings in words.

    Raises ProbeError if it does not, or does not answer in time, ReadOnlyError if it only reads, and
    DamageKnownError if it serves and knows of damage.
    """
    if files is None:
        channel = grpc.insecure_channel(address.target)
    else:
        found = tls.load(files).validity(datetime.datetime.now(datetime.UTC))
        if not found.is_valid:
            raise ProbeError(found.words)
        credentials, name = tls.probe_credentials(files)
        channel = grpc.secure_channel(address.target, credentials, [("grpc.ssl_target_name_override", name)])
    with channel:
        return check_on(channel, str(address), timeout_s, lambda: _dates(files))


def describe(channel: grpc.Channel, address: str, timeout_s: float) -> str:
    """Return a sentence on the state of the server.

    Raises ProbeError if it does not answer, or does not serve.
    """
    try:
        warnings = check_on(channel, address, timeout_s)
    except (ReadOnlyError, DamageKnownError) as error:
        return str(error)
    return "; ".join([f"Serving on {address}", *warnings])


def check_on(
    channel: grpc.Channel, address: str, timeout_s: float, dates: Callable[[], str] = lambda: ""
) -> list[str]:
    """Check as `check` does, on an open channel; `dates` says until when the certificate is
    valid, if known.
    """
    ask = channel.unary_unary(
        METHOD,
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    try:
        # In this order: a server that begins to drain reports it for both.
        integrity = _status(ask, INTEGRITY, timeout_s)
        writes = _status(ask, WRITES, timeout_s)
        room = _status(ask, ROOM, timeout_s)
        serves = _status(ask, "", timeout_s)
        upkeep = _status(ask, UPKEEP, timeout_s)
        certificate = _status(ask, CERTIFICATE, timeout_s)
        notifications = _status(ask, NOTIFICATIONS, timeout_s)
        lock = _status(ask, LOCK, timeout_s)
        second_site = _status(ask, SECOND_SITE, timeout_s)
    except grpc.RpcError as error:
        raise ProbeError(f"no answer from {address}: {error.code().name}, {error.details()}") from error
    if serves != SERVING:
        raise ProbeError(f"the server at {address} reports {serves}")
    if room != SERVING:
        raise ReadOnlyError(
            f"the server at {address} refuses backups, because its disk is nearly full (--min-free): it restores, deletes and collects. "
            "Delete backups and collect (staddle-server gc), or free space"
        )
    if integrity != SERVING:
        also = (
            "" if writes == SERVING else ". It refuses backups, too: its store or its catalog takes no writes"
        )
        raise DamageKnownError(
            f"the server at {address} serves, but some stored data is damaged or missing. `staddle-server check` lists it, "
            f"and how to repair it{also}"
        )
    if writes != SERVING:
        raise ReadOnlyError(
            f"the server at {address} is read-only: it restores, and refuses backups, because its store or its "
            "catalog takes no writes. Its log says why; check the disk or the database, then restart it"
        )
    warnings = [] if upkeep == SERVING else [CLOCK_IN_DOUBT]
    if certificate != SERVING:
        # The files are the server's own, unless another server was requested.
        warnings.append(dates() or CERTIFICATE_ENDS)
    warnings += [LOCK_LATE] if lock != SERVING else []
    warnings += [SITE_LATE] if second_site != SERVING else []
    warnings += [TARGET_FAILS] if notifications != SERVING else []
    return warnings


def _dates(files: tls.TlsFiles | None) -> str:
    return "" if files is None else tls.load(files).validity(datetime.datetime.now(datetime.UTC)).words


def _status(ask: grpc.UnaryUnaryMultiCallable[Any, Any], service: str, timeout_s: float) -> str:
    try:
        answer = ask(health_pb2.HealthCheckRequest(service=service), timeout=timeout_s)
    except grpc.RpcError as error:
        if (
            service in {WRITES, ROOM, UPKEEP, INTEGRITY, CERTIFICATE, LOCK, SECOND_SITE, NOTIFICATIONS}
            and error.code() is grpc.StatusCode.NOT_FOUND
        ):
            return SERVING  # an older server
        raise
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def still(deadline_s: float) -> bool:
    """Return whether there is time for another try; waits a little first."""
    if time.monotonic() + RETRY_S >= deadline_s:
        return False
    time.sleep(RETRY_S)
    return True
