"""Tars byte by byte, for what no program writes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable

BLOCK = 512
END = bytes(2 * BLOCK)
GNU = b"ustar  \0"
POSIX = b"ustar\x0000"


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def header(
    name: bytes,
    size: int | bytes = 0,
    kind: bytes = b"0",
    *,
    linkname: bytes = b"",
    mode: int | bytes = 0o644,
    uid: int | bytes = 0,
    mtime: int | bytes = 0,
    magic: bytes = POSIX,
    prefix: bytes = b"",
    device: tuple[int, int] = (0, 0),
    checksum: bytes | None = None,
) -> bytes:
    """One header block; numbers may be given as the bytes of their field."""

    def field(value: int | bytes, width: int) -> bytes:
        return (octal(value, width) if isinstance(value, int) else value).ljust(width, b"\0")

    fields = [
        name[:100].ljust(100, b"\0"),
        field(mode, 8),
        field(uid, 8),
        octal(0, 8),
        field(size, 12),
        field(mtime, 12),
        b" " * 8,
        kind,
        linkname[:100].ljust(100, b"\0"),
        magic.ljust(8, b"\0"),
        bytes(64),
        octal(device[0], 8),
        octal(device[1], 8),
        prefix.ljust(155, b"\0"),
        bytes(12),
    ]
    block = b"".join(fields)
    found = b"%06o\0 " % sum(block) if checksum is None else checksum
    return block[:148] + found + block[156:]


def member(name: bytes, data: bytes = b"", kind: bytes = b"0", **fields) -> bytes:
    return header(name, len(data), kind, **fields) + padded(data)


def record(key: bytes, value: bytes) -> bytes:
    """A record of a PAX header, with its length."""
    length = len(key) + len(value) + 3
    while len(str(length)) + len(key) + len(value) + 3 != length:
        length = len(str(length)) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


def pax(records: Iterable[tuple[bytes, bytes]], kind: bytes = b"x") -> bytes:
    data = b"".join(record(*each) for each in records)
    return member(b"PaxHeader", data, kind)


def sparse(size: int, pieces: list[tuple[int, int]], data: bytes, name: bytes = b"s") -> bytes:
    """A sparse file in format 1.0, with this map, right or wrong."""
    numbers = [len(pieces), *(each for piece in pieces for each in piece)]
    text = padded(b"".join(b"%d\n" % each for each in numbers))
    keys = [
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", name),
        (b"GNU.sparse.realsize", b"%d" % size),
    ]
    return pax(keys) + member(b"GNUSparseFile.0/" + name[:50], text + data)


def tar_of(files: dict[str, bytes], **more: object) -> bytes:
    """A whole tar as Python's tarfile writes it."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as opened:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in more.items():
                setattr(info, key, value)
            opened.addfile(info, io.BytesIO(data))
    return made.getvalue()
