"""Failed calls as exceptions of this library: by the reason that the server gives, else by the status code."""

import re
from collections.abc import Mapping
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from staddle._errors import (
    AccessDeniedError,
    AlreadyExistsError,
    AuthenticationError,
    BackupNotFoundError,
    BadRequestError,
    CancelledError,
    ConflictError,
    ConnectError,
    DamageError,
    DatasetNotFoundError,
    DeadlineError,
    ExhaustedError,
    MissingChunksError,
    NoBaseError,
    NotAFileError,
    NotFoundError,
    PathNotFoundError,
    PlanChangedError,
    PreconditionError,
    ProtectedError,
    ProtocolError,
    RootDiffersError,
    ServerError,
    StaddleError,
    UnavailableError,
    UnfinishedError,
    UploadClosedError,
    UploadNotFoundError,
)

ERROR_DOMAIN: Final = "staddle"

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
_UNSENT: Final = ("failed to connect to all addresses", "DNS resolution failed")
"""What gRPC says when it had no connection to send a call on."""
_PLACE: Final = re.compile(r"^(?:ipv[46]|unix):\S*: |\bconnect: | \(\d+\)$")
_OF_TLS: Final[Mapping[str, str]] = {
    "tls": "it uses TLS, and ca is not set",
    "plain": "it does not use TLS",
    "client-certificate": "it refuses the client's certificate",
    "other-name": "its certificate is for another name",
    "unknown-authority": "its certificate is not of the authority",
    "expired": "its certificate has expired",
    "not-yet-valid": "its certificate is not valid yet",
}
_IN_BRACKETS: Final[Mapping[str, str]] = {
    "DEADLINE": "no answer in time",
    "DRAINING": "it is shutting down",
    "STORE_UNAVAILABLE": "it does not reach its store",
    "TOO_MANY": "it has too many calls",
}
WHY_CHARACTERS_MAX: Final = 100


def from_rpc_error(error: grpc.RpcError, *, address: str = "") -> StaddleError:
    """The exception for a failed call: by the reason in its google.rpc.Status, else by its code.

    `address` is named if no server answered.
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
        failed = connect_error(address, details)
        failed.unsent = details.startswith(_UNSENT)
        return failed
    message = details or "The call failed (no details): the log of the server may have more."
    return kind(message, facts={"code": code.name}, retry_after_s=retry_after_s)


def reason_of(error: StaddleError) -> str:
    """Why a server did not do a call, in a few words that stand in brackets."""
    if tls := error.facts.get("tls"):
        return _OF_TLS.get(tls, "TLS fails")
    if isinstance(error, ConnectError):
        detail = _PLACE.sub("", _CONNECTING.sub("", error.facts.get("detail", ""))).rstrip(".") or "no answer"
        return detail[:1].lower() + detail[1:WHY_CHARACTERS_MAX]
    return _IN_BRACKETS.get(error.reason, error.reason.lower().replace("_", " "))


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
    """The error has a reason, so a server answered."""
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
            continue  # one unreadable detail does not affect the others
    return info, retry_after_s
