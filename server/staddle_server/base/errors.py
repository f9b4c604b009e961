"""What can go wrong, as data.

    StaddleError
    ├── BadRequest         the caller's fault: a field, a sequence, a frame, a digest
    ├── Unauthenticated    no valid token
    ├── PermissionDenied   a token without the required role
    ├── NotFound           unknown, deleted, or another tenant's
    ├── Conflict           another writer, a stale epoch, a lease
    ├── Unfinished         a stream that ended without Finish
    ├── Precondition       the current state does not allow it
    ├── AlreadyExists      a request id already used for another request
    ├── Damaged            at rest, found while reading
    ├── Exhausted          disk, or too many at once
    ├── Unavailable        draining, or the store does not answer
    └── Fault              a fault of the server

A message says what happened, to what, and what to do. `reason` is stable: it is the ErrorReason of the wire
without its prefix; `facts` are the keys that the wire documents for it. The wire maps classes to status codes
in one table.
"""

from typing import ClassVar


class StaddleError(Exception):
    """Base of all errors that a caller may see.

    Attributes:
        reason: Stable name, see ErrorReason in protos/staddle/v1/errors.proto.
        message: What happened, to what, and what to do. No secrets and no stored data.
        facts: Documented details, short strings.
        retry_after_s: When to retry; None if the wire carries no RetryInfo.

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
    """The request is invalid, and sending it again does not help."""

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
    """The call carries no valid token."""

    reasons = frozenset({"UNAUTHENTICATED"})


class PermissionDenied(StaddleError):
    """The token is valid but its role does not suffice."""

    reasons = frozenset({"PERMISSION_DENIED"})


class NotFound(StaddleError):
    """The object does not exist for this tenant: unknown, deleted or another tenant's."""

    reasons = frozenset({"DATASET_NOT_FOUND", "BACKUP_NOT_FOUND", "PATH_NOT_FOUND", "UPLOAD_NOT_FOUND"})


class Conflict(StaddleError):
    """Another writer has this upload, or the caller has lost it."""

    reasons = frozenset({"STALE_EPOCH", "RESUME_REQUIRED", "LEASE_HELD", "UPLOAD_BUSY"})


class Unfinished(StaddleError):
    """A Backup stream ended without Finish."""

    reasons = frozenset({"UNFINISHED_STREAM"})


class Precondition(StaddleError):
    """The current state does not allow it; the message says what to change."""

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
    """Stored bytes are missing or damaged. Never returned as data."""

    reasons = frozenset({"DAMAGED"})

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__("DAMAGED", message)
        if path:
            self.facts["path"] = path


class Exhausted(StaddleError):
    """No space, or too many at once."""

    reasons = frozenset({"STORE_FULL", "TOO_MANY"})


class Unavailable(StaddleError):
    """Temporary: the same call may succeed later."""

    reasons = frozenset({"DRAINING", "STORE_UNAVAILABLE"})


class Fault(StaddleError):
    """A fault of the server; its log has the details."""

    reasons = frozenset({"INTERNAL"})
