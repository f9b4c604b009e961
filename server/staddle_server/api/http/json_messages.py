"""Messages as JSON, in protobuf's own mapping, for callers without generated code."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.message import Message
from staddle.v1 import service_pb2 as sv

from staddle_server.api.answering import Reading
from staddle_server.api.messages import SERVICE, reading_of
from staddle_server.base.errors import BadRequest
from staddle_server.base.limits import DECODED_TENANT_BYTES_MAX, HTTP_JSON_DEPTH_MAX, MIB

_OBJECT_BYTES: Final = 640
_ITEM_BYTES: Final = 160
"""What an object or a list, and one of its items, take as Python's values and as a message."""
_OPENINGS: Final = (b"{", b"[")


def json_reading_of(method: str) -> Reading:
    """Return how the JSON messages of a method are read: as the encoded ones are, once they are encoded."""
    encoded = reading_of(method)
    type_: type[Message] = getattr(sv, SERVICE.methods_by_name[method].input_type.name)
    encode = _encoder(type_)
    return Reading(lambda text: encoded.decode(encode(text)), weigh_json)


def weigh_json(text: bytes) -> int:
    """Estimate the memory of a message from its structure; rather too high than too low.

    Raises BadRequest for one that alone takes more than a tenant's share: no wait would bring it room.
    """
    objects = sum(map(text.count, _OPENINGS))
    size = 4 * len(text) + _OBJECT_BYTES * objects + _ITEM_BYTES * text.count(b",")
    if size > DECODED_TENANT_BYTES_MAX:
        raise BadRequest(
            "BAD_FIELD",
            f"the body has too many objects and lists: it would take {size // MIB} MiB of memory, of at most "
            f"{DECODED_TENANT_BYTES_MAX // MIB}; send less at once",
            field="message",
        )
    return size


def _encoder(type_: type[Message]) -> Callable[[bytes], bytes]:
    def encode(text: bytes) -> bytes:
        message = type_()
        parse_json(text, message)
        return message.SerializeToString()

    return encode


def parse_json(text: bytes, message: Message) -> None:
    """Read JSON into an empty message.

    Raises:
        BadRequest: It is not this message in JSON.

    """
    name = message.DESCRIPTOR.name
    if not text.lstrip().startswith(b"{"):  # the library takes an empty list for an empty message
        raise _unreadable(name, "it must be an object, such as {}")
    try:
        json_format.Parse(text, message, max_recursion_depth=HTTP_JSON_DEPTH_MAX)
    except json_format.ParseError as error:
        raise _unreadable(name, " ".join(str(error).split())) from error
    # Not UTF-8, a number or a time too large, or too deeply nested.
    except (ValueError, OverflowError, RecursionError) as error:
        raise _unreadable(name, type(error).__name__) from error


def _unreadable(name: str, why: str) -> BadRequest:
    return BadRequest("BAD_FIELD", f"the body is not a {name} in JSON: {why}", field="message")


def message_json(message: Message) -> str:
    """Return a message as JSON."""
    found: str = json_format.MessageToJson(message, indent=None, ensure_ascii=False)
    return found


def compact_json(value: dict[str, Any]) -> bytes:
    """Return a value as JSON without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
