"""GET of one file: whole or a range of it, with the content id as its ETag.

Sources: RFC 9110 (ranges in 14, preconditions in 13), RFC 6266 and RFC 8187 (file names).
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Final, NamedTuple
from urllib.parse import quote

from google.protobuf import json_format
from staddle.v1 import resources_pb2 as pb

from staddle_server.api import convert
from staddle_server.api.http.connect import JSON
from staddle_server.api.http.json_messages import compact_json
from staddle_server.api.http.rest.operations import RestRequest, Streamed
from staddle_server.restore.browse import Reads
from staddle_server.restore.file_bytes import FileBytes

OTHER_TYPE: Final = "application/octet-stream"
PACKED_TYPES: Final = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "compress": "application/x-compress",
}
SAFE: Final = {
    "content-security-policy": "sandbox; default-src 'none'",
    "x-frame-options": "DENY",
    "cross-origin-resource-policy": "same-origin",
}
"""What keeps a browser from running what a backup holds, with `nosniff`, which every answer has."""

_TYPES: Final = mimetypes.MimeTypes()  # of the library: not those of this machine
_RANGE: Final = re.compile(r"bytes=[ \t]*(?:([0-9]{1,19})-([0-9]{0,19})|-([0-9]{1,19}))[ \t]*", re.IGNORECASE)
_TAGS: Final = re.compile(r'(?:W/)?("[^"]*")')


class ByteRange(NamedTuple):
    """Bytes of a file, from the first to the one behind the last."""

    start: int
    end: int


class FileDownloads:
    """Answers requests for files."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads

    def get(self, asked: RestRequest) -> Streamed:
        """Return the answer: the file, a range of it, or why it is not sent."""
        call, given = asked.call, asked.given
        call.facts["dataset"] = given["dataset"]
        selector = convert.selector_of(json_format.ParseDict(given["backup"], pb.BackupSelector()))
        backup = self._reads.pick(call.principal, convert.dataset_name(given["dataset"]), selector)
        call.facts["backup"] = backup.id.hex()
        file = self._reads.file(call.principal, backup, given["path"], call.check)
        head = asked.request.headers
        tag = f'"{file.content.content_id.hex()}"'
        headers = {"etag": tag, "accept-ranges": "bytes", "staddle-backup": backup.id.hex()}
        if not _agrees(head.get("if-match"), tag, weak=False, absent=True):
            return _refused(412, "failed_precondition", "the file differs from If-Match", headers)
        if _agrees(head.get("if-none-match"), tag, weak=True, absent=False):
            return Streamed(304, headers, iter(()))
        size = file.content.size
        part = range_of(head.get("range", ""), size) if head.get("if-range", tag) == tag else None
        if part is not None and part.start >= size:
            headers["content-range"] = f"bytes */{size}"
            return _refused(416, "out_of_range", f"the file has {size} bytes", headers)
        sent = part or ByteRange(0, size)
        if part is not None:
            headers["content-range"] = f"bytes {sent.start}-{sent.end - 1}/{size}"
        name = given["path"].rpartition(b"/")[2]
        headers |= {
            "content-length": str(sent.end - sent.start),
            "content-type": type_of(name),
            "content-disposition": disposition(name),
            **SAFE,
        }
        call.facts["bytes"] = sent.end - sent.start
        pieces = iter(()) if asked.is_head else _begun(file, sent)
        return Streamed(200 if part is None else 206, headers, pieces)


def _begun(file: FileBytes, part: ByteRange) -> Iterator[bytes]:
    """Return the bytes; damage of the first ones is an error while there still can be one."""
    pieces = file.pieces(part.start, part.end)
    return _rest(bytes(next(pieces, b"")), pieces)


def _rest(first: bytes, pieces: Generator[memoryview, None, None]) -> Iterator[bytes]:
    with closing(pieces):
        yield first
        yield from map(bytes, pieces)


def _refused(status: int, code: str, message: str, headers: dict[str, str]) -> Streamed:
    body = compact_json({"code": code, "message": message})
    return Streamed(status, {**headers, "content-type": JSON, "content-length": str(len(body))}, iter([body]))


def _agrees(header: str | None, tag: str, *, weak: bool, absent: bool) -> bool:
    """Return whether a header with entity tags names this one."""
    if header is None:
        return absent
    if header.strip() == "*":
        return True
    return any(each[1] == tag and (weak or not each[0].startswith("W/")) for each in _TAGS.finditer(header))


def range_of(header: str, size: int) -> ByteRange | None:
    """Return the range that a Range header names; None for the whole file.

    A header with several ranges, or without meaning, is ignored, as RFC 9110 allows. A range that begins
    behind the end of the file is returned as it is.
    """
    found = _RANGE.fullmatch(header.strip())
    if found is None:
        return None
    first, last, suffix = found.groups()
    if suffix is not None:
        return ByteRange(max(0, size - int(suffix)) if int(suffix) else size, size)
    start = int(first)
    end = min(int(last) + 1, size) if last else size
    if last and int(last) < start:
        return None
    return ByteRange(start, end)


def type_of(name: bytes) -> str:
    """Return the media type for a file's name; a compressed file has that of its compression."""
    found, packed = _TYPES.guess_type("x/" + name.decode("utf-8", "replace"))
    if packed is not None:
        return PACKED_TYPES.get(packed, OTHER_TYPE)
    return found or OTHER_TYPE


def disposition(name: bytes) -> str:
    """Return the header that makes a browser save a file, under its own name as far as that is harmless."""
    shown = "".join(
        each if each.isprintable() and each not in '\\/:*?"<>|' else "_"
        for each in name.decode("utf-8", "replace")
    )
    if not shown.strip(". "):
        shown = "file"
    plain = "".join(each if each.isascii() and each != "%" else "_" for each in shown)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(shown, safe='')}"
