"""What can go wrong, as exceptions.

    StaddleError
    ├── ConfigError                 no server or token, or a setting that cannot be used
    ├── UnsupportedError            this machine, or an extra that is not installed
    ├── BadRequestError             what was asked for cannot be right: a name, a path, a time, a digest
    ├── AuthenticationError         no token, or none that the server knows
    ├── AccessDeniedError           a token whose role does not suffice
    ├── NotFoundError               unknown, deleted, or another tenant's
    │   ├── DatasetNotFoundError
    │   ├── BackupNotFoundError
    │   ├── PathNotFoundError
    │   └── UploadNotFoundError
    ├── ConflictError               another writer, or the hold on an upload has ended
    ├── UnfinishedError             a stream that ended before its backup was complete
    ├── PreconditionError           the state of things does not allow it
    │   ├── NoBaseError
    │   ├── RootDiffersError
    │   ├── TooMuchRemovedError
    │   ├── MissingChunksError
    │   ├── UploadClosedError
    │   ├── NotAFileError
    │   ├── ProtectedError          a legal hold or a retention time keeps it from being deleted
    │   └── PlanChangedError        a retention plan no longer holds
    ├── AlreadyExistsError          a request id that was used for something else
    ├── DamageError                 stored data that cannot be given back; carries a restore's report
    ├── ExhaustedError              the disk is full, or too much at once
    ├── UnavailableError            not now; the same call may succeed later
    │   ├── ConnectError            nobody answers at the address
    │   └── DeadlineError           no answer in time
    ├── CancelledError              the client was closed while it worked
    ├── ProtocolError               an answer that the protocol does not allow
    └── ServerError                 a fault of the server

Every one has a stable `reason`: for what a server says, the ErrorReason of protos/staddle/v1/errors.proto without its prefix.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

if TYPE_CHECKING:
    from staddle._types import RestoreReport

ERROR_DOMAIN: Final = "staddle"


class StaddleError(Exception):
    """Base of all errors of this library.

    Attributes:
        reason: a stable name to decide by.
        message: what happened, to what, and what to do.
        facts: details by name, such as `upload` or `path`; which ones there are depends on the reason.
        retry_after_s: when the server says that trying again makes sense; None where it does not say.

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


class ConfigError(StaddleError):
    """A setting is missing or cannot be used; the message names it and where it was looked for."""

    default_reason = "CONFIG"


class UnsupportedError(StaddleError):
    """The platform is not supported, or an optional part is not installed; the message says what to install."""

    default_reason = "UNSUPPORTED"


class BadRequestError(StaddleError):
    """What was asked for is not right, and will not become right by asking again."""

    default_reason = "BAD_FIELD"


class AuthenticationError(StaddleError):
    """The call carried no token that the server knows."""

    default_reason = "UNAUTHENTICATED"


class AccessDeniedError(StaddleError):
    """The token is known, and its role does not suffice."""

    default_reason = "PERMISSION_DENIED"


class NotFoundError(StaddleError):
    """There is no such thing for this token: unknown, deleted, or another tenant's."""

    default_reason = "NOT_FOUND"


class DatasetNotFoundError(NotFoundError):
    """There is no such dataset."""

    default_reason = "DATASET_NOT_FOUND"


class BackupNotFoundError(NotFoundError):
    """There is no such backup, or none that old; `facts["earliest"]` then says when the oldest one began."""

    default_reason = "BACKUP_NOT_FOUND"


class PathNotFoundError(NotFoundError):
    """The backup has no such path."""

    default_reason = "PATH_NOT_FOUND"


class UploadNotFoundError(NotFoundError):
    """There is no such upload."""

    default_reason = "UPLOAD_NOT_FOUND"


class ConflictError(StaddleError):
    """Another writer has the upload, or this one's hold on it has ended."""

    default_reason = "STALE_EPOCH"


class UnfinishedError(StaddleError):
    """A stream ended before its backup was complete: there is no backup of it."""

    default_reason = "UNFINISHED_STREAM"


class PreconditionError(StaddleError):
    """The state of things does not allow it; the message says what to change."""

    default_reason = "FAILED_PRECONDITION"


class NoBaseError(PreconditionError):
    """The kind needs a backup to start from, and the dataset has none."""

    default_reason = "NO_BASE"


class RootDiffersError(PreconditionError):
    """The dataset comes from another host or root; `new_root=True` says that this is meant."""

    default_reason = "ROOT_DIFFERS"


class TooMuchRemovedError(PreconditionError):
    """The source has lost more since the base than is allowed, such as everything: `max_removed_percent` says that this is meant."""

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
    """A legal hold or a retention time keeps the backup from being deleted; `facts["until"]` says when a retention ends."""

    default_reason = "PROTECTED"


class PlanChangedError(PreconditionError):
    """What a retention plan rests on has changed: nothing was deleted, and another plan is needed."""

    default_reason = "PLAN_CHANGED"


class AlreadyExistsError(StaddleError):
    """The request id was used for another request."""

    default_reason = "REQUEST_ID_REUSED"


class DamageError(StaddleError):
    """Stored data cannot be given back. What could be was: `report` of a finished restore names the rest.

    Attributes:
        report: of a restore, which went on past the damage; None from reading one file.

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
    """The server has no room, or too much to do at once."""

    default_reason = "TOO_MANY"


class UnavailableError(StaddleError):
    """Not now; the same call may succeed later."""

    default_reason = "UNAVAILABLE"


class ConnectError(UnavailableError):
    """Nobody answers at the address, which the message names."""

    default_reason = "CONNECT"


class DeadlineError(UnavailableError):
    """No answer came within the time that the call had."""

    default_reason = "DEADLINE"


class CancelledError(StaddleError):
    """The client was closed, or the call cancelled, while it worked."""

    default_reason = "CANCELLED"


class ProtocolError(StaddleError):
    """The server answered what the protocol does not allow, or stopped in the middle: nothing of it can be trusted."""

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
    """What a server is found to have said wrong in here names the server."""
    try:
        yield
    except ProtocolError as error:
        error.came_from(address)
        raise


# One line for each value of ErrorReason; a test walks them.
BY_REASON: Final[Mapping[str, type[StaddleError]]] = {
    "BAD_FIELD": BadRequestError,
    "BAD_PAGE_TOKEN": BadRequestError,
    "DIGEST_MISMATCH": BadRequestError,
    "BAD_SEQUENCE": BadRequestError,
    "BAD_FRAME": BadRequestError,
    "PATH_CONFLICT": BadRequestError,
    "COUNT_MISMATCH": PreconditionError,
    "ENTRIES_OUT_OF_ORDER": PreconditionError,
    "UNAUTHENTICATED": AuthenticationError,
    "PERMISSION_DENIED": AccessDeniedError,
    "DATASET_NOT_FOUND": DatasetNotFoundError,
    "BACKUP_NOT_FOUND": BackupNotFoundError,
    "PATH_NOT_FOUND": PathNotFoundError,
    "UPLOAD_NOT_FOUND": UploadNotFoundError,
    "AMBIGUOUS_BACKUP": BadRequestError,
    "STALE_EPOCH": ConflictError,
    "RESUME_REQUIRED": ConflictError,
    "LEASE_HELD": ConflictError,
    "UPLOAD_BUSY": ConflictError,
    "UPLOAD_CLOSED": UploadClosedError,
    "UNFINISHED_STREAM": UnfinishedError,
    "WRONG_SERVER": PreconditionError,
    "MISSING_CHUNKS": MissingChunksError,
    "NO_BASE": NoBaseError,
    "ROOT_DIFFERS": RootDiffersError,
    "NOT_A_FILE": NotAFileError,
    "NOT_IN_BASE": PreconditionError,
    "REQUEST_ID_REUSED": AlreadyExistsError,
    "PROTECTED": ProtectedError,
    "PLAN_CHANGED": PlanChangedError,
    "DAMAGED": DamageError,
    "STORE_FULL": ExhaustedError,
    "TOO_MANY": ExhaustedError,
    "DRAINING": UnavailableError,
    "STORE_UNAVAILABLE": UnavailableError,
    "INTERNAL": ServerError,
}

# For an answer without a reason that is known here: from a newer server, a proxy, or the library below.
BY_CODE: Final[Mapping[grpc.StatusCode, type[StaddleError]]] = {
    grpc.StatusCode.CANCELLED: CancelledError,
    grpc.StatusCode.UNKNOWN: ServerError,
    grpc.StatusCode.INVALID_ARGUMENT: BadRequestError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.PERMISSION_DENIED: AccessDeniedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ExhaustedError,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionError,
    grpc.StatusCode.ABORTED: ConflictError,
    grpc.StatusCode.OUT_OF_RANGE: BadRequestError,
    grpc.StatusCode.UNIMPLEMENTED: ProtocolError,
    grpc.StatusCode.INTERNAL: ServerError,
    grpc.StatusCode.UNAVAILABLE: ConnectError,
    grpc.StatusCode.DATA_LOSS: DamageError,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
}


_CONNECTING: Final = re.compile(
    r"^failed to connect to all addresses; last error: [A-Z_]+: (?:\S+: )?(?:Failed to connect to remote host: )?"
)
"""What gRPC says before the reason: which of its status codes it was, and the address once more."""


def from_rpc_error(error: grpc.RpcError, *, address: str = "") -> StaddleError:
    """The exception for a failed call: by the reason in its google.rpc.Status, else by its code.

    `address` is named where nobody answered.
    """
    code, details = _code_and_details(error)
    status = _status_of(error)
    info, retry_after_s = _read_details(status)
    if info is not None:
        known = BY_REASON.get(info.reason) or _unavailable_not_connect(BY_CODE.get(code, ServerError))
        message = (status.message if status is not None else "") or details or info.reason
        return known(message, reason=info.reason, facts=dict(info.metadata), retry_after_s=retry_after_s)
    kind = BY_CODE.get(code, ServerError)
    if kind is ConnectError:
        return connect_error(address, details)
    message = details or "The call failed (no details): the log of the server may have more."
    return kind(message, facts={"code": code.name}, retry_after_s=retry_after_s)


def connect_error(address: str, detail: str) -> ConnectError:
    """Says who does not answer, why, and how to start a server there."""
    where = f"No Staddle server answers at {address}" if address else "No Staddle server answers"
    why = f": {_CONNECTING.sub('', detail)}" if detail else ""
    message = (
        f"{where}{why}. Is it running? `staddle-server serve --data DIR` starts one, and prints its address."
    )
    facts = {"address": address, "detail": detail}
    return ConnectError(message, facts={name: fact for name, fact in facts.items() if fact})


def _unavailable_not_connect(kind: type[StaddleError]) -> type[StaddleError]:
    """Somebody gave a reason, so somebody was there."""
    return UnavailableError if kind is ConnectError else kind


def _code_and_details(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    """What gRPC itself says; an RpcError is a Call in fact, but not by its type."""
    call: Any = error
    if not isinstance(call, grpc.Call):
        return grpc.StatusCode.UNKNOWN, str(error)
    code = call.code()
    return code if isinstance(code, grpc.StatusCode) else grpc.StatusCode.UNKNOWN, call.details() or ""


def _status_of(error: grpc.RpcError) -> status_pb2.Status | None:
    call: Any = error
    if not isinstance(call, grpc.Call):
        return None
    try:
        return rpc_status.from_call(call)
    except (ValueError, DecodeError):
        # A status that contradicts its call, or is cut off, says less than the call's own code.
        return None


def _read_details(
    status: status_pb2.Status | None,
) -> tuple[error_details_pb2.ErrorInfo | None, float | None]:
    info: error_details_pb2.ErrorInfo | None = None
    retry_after_s: float | None = None
    for detail in status.details if status is not None else ():
        found = error_details_pb2.ErrorInfo()
        retry = error_details_pb2.RetryInfo()
        try:
            if detail.Unpack(found) and found.domain == ERROR_DOMAIN:
                info = found
            elif detail.Unpack(retry):
                retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        except DecodeError:
            continue  # one detail that cannot be read takes nothing from the others
    return info, retry_after_s
