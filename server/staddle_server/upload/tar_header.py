"""The headers of a tar: blocks, numbers and PAX records, each checked and bounded.

Sources: POSIX.1-2017 pax (https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html) and GNU tar's manual,
"Basic Tar Format". Python's tarfile reads the same formats, but not from a stream that it must not trust: it takes
the end of a cut-short archive for its end, and reads extended headers of any size.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from staddle_server.base.errors import BadRequest
from staddle_server.base.limits import HOLES_MAX, MIB, XATTRS_MAX
from staddle_server.manifest.entries import I64_MAX, I64_MIN, U32_MAX, shown

BLOCK: Final = 512
ZERO_BLOCK: Final = bytes(BLOCK)
PAX_BYTES_MAX: Final = 4 * MIB
PAX_RECORDS_MAX: Final = 2 * HOLES_MAX + XATTRS_MAX + 64
"""A sparse map in format 0.0 has two records for each piece."""
_FIELDS: Final = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_CHECKSUM: Final = slice(148, 156)
_GNU_MAGIC: Final = b"ustar  \0"
_POSIX_MAGIC: Final = b"ustar\0"
_TIME: Final = re.compile(rb"(-?)([0-9]{1,20})(?:\.([0-9]*))?")
_LENGTH_DIGITS_MAX: Final = 8


class TarError(BadRequest):
    """A tar breaks its format, or holds what a backup cannot."""

    def __init__(self, message: str, path: bytes | None = None, *, after: bool = False) -> None:
        """`path` is that of the member; with `after`, of the one before it."""
        where = (
            "the tar" if path is None else f"the tar, {'after' if after else 'at'} {shown(path or b'.')!r}"
        )
        super().__init__("BAD_FIELD", f"{where}: {message}", field="body")
        self.what = message
        if path is not None:
            self.facts["path"] = shown(path)


class TarHeader(NamedTuple):
    """A header block."""

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime_s: int
    type: bytes
    linkname: bytes
    uname: bytes
    gname: bytes
    devmajor: int
    devminor: int


def header_of(block: bytes) -> TarHeader:
    """Parse a header block. Raises TarError."""
    (
        name,
        mode,
        uid,
        gid,
        size,
        mtime,
        checksum,
        kind,
        linkname,
        magic,
        uname,
        gname,
        major,
        minor,
        prefix,
    ) = _FIELDS.unpack(block)
    if sum(block) - sum(block[_CHECKSUM]) + 8 * 0x20 != number(checksum):
        raise TarError("a header is damaged, or what was sent is not a tar: its checksum is wrong")
    name = _text(name)
    if magic[:6] == _POSIX_MAGIC and (front := _text(prefix)):
        name = front + b"/" + name
    known = magic[:6] == _POSIX_MAGIC or magic == _GNU_MAGIC
    return TarHeader(
        name,
        number(mode),
        number(uid),
        number(gid),
        number(size),
        number(mtime),
        kind,
        _text(linkname),
        _text(uname) if known else b"",
        _text(gname) if known else b"",
        number(major) if known else 0,
        number(minor) if known else 0,
    )


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def number(field: bytes) -> int:
    """Parse a number: octal, or GNU's binary form for large and negative ones. Raises TarError."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    if field[0] == 0xFF:
        return int.from_bytes(field, "big", signed=True)
    digits = field.partition(b"\0")[0].strip(b" ")
    if not digits:
        return 0
    with suppress(ValueError):
        if digits.isdigit():  # nothing else that `int` reads
            return int(digits, 8)
    raise TarError("a header is damaged, or what was sent is not a tar: a number in it is not octal")


# ---------------------------------------------------------------------- PAX


def records_of(data: bytes, before: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """Yield the records of an extended header, as they are; `before` is how many the member has already.
    Raises TarError.
    """
    at, count = 0, before
    while at < len(data):
        space = data.find(b" ", at, at + _LENGTH_DIGITS_MAX + 1)
        digits = data[at:space] if space >= 0 else b""
        end = at + (int(digits) if digits.isdigit() else 0)
        equals = data.find(b"=", space + 1, end - 1) if end > space + 2 else -1
        if equals < 0 or end > len(data) or data[end - 1 : end] != b"\n":
            raise TarError("an extended header is damaged: a record in it does not have its length")
        count += 1
        if count > PAX_RECORDS_MAX:
            raise TarError(f"the extended headers of a member have more than {PAX_RECORDS_MAX} records")
        yield data[space + 1 : equals], data[equals + 1 : end - 1]
        at = end


def whole_number(name: str, text: bytes, path: bytes | None = None) -> int:
    """Parse a decimal number of a PAX record, 0 or more. Raises TarError."""
    if not text.isdigit() or len(text) > 20:
        raise TarError(f"{name} is {text[:40]!r} and not a number", path)
    return int(text)


def owner_number(name: str, text: bytes, path: bytes) -> int | None:
    """Parse a user or group of a PAX record; None for one that is not in 32 bits. Raises TarError."""
    return in_range(-1 if text[:1] == b"-" else whole_number(name, text, path))


def in_range(owner: int) -> int | None:
    """Return a user or group by number; None for one that is not in 32 bits, which no backup holds."""
    return owner if 0 <= owner <= U32_MAX else None


def time_ns(text: bytes, path: bytes) -> int:
    """Parse the time of a PAX record: seconds, with as many decimals as it likes. Raises TarError."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise TarError(f"mtime is {text[:40]!r} and not a time", path)
    minus, seconds, decimals = found.groups()
    ns = int(seconds) * 10**9 + int((decimals or b"")[:9].ljust(9, b"0"))
    return nearest_ns(-ns if minus else ns)


def nearest_ns(ns: int) -> int:
    """Return a time, or the nearest one that a backup can hold."""
    return min(max(ns, I64_MIN), I64_MAX)
