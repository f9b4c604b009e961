"""The thin path: bytes are streamed as they are, and the server cuts them."""

import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import IO, Any, Final, Self, cast

from blake3 import blake3

from staddle._errors import BadRequestError, ProtocolError, StaddleError, UnfinishedError, UploadClosedError
from staddle._protocol.arguments import choice
from staddle._protocol.convert import (
    KINDS_TO_WIRE,
    PROFILES_TO_WIRE,
    SCOPES_TO_WIRE,
    backup_of,
    field_for,
    split_path,
)
from staddle._transport.calls import Calls
from staddle._transport.failure_report import FailureReport
from staddle._transport.progress import ProgressReporter
from staddle._types.backups import BackupKind, Profile, Scope
from staddle._types.entries import PathLike, path_to_bytes, path_to_str
from staddle._types.reports import BackupReport, Progress, ProgressCallback
from staddle._upload.stream import UploadStream
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

INLINE_BYTES_MAX: Final = 256 * 1024
"""A file up to this size travels inside its entry."""
PIECE_BYTES: Final = 1024 * 1024

ByteSource = bytes | bytearray | memoryview | IO[bytes] | Iterable[bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadOptions:
    """The arguments of `Client.upload`."""

    dataset: str
    kind: BackupKind
    scope: Scope
    tags: Mapping[str, str]
    host: str
    root: str
    new_root: bool
    retry_s: float
    progress: ProgressCallback | None


class Upload:
    """An upload in progress, from `Client.upload`. A clean exit commits it, an exception aborts it.

    Threads may share it; each `put` is one file, whole. After an exception inside `put` nothing more is taken.
    """

    def __init__(self, calls: Calls, options: UploadOptions) -> None:
        self._options = options
        self._progress = ProgressReporter(options.progress, self._state)
        self._stream = UploadStream(calls, retry_s=options.retry_s, notify=self._progress.report_retry)
        self._failure = FailureReport(calls, options.dataset, options.host)
        self._turn = threading.RLock()
        self._broken: BaseException | None = None
        self._begun_s = 0.0
        self._path = b""
        """The path that was handed over last."""
        self._report: BackupReport | None = None

    def __enter__(self) -> Self:
        """Open the upload. Raises ConnectError, and the server's objections."""
        if self.id:
            raise UploadClosedError("An upload can be opened only once: create another one.")
        self._begun_s = monotonic()
        options = self._options
        request = sv.BeginUploadRequest(
            dataset=options.dataset,
            request_id=uuid.uuid4().hex,
            kind=KINDS_TO_WIRE[options.kind],
            scope=SCOPES_TO_WIRE[options.scope],
            tags=options.tags,
            host=options.host,
            root=options.root,
            new_root=options.new_root,
        )
        try:
            self._stream.begin(request)
        except StaddleError as error:
            self._tell(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit, or after an exception abort. Raises the error that prevents the backup."""
        failed = error or self._broken
        if failed is None:
            try:
                self._path = b""
                self._progress.report_now("commit")
                self._report = self._reported(self._stream.commit())
            except BaseException as failure:
                self._stream.abort(failure)
                self._tell(failure)
                raise
            return
        self._stream.abort(failed)
        self._tell(failed)
        if error is None:
            raise UnfinishedError(
                f"Nothing was backed up: an earlier put failed with {failed!r}."
            ) from failed

    def _tell(self, error: BaseException) -> None:
        self._failure.upload_id = self.id
        self._failure.tell(error)

    @property
    def id(self) -> str:
        """The upload's id, for the server's log."""
        return self._stream.upload.id

    @property
    def data_bytes(self) -> int:
        """How many bytes of files were handed over."""
        return self._stream.data_bytes

    @property
    def report(self) -> BackupReport:
        """The backup, after a clean exit. Raises UnfinishedError before."""
        if self._report is None:
            raise UnfinishedError("This upload is not committed, so it made no backup.")
        return self._report

    def put(
        self,
        path: PathLike,
        data: ByteSource,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        mtime_ns: int | None = None,
        profile: str = Profile.CONTENT_DEFINED,
    ) -> None:
        """Upload one file: bytes, a binary file (read from its position), or an iterable of bytes.

        A restore leaves unset metadata to the restoring process. The same path again replaces the file.
        """
        entry = self._entry(path, pb.ENTRY_TYPE_FILE, mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns)
        entry.profile = PROFILES_TO_WIRE[choice("profile", profile, Profile)]
        with self._handing_over():
            if isinstance(data, bytes | bytearray | memoryview):
                self._put_bytes(entry, bytes(data))
            else:
                self._put_pieces(entry, _pieces(data))

    def mkdir(
        self,
        path: PathLike,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        mtime_ns: int | None = None,
        incomplete: bool = False,
    ) -> None:
        """Upload a directory. Only needed for an empty one, or for its metadata: paths below imply it.

        `incomplete` marks it: something directly in it could not be read and is missing. Hand it over again to add or clear the mark.
        """
        entry = self._entry(path, pb.ENTRY_TYPE_DIRECTORY, mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns)
        entry.incomplete = incomplete
        with self._handing_over():
            self._stream.put(entry)

    def symlink(self, path: PathLike, target: PathLike, *, mtime_ns: int | None = None) -> None:
        """Upload a symbolic link to `target`, which is stored unchanged."""
        entry = self._entry(path, pb.ENTRY_TYPE_SYMLINK, mtime_ns=mtime_ns)
        setattr(entry, *field_for("link_target", path_to_bytes(target)))
        with self._handing_over():
            self._stream.put(entry)

    def remove(self, path: PathLike) -> None:
        """Remove a path and everything below it: from this upload, and with the scope "changes" from the base."""
        removal = pb.Remove(**cast("Any", split_path(path)))
        with self._handing_over():
            self._stream.remove(removal)

    def _entry(self, path: PathLike, kind: pb.EntryType.ValueType, **metadata: int | None) -> pb.Entry:
        entry = pb.Entry(type=kind, **cast("Any", split_path(path)))
        for name, value in metadata.items():
            if value is not None:
                try:
                    setattr(entry, name, value)
                except (ValueError, TypeError) as error:
                    raise BadRequestError(
                        f"{name} is out of range: {error}.", facts={"field": name}
                    ) from error
        return entry

    def _put_bytes(self, entry: pb.Entry, data: bytes) -> None:
        if len(data) <= INLINE_BYTES_MAX:
            entry.data = data
            self._stream.put(entry, len(data))
            self._show(entry)
            return
        entry.file_digest.blake3 = blake3(data).digest()
        self._put_pieces(entry, _pieces([data]))

    def _put_pieces(self, entry: pb.Entry, pieces: Iterator[bytes]) -> None:
        self._stream.put_file(entry, self._shown(entry, pieces))

    def _shown(self, entry: pb.Entry, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            yield piece
            self._show(entry)

    @contextmanager
    def _handing_over(self) -> Iterator[None]:
        """One caller at a time; not before the upload is open, and not after a failure in the middle of an entry."""
        with self._turn:
            if not self.id:
                raise UploadClosedError("This upload is not open: use it in a with statement.")
            if self._report is not None:
                raise UploadClosedError("This upload is committed.")
            if self._broken is not None:
                raise UploadClosedError(f"This upload has failed already, with {self._broken!r}.")
            try:
                yield
            except BaseException as error:
                self._broken = error
                raise

    def _reported(self, message: pb.Backup) -> BackupReport:
        backup = backup_of(message)
        if not backup.id or backup.dataset != self._options.dataset:
            raise ProtocolError(
                f"The server answered with a backup of {backup.dataset!r}, not of this upload."
            )
        return BackupReport(
            backup=backup,
            read_bytes=self._stream.sent_bytes,
            sent_bytes=self._stream.sent_bytes,
            seconds=monotonic() - self._begun_s,
            resumed=self._stream.resumed,
        )

    def _show(self, entry: pb.Entry) -> None:
        self._path = entry.raw_path or entry.path.encode()
        self._progress.report("send")

    def _state(self) -> Progress:
        return Progress(
            phase="send",
            path=path_to_str(self._path),
            entries_done=self._stream.entry_count,
            bytes_done=self._stream.sent_bytes,
            new_bytes=self._stream.sent_bytes,
        )


def _pieces(source: IO[bytes] | Iterable[bytes]) -> Iterator[bytes]:
    """The bytes of a file or iterable, in pieces of at most PIECE_BYTES, none empty."""
    for piece in _read(cast("IO[bytes]", source)) if hasattr(source, "read") else source:
        if not isinstance(piece, bytes | bytearray | memoryview):
            raise TypeError(f"a source must yield bytes, not {type(piece).__name__}")
        if len(piece) <= PIECE_BYTES:
            if piece:
                yield bytes(piece)
            continue
        view = memoryview(piece).cast("B")
        for at in range(0, len(view), PIECE_BYTES):
            yield bytes(view[at : at + PIECE_BYTES])


def _read(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(PIECE_BYTES):
        yield piece
    if piece is None:
        raise TypeError("a source that does not block cannot be read to its end; use one that does")
