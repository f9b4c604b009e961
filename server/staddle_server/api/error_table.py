"""Errors on the wire: one table from error classes to status codes, and what travels with them."""

from __future__ import annotations

from typing import Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from staddle_server.base import errors
from staddle_server.base.limits import ERROR_STATUS_BYTES_MAX

DOMAIN: Final = "staddle"

CODES: Final[dict[type[errors.StaddleError], grpc.StatusCode]] = {
    errors.BadRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.Conflict: grpc.StatusCode.ABORTED,
    errors.Unfinished: grpc.StatusCode.CANCELLED,
    errors.Precondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.Damaged: grpc.StatusCode.DATA_LOSS,
    errors.Exhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Fault: grpc.StatusCode.INTERNAL,
}

_TEXT_MAX: Final = 1024
_FACT_MAX: Final = 256


def code_of(error: errors.StaddleError) -> grpc.StatusCode:
    """The status code of an error, by its class or the nearest one above."""
    return next(CODES[cls] for cls in type(error).__mro__ if cls in CODES)


def status_of(error: errors.StaddleError) -> status_pb2.Status:
    """The error as google.rpc.Status with an ErrorInfo, always under ERROR_STATUS_BYTES_MAX: longer ones break calls."""
    facts = {key: _cut(value, _FACT_MAX) for key, value in list(error.facts.items())[:6]}
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=facts)
    status = status_pb2.Status(
        code=getattr(code_pb2, code_of(error).name),
        message=_cut(error.message, _TEXT_MAX),
        details=[_packed(info)],
    )
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        status.details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    if status.ByteSize() > ERROR_STATUS_BYTES_MAX:
        raise AssertionError("a status is made of parts that are cut to fit")
    return status


def _packed(message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _cut(text: str, limit: int) -> str:
    """The text within so many bytes of UTF-8."""
    data = text.encode("utf-8", "replace")
    return text if len(data) <= limit else data[: limit - 3].decode("utf-8", "ignore") + "…"
