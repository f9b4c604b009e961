"""Tar archives, written as a stream."""

from __future__ import annotations

import os
import sys
import tarfile
from collections import deque
from contextlib import suppress
from typing import Final

from staddle._base.figures import counted
from staddle._protocol.archive_formats import (
    ZEROS,
    Archive,
    BadContentError,
    CannotHoldError,
    mode_of,
    write_all,
)
from staddle._protocol.convert import link_target_of
from staddle._types.options import BinarySink
from staddle.v1 import resources_pb2 as pb

BUFFER_BYTES: Final = 256 * 1024
SPARSE_BYTES_MIN: Final = 16 * 1024 * 1024
NOT_COMPLETE: Final = ".staddle-archive-is-not-complete"
_DEVICES: Final = {pb.ENTRY_TYPE_CHAR_DEVICE: tarfile.CHRTYPE, pb.ENTRY_TYPE_BLOCK_DEVICE: tarfile.BLKTYPE}
_TYPES: Final = {
    pb.ENTRY_TYPE_DIRECTORY: tarfile.DIRTYPE,
    pb.ENTRY_TYPE_SYMLINK: tarfile.SYMTYPE,
    pb.ENTRY_TYPE_FIFO: tarfile.FIFOTYPE,
    **_DEVICES,
}


class TarArchive(Archive):
    """A pax archive. Large files with holes are in GNU's sparse format 1.0; other holes are zeros.

    https://www.gnu.org/software/tar/manual/html_node/PAX-1.html
    """

    def __init__(self, sink: BinarySink, time_ns: int, owner: tuple[int, int] | None = None) -> None:
        """`owner`: user and group of entries that have none; None for those of this process."""
        super().__init__(sink, time_ns)
        self._owner = owner or (os.geteuid(), os.getegid())
        self._pieces: list[bytes | memoryview] = []
        """What waits for the sink. Joined only there: each byte is copied once."""
        self._waiting = 0
        self._total = 0
        self._size = 0
        self._left = 0
        """Bytes that the file that has begun still has in the archive."""
        self._position = 0
        self._path = b""
        self._stretches: deque[tuple[int, int]] = deque()
        """Of a sparse file: where its data begins and ends, and where the next data begins."""
        self._is_sparse = False
        self._sparse_count = 0
        self._is_finished = False

    def add(self, path: bytes, entry: pb.Entry) -> str:
        """See Archive."""
        kind = _TYPES.get(entry.type)
        if kind is None:
            raise CannotHoldError("a tar archive cannot hold a socket")
        info = self._info(path, entry, kind)
        if kind == tarfile.SYMTYPE:
            info.linkname = _text(link_target_of(entry))
        if entry.type in _DEVICES:
            info.devmajor, info.devminor = entry.device_major, entry.device_minor
            if max(info.devmajor, info.devminor) >= 8**7:
                raise CannotHoldError("a tar archive cannot hold so large a device number")
        lost = _add_xattrs(info, entry)
        self._header(info)
        return lost

    def link(self, path: bytes, entry: pb.Entry, source: bytes) -> bool:
        """See Archive."""
        info = self._info(path, entry, tarfile.LNKTYPE)
        info.linkname = _text(source)
        self._header(info)
        return True

    def begin(self, path: bytes, entry: pb.Entry) -> str:
        """See Archive."""
        info = self._info(path, entry, tarfile.REGTYPE)
        self._stretches.clear()
        self._is_sparse = False
        self._path = path
        lost = _add_xattrs(info, entry)
        size = entry.content.size_bytes
        if size >= SPARSE_BYTES_MIN and (stretches := _stretches(entry)) is not None:
            self._begin_sparse(info, size, stretches)
        else:
            info.size = self._size = self._left = size
            self._header(info)
        return lost

    def _begin_sparse(self, info: tarfile.TarInfo, size: int, stretches: list[tuple[int, int]]) -> None:
        """Writes the header and the map of a sparse file, whose bytes in holes are then not written."""
        numbers = [len(stretches), *(number for start, end in stretches for number in (start, end - start))]
        data_map = b"".join(b"%d\n" % number for number in numbers)
        data_map += bytes(-len(data_map) % tarfile.BLOCKSIZE)
        self._sparse_count += 1
        info.pax_headers = {
            **info.pax_headers,
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": info.name,
            "GNU.sparse.realsize": str(size),
        }
        info.name = (
            f"GNUSparseFile.0/{self._sparse_count}"  # the name for readers that do not know the format
        )
        self._left = sum(end - start for start, end in stretches)
        info.size = self._size = len(data_map) + self._left
        self._header(info)
        self._put(data_map)
        self._is_sparse = True
        self._stretches.extend(stretches)
        self._position = 0

    def write(self, data: bytes | memoryview) -> None:
        """See Archive."""
        if not self._is_sparse:
            self._left -= len(data)
            self._put(data)
            return
        view = memoryview(data)
        while view:
            while self._stretches and self._stretches[0][1] <= self._position:
                self._stretches.popleft()
            start, end = self._stretches[0] if self._stretches else (sys.maxsize, sys.maxsize)
            if start <= self._position:
                piece = view[: end - self._position]
                self._left -= len(piece)
                self._put(piece)
            else:
                piece = view[: min(start - self._position, len(ZEROS))]
                if piece != memoryview(ZEROS)[: len(piece)]:
                    raise BadContentError("has data where the backup says that it has a hole")
            self._position += len(piece)
            view = view[len(piece) :]

    def end(self) -> None:
        """See Archive."""
        self._put(bytes(-self._size % tarfile.BLOCKSIZE))

    def finish(self) -> None:
        """See Archive."""
        self._put(bytes(2 * tarfile.BLOCKSIZE))
        self._put(bytes(-self._total % tarfile.RECORDSIZE))
        self._flush()
        self._is_finished = True

    def abandon(self) -> None:
        """See Archive. Readers take a tar archive that ends behind a member for whole, so this ends in the middle of one."""
        if self._is_finished:
            return
        if not self._left:
            self._put(bytes(-self._total % tarfile.BLOCKSIZE))
            info = tarfile.TarInfo(NOT_COMPLETE)
            info.size = 1
            self._header(info)
        with suppress(OSError, ValueError):  # it may be what led here
            self._flush()

    def _info(self, path: bytes, entry: pb.Entry, kind: bytes) -> tarfile.TarInfo:
        info = tarfile.TarInfo(_text(path))
        info.type = kind
        info.mode = mode_of(entry)
        info.uid = entry.uid if entry.HasField("uid") else self._owner[0]
        info.gid = entry.gid if entry.HasField("gid") else self._owner[1]
        info.uname, info.gname = (name if "\0" not in name else "" for name in (entry.owner, entry.group))
        time_ns = entry.mtime_ns if entry.HasField("mtime_ns") else self._time_ns
        info.mtime = time_ns // 10**9
        if time_ns < 0 or time_ns % 10**9:
            info.pax_headers = {"mtime": _decimal(time_ns)}
        return info

    def _header(self, info: tarfile.TarInfo) -> None:
        self._put(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))

    def _put(self, data: bytes | memoryview) -> None:
        self._pieces.append(data)
        self._waiting += len(data)
        self._total += len(data)
        if self._waiting >= BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._waiting = 0
        write_all(self._sink, data)


def _stretches(entry: pb.Entry) -> list[tuple[int, int]] | None:
    """Where the data of a file with holes begins and ends, and at last its end; None: it has no holes, or they are not in order."""
    size = entry.content.size_bytes
    found, position = [], 0
    for hole in entry.holes:
        if hole.offset_bytes < position or hole.length_bytes > size - hole.offset_bytes:
            return None
        if hole.offset_bytes > position:
            found.append((position, hole.offset_bytes))
        position = hole.offset_bytes + hole.length_bytes
    if not position:
        return None
    return [*found, (position, size)]


def _add_xattrs(info: tarfile.TarInfo, entry: pb.Entry) -> str:
    lost = 0
    records = dict(info.pax_headers)
    for xattr in entry.xattrs:
        try:
            name = (xattr.raw_name or xattr.name.encode()).decode()
        except UnicodeDecodeError:
            lost += 1
            continue
        name = name.replace("%", "%25").replace("=", "%3D")  # as GNU tar has it
        records[f"SCHILY.xattr.{name}"] = _text(xattr.value)
    info.pax_headers = records
    return f"{counted(lost, 'extended attribute')}, whose names are not UTF-8" if lost else ""


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _decimal(time_ns: int) -> str:
    """A time as pax writes it: seconds, with as many digits behind the point as it takes."""
    whole_s, rest_ns = divmod(abs(time_ns), 10**9)
    text = f"{whole_s}.{rest_ns:09d}".rstrip("0").rstrip(".")
    return f"-{text}" if time_ns < 0 else text
