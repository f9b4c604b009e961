"""Tells the server why an attempt to back up failed, so that its list of runs has it."""

from __future__ import annotations

import os
import time
import uuid
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from staddle._errors import (
    AccessDeniedError,
    AuthenticationError,
    CancelledError,
    ConnectError,
    DeadlineError,
    StaddleError,
)
from staddle._transport.advice import words_of
from staddle._transport.retry import Retry
from staddle.v1 import service_pb2 as sv

if TYPE_CHECKING:
    from staddle._transport.calls import Calls

REASON_BYTES_MAX: Final = 1_024
HOST_BYTES_MAX: Final = 255
DURATION_MAX_S: Final = 7 * 24 * 3600
REPORT_S: Final = 5.0
"""How long a report may take: the error that it is about waits for it."""
_UNHEARD: Final = (AccessDeniedError, AuthenticationError, CancelledError, ConnectError, DeadlineError)
"""After these, the server would not take a report either."""
_ONCE: Final = Retry(budget_s=0.0)


class FailureReport:
    """Around an attempt to back up: if an error ends it, the server is told. A report that fails is left out.

    Attributes:
        upload_id: The upload that the attempt began; empty until it does.

    """

    def __init__(self, calls: Calls, dataset: str, host: str) -> None:
        self._calls = calls
        self._dataset = dataset
        self._host = host
        self._begun_s = time.monotonic()
        self._pid = os.getpid()
        self.upload_id = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.tell(error)

    def tell(self, error: BaseException) -> None:
        """Report this error, unless it is an interruption, or one after which no report gets through.

        A forked child reports nothing: the attempt is its parent's.
        """
        if not isinstance(error, Exception) or isinstance(error, _UNHEARD):
            return
        if self._calls.closed or os.getpid() != self._pid:
            return
        request = report_request(
            self._dataset,
            _reason_of(error),
            upload_id=self.upload_id,
            host=self._host,
            duration_s=time.monotonic() - self._begun_s,
        )
        with suppress(StaddleError):
            self._calls.call("ReportRun", request, timeout_s=REPORT_S, retry=_ONCE)


def report_request(
    dataset: str, reason: str, *, upload_id: str, host: str, duration_s: float
) -> sv.ReportRunRequest:
    """The request that reports a failed run, with the texts as the server takes them."""
    request = sv.ReportRunRequest(
        request_id=uuid.uuid4().hex,
        dataset=dataset,
        upload_id=upload_id,
        host=_fit(host, HOST_BYTES_MAX),
        reason=_fit(reason, REASON_BYTES_MAX) or "unknown",
    )
    request.duration.seconds = int(min(max(duration_s, 0), DURATION_MAX_S))
    return request


def _reason_of(error: Exception) -> str:
    """What went wrong, in words. Of an error that is not the library's or the system's only the kind: its text may hold anything."""
    if isinstance(error, StaddleError):
        return words_of(error)
    if isinstance(error, OSError) and error.strerror:
        name = "" if error.filename is None else f": {os.fsdecode(error.filename)}"
        return f"{error.strerror}{name}"
    return f"The program that makes the backup failed with {type(error).__name__}."


def _fit(words: str, bytes_max: int) -> str:
    """The text without control characters, and what is not Unicode escaped; cut to a number of bytes."""
    plain = "".join(
        f"\\x{ord(letter):02x}" if ord(letter) < 32 or 127 <= ord(letter) < 160 else letter
        for letter in words.replace("\n", " ").strip()
    )
    data = plain.encode("utf-8", "backslashreplace")
    if len(data) <= bytes_max:
        return data.decode()
    return data[: bytes_max - 3].decode("utf-8", "ignore") + "…"
