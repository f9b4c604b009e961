"""Messages from their bytes: a few bytes can stand for a large object, so what is in a message is counted before it is used.

An empty entry of four bytes becomes an object of several hundred. A message is counted at its top level before it is decoded,
and inside its entries before it is given out; and one at a time, so that there is never more than one that is too large.
Small messages cannot be: they cost nothing here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

from staddle_server.errors import BadRequest
from staddle_server.limits import ITEMS_PER_MESSAGE_MAX, PARTS_PER_MESSAGE_MAX

M = TypeVar("M", bound=Message)

FIELDS_MAX: Final = PARTS_PER_MESSAGE_MAX + 64
"""Fields at the top of a message: what it repeats, and a few beside it."""
_FIELD_BYTES_MIN: Final = 2
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5

_one_at_a_time: Final = threading.Lock()


def decoder(type_: type[M]) -> Callable[[bytes], M]:
    """What makes messages of a type from bytes.

    It raises BadRequest (BAD_FIELD) for bytes that are no such message, and for one with more in it than any may have.
    """

    def read(data: bytes) -> M:
        try:
            return type_.FromString(data)
        except DecodeError as error:
            raise _unreadable(type_.DESCRIPTOR.name) from error

    def decode(data: bytes) -> M:
        if len(data) <= _FIELD_BYTES_MIN * FIELDS_MAX:
            return read(data)
        with _one_at_a_time:
            _check_fields(data)
            message = read(data)
            _check_items(message)
            return message

    return decode


def _unreadable(name: str) -> BadRequest:
    return BadRequest("BAD_FIELD", f"the message cannot be read as {name}", field="message")


def _check_fields(data: bytes) -> None:
    """Raises BadRequest for more than FIELDS_MAX fields. Looks at their heads alone."""
    at, end, count = 0, len(data), 0
    while at < end:
        count += 1
        if count > FIELDS_MAX:
            raise BadRequest(
                "BAD_FIELD", f"parts: a message has at most {PARTS_PER_MESSAGE_MAX}", field="parts"
            )
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _BYTES:
            length, at = _varint(data, at)
            at += length
        elif kind == _VARINT:
            _, at = _varint(data, at)
        elif kind in (_EIGHT, _FOUR):
            at += 8 if kind == _EIGHT else 4
        else:  # a group: nothing of ours has any, and what is in it could not be counted
            raise _unreadable("a message of this service")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins at `at`, and where it ends. What is cut off ends behind the data: decoding will say so."""
    if at < len(data) and data[at] < 0x80:
        return data[at], at + 1
    number = shift = 0
    for byte in data[at : at + 10]:
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
    return 0, len(data)


def _check_items(message: Message) -> None:
    items = 0
    for entry in _entries(message):
        items += len(entry.xattrs) + len(entry.holes)
        if entry.HasField("content"):
            items += len(entry.content.chunks)
        if items > ITEMS_PER_MESSAGE_MAX:
            raise BadRequest(
                "BAD_FIELD",
                f"entries: a message has at most {ITEMS_PER_MESSAGE_MAX} extended attributes, holes and chunk references",
                field="entry",
            )


def _entries(message: Message) -> Iterator[pb.Entry]:
    if isinstance(message, sv.BackupRequest):
        yield from (part.entry for part in message.parts if part.HasField("entry"))
    elif isinstance(message, sv.PutEntriesRequest):
        yield from (change.entry for change in message.changes if change.HasField("entry"))
