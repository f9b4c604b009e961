"""Zip archives, written as a stream."""

from __future__ import annotations

import json
import stat
import struct
import time
import zipfile
from collections.abc import Iterator
from tempfile import SpooledTemporaryFile
from typing import IO, Final

from staddle._base.figures import counted
from staddle._protocol.archive_formats import LABELS, Archive, CannotHoldError, mode_of, write_all
from staddle._protocol.convert import link_target_of
from staddle._protocol.restore_reader import is_file
from staddle._types.options import BinarySink
from staddle.v1 import resources_pb2 as pb

MEMBERS_BYTES_IN_MEMORY: Final = 8 * 1024 * 1024
COMMENT_BYTES_MAX: Final = 2**16 - 1
_WORDS: Final = {
    pb.ENTRY_TYPE_FIFO: "a fifo",
    pb.ENTRY_TYPE_CHAR_DEVICE: "a device",
    pb.ENTRY_TYPE_BLOCK_DEVICE: "a device",
}


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

    def comment(self, text: str) -> None:
        """Write what programs show when they unpack the archive. Call it before `finish`."""
        self._zip.comment = text.encode("utf-8", "backslashreplace")[:COMMENT_BYTES_MAX]

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
        info.external_attr = (kind | mode_of(entry)) << 16 | (0x10 if is_directory else 0)
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
