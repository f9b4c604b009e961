"""What callers pass, checked before anything is sent."""

import datetime
import enum
from collections.abc import Sequence
from typing import TypeVar

from google.protobuf import duration_pb2, timestamp_pb2

from staddle._errors import BadRequestError
from staddle._protocol.convert import path_fault
from staddle._types.entries import PathLike, path_to_bytes

E = TypeVar("E", bound=enum.StrEnum)
S = TypeVar("S", bound=str)


def one_of(field: str, value: S, words: Sequence[S]) -> S:
    """One of a few words. Raises BadRequestError, which names them."""
    if value not in words:
        names = ", ".join(words)
        raise BadRequestError(f"{field} is one of {names}, not {value!r}.", facts={"field": field})
    return value


def choice(field: str, value: str, choices: type[E]) -> E:
    """One of the words of an enumeration. Raises BadRequestError, which names them."""
    return choices(one_of(field, value, tuple(choices)))


def checked_path(path: PathLike) -> bytes:
    """A path inside a backup, as bytes. Raises BadRequestError for what is none."""
    raw = path_to_bytes(path)
    wrong = path_fault(raw)
    if wrong:
        raise BadRequestError(f"invalid path {raw!r}: {wrong}.", facts={"field": "path"})
    return raw


def duration_to_wire(field: str, value: datetime.timedelta) -> duration_pb2.Duration:
    """A length of time as a message. Raises BadRequestError for what is not whole seconds."""
    if value < datetime.timedelta(0) or value.microseconds:
        raise BadRequestError(f"{field} must be whole seconds, not {value}.", facts={"field": field})
    return duration_pb2.Duration(seconds=value.days * 86_400 + value.seconds)


def timestamp_to_wire(field: str, moment: datetime.datetime) -> timestamp_pb2.Timestamp:
    """A moment (without a zone: local) as a message. Raises BadRequestError for one out of range."""
    message = timestamp_pb2.Timestamp()
    try:
        message.FromDatetime(moment.astimezone(datetime.UTC))
    except (OverflowError, ValueError, OSError) as error:
        raise BadRequestError(f"{moment} is out of the range of times.", facts={"field": field}) from error
    return message
