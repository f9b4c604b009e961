"""One file of a backup, read piece by piece."""

import io
from typing import Any, Final, cast

from staddle._errors import BadRequestError, ProtocolError, named
from staddle._protocol.convert import split_path
from staddle._transport.calls import Calls
from staddle._types.entries import PathLike
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

READ_BYTES: Final = 2 * 1024 * 1024
"""One call brings so many; the protocol allows 3 MiB."""
BUFFER_BYTES: Final = 1 * 1024 * 1024
HEAD_BYTES: Final = 64 * 1024
"""What opening a file brings along: small ones are then there."""


class RemoteFile(io.RawIOBase):
    """A regular file of one backup: seekable, read-only. Each read is one call; wrap it in a BufferedReader for small ones.

    The first call picks the backup; all others read in that one, whatever is backed up meanwhile.
    """

    def __init__(self, calls: Calls, dataset: str, path: PathLike, selector: pb.BackupSelector) -> None:
        """Opens it. Raises PathNotFoundError, NotAFileError and the like."""
        super().__init__()
        self._calls = calls
        self._request = sv.ReadRangeRequest(dataset=dataset, backup=selector, **cast("Any", split_path(path)))
        self._position = 0
        self._request.length_bytes = HEAD_BYTES
        first: sv.ReadRangeResponse = calls.call("ReadRange", self._request)
        self._request.backup.CopyFrom(pb.BackupSelector(backup=first.backup_id))
        with named(calls.address):
            self._head = _checked(first.data, HEAD_BYTES, first.file_size_bytes)
        self._size = first.file_size_bytes
        self._content_id = first.content_id
        self.backup_id = first.backup_id
        """The backup that it is read from."""

    @property
    def size_bytes(self) -> int:
        """The file's size."""
        return self._size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check_open()
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}.get(whence)
        if start is None:
            raise ValueError(f"whence must be 0, 1 or 2, not {whence}")
        if start + offset < 0:
            raise ValueError(f"{start + offset} lies before the beginning")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        self._check_open()
        view = memoryview(buffer).cast("B")
        data = self.pread(self._position, min(len(view), READ_BYTES))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def pread(self, offset: int, length: int) -> bytes:
        """At most READ_BYTES bytes from `offset`; fewer only where the file ends."""
        length = min(length, READ_BYTES, max(0, self._size - offset))
        if length == 0:
            return b""
        if offset + length <= len(self._head):
            return self._head[offset : offset + length]
        self._request.offset_bytes = offset
        self._request.length_bytes = length
        response: sv.ReadRangeResponse = self._calls.call("ReadRange", self._request)
        with named(self._calls.address):
            if (response.file_size_bytes, response.content_id) != (self._size, self._content_id):
                raise ProtocolError(
                    "The file is not the one that was opened: its size or content id differs."
                )
            return _checked(response.data, length, self._size - offset)

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")


def _checked(data: bytes, length: int, left: int) -> bytes:
    if len(data) != min(length, left):
        raise ProtocolError(f"The server sent {len(data)} bytes where {min(length, left)} were asked for.")
    return data


def read_file(file: RemoteFile, offset: int, length: int | None) -> bytes:
    """`length` bytes from `offset`, or all to the end."""
    if offset < 0 or (length is not None and length < 0):
        raise BadRequestError("offset and length must not be negative.", facts={"field": "offset_bytes"})
    end = file.size_bytes if length is None else min(file.size_bytes, offset + length)
    pieces: list[bytes] = []
    while offset < end:
        pieces.append(file.pread(offset, end - offset))
        offset += len(pieces[-1])
    return b"".join(pieces)


def open_file(file: RemoteFile) -> io.BufferedReader:
    """The file with a buffer."""
    return io.BufferedReader(file, BUFFER_BYTES)
