"""What callers pass, checked before anything is sent."""

import enum
from collections.abc import Sequence
from typing import TypeVar

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
