"""What can go wrong, as data.

    StaddleError
    ├── BadRequest         the caller's fault: a field, a sequence, a frame, a digest
    ├── Unauthenticated    no token that is known
    ├── PermissionDenied   a token that does not suffice
    ├── NotFound           unknown, deleted, or another tenant's
    ├── Conflict           another writer, a stale epoch, a lease
    ├── Unfinished         a stream that ended without Finish
    ├── Precondition       the state of things does not allow it
    ├── AlreadyExists      a request id that was used for something else
    ├── Damaged            at rest, found while reading
    ├── Exhausted          disk, or too many at once
    ├── Unavailable        draining, or the store does not answer
    └── Fault              a fault of the server itself

A message says what happened, to what, and what to do. `reason` is stable: it is the ErrorReason of the wire without
its prefix; `facts` are the keys that the wire documents for it. The wire maps classes to status codes in one table.
"""

from typing import ClassVar


class StaddleError(Exception):
    """Base of all errors that a caller may see.

    Attributes:
        reason: stable name, see ErrorReason in protos/staddle/v1/errors.proto.
        message: what happened, to what, and what to do. No secrets and no stored data.
        facts: documented details, short strings.
        retry_after_s: when trying again makes sense; None where the wire gives no RetryInfo.

    """

    reasons: ClassVar[frozenset[str]] = frozenset()

    def __init__(
        self, reason: str, message: str, *, retry_after_s: float | None = None, **facts: str
    ) -> None:
        if reason not in self.reasons:
            raise ValueError(f"{type(self).__name__} has no reason {reason}")
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.facts = facts
        self.retry_after_s = retry_after_s


class BadRequest(StaddleError):
    """What was sent is not right, and will not become right by sending it again."""

    reasons = frozenset(
        {
            "BAD_FIELD",
            "BAD_PAGE_TOKEN",
            "DIGEST_MISMATCH",
            "BAD_SEQUENCE",
            "BAD_FRAME",
            "PATH_CONFLICT",
            "AMBIGUOUS_BACKUP",
        }
    )


class Unauthenticated(StaddleError):
    """The call carries no token that is known."""

    reasons = frozenset({"UNAUTHENTICATED"})


class PermissionDenied(StaddleError):
    """The token is known and its role does not suffice."""

    reasons = frozenset({"PERMISSION_DENIED"})


class NotFound(StaddleError):
    """There is no such thing for this tenant: unknown, deleted or another tenant's."""

    reasons = frozenset({"DATASET_NOT_FOUND", "BACKUP_NOT_FOUND", "PATH_NOT_FOUND", "UPLOAD_NOT_FOUND"})


class Conflict(StaddleError):
    """Another writer has this upload, or the caller's hold on it has ended."""

    reasons = frozenset({"STALE_EPOCH", "RESUME_REQUIRED", "LEASE_HELD", "UPLOAD_BUSY"})


class Unfinished(StaddleError):
    """A Backup stream ended without Finish."""

    reasons = frozenset({"UNFINISHED_STREAM"})


class Precondition(StaddleError):
    """The state of things does not allow it; the message says what to change."""

    reasons = frozenset(
        {
            "COUNT_MISMATCH",
            "ENTRIES_OUT_OF_ORDER",
            "UPLOAD_CLOSED",
            "WRONG_SERVER",
            "MISSING_CHUNKS",
            "NO_BASE",
            "ROOT_DIFFERS",
            "NOT_A_FILE",
            "NOT_IN_BASE",
            "PROTECTED",
            "PLAN_CHANGED",
        }
    )


class AlreadyExists(StaddleError):
    """The request id belongs to another request."""

    reasons = frozenset({"REQUEST_ID_REUSED"})


class Damaged(StaddleError):
    """Stored bytes are missing or not what was stored. Never answered with data."""

    reasons = frozenset({"DAMAGED"})

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__("DAMAGED", message)
        if path:
            self.facts["path"] = path


class Exhausted(StaddleError):
    """No room, or too many at once."""

    reasons = frozenset({"STORE_FULL", "TOO_MANY"})


class Unavailable(StaddleError):
    """Not now; the same call may succeed later."""

    reasons = frozenset({"DRAINING", "STORE_UNAVAILABLE"})


class Fault(StaddleError):
    """A fault of the server; the log has more."""

    reasons = frozenset({"INTERNAL"})
