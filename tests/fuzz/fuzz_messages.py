"""Messages with one field changed, so that all around it stays right."""

from __future__ import annotations

import random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

UPLOAD = "u" * 32
"""Stands for the id of an upload that is open; its epoch goes with it."""
PATHS = (
    "a",
    "d",
    "d/big",
    "d/link/x",
    "a/b",
    "",
    "d/",
    "../x",
    "a\0",
    "x" * 1025,
    "y/" * 1023 + "y",
    "é",
    "z",
    "sparse",
)
NUMBERS = (0, 1, 2, 5, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)


def mutate_message(chance: random.Random, message: Message, depth: int = 0) -> None:
    """One field of a message, or of one inside it, set to something else."""
    if not message.DESCRIPTOR.fields:
        return
    fields = [field for field, _ in message.ListFields()]
    inside = [field for field in fields if field.type == FieldDescriptor.TYPE_MESSAGE and not _is_map(field)]
    if inside and chance.random() < 0.75 and depth < 8:
        field = chance.choice(inside)
        value = getattr(message, field.name)
        if not field.is_repeated:
            mutate_message(chance, value, depth + 1)
        elif chance.random() < 0.6:
            mutate_message(chance, chance.choice(value), depth + 1)
        else:
            _mutate_list(chance, value)
        return
    field = chance.choice(fields if fields and chance.random() < 0.6 else list(message.DESCRIPTOR.fields))
    if _is_map(field) or chance.random() < 0.15:
        message.ClearField(field.name)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        (
            getattr(message, field.name).add()
            if field.is_repeated
            else getattr(message, field.name).SetInParent()
        )
    elif field.is_repeated:
        getattr(message, field.name).append(_scalar(chance, field))
    else:
        setattr(message, field.name, _scalar(chance, field))


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _mutate_list(chance: random.Random, items: Any) -> None:
    at, other = chance.randrange(len(items)), chance.randrange(len(items))
    kept = [type(item).FromString(item.SerializeToString()) for item in items]
    match chance.randrange(3):
        case 0:
            del kept[at]
        case 1:
            kept.insert(other, kept[at])
        case _:
            kept[at], kept[other] = kept[other], kept[at]
    del items[:]
    items.extend(kept)


def _scalar(chance: random.Random, field: FieldDescriptor) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return chance.choice((b"", b"x", bytes(31), bytes(32), b"\xff", b"../\xff", bytes(5000)))
        case FieldDescriptor.CPPTYPE_STRING:
            return chance.choice((*PATHS, UPLOAD, "latest", "0" * 32, "\x7f", "é" * 200, "d1"))
        case FieldDescriptor.CPPTYPE_BOOL:
            return chance.random() < 0.5
        case FieldDescriptor.CPPTYPE_ENUM:
            return chance.choice((0, 1, 2, 3, 4, 7, 8, 99, -1))
        case FieldDescriptor.CPPTYPE_INT32 | FieldDescriptor.CPPTYPE_UINT32:
            signed = field.cpp_type == FieldDescriptor.CPPTYPE_INT32
            return chance.choice([each for each in NUMBERS if each < (2**31 if signed else 2**32)])
        case FieldDescriptor.CPPTYPE_INT64:
            return chance.choice((-1, -(2**63), *(each for each in NUMBERS if each < 2**63)))
        case _:
            return chance.choice(NUMBERS)
