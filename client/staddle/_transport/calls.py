"""Calls to the service: the one place for deadlines, retries and gRPC errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any, Final, NamedTuple, TypeVar

import grpc
from google.protobuf.message import Message

from staddle._base.shortage import of_runtime_error
from staddle._errors import (
    CancelledError,
    ConnectError,
    DeadlineError,
    ProtocolError,
    StaddleError,
    UnavailableError,
    named,
)
from staddle._protocol.answers import check, check_made, decoded
from staddle._transport import silence
from staddle._transport.call_notes import CallNote
from staddle._transport.channel import CONNECT_S, HEALTH, Channel, under_way
from staddle._transport.pages import pages_of
from staddle._transport.retry import (
    DRAINING,
    Attempts,
    MonotonicClock,
    Retry,
    is_of_the_server,
    may_pass,
    retrying,
    was_not_done,
)
from staddle._transport.rpc_errors import from_rpc_error
from staddle._transport.servers import Metadata, Servers
from staddle._transport.settings import Settings
from staddle._transport.silence import LOOKS, Listening, Telling
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

T = TypeVar("T")
E = TypeVar("E", bound=StaddleError)


class Method(NamedTuple):
    """How long an answer may take, and which failures leave room for another try."""

    timeout_s: float
    retryable: Callable[[StaddleError], bool] = may_pass


_QUICK_S: Final = 60.0
_BULK_S: Final = 600.0
_COMMIT_S: Final = 3600.0

# All that write to an upload may be repeated: a replay answers as the first call did.
METHODS: Final = {
    "BeginUpload": Method(_QUICK_S),
    "GetUpload": Method(_QUICK_S),
    "ResumeUpload": Method(_BULK_S),
    "CheckpointUpload": Method(_BULK_S),
    "RenewUpload": Method(_QUICK_S),
    "CommitUpload": Method(_COMMIT_S),
    "AbortUpload": Method(_QUICK_S),
    "FindMissingChunks": Method(_BULK_S),
    "PutChunks": Method(_BULK_S),
    "PutEntries": Method(_BULK_S),
    "ReadRange": Method(_BULK_S),
    "ListDatasets": Method(_QUICK_S),
    "ListBackups": Method(_QUICK_S),
    "ListUploads": Method(_QUICK_S),
    "GetBackup": Method(_QUICK_S),
    "ListEntries": Method(_BULK_S),
    "ListChanges": Method(_BULK_S),
    # Another caller may have undone the first try: the second would undo that.
    "DeleteBackup": Method(_QUICK_S, was_not_done),
    "UndeleteBackup": Method(_QUICK_S, was_not_done),
    "ReleaseHold": Method(_QUICK_S, was_not_done),
    "SetHold": Method(_QUICK_S),
    "RetainBackup": Method(_QUICK_S),
    "GetRetention": Method(_QUICK_S),
    # A record for each backup that is concerned.
    "SetRetention": Method(_BULK_S),
    "ApplyRetention": Method(_BULK_S),
    # Reads the manifests of all the tenant's backups.
    "PlanRetention": Method(_COMMIT_S),
    "ListRuns": Method(_QUICK_S),
    "ReportRun": Method(_QUICK_S),
    "SetExpectation": Method(_QUICK_S),
    # As of a deletion: another caller may have set one since.
    "DeleteExpectation": Method(_QUICK_S, was_not_done),
    "ListExpectations": Method(_QUICK_S),
    "GetStatus": Method(_QUICK_S),
    "ListEvents": Method(_QUICK_S),
    "GetServerInfo": Method(_QUICK_S),
}
STREAMS: Final = frozenset({"Restore"})
WRITES_HERE: Final = {"BeginUpload": True, "ResumeUpload": True, "GetUpload": False}
"""Calls whose answer says where an upload is written, and whether that is the server that answered."""
BY_REQUEST_ID: Final = frozenset({"BeginUpload", "GetUpload"})
"""Calls that may name an upload by the request that began it."""
OUTCOME_UNKNOWN: Final = "The answer was lost: the change may have been made. Look at the backup, and repeat the call if it was not."
NOT_SERVING: Final = b"\x08\x02"
"""A grpc.health.v1.HealthCheckResponse."""


class Calls:
    """Calls to one service, whose servers may be several. Thread-safe.

    For failures outside this process, all raise StaddleError and nothing else.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        timeout_s: float | None = None,
        retry: Retry | None = None,
        await_server: bool = False,
    ) -> None:
        """`await_server`: a server that has not answered yet is tried again like one that went away."""
        self._servers = Servers(settings, await_server=await_server)
        self._timeout_s = timeout_s
        self._retry = retry or Retry()
        self.clock: Final = MonotonicClock(self._servers.sleep)

    @property
    def address(self) -> str:
        """HOST:PORT or unix:PATH of the server that answered last; before, of the one that is asked first."""
        return str(self._servers.address)

    @property
    def service(self) -> str:
        """The addresses of all servers, with commas between."""
        return self._servers.name

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._servers.closed

    def close(self) -> None:
        """Ends every call; see Channel.close."""
        self._servers.close()

    def attempts(self, retry: Retry) -> Attempts:
        """For work of several calls, or of a stream, that is tried again."""
        return Attempts(retry, self.clock, self._servers)

    def leave(self, error: StaddleError) -> None:
        """After a failure: if it is that of a server, what is asked next about the same work is asked of another one."""
        if is_of_the_server(error):
            self._servers.leave(error, {error.address})

    def call(
        self,
        method: str,
        request: Message | bytes,
        *,
        timeout_s: float | None = None,
        retry: Retry | None = None,
        upload: str = "",
        count: int = 0,
    ) -> Any:
        """One unary call, repeated within `retry` where that is safe; the answer is the method's response message.

        The requests of PutChunks and PutEntries may be encoded already; `upload` then says which upload they are of, and `count` how
        many chunks or changes they have. Raises ProtocolError for an answer that is none to this request.
        """
        about = METHODS[method]
        deadline_s = timeout_s or self._timeout_s or about.timeout_s
        of_upload = upload or getattr(request, "upload_id", "")
        try:
            return retrying(
                lambda: self._once(method, request, deadline_s, of_upload, count),
                attempts=self.attempts(retry or self._retry),
                retryable=about.retryable,
            )
        except (ConnectError, DeadlineError) as error:
            if may_pass(error) and not about.retryable(error):
                error.add_note(OUTCOME_UNKNOWN)
            raise

    def stream(
        self, method: str, request: Message, *, timeout_s: float | None = None, retry: Retry | None = None
    ) -> Iterator[Any]:
        """The messages of a streamed answer. Until the first one came it is tried again like a unary call, and not after.

        Closing the iterator cancels the call.
        """
        if method not in STREAMS:
            raise ValueError(f"{method} streams no answer")
        return retrying(
            lambda: self._open_stream(method, request, timeout_s),
            attempts=self.attempts(retry or self._retry),
        )

    def pages(self, method: str, request: Any, field: str, of: Callable[[Any], T]) -> Iterator[T]:
        """The items of all pages, each as `of` makes it. The first page is asked for at once, so that an error comes where the list
        is asked for. Raises ProtocolError for a list that is out of order, or does not end.
        """
        pages = pages_of(self, method, request, field)
        return self._made(chain([next(pages)], pages), field, of)

    def _made(self, pages: Iterable[Any], field: str, of: Callable[[Any], T]) -> Iterator[T]:
        for page in pages:
            for item in getattr(page, field):
                with named(self.address):
                    made = of(item)
                yield made

    def start_backup(self, requests: Iterator[sv.BackupRequest], upload: str) -> BackupCall:
        """Starts a Backup stream of an upload; `requests` is drawn from by another thread. The server's answer comes with `result`."""
        channel = self._ready(upload)
        backup: Any = channel.method("Backup")
        telling = Telling(requests)
        note = CallNote("Backup", str(channel.address))
        under_way.begin()
        try:
            call = backup.future(telling, metadata=(*self._servers.metadata(upload), *note.metadata))
        except ValueError as error:
            under_way.end()
            raise self._closed_error(error) from error
        except RuntimeError as error:
            under_way.end()
            raise of_runtime_error(error) from error
        call.add_done_callback(lambda _: under_way.end())
        hangs = partial(self._servers.hangs, channel.address)
        return BackupCall(call, telling, self, channel, hangs, note=note)

    def translate(self, error: grpc.RpcError, channel: Channel, upload: str = "") -> StaddleError:
        """The exception for a failed call."""
        if self.closed:
            return CancelledError("This client was closed while it worked.")
        address = str(channel.address)
        translated = from_rpc_error(error, address=address)
        if isinstance(translated, ConnectError) and (
            failure := channel.explain(translated.facts.get("detail", ""))
        ):
            translated = ConnectError(failure.message, facts={"address": address, "tls": failure.kind})
            translated.unsent = True
        if not isinstance(translated, ConnectError | DeadlineError):
            self._servers.answered(channel)
        return _of(translated, channel, upload)

    def _ready(self, upload: str = "") -> Channel:
        """The connection for the next call. Where there are several servers, each is asked first whether it takes calls."""
        channel = self._servers.channel(upload)
        if channel.is_checked or self._servers.is_one:
            return channel
        try:
            with under_way:
                status = channel.method(HEALTH)(b"", timeout=CONNECT_S)
        except grpc.RpcError as error:
            refused = self.translate(error, channel, upload)
            if isinstance(refused, ConnectError | DeadlineError):
                refused.unsent = True
                raise refused from error
            status = b""  # a server, or a proxy, that does not say it
        except ValueError as error:
            raise self._closed_error(error) from error
        except RuntimeError as error:
            raise of_runtime_error(error) from error
        self._servers.answered(channel)
        if status == NOT_SERVING:
            words = f"The server at {channel.address} says that it takes no calls now."
            raise _of(UnavailableError(words, reason=DRAINING), channel, upload)
        channel.is_checked = True
        return channel

    def _once(self, method: str, request: Message | bytes, timeout_s: float, upload: str, count: int) -> Any:
        channel = self._ready(upload)
        begins = "" if upload or method not in BY_REQUEST_ID else getattr(request, "request_id", "")
        with CallNote(method, str(channel.address)) as note:
            metadata = (*self._servers.metadata(upload or begins), *note.metadata)
            try:
                with under_way:
                    data = self._answer(channel, method, request, timeout_s, metadata)
            except DeadlineError as error:
                raise _of(error, channel, upload) from None
            except grpc.RpcError as error:
                raise self.translate(error, channel, upload) from error
            except ValueError as error:
                raise self._closed_error(error) from error
            except RuntimeError as error:
                raise of_runtime_error(error) from error
            self._servers.answered(channel)
            answer = self.read(method, request, data, channel, count)
            if method in WRITES_HERE:
                found = answer.upload
                self._servers.settle(
                    found.id, channel, found.endpoint, key=begins, writes=WRITES_HERE[method]
                )
            return answer

    def _answer(
        self, channel: Channel, method: str, request: Message | bytes, timeout_s: float, metadata: Metadata
    ) -> bytes:
        """The answer to a call. If there are other servers, one that hangs is not waited for until the deadline."""
        ask = channel.method(method)
        if self._servers.is_one:
            data: bytes = ask(request, timeout=timeout_s, metadata=metadata)
            return data
        call = ask.future(request, timeout=timeout_s, metadata=metadata)  # type: ignore[attr-defined]
        try:
            while True:
                try:
                    data = call.result(timeout=silence.PULSE_S)
                except grpc.FutureTimeoutError:
                    if self._servers.hangs(channel.address) and not call.done():
                        words = f"The server at {channel.address} takes calls, but does not answer."
                        raise DeadlineError(words) from None
                else:
                    return data
        finally:
            call.cancel()

    def read(
        self, method: str, request: Message | bytes, data: bytes, channel: Channel, count: int = 0
    ) -> Any:
        """The message of an answer. Raises ProtocolError for an answer that does not fit the request."""
        try:
            answer = decoded(method, data)
            check(method, request, answer, count=count)
        except ProtocolError as error:
            said = f"The server's answer to {method} cannot be right: {error.message}"
            refused = ProtocolError(said)
            refused.came_from(str(channel.address))
            raise refused from error
        return answer

    def _open_stream(self, method: str, request: Message, timeout_s: float | None) -> Iterator[Any]:
        """The stream, once its first message came."""
        messages = self._stream(method, request, timeout_s)
        next(messages)
        return messages

    def _stream(self, method: str, request: Message, timeout_s: float | None) -> Iterator[Any]:
        """Yields None once the first message came, and then the messages."""
        channel = self._ready()
        with CallNote(method, str(channel.address)) as note:
            yield from self._messages(method, request, timeout_s, channel, note)

    def _messages(
        self, method: str, request: Message, timeout_s: float | None, channel: Channel, note: CallNote
    ) -> Iterator[Any]:
        ask = channel.method(method)
        metadata = (*self._servers.metadata(), *note.metadata)
        with under_way:
            try:
                messages = ask(request, timeout=timeout_s, metadata=metadata)
            except ValueError as error:
                raise self._closed_error(error) from error
            except RuntimeError as error:
                raise of_runtime_error(error) from error
            try:
                silence_s = max(silence.SILENCE_S, timeout_s or 0.0)
                hangs = partial(self._servers.hangs, channel.address)
                name = f"{method} of {channel.address}"
                with Listening(name, messages.cancel, silence_s, hangs) as listening:
                    yield from self._listened(method, request, channel, listening, messages)
            finally:
                messages.cancel()

    def _listened(
        self,
        method: str,
        request: Message,
        channel: Channel,
        listening: Listening,
        messages: Iterator[bytes],
    ) -> Iterator[Any]:
        came = False
        try:
            for data in listening.each(messages):
                if not came:
                    came = True
                    self._servers.answered(channel)
                    yield None
                yield self.read(method, request, data, channel)
        except grpc.RpcError as error:
            failed = (
                _of(listening.error(), channel) if listening.is_silent else self.translate(error, channel)
            )
            raise failed from error
        if not came:
            empty = ProtocolError(f"The server answered {method} without a single message.")
            empty.came_from(str(channel.address))
            raise empty

    def _closed_error(self, error: ValueError) -> StaddleError | ValueError:
        """GRPC says ValueError for a channel that was closed meanwhile; any other ValueError is a fault of ours."""
        return CancelledError("This client was closed while it worked.") if self.closed else error


def _of(error: E, channel: Channel, upload: str = "") -> E:
    """The error, with the server and the upload that it came from."""
    error.address, error.upload = str(channel.address), upload
    return error


class BackupCall:
    """A Backup stream under way."""

    def __init__(
        self,
        call: Any,
        telling: Telling[sv.BackupRequest],
        calls: Calls,
        channel: Channel,
        hangs: Callable[[], bool],
        *,
        note: CallNote,
    ) -> None:
        self._channel = channel
        self._hangs = hangs
        self._note = note
        self._call = call
        self._telling = telling
        self._calls = calls

    def on_end(self, callback: Callable[[], None]) -> None:
        """Has `callback` called once the stream has ended, however it ended, from another thread or at once."""
        self._call.add_done_callback(lambda _: callback())

    def cancel(self) -> None:
        """Ends it without a result."""
        self._call.cancel()

    def result(self, upload: pb.Upload) -> sv.BackupResponse:
        """Waits for the server's answer about `upload`. Raises StaddleError."""
        with self._note:
            return self._response(upload)

    def _response(self, upload: pb.Upload) -> sv.BackupResponse:
        try:
            data = self._answer(upload)
        except grpc.FutureCancelledError as error:
            raise CancelledError("The stream was cancelled.") from error
        except grpc.RpcError as error:
            raise self._calls.translate(error, self._channel, upload.id) from error
        response: sv.BackupResponse = self._calls.read("Backup", sv.BackupRequest(), data, self._channel)
        with named(str(self._channel.address)):
            check_made(response, upload)
        return response

    def _answer(self, upload: pb.Upload) -> bytes:
        while True:
            try:
                data: bytes = self._call.result(timeout=min(silence.SILENCE_S / LOOKS, silence.PULSE_LOOK_S))
            except grpc.FutureTimeoutError:
                if self._telling.is_silent(silence.SILENCE_S, silence.ANSWER_S) or (
                    self._telling.is_silent(silence.PULSE_S, silence.PULSE_S)
                    and self._hangs()
                    and self._telling.is_silent(silence.PULSE_S, silence.PULSE_S)
                ):
                    self._call.cancel()
                    late = DeadlineError(
                        f"The server at {self._channel.address} neither takes what this backup sends, nor answers."
                    )
                    raise _of(late, self._channel, upload.id) from None
            else:
                return data
