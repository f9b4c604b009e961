"""Entries: paths, and what a backup holds of each.

Paths are relative to a backup's root, joined by "/". As `str` they hold bytes that are not UTF-8 as lone surrogates
(the way os.fsdecode does it); `path_bytes` has them as they are. Times are aware datetimes in UTC, cut to microseconds;
where the last digit matters there is a field in nanoseconds beside.
"""

import datetime
import enum
from dataclasses import dataclass
from typing import Final

PathLike = str | bytes
"""A path inside a backup, relative to its root."""


def path_to_bytes(path: PathLike) -> bytes:
    """The bytes of a path inside a backup: the inverse of `path_to_str`."""
    return path if isinstance(path, bytes) else path.encode("utf-8", "surrogateescape")


def path_to_str(path: bytes) -> str:
    """A path as text; bytes that are not UTF-8 become lone surrogates, and come back unchanged."""
    return path.decode("utf-8", "surrogateescape")


class EntryType(enum.StrEnum):
    """The type of an entry."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    FIFO = "fifo"
    CHAR_DEVICE = "char-device"
    BLOCK_DEVICE = "block-device"
    SOCKET = "socket"


class DigestOrigin(enum.StrEnum):
    """Who says that an entry's `file_digest` is right: the server hashed the file, or a client said so."""

    VERIFIED = "verified"
    CLAIMED = "claimed"


@dataclass(frozen=True, slots=True)
class ChunkRef:
    """A piece of a file: the BLAKE3 digest of its bytes, and how many they are."""

    digest: bytes
    length_bytes: int


@dataclass(frozen=True, slots=True)
class Xattr:
    """An extended attribute."""

    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Hole:
    """A stretch of a file that takes no space on disk."""

    offset_bytes: int
    length_bytes: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of a backup. None in mode, owner or times: nobody said."""

    path_bytes: bytes
    type: EntryType = EntryType.FILE
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    owner: str = ""
    group: str = ""
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    inode: int | None = None
    size_bytes: int = 0
    """Of a regular file; 0 for the others."""
    content_id: str = ""
    """Of a regular file: hexadecimal; equal ids mean equal cuts of equal bytes."""
    chunks: tuple[ChunkRef, ...] = ()
    """Only where references were asked for."""
    link_target_bytes: bytes = b""
    device: tuple[int, int] | None = None
    """Major and minor number."""
    link_group: bytes = b""
    xattrs: tuple[Xattr, ...] = ()
    holes: tuple[Hole, ...] = ()
    file_digest: str = ""
    """BLAKE3 of the whole file as b3sum prints it, where somebody said it."""
    digest_origin: DigestOrigin | None = None
    read_again: bool = False
    """It changed while it was read, or might have: the next backup reads it again."""
    implied: bool = False
    """A directory that nobody sent but that something lies in."""
    incomplete: bool = False
    """A directory something in which could not be read, so that it is missing, with everything below it."""

    @property
    def path(self) -> str:
        """The path as text."""
        return path_to_str(self.path_bytes)

    @property
    def link_target(self) -> str:
        """Where a symlink points, as text."""
        return path_to_str(self.link_target_bytes)

    @property
    def mtime(self) -> datetime.datetime | None:
        """When the content last changed; None: nobody said, or it is out of the range of datetime."""
        return None if self.mtime_ns is None else _datetime_or_none(self.mtime_ns)


_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def datetime_from_ns(time_ns: int) -> datetime.datetime:
    """Nanoseconds since 1970 as a datetime in UTC, cut to microseconds. Raises OverflowError outside the years 1 to 9999."""
    return _EPOCH + datetime.timedelta(microseconds=time_ns // 1000)


def _datetime_or_none(time_ns: int) -> datetime.datetime | None:
    try:
        return datetime_from_ns(time_ns)
    except OverflowError:
        return None
