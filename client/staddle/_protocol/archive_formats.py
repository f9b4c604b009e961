"""Archive formats, written as a stream: what one can hold of an entry, and how. Client and server share them.

tar: POSIX.1-2001 pax (https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html), with extended attributes as
SCHILY.xattr. zip: APPNOTE 6.3.10 (https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT), with Info-ZIP's extra fields.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import Final

from staddle._types.options import BinarySink
from staddle.v1 import resources_pb2 as pb

ZEROS: Final = bytes(256 * 1024)
LABELS: Final = (b"security.selinux", b"security.ima", b"security.evm")
"""Attributes of the machine that the backup is of; an archive that cannot hold them lacks nothing."""
LINKS_MAX: Final = 100_000
LINKS_BYTES_MAX: Final = 32 * 1024 * 1024


class CannotHoldError(Exception):
    """An archive of this format cannot hold the entry. None of it was written."""


class BadContentError(Exception):
    """A file's bytes contradict its entry. The archive cannot be completed."""


class LinkSources:
    """The files of an archive that later hard links can name: the last ones, in bounded memory."""

    def __init__(self) -> None:
        self._paths: OrderedDict[tuple[bytes, bytes], bytes] = OrderedDict()
        self._path_bytes = 0

    def find(self, entry: pb.Entry) -> bytes | None:
        """Return the path of a file in the archive that this entry is a hard link to; None if there is none."""
        return self._paths.get((entry.link_group, entry.content.content_id)) if entry.link_group else None

    def add(self, path: bytes, entry: pb.Entry) -> None:
        """Remember a file that is in the archive. Call it once for each content of a link group."""
        if not entry.link_group:
            return
        self._paths[entry.link_group, entry.content.content_id] = path
        self._path_bytes += len(path)
        while len(self._paths) > LINKS_MAX or self._path_bytes > LINKS_BYTES_MAX:
            self._path_bytes -= len(self._paths.popitem(last=False)[1])


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
    while data:
        count = sink.write(data)
        if count is None:
            raise BlockingIOError(
                errno.EAGAIN, "the output takes nothing more at the moment, and does not wait"
            )
        data = data[count:] if isinstance(count, int) else b""


def mode_of(entry: pb.Entry) -> int:
    """Return an entry's permissions; of one without, the usual ones of its type."""
    if entry.HasField("mode"):
        return entry.mode & 0o7777
    if entry.type == pb.ENTRY_TYPE_SYMLINK:
        return 0o777
    return 0o755 if entry.type == pb.ENTRY_TYPE_DIRECTORY else 0o644
