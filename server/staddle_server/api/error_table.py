"""Errors for callers: one table from error classes to codes, and what accompanies a code.

Each transport encodes it.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from staddle_server.base import errors

_TEXT_MAX: Final = 1024
_FACT_MAX: Final = 256
_FACTS_MAX: Final = 6


class ErrorCode(enum.Enum):
    """The kind of failure, named as in google.rpc.Code."""

    CANCELLED = "CANCELLED"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    INTERNAL = "INTERNAL"
    UNAVAILABLE = "UNAVAILABLE"
    DATA_LOSS = "DATA_LOSS"
    UNAUTHENTICATED = "UNAUTHENTICATED"


CODES: Final[dict[type[errors.StaddleError], ErrorCode]] = {
    errors.BadRequest: ErrorCode.INVALID_ARGUMENT,
    errors.Unauthenticated: ErrorCode.UNAUTHENTICATED,
    errors.PermissionDenied: ErrorCode.PERMISSION_DENIED,
    errors.NotFound: ErrorCode.NOT_FOUND,
    errors.Conflict: ErrorCode.ABORTED,
    errors.Unfinished: ErrorCode.CANCELLED,
    errors.Precondition: ErrorCode.FAILED_PRECONDITION,
    errors.AlreadyExists: ErrorCode.ALREADY_EXISTS,
    errors.Damaged: ErrorCode.DATA_LOSS,
    errors.Exhausted: ErrorCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: ErrorCode.UNAVAILABLE,
    errors.Fault: ErrorCode.INTERNAL,
}


class Failure(NamedTuple):
    """An error for its caller, in parts short enough for any transport.

    Attributes:
        code: Its kind.
        message: What happened, to what, and what to do.
        reason: Its stable name.
        facts: Documented details.
        retry_after_s: When to retry; None if the error does not say.

    """

    code: ErrorCode
    message: str
    reason: str
    facts: dict[str, str]
    retry_after_s: float | None


def code_of(error: errors.StaddleError) -> ErrorCode:
    """Return the code of an error, by its class or the nearest base class."""
    return next(CODES[cls] for cls in type(error).__mro__ if cls in CODES)


def failure_of(error: errors.StaddleError) -> Failure:
    """Return the parts of an error to send, truncated where too long."""
    return Failure(
        code_of(error),
        _cut(error.message, _TEXT_MAX),
        error.reason,
        {key: _cut(value, _FACT_MAX) for key, value in list(error.facts.items())[:_FACTS_MAX]},
        error.retry_after_s,
    )


def _cut(text: str, limit: int) -> str:
    """Truncate the text to so many bytes of UTF-8."""
    data = text.encode("utf-8", "replace")
    return text if len(data) <= limit else data[: limit - 3].decode("utf-8", "ignore") + "…"
