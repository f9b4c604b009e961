"""What can go wrong, as exceptions.

    StaddleError
    ├── ConfigError                 no server or token, or a setting that cannot be used
    ├── UnsupportedError            this machine, or an extra that is not installed
    ├── BadRequestError             an invalid argument: a name, a path, a time, a digest
    ├── AuthenticationError         no token, or one that the server does not know
    ├── AccessDeniedError           a token whose role does not suffice
    ├── NotFoundError               unknown, deleted, or another tenant's
    │   ├── DatasetNotFoundError
    │   ├── BackupNotFoundError
    │   ├── PathNotFoundError
    │   └── UploadNotFoundError
    ├── ConflictError               another writer has the upload, or its lease has ended
    ├── UnfinishedError             a stream that ended before its backup was complete
    ├── PreconditionError           the present state does not allow the call
    │   ├── NoBaseError
    │   ├── RootDiffersError
    │   ├── TooMuchRemovedError
    │   ├── MissingChunksError
    │   ├── UploadClosedError
    │   ├── NotAFileError
    │   ├── ProtectedError          a legal hold or a retention time protects the backup
    │   └── PlanChangedError        a retention plan no longer holds
    ├── AlreadyExistsError          a request id that was used for another request
    ├── DamageError                 damaged stored data; carries a restore's report
    ├── ExhaustedError              the disk is full, or there are too many calls at once
    ├── UnavailableError            temporary: the same call may succeed later
    │   ├── ConnectError            the server does not answer
    │   └── DeadlineError           no answer in time
    ├── CancelledError              the client was closed while it worked
    ├── ProtocolError               an answer that the protocol does not allow
    └── ServerError                 a fault of the server

Each has a stable `reason`: for an error of the server, the ErrorReason of protos/staddle/v1/errors.proto
without its prefix.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from staddle._types.reports import RestoreReport


class StaddleError(Exception):
    """Base of all errors of this library.

    Attributes:
        reason: a stable name to decide by.
        message: what happened, to what, and what to do.
        facts: details by name, such as `upload` or `path`; the reason decides which.
        retry_after_s: how long the server asks to wait before a retry; None if it does not say.
        address: of the server whose call failed: HOST:PORT or unix:PATH. Empty: it was no call, or calls to several servers.
        upload: the id of the upload that the call belonged to. Empty: to none.
        call: the id of the call that failed, which the server's log has too. Empty: it was no call.

    """

    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        facts: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.facts = dict(facts or {})
        self.retry_after_s = retry_after_s
        self.address = ""
        self.upload = ""
        self.call = ""


class ConfigError(StaddleError):
    """A setting is missing or cannot be used; the message names it and where it was looked for."""

    default_reason = "CONFIG"


class UnsupportedError(StaddleError):
    """The platform is unsupported, or an optional part is not installed; the message says which."""

    default_reason = "UNSUPPORTED"


class BadRequestError(StaddleError):
    """An argument is invalid: repeating the call does not help."""

    default_reason = "BAD_FIELD"


class AuthenticationError(StaddleError):
    """The call has no token, or one that the server does not know."""

    default_reason = "UNAUTHENTICATED"


class AccessDeniedError(StaddleError):
    """The token is valid, but its role does not permit the call."""

    default_reason = "PERMISSION_DENIED"


class NotFoundError(StaddleError):
    """Not found for this token: unknown, deleted, or another tenant's."""

    default_reason = "NOT_FOUND"


class DatasetNotFoundError(NotFoundError):
    """The dataset does not exist."""

    default_reason = "DATASET_NOT_FOUND"


class BackupNotFoundError(NotFoundError):
    """The backup does not exist, or none is that old; then `facts["earliest"]` says when the oldest began."""

    default_reason = "BACKUP_NOT_FOUND"


class PathNotFoundError(NotFoundError):
    """The backup has no such path."""

    default_reason = "PATH_NOT_FOUND"


class UploadNotFoundError(NotFoundError):
    """The upload does not exist."""

    default_reason = "UPLOAD_NOT_FOUND"


class ConflictError(StaddleError):
    """Another writer has the upload, or this writer's lease on it has ended."""

    default_reason = "STALE_EPOCH"


class UnfinishedError(StaddleError):
    """A stream ended before its backup was complete: it made no backup."""

    default_reason = "UNFINISHED_STREAM"


class PreconditionError(StaddleError):
    """The present state does not allow the call; the message says what to change."""

    default_reason = "FAILED_PRECONDITION"


class NoBaseError(PreconditionError):
    """The kind needs a backup to start from, and the dataset has none."""

    default_reason = "NO_BASE"


class RootDiffersError(PreconditionError):
    """The dataset comes from another host or root; `new_root=True` permits it."""

    default_reason = "ROOT_DIFFERS"


class TooMuchRemovedError(PreconditionError):
    """The source has lost more than allowed since the base, such as everything; `max_removed_percent` permits it."""

    default_reason = "TOO_MUCH_REMOVED"


class MissingChunksError(PreconditionError):
    """Entries refer to chunks that the server does not have; the upload stays open."""

    default_reason = "MISSING_CHUNKS"


class UploadClosedError(PreconditionError):
    """The upload is committed, aborted or expired."""

    default_reason = "UPLOAD_CLOSED"


class NotAFileError(PreconditionError):
    """The path is not a regular file."""

    default_reason = "NOT_A_FILE"


class ProtectedError(PreconditionError):
    """A legal hold or a retention time protects the backup; `facts["until"]` says when the retention ends."""

    default_reason = "PROTECTED"


class PlanChangedError(PreconditionError):
    """The dataset has changed since the plan was made: nothing was deleted, and a new plan is needed."""

    default_reason = "PLAN_CHANGED"


class AlreadyExistsError(StaddleError):
    """The request id was used for another request."""

    default_reason = "REQUEST_ID_REUSED"


class DamageError(StaddleError):
    """Stored data is damaged. A restore wrote everything else, and its `report` names what is missing.

    Attributes:
        report: of a restore, which finished in spite of the damage; None if one file was read.

    """

    default_reason = "DAMAGED"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        facts: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
        report: "RestoreReport | None" = None,
    ) -> None:
        super().__init__(message, reason=reason, facts=facts, retry_after_s=retry_after_s)
        self.report = report


class ExhaustedError(StaddleError):
    """The server has no space left, or too many calls at once."""

    default_reason = "TOO_MANY"


class UnavailableError(StaddleError):
    """The server cannot answer now; the same call may succeed later.

    Attributes:
        unsent: the call never left this machine, so the server did nothing.

    """

    default_reason = "UNAVAILABLE"
    unsent = False


class ConnectError(UnavailableError):
    """The server does not answer at the address that the message names."""

    default_reason = "CONNECT"


class DeadlineError(UnavailableError):
    """No answer arrived before the deadline of the call."""

    default_reason = "DEADLINE"


class CancelledError(StaddleError):
    """The client was closed, or the call cancelled, while it worked."""

    default_reason = "CANCELLED"


class ProtocolError(StaddleError):
    """The server broke the protocol, or stopped in the middle of an answer: the answer cannot be trusted."""

    default_reason = "PROTOCOL"

    def came_from(self, address: str) -> None:
        """Names the server, once."""
        if "address" not in self.facts:
            self.facts["address"] = address
            self.message = f"{self.message.rstrip('.')} (from the server at {address})."
            self.args = (self.message,)


class ServerError(StaddleError):
    """A fault of the server; its log has more."""

    default_reason = "INTERNAL"


@contextmanager
def named(address: str) -> Iterator[None]:
    """Adds the address of the server to a ProtocolError that is raised inside."""
    try:
        yield
    except ProtocolError as error:
        error.came_from(address)
        raise
