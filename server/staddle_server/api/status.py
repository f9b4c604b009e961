"""Errors for callers as google.rpc.Status, which both transports carry."""

from __future__ import annotations

from typing import Final

from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from staddle_server.api.error_table import failure_of
from staddle_server.base.errors import StaddleError
from staddle_server.base.limits import ERROR_STATUS_BYTES_MAX

DOMAIN: Final = "staddle"


def status_of(error: StaddleError) -> status_pb2.Status:
    """Return the error as google.rpc.Status with an ErrorInfo, under ERROR_STATUS_BYTES_MAX: longer ones
    break calls.
    """
    failure = failure_of(error)
    info = error_details_pb2.ErrorInfo(reason=failure.reason, domain=DOMAIN, metadata=failure.facts)
    status = status_pb2.Status(
        code=getattr(code_pb2, failure.code.name), message=failure.message, details=[_packed(info)]
    )
    if failure.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(failure.retry_after_s * 1e9))
        status.details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    if status.ByteSize() > ERROR_STATUS_BYTES_MAX:
        raise AssertionError("the parts of a status were truncated to fit")
    return status


def _packed(message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
