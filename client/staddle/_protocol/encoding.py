"""Fields of protobuf messages, written by hand where what is in them is large: a message object would copy it once more.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from typing import Final

from google.protobuf.message import Message

BYTES: Final = 2
"""The wire type of what has a length."""
_VARINT, _EIGHT, _FOUR = 0, 1, 5


def tag(message: type[Message], name: str) -> bytes:
    """How a field that has a length begins."""
    return varint(message.DESCRIPTOR.fields_by_name[name].number << 3 | BYTES)


def varint(number: int) -> bytes:
    """A number of 0 or more, seven bits a byte, the lowest first."""
    written = bytearray()
    while number >= 0x80:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


def field(data: bytes, at: int) -> tuple[int, int, int, int]:
    """The number and the type of the field that begins at `at`, where its value begins, and where that ends.

    What is cut off, and a group, of which our messages have none, end behind the data.
    """
    key, at = read_varint(data, at)
    number, kind = key >> 3, key & 7
    if kind == BYTES:
        length, at = read_varint(data, at)
        return number, kind, at, at + length
    if kind == _VARINT:
        return number, kind, at, read_varint(data, at)[1]
    if kind in (_EIGHT, _FOUR):
        return number, kind, at, at + (8 if kind == _EIGHT else 4)
    return number, kind, at, len(data) + 1


def read_varint(data: bytes, at: int) -> tuple[int, int]:
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
    return 0, len(data) + 1
