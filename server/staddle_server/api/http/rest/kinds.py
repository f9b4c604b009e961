"""What a parameter may be: how its text is read, and how OpenAPI describes it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from staddle_server.base.limits import (
    DATASET_BYTES_MAX,
    HOST_BYTES_MAX,
    PAGE_TOKEN_BYTES_MAX,
    PATH_BYTES_MAX,
    TAG_KEY_BYTES_MAX,
    TAG_VALUE_BYTES_MAX,
)

_AT: Final = "at="
_ID: Final = re.compile("[0-9a-fA-F]{4,32}")


class ParameterKind(NamedTuple):
    """A kind of parameter.

    Attributes:
        schema: Its schema in OpenAPI.
        read: Returns the value of a decoded text. Raises ValueError with what was expected.

    """

    schema: dict[str, Any]
    read: Callable[[bytes], Any]


def text(bytes_max: int, *, empty: bool = True, control: bool = False, **more: Any) -> ParameterKind:
    """Return the kind of texts up to a size. `control`: they may have control characters, but no NUL. `more` is for
    the schema.
    """

    def read(given: bytes) -> str:
        if len(given) > bytes_max:
            raise ValueError(f"the limit is {bytes_max} bytes")
        if not given and not empty:
            raise ValueError("expected a text that is not empty")
        found = _utf8(given)
        return found if control else _printable(found)

    # A schema counts characters.
    least = {} if empty else {"minLength": 1}
    return ParameterKind({"type": "string", "maxLength": bytes_max, **least, **more}, read)


def _utf8(given: bytes) -> str:
    if b"\0" in given:
        raise ValueError("a NUL is not allowed")
    try:
        return given.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("expected UTF-8") from None


def _printable(found: str) -> str:
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in found):
        raise ValueError("control characters are not allowed")
    return found


def number(most: int) -> ParameterKind:
    """Return the kind of whole numbers up to `most`."""

    def read(given: bytes) -> int:
        if not re.fullmatch(rb"[0-9]{1,10}", given) or int(given) > most:
            raise ValueError(f"expected a whole number, at most {most}")
        return int(given)

    return ParameterKind({"type": "integer", "minimum": 0, "maximum": most}, read)


def one_of(*names: str) -> ParameterKind:
    """Return the kind of texts that are one of these."""

    def read(given: bytes) -> str:
        found = given.decode("utf-8", "replace")
        if found not in names:
            raise ValueError(f"expected one of {', '.join(names)}")
        return found

    return ParameterKind({"type": "string", "enum": list(names)}, read)


def _flag(given: bytes) -> bool:
    if given not in {b"true", b"false"}:
        raise ValueError("expected true or false")
    return given == b"true"


def _time(given: bytes) -> str:
    found = given.decode("utf-8", "replace")
    try:
        Timestamp().FromJsonString(found)
    except (ValueError, OverflowError):
        raise ValueError(
            'expected a time such as 2026-11-30T12:00:00Z ("+" in a query is written %2B)'
        ) from None
    return found


def _backup(given: bytes) -> str:
    found = given.decode("utf-8", "replace")
    if not _ID.fullmatch(found):
        raise ValueError("expected an id, or its first 4 digits or more")
    return found


def _selector(given: bytes) -> dict[str, str]:
    found = given.decode("utf-8", "replace")
    if found.startswith(_AT):
        return {"at": _time(given[len(_AT) :])}
    if found != "latest" and not _ID.fullmatch(found):
        raise ValueError('expected an id, its first 4 digits or more, "latest", or at=TIME')
    return {"backup": found}


def _path(given: bytes) -> bytes:
    if len(given) > PATH_BYTES_MAX:
        raise ValueError(f"the limit is {PATH_BYTES_MAX} bytes")
    return given


def _tag(given: bytes) -> dict[str, str]:
    key, equals, value = given.partition(b"=")
    if not 1 <= len(key) <= TAG_KEY_BYTES_MAX or len(value) > TAG_VALUE_BYTES_MAX:
        raise ValueError(
            f"expected KEY or KEY=VALUE, with 1 to {TAG_KEY_BYTES_MAX} and at most {TAG_VALUE_BYTES_MAX} bytes"
        )
    found = {"key": _printable(_utf8(key)), "value": _printable(_utf8(value))}
    return found if equals else {"key": found["key"]}


DATASET: Final = text(DATASET_BYTES_MAX, empty=False)
BACKUP: Final = ParameterKind({"type": "string", "pattern": f"^{_ID.pattern}$"}, _backup)
"""A backup by id, for what changes it: neither "latest" nor a time, which mean another one tomorrow."""
SELECTOR: Final = ParameterKind(
    {
        "type": "string",
        "pattern": f"^({_ID.pattern}|latest|at=.+)$",
        "examples": ["latest", "at=2026-11-30T12:00:00Z"],
    },
    _selector,
)
"""A backup for what reads it. Its value is a BackupSelector in JSON."""
PATH_BYTES: Final = ParameterKind({"type": "string"}, _path)
"""A path inside a backup; its value is bytes."""
FLAG: Final = ParameterKind({"type": "boolean"}, _flag)
TIME: Final = ParameterKind({"type": "string", "format": "date-time"}, _time)
TAG: Final = ParameterKind(
    {
        "type": "string",
        "pattern": rf"^[^=]{{1,{TAG_KEY_BYTES_MAX}}}(=[\s\S]{{0,{TAG_VALUE_BYTES_MAX}}})?$",
    },
    _tag,
)
"""KEY or KEY=VALUE; its value is a TagFilter in JSON."""
HOST: Final = text(HOST_BYTES_MAX)
PAGE_TOKEN: Final = ParameterKind({"type": "string"}, text(PAGE_TOKEN_BYTES_MAX).read)
