"""Schemas of messages in JSON, from their descriptors, as OpenAPI 3.1 has them.

Source: https://protobuf.dev/programming-guides/json/
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

PLACE: Final = "#/components/schemas/"
_PACKAGE: Final = "staddle.v1."
_I32, _U32 = 2**31, 2**32

_WELL_KNOWN: Final[dict[str, dict[str, Any]]] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {
        "type": "string",
        "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$",
        "examples": ["86400s"],
    },
}
_WHOLE: Final = {
    "type": "string",
    "pattern": "^-?[0-9]{1,20}$",
    "description": "A whole number of 64 bits, as text.",
}
_SCALARS: Final[dict[int, dict[str, Any]]] = {
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer", "minimum": -_I32, "maximum": _I32 - 1},
    FieldDescriptor.CPPTYPE_UINT32: {"type": "integer", "minimum": 0, "maximum": _U32 - 1},
    FieldDescriptor.CPPTYPE_INT64: _WHOLE,
    FieldDescriptor.CPPTYPE_UINT64: _WHOLE,
    FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number"},
    FieldDescriptor.CPPTYPE_FLOAT: {"type": "number"},
}


class Schemas:
    """The schemas of the messages that were asked for, and of all that these contain.

    Attributes:
        components: The schemas by name.

    """

    def __init__(self) -> None:
        self.components: dict[str, Any] = {}

    def of(self, message: Descriptor) -> dict[str, Any]:
        """Return a reference to the schema of a message."""
        if message.full_name in _WELL_KNOWN:
            return _WELL_KNOWN[message.full_name]
        name = _name_of(message)
        if name not in self.components:
            self.components[name] = {}  # a message may contain itself
            self.components[name] = self.without(message, ())
        return {"$ref": PLACE + name}

    def without(
        self, message: Descriptor, fields: Collection[str], required: Collection[str] = ()
    ) -> dict[str, Any]:
        """Return the schema of a message without some fields, given as in JSON."""
        kept = [each for each in message.fields if each.json_name not in fields]
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {each.json_name: self._field(each) for each in kept},
            "additionalProperties": False,
        }
        return schema | ({"required": list(required)} if required else {})

    def _field(self, field: FieldDescriptor) -> dict[str, Any]:
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            value = self._value(entry.fields_by_name["value"])
            return {"type": "object", "additionalProperties": value}
        value = self._value(field)
        return {"type": "array", "items": value} if field.is_repeated else value

    def _value(self, field: FieldDescriptor) -> dict[str, Any]:
        if field.message_type is not None:
            return self.of(field.message_type)
        if field.enum_type is not None:
            return self._enum(field.enum_type)
        if field.type == FieldDescriptor.TYPE_BYTES:
            return {"type": "string", "contentEncoding": "base64"}
        return _SCALARS.get(field.cpp_type, {"type": "string"})

    def _enum(self, enum: EnumDescriptor) -> dict[str, Any]:
        name = _name_of(enum)
        self.components[name] = {"type": "string", "enum": [each.name for each in enum.values]}
        return {"$ref": PLACE + name}


def _name_of(described: Descriptor | EnumDescriptor) -> str:
    return described.full_name.removeprefix(_PACKAGE)
