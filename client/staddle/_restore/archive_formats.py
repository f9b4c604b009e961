"""Archive formats, written as a stream: what one can hold of an entry, and how.

tar: POSIX.1-2001 pax (https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html), with extended attributes as
SCHILY.xattr. zip: APPNOTE 6.3.10 (https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT), with Info-ZIP's extra fields.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import struct
import sys
import tarfile
import time
import zipfile
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from tempfile import SpooledTemporaryFile
from typing import IO, Final

from staddle._base.figures import counted
from staddle._errors import DamageError
from staddle._protocol.convert import link_target_of
from staddle._protocol.restore_reader import is_file
from staddle._types.options import BinarySink
from staddle.v1 import resources_pb2 as pb

BUFFER_BYTES: Final = 256 * 1024
ZEROS: Final = bytes(256 * 1024)
MEMBERS_BYTES_IN_MEMORY: Final = 8 * 1024 * 1024
SPARSE_BYTES_MIN: Final = 16 * 1024 * 1024
NOT_COMPLETE: Final = ".staddle-archive-is-not-complete"
LABELS: Final = (b"security.selinux", b"security.ima", b"security.evm")
"""Attributes of the machine that the backup is of; an archive that cannot hold them lacks nothing."""
_DEVICES: Final = {pb.ENTRY_TYPE_CHAR_DEVICE: tarfile.CHRTYPE, pb.ENTRY_TYPE_BLOCK_DEVICE: tarfile.BLKTYPE}
_TYPES: Final = {
    pb.ENTRY_TYPE_DIRECTORY: tarfile.DIRTYPE,
    pb.ENTRY_TYPE_SYMLINK: tarfile.SYMTYPE,
    pb.ENTRY_TYPE_FIFO: tarfile.FIFOTYPE,
    **_DEVICES,
}
_WORDS: Final = {
    pb.ENTRY_TYPE_FIFO: "a fifo",
    pb.ENTRY_TYPE_CHAR_DEVICE: "a device",
    pb.ENTRY_TYPE_BLOCK_DEVICE: "a device",
}


class CannotHoldError(Exception):
    """An archive of this format cannot hold the entry. None of it was written."""


class Archive(ABC):
    """One archive. What is left without `finish` is cut off, and every reader says so."""

    def __init__(self, sink: BinarySink, time_ns: int) -> None:
        """`time_ns` is the modification time of entries that have none."""
        self._sink = sink
        self._time_ns = time_ns

    @abstractmethod
    def add(self, path: bytes, entry: pb.Entry) -> str:
        """Add anything but a regular file. Returns what the format could not hold; empty if all. Raises CannotHoldError."""

    @abstractmethod
    def link(self, path: bytes, entry: pb.Entry, source: bytes) -> bool:
        """Add a hard link to a file in the archive. False if the format has none."""

    @abstractmethod
    def begin(self, path: bytes, entry: pb.Entry) -> str:
        """Begins a file, whose bytes follow. As `add`."""

    @abstractmethod
    def write(self, data: bytes | memoryview) -> None:
        """The next bytes of the file."""

    @abstractmethod
    def end(self) -> None:
        """All bytes of the file have come."""

    @abstractmethod
    def finish(self) -> None:
        """Ends the archive: it is complete."""

    @abstractmethod
    def abandon(self) -> None:
        """Ends without completing it. Does nothing after `finish`."""

    def write_zeros(self, count: int) -> None:
        """Write zero bytes of the file."""
        while count:
            piece = min(count, len(ZEROS))
            self.write(memoryview(ZEROS)[:piece])
            count -= piece


def write_all(sink: BinarySink, data: bytes) -> None:
    """Writes all of it, also to a file without a buffer, which may take a part. Raises OSError."""
    view = memoryview(data)
    while view:
        count = sink.write(bytes(view))
        if count is None:
            raise BlockingIOError(
                errno.EAGAIN, "the output takes nothing more at the moment, and does not wait"
            )
        view = view[count:] if isinstance(count, int) else view[:0]


# --- tar


class TarArchive(Archive):
    """A pax archive. Large files with holes are in GNU's sparse format 1.0; other holes are zeros.

    https://www.gnu.org/software/tar/manual/html_node/PAX-1.html
    """

    def __init__(self, sink: BinarySink, time_ns: int) -> None:
        super().__init__(sink, time_ns)
        self._buffer = bytearray()
        self._total = 0
        self._size = 0
        self._left = 0
        self._position = 0
        self._path = b""
        """Bytes that the file that has begun still has in the archive."""
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
                    raise DamageError(
                        f"{self._path!r} has data where the backup says that it has a hole, so that no tar archive can hold it: the archive "
                        "ends there and is not complete. `--exclude` leaves the file out.",
                        facts={"path": ascii(self._path)},
                    )
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
        info.mode = _mode_of(entry)
        info.uid = entry.uid if entry.HasField("uid") else os.geteuid()
        info.gid = entry.gid if entry.HasField("gid") else os.getegid()
        info.uname, info.gname = (name if "\0" not in name else "" for name in (entry.owner, entry.group))
        time_ns = entry.mtime_ns if entry.HasField("mtime_ns") else self._time_ns
        info.mtime = time_ns // 10**9
        if time_ns < 0 or time_ns % 10**9:
            info.pax_headers = {"mtime": _decimal(time_ns)}
        return info

    def _header(self, info: tarfile.TarInfo) -> None:
        self._put(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))

    def _put(self, data: bytes | memoryview) -> None:
        self._buffer += data
        self._total += len(data)
        if len(self._buffer) >= BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        data, self._buffer = bytes(self._buffer), bytearray()
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


def _mode_of(entry: pb.Entry) -> int:
    if entry.HasField("mode"):
        return entry.mode & 0o7777
    if entry.type == pb.ENTRY_TYPE_SYMLINK:
        return 0o777
    return 0o755 if entry.type == pb.ENTRY_TYPE_DIRECTORY else 0o644


# --- zip


class ZipArchive(Archive):
    """A zip archive, Zip64 if needed. Its central directory, which comes last, is kept in a temporary file."""

    def __init__(self, sink: BinarySink, time_ns: int) -> None:
        super().__init__(sink, time_ns)
        self._gate = _Gate(sink)
        self._zip = zipfile.ZipFile(self._gate, "w", zipfile.ZIP_DEFLATED)  # type: ignore[call-overload]
        self._members = _Members()
        self._zip.filelist = self._members
        self._zip.NameToInfo = _Forgetting()
        self._file: IO[bytes] | None = None

    def add(self, path: bytes, entry: pb.Entry) -> str:
        """See Archive."""
        if entry.type in _WORDS:
            raise CannotHoldError(f"a zip archive cannot hold {_WORDS[entry.type]}")
        is_link = entry.type == pb.ENTRY_TYPE_SYMLINK
        if not is_link and entry.type != pb.ENTRY_TYPE_DIRECTORY:
            raise CannotHoldError("a zip archive cannot hold a socket")
        info = self._info(path, entry)
        info.compress_type = zipfile.ZIP_STORED
        data = link_target_of(entry) if is_link else b""
        info.file_size = len(data)
        with self._zip.open(info, "w") as member:
            member.write(data)
        return _lost_xattrs(entry)

    def link(self, path: bytes, entry: pb.Entry, source: bytes) -> bool:  # noqa: ARG002
        """See Archive."""
        return False

    def begin(self, path: bytes, entry: pb.Entry) -> str:
        """See Archive."""
        info = self._info(path, entry)
        info.file_size = entry.content.size_bytes
        self._file = self._zip.open(info, "w")
        return _lost_xattrs(entry)

    def write(self, data: bytes | memoryview) -> None:
        """See Archive."""
        assert self._file is not None  # a file has begun
        self._file.write(data)

    def end(self) -> None:
        """See Archive."""
        assert self._file is not None  # a file has begun
        self._file.close()
        self._file = None

    def finish(self) -> None:
        """See Archive."""
        self._zip.close()
        self._gate.is_shut = True
        self._members.close()

    def abandon(self) -> None:
        """See Archive. The module zipfile may write an archive's end at any time; the gate keeps those bytes back."""
        self._gate.is_shut = True
        if self._file is not None:
            self._file.close()
        self._zip.close()
        self._members.close()

    def _info(self, path: bytes, entry: pb.Entry) -> zipfile.ZipInfo:
        try:
            name = path.decode()
        except UnicodeDecodeError as error:
            raise CannotHoldError("a zip archive cannot hold a name that is not UTF-8") from error
        if ".." in name.replace("\\", "/").split("/"):
            raise CannotHoldError(
                "a zip archive cannot hold a name that leads out where backslashes separate names"
            )
        is_directory = entry.type == pb.ENTRY_TYPE_DIRECTORY
        time_s = (entry.mtime_ns if entry.HasField("mtime_ns") else self._time_ns) // 10**9
        info = zipfile.ZipInfo(name + "/" if is_directory else name, _dos_time(time_s))
        info.create_system = 3  # Unix: the attributes below are a mode
        info.compress_type = zipfile.ZIP_DEFLATED
        kind = stat.S_IFREG if is_file(entry) else stat.S_IFDIR if is_directory else stat.S_IFLNK
        info.external_attr = (kind | _mode_of(entry)) << 16 | (0x10 if is_directory else 0)
        if -(2**31) <= time_s < 2**31:
            info.extra = struct.pack("<HHBi", 0x5455, 5, 1, time_s)
        if entry.HasField("uid") and entry.HasField("gid"):
            info.extra += struct.pack("<HHBBIBI", 0x7875, 11, 1, 4, entry.uid, 4, entry.gid)
        return info


def _lost_xattrs(entry: pb.Entry) -> str:
    lost = sum((xattr.raw_name or xattr.name.encode()) not in LABELS for xattr in entry.xattrs)
    return f"{counted(lost, 'extended attribute')}, which a zip archive cannot hold" if lost else ""


def _dos_time(time_s: int) -> tuple[int, int, int, int, int, int]:
    """Local time, as far as DOS can say it; readers that know Unix take the exact one from beside it."""
    try:
        parts = time.localtime(time_s)
    except (OverflowError, OSError, ValueError):
        parts = time.gmtime(0)
    if parts.tm_year < 1980:
        return (1980, 1, 1, 0, 0, 0)
    if parts.tm_year > 2107:
        return (2107, 12, 31, 23, 59, 58)
    return (parts.tm_year, parts.tm_mon, parts.tm_mday, parts.tm_hour, parts.tm_min, min(parts.tm_sec, 59))


class _Gate:
    """The output of ZipFile: closable, not seekable."""

    def __init__(self, sink: BinarySink) -> None:
        self._sink = sink
        self.is_shut = False

    def write(self, data: bytes) -> int:
        if not self.is_shut:
            write_all(self._sink, data)
        return len(data)

    def flush(self) -> None:
        pass


class _Forgetting(dict[str, zipfile.ZipInfo]):
    """A list of names without look-up: a backup has each once."""

    def __setitem__(self, name: str, info: zipfile.ZipInfo) -> None:
        pass


class _Members(list[zipfile.ZipInfo]):
    """Takes the place of ZipFile's list of members, which would hold half a kilobyte of memory for each."""

    FIELDS: Final = (
        "compress_type",
        "create_system",
        "create_version",
        "extract_version",
        "flag_bits",
        "external_attr",
        "header_offset",
        "CRC",
        "compress_size",
        "file_size",
    )

    def __init__(self) -> None:
        super().__init__()
        self._count = 0
        self._stored = SpooledTemporaryFile(max_size=MEMBERS_BYTES_IN_MEMORY)  # noqa: SIM115 - `close` closes it

    def append(self, info: zipfile.ZipInfo, /) -> None:
        values = [getattr(info, field) for field in self.FIELDS]
        record = [info.filename, info.date_time, info.extra.hex(), *values]
        self._stored.write(json.dumps(record).encode() + b"\n")
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[zipfile.ZipInfo]:
        self._stored.seek(0)
        for line in self._stored:
            name, date_time, extra, *values = json.loads(line)
            info = zipfile.ZipInfo(name, tuple(date_time))
            info.extra = bytes.fromhex(extra)
            for field, value in zip(self.FIELDS, values, strict=True):
                setattr(info, field, value)
            yield info

    def close(self) -> None:
        """Closes the temporary file."""
        self._stored.close()


ARCHIVES: Final[dict[str, type[Archive]]] = {"tar": TarArchive, "zip": ZipArchive}
