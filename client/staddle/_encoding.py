"""Fields of protobuf messages, written by hand where what is in them is large: a message object would copy it once more.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from typing import Final

from google.protobuf.message import Message

BYTES: Final = 2
"""The wire type of what has a length."""


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
