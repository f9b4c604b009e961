"""The meaning of an object store's answers: whether to retry, and what to report.

Never repeats possible secrets. obstore reports the status of an answer, and S3's own code, only in the text
of its errors.
"""

import re
from typing import Final, NamedTuple

NO_RANGE: Final = 416
_STATUS: Final = re.compile(r"non-2xx status code: ([0-9]{3})")
_CODE: Final = re.compile(r"<Code>([A-Za-z0-9]{1,64})</Code>")
_PASSING_STATUS: Final = frozenset({408, 425, 429, 500, 502, 503, 504, 509})
_PASSING_CODES: Final = frozenset(
    {"RequestTimeout", "SlowDown", "Throttling", "InternalError", "ServiceUnavailable", "OperationAborted"}
)
_FULL_STATUS: Final = 507
_FULL_CODES: Final = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientCapacity"})
_CAUSES: Final = (
    (
        "no credentials",
        re.compile(r"Missing(AccessKeyId|SecretAccessKey)|Missing SecretAccessKey|NoCredentials"),
    ),
    ("the connection was refused", re.compile(r"ConnectionRefused|Connection refused")),
    ("no answer in time", re.compile(r"TimedOut|timed out", re.IGNORECASE)),
    ("its host name is not known", re.compile(r"dns error|failed to lookup", re.IGNORECASE)),
    ("it redirects: the region or the endpoint is wrong", re.compile(r"redirect", re.IGNORECASE)),
    ("it ignores ranges", re.compile(r"non-partial|NotPartial|InvalidContentRange", re.IGNORECASE)),
    ("its certificate is not valid", re.compile(r"certificate", re.IGNORECASE)),
)
"""Patterns of failures without a status; the transport's text goes no further than here."""
_PAST_END: Final = re.compile(r"InvalidRangeRequest|Wanted range starting at")
"""A range that begins at the end of an object or after it: some engines answer with the object's last bytes or
its length, and the library notices.
"""
_NO_ROLE: Final = "no credentials in the environment or a file, and no role of this machine"
_ROLE: Final = re.compile(r"/latest/(api/token|meta-data)")
"""Where a machine of AWS gives its role."""
_NAMED: Final = re.compile(r"https?://\S+|path: \"[^\"]*\"|location \S+")
"""What the operator named, which may contain any word."""
_PASSING_CAUSES: Final = frozenset(
    {"the connection was refused", "no answer in time", "its host name is not known"}
)
_NAMES: Final = {
    "PermissionDeniedError": "HTTP 403",
    "UnauthenticatedError": "HTTP 401",
    "NotSupportedError": "not supported",
}


class StoreFailure(NamedTuple):
    """A request without a usable answer."""

    cause: str
    passing: bool
    """The same request may succeed a moment later."""
    full: bool = False
    status: int = 0
    """The HTTP status; 0 if unknown."""

    def __str__(self) -> str:
        return self.cause


class LockRequestError(OSError):
    """A request for object lock got no usable answer."""

    def __init__(self, failure: StoreFailure) -> None:
        super().__init__(failure.cause)
        self.failure = failure


def failure_of_answer(status: int, code: str) -> StoreFailure:
    """Return the meaning of an HTTP status and S3's own code for it."""
    full = status == _FULL_STATUS or code in _FULL_CODES
    passing = not full and (status in _PASSING_STATUS or code in _PASSING_CODES)
    return StoreFailure(f"HTTP {status} {code}".strip(), passing, full, status)


def failure_of(error: Exception) -> StoreFailure:
    """Return the meaning of an obstore error, or of a LockRequestError."""
    if isinstance(error, LockRequestError):
        return error.failure
    text = str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    if status:
        return failure_of_answer(int(status.group(1)), code.group(1) if code else "")
    if _PAST_END.search(text):
        return StoreFailure("no such range", passing=False, status=NO_RANGE)
    kind = type(error).__name__
    if kind in _NAMES:
        return StoreFailure(_NAMES[kind], passing=False)
    if _ROLE.search(text):
        return StoreFailure(_NO_ROLE, passing=True)
    text = _NAMED.sub("", text)
    for cause, pattern in _CAUSES:
        if pattern.search(text):
            return StoreFailure(cause, passing=cause in _PASSING_CAUSES)
    return StoreFailure("the connection broke", passing=True)
